//! Reference values: which images are known, and what each one enforces
//! (docs/formats/policy.md).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::azure::PCRS;
use crate::boundary::Properties;
use crate::host_claim::LaunchDigests;
use crate::policy::{HexBytes, PolicyError, read_toml};

/// The images that a relying party accepts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReferenceValues {
    /// The text that they were read from; it travels in bundles.
    source: String,
    images: Vec<ImageReference>,
}

/// One known image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageReference {
    /// A label for people and results.
    pub label: String,
    /// What the measured image itself enforces, such as `mediated`. Believed
    /// only with hardware evidence of the measurement.
    #[serde(default)]
    pub properties: Properties,
    /// SEV-SNP launch digests, one for each accepted launch shape.
    #[serde(default)]
    pub snp_measurements: Vec<HexBytes<48>>,
    /// TDX measurements, one for each accepted launch shape.
    #[serde(default)]
    pub tdx: Vec<TdxReference>,
    /// On Azure the launch measurement is the paravisor's: what it may have
    /// booted, one for each accepted boot. None: this image is not known there.
    #[serde(default)]
    pub azure: Vec<AzureReference>,
    /// Digests of kernel, initrd and command line, for a host's claim.
    #[serde(default)]
    pub launch: Vec<LaunchDigests>,
}

/// What a TD of a known image measures. MRTD is the firmware alone: what it
/// loaded is in RTMR1 and RTMR2, and so these two must be given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TdxReference {
    /// The initial contents of the TD.
    pub mrtd: HexBytes<48>,
    /// The firmware's configuration, which depends on the machine's shape; none: any.
    pub rtmr0: Option<HexBytes<48>>,
    /// The boot loader or kernel.
    pub rtmr1: HexBytes<48>,
    /// The kernel's command line and initrd.
    pub rtmr2: HexBytes<48>,
    /// What the workload measured; none: any.
    pub rtmr3: Option<HexBytes<48>>,
}

/// What the vTPM of an Azure machine measured of a known image.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AzureReference {
    /// The registers that are compared, by number; at least one.
    #[serde(deserialize_with = "pcrs")]
    pub pcrs: BTreeMap<usize, HexBytes<32>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    image: Vec<ImageReference>,
}

impl ReferenceValues {
    /// Reads reference values. Unknown keys are refused.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let document: Document = read_toml("reference values", text)?;
        Ok(Self { source: text.to_owned(), images: document.image })
    }

    /// The text that they were read from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Every known image.
    pub fn images(&self) -> &[ImageReference] {
        &self.images
    }

    /// The images that have this SEV-SNP launch digest. Several share a
    /// paravisor's.
    pub fn by_snp_measurement(
        &self,
        measurement: &[u8; 48],
    ) -> impl Iterator<Item = &ImageReference> {
        self.images
            .iter()
            .filter(|image| image.snp_measurements.iter().any(|known| known.0 == *measurement))
    }

    /// The images of which a TD with these registers is an instance.
    pub fn by_tdx(
        &self,
        mrtd: &[u8; 48],
        rtmrs: &[[u8; 48]; 4],
    ) -> impl Iterator<Item = &ImageReference> {
        self.images.iter().filter(|image| image.tdx.iter().any(|known| known.fits(mrtd, rtmrs)))
    }

    /// The image that has these launch digests.
    pub fn by_launch(&self, launch: &LaunchDigests) -> Option<&ImageReference> {
        self.images.iter().find(|image| image.launch.contains(launch))
    }
}

impl TdxReference {
    fn fits(&self, mrtd: &[u8; 48], rtmrs: &[[u8; 48]; 4]) -> bool {
        let wanted = [self.rtmr0, Some(self.rtmr1), Some(self.rtmr2), self.rtmr3];
        let fits = |(wanted, rtmr): (Option<HexBytes<48>>, &[u8; 48])| {
            wanted.is_none_or(|wanted| wanted.0 == *rtmr)
        };
        self.mrtd.0 == *mrtd && wanted.into_iter().zip(rtmrs).all(fits)
    }
}

impl AzureReference {
    /// Whether the registers `pcrs`, 0 to 23, are those of this boot.
    pub fn fits(&self, pcrs: &[[u8; 32]]) -> bool {
        self.pcrs.iter().all(|(number, wanted)| pcrs.get(*number) == Some(&wanted.0))
    }
}

fn pcrs<'de, D: serde::Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<usize, HexBytes<32>>, D::Error> {
    let texts = BTreeMap::<String, HexBytes<32>>::deserialize(deserializer)?;
    let number = |text: &str| text.parse().ok().filter(|number| *number < PCRS);
    let read: Option<BTreeMap<_, _>> =
        texts.iter().map(|(text, digest)| Some((number(text)?, *digest))).collect();
    read.filter(|read| !read.is_empty() && read.len() == texts.len()).ok_or_else(|| {
        serde::de::Error::custom("pcrs: expected numbers from 0 to 23, at least one")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_found_by_what_was_measured() {
        let text = format!(
            "[[image]]\nlabel = \"a\"\nproperties = [\"mediated\"]\nsnp_measurements = [\"{}\"]\n\
             [[image.launch]]\nkernel = \"{}\"\ninitrd = \"{}\"\ncmdline = \"{}\"\n",
            "01".repeat(48),
            "02".repeat(32),
            "03".repeat(32),
            "04".repeat(32)
        );
        let values = ReferenceValues::from_toml(&text).unwrap();
        assert_eq!(values.by_snp_measurement(&[1; 48]).next().unwrap().label, "a");
        assert!(values.by_snp_measurement(&[2; 48]).next().is_none());
        let launch = LaunchDigests { kernel: [2; 32], initrd: [3; 32], cmdline: [4; 32] };
        assert_eq!(values.by_launch(&launch).unwrap().label, "a");
        assert!(ReferenceValues::from_toml("[[image]]\nlabel = \"a\"\nnote = 1").is_err());
    }

    #[test]
    fn a_td_needs_what_was_loaded_and_not_the_firmware_alone() {
        let hex = |byte: &str| byte.repeat(48);
        let text = format!(
            "[[image]]\nlabel = \"a\"\n[[image.tdx]]\nmrtd = \"{}\"\nrtmr1 = \"{}\"\nrtmr2 = \"{}\"\n",
            hex("01"),
            hex("02"),
            hex("03")
        );
        let values = ReferenceValues::from_toml(&text).unwrap();
        let rtmrs = |one, two| [[9; 48], [one; 48], [two; 48], [8; 48]];
        assert!(values.by_tdx(&[1; 48], &rtmrs(2, 3)).next().is_some());
        assert!(values.by_tdx(&[1; 48], &rtmrs(2, 4)).next().is_none());
        assert!(values.by_tdx(&[1; 48], &rtmrs(4, 3)).next().is_none());
        assert!(values.by_tdx(&[2; 48], &rtmrs(2, 3)).next().is_none());
        let firmware_alone =
            format!("[[image]]\nlabel = \"a\"\ntdx = [{{ mrtd = \"{}\" }}]", hex("01"));
        assert!(ReferenceValues::from_toml(&firmware_alone).is_err());
    }
}
