//! What a device says of itself and what its certificates say of it.

use crate::x509::Certificate;

use super::code::{Code, Finding, Source};
use super::opaque::{Mode, Opaque, Pdi, field};
use super::report::Report;
use super::rim::Manifest;

/// What kind of device it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum DeviceKind {
    /// A GPU.
    Gpu,
    /// An NVSwitch.
    Switch,
}

/// A report and chain, interpreted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// GPU or switch.
    pub kind: DeviceKind,
    /// The chip that the leaf certificate is for: `GH100`, `GB100`, `LS10`.
    pub chip: Option<String>,
    /// The chip that the report names, where it does.
    pub reported_chip: Option<String>,
    /// The name of the boot ROM's certificate; NVIDIA's claim `hwmodel`.
    pub hwmodel: Option<String>,
    /// The leaf's serial number in decimal; NVIDIA's claim `ueid`.
    pub ueid: Option<String>,
    /// The device's identity, from the boot ROM's certificate.
    pub pdi: Option<Pdi>,
    /// The nonce that the report answers.
    pub nonce: [u8; 32],
    /// Whether the leaf's key signed the report.
    pub signed: bool,
    /// How many blocks were measured.
    pub measurements: usize,
    /// Zero bytes after the signature.
    pub trailing_zeros: usize,
    /// The version of the opaque data.
    pub opaque_version: u16,
    /// The driver's version (GPU).
    pub driver_version: Option<String>,
    /// The firmware's version: VBIOS of a GPU, BIOS of a switch.
    pub firmware_version: Option<String>,
    /// Project, project SKU and chip SKU, of which the manifest's id is made (GPU).
    pub board: Option<[String; 3]>,
    /// Whether the report names its firmware's digest.
    pub names_fwid: bool,
    /// Whether the video decoder 0 is on (GPU).
    pub nvdec0: Option<bool>,
    /// How the machine's GPUs are shared out (GPU).
    pub mode: Option<Mode>,
    /// The mode, if the report states it in so many words.
    pub stated_mode: Option<Mode>,
    /// The identity that a switch reports of itself.
    pub reported_pdi: Option<Pdi>,
    /// The identities of the devices it says it is connected to.
    pub peers: Vec<Pdi>,
    /// Whether a switch's configuration is locked.
    pub locked: Option<bool>,
}

impl DeviceKind {
    /// The name in claims and policies.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gpu => "gpu",
            Self::Switch => "nvswitch",
        }
    }

    /// The parts of the device that need a manifest each.
    pub fn sources(self) -> &'static [Source] {
        match self {
            Self::Gpu => &[Source::Driver, Source::Vbios],
            Self::Switch => &[Source::Bios],
        }
    }
}

impl Facts {
    /// Interprets a report; `signed` tells whether its signature holds.
    pub(crate) fn read(
        report: &Report<'_>,
        chain: &[Certificate],
        signed: bool,
    ) -> Result<Self, Finding> {
        let opaque = &report.opaque;
        let chip = chain.first().and_then(chip_of);
        let kind = kind(chip.as_deref(), opaque);
        let gpu = kind == DeviceKind::Gpu;
        let brom = chain.get(1);
        let text = |kind| opaque.text(kind);
        let board = (text(field::PROJECT)?, text(field::PROJECT_SKU)?, text(field::CHIP_SKU)?);
        Ok(Self {
            kind,
            reported_chip: text(field::CHIP_INFO)?,
            hwmodel: brom.map(|brom| brom.subject().common_name.clone()),
            ueid: chain.first().map(|leaf| decimal(leaf.serial())),
            pdi: brom.and_then(pdi_of),
            nonce: report.nonce,
            signed,
            measurements: report.measurements.len(),
            trailing_zeros: report.trailing_zeros,
            opaque_version: opaque.version(),
            driver_version: text(field::DRIVER_VERSION)?,
            firmware_version: opaque.firmware_version()?,
            board: match board {
                (Some(project), Some(sku), Some(chip)) if gpu => Some([project, sku, chip]),
                _ => None,
            },
            names_fwid: opaque.fwid()?.is_some(),
            nvdec0: if gpu { opaque.nvdec0()? } else { None },
            mode: if gpu { Some(opaque.mode()?) } else { None },
            stated_mode: if gpu { opaque.stated_mode()? } else { None },
            reported_pdi: if gpu { None } else { opaque.pdi_of_switch()? },
            peers: if gpu { opaque.switches_of_gpu()? } else { opaque.gpus_of_switch()? },
            locked: if gpu { None } else { opaque.switch_locked()? },
            chip,
        })
    }

    /// The version that a manifest for `source` must have.
    pub fn version_for(&self, source: Source) -> Option<&str> {
        match source {
            Source::Driver => self.driver_version.as_deref(),
            Source::Vbios | Source::Bios => self.firmware_version.as_deref(),
        }
    }

