//! Reference values: which images are known, and what each one enforces
//! (docs/formats/policy.md).

use serde::Deserialize;

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
    /// Digests of kernel, initrd and command line, for a host's claim.
    #[serde(default)]
    pub launch: Vec<LaunchDigests>,
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

    /// The image that has this SEV-SNP launch digest.
    pub fn by_snp_measurement(&self, measurement: &[u8; 48]) -> Option<&ImageReference> {
        self.images
            .iter()
            .find(|image| image.snp_measurements.iter().any(|known| known.0 == *measurement))
    }

    /// The image that has these launch digests.
    pub fn by_launch(&self, launch: &LaunchDigests) -> Option<&ImageReference> {
        self.images.iter().find(|image| image.launch.contains(launch))
    }
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
        assert_eq!(values.by_snp_measurement(&[1; 48]).unwrap().label, "a");
        assert!(values.by_snp_measurement(&[2; 48]).is_none());
        let launch = LaunchDigests { kernel: [2; 32], initrd: [3; 32], cmdline: [4; 32] };
        assert_eq!(values.by_launch(&launch).unwrap().label, "a");
        assert!(ReferenceValues::from_toml("[[image]]\nlabel = \"a\"\nnote = 1").is_err());
    }
}