    /// The id under which NVIDIA's service keeps the manifest for `source`.
    pub fn manifest_id(&self, source: Source) -> Option<String> {
        let version = self.version_for(source)?;
        let plain = version.replace('.', "").to_uppercase();
        match (source, self.chip.as_deref()) {
            (Source::Driver, Some(chip)) if chip.starts_with("GH") => {
                Some(format!("NV_GPU_DRIVER_{chip}_{version}"))
            }
            (Source::Driver, _) => {
                let chip = self.reported_chip.as_deref().unwrap_or("GB100");
                Some(format!("NV_GPU_CC_DRIVER_{chip}_{version}"))
            }
            (Source::Vbios, _) => {
                let [project, sku, chip] = self.board.as_ref()?;
                let board = format!("{project}_{sku}_{chip}").to_uppercase();
                Some(format!("NV_GPU_VBIOS_{board}_{plain}"))
            }
            (Source::Bios, _) => Some(format!("NV_SWITCH_BIOS_5612_0002_890_{plain}")),
        }
    }

    /// What of `manifest` is for another version or another chip.
    pub(crate) fn manifest_mismatch(
        &self,
        source: Source,
        manifest: Option<&Manifest>,
    ) -> Vec<Finding> {
        let Some(manifest) = manifest else { return Vec::new() };
        let mut findings = Vec::new();
        let expected = self.version_for(source).unwrap_or("(not reported)");
        if !expected.eq_ignore_ascii_case(&manifest.version) {
            let actual = manifest.version.clone();
            findings.push(Finding::new(Code::RimVersion, "colloquialVersion", expected, actual));
        }
        let edition = if source == Source::Bios { "SWITCH" } else { "GPU" };
        let chip = self.chip.as_deref().unwrap_or("(not certified)");
        // Without any certificate there is no chip to compare: the chain's own
        // fault says so.
        let certified = self.ueid.is_some();
        let other = !chip.eq_ignore_ascii_case(&manifest.product) || manifest.edition != edition;
        if certified && other {
            let actual = format!("{} {}", manifest.edition, manifest.product);
            let expected = format!("{edition} {chip}");
            findings.push(Finding::new(Code::RimProduct, "product", expected, actual));
        }
        findings
    }

    /// What the report and the certificates say differently.
    pub(crate) fn contradictions(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut differ = |field: &str, expected: String, actual: String| {
            if expected != actual {
                findings.push(Finding::new(Code::ChipMismatch, field, expected, actual));
            }
        };
        if let (Some(certified), Some(reported)) = (&self.chip, &self.reported_chip) {
            differ("chip", certified.clone(), reported.clone());
        }
        if let (Some(certified), Some(reported)) = (self.pdi, self.reported_pdi) {
            differ("identity (PDI)", certified.to_string(), reported.to_string());
        }
        findings
    }
}

/// The first word of a leaf's name: `GH100 A01 GSP FMC LF`, `LS_10 A01 FSP FMC LF`.
fn chip_of(leaf: &Certificate) -> Option<String> {
    let word = leaf.subject().common_name.split(' ').next()?;
    (!word.is_empty()).then(|| word.replace('_', ""))
}

fn kind(chip: Option<&str>, opaque: &Opaque<'_>) -> DeviceKind {
    let names_gpus = opaque.bytes(field::SWITCH_GPU_PDIS).is_some();
    match chip {
        Some(chip) if chip.starts_with("LS") => DeviceKind::Switch,
        None if names_gpus => DeviceKind::Switch,
        _ => DeviceKind::Gpu,
    }
}

/// The low 64 bits of a boot ROM certificate's serial number.
fn pdi_of(brom: &Certificate) -> Option<Pdi> {
    brom.serial().last_chunk::<8>().copied().map(Pdi)
}

/// A serial number in decimal. RFC 5280 allows 20 bytes; longer ones stay hex.
fn decimal(serial: &[u8]) -> String {
    if serial.len() > 21 {
        return crate::wire::hex(serial);
    }
    let mut digits = vec![0_u8];
    for byte in serial {
        let mut carry = u32::from(*byte);
        for digit in &mut digits {
            let value = u32::from(*digit).saturating_mul(256).saturating_add(carry);
            *digit = u8::try_from(value % 10).unwrap_or(0);
            carry = value / 10;
        }
        while carry > 0 {
            digits.push(u8::try_from(carry % 10).unwrap_or(0));
            carry /= 10;
        }
    }
    digits.iter().rev().map(|digit| char::from(b'0'.saturating_add(*digit))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_print_in_decimal() {
        assert_eq!(decimal(&[0]), "0");
        assert_eq!(decimal(&[1, 0]), "256");
        assert_eq!(
            decimal(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            u64::MAX.to_string()
        );
    }
}
