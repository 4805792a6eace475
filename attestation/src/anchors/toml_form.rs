//! The operator's file of trust anchors (docs/formats/trust-anchors.md).

use serde::Deserialize;

use super::{AmdAnchor, AnchorKind, HostAnchor, IntelAnchor, NvidiaAnchor, TrustAnchors};
use super::{vendor_amd, vendor_intel, vendor_nvidia};
use crate::error::VerifyError;
use crate::snp::Product;
use crate::wire::{hex, unhex_array};
use crate::x509::{Certificate, PemLimits, certificates_from_pem};

/// Why a file of trust anchors is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnchorsError {
    /// The text is not TOML of this shape.
    #[error("trust anchors: {0}")]
    Toml(String),
    /// A value is not one of those allowed.
    #[error("trust anchors, {field}: expected {expected}, got {actual}")]
    Value {
        /// The key at fault.
        field: String,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
    /// A certificate is not a root of its kind.
    #[error("trust anchors, {label}: {error}")]
    Certificate {
        /// The anchor at fault.
        label: String,
        /// What is wrong with it.
        error: VerifyError,
    },
}

/// The whole file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    /// The vendors whose pinned roots are believed; all three if not given.
    #[serde(default = "all_vendors")]
    vendor: Vec<Vendor>,
    #[serde(default)]
    amd: Vec<Amd>,
    #[serde(default)]
    intel: Vec<Intel>,
    #[serde(default)]
    nvidia: Vec<Nvidia>,
    #[serde(default)]
    host: Vec<Host>,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Vendor {
    Amd,
    Intel,
    Nvidia,
}

/// The kind that the operator expects; "hardware" only for a vendor's own key.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Hardware,
    Model,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Amd {
    label: String,
    kind: Kind,
    product: String,
    ark_pem: String,
    ask_pem: Option<String>,
    asvk_pem: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Intel {
    label: String,
    kind: Kind,
    root_pem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nvidia {
    label: String,
    kind: Kind,
    device_root_pem: String,
    rim_root_pem: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Host {
    name: String,
    ed25519: String,
}

fn all_vendors() -> Vec<Vendor> {
    vec![Vendor::Amd, Vendor::Intel, Vendor::Nvidia]
}

pub(super) fn read(text: &str) -> Result<TrustAnchors, AnchorsError> {
    let file: File = toml::from_str(text).map_err(|error| AnchorsError::Toml(error.to_string()))?;
    let mut anchors = TrustAnchors::default();
    if file.vendor.contains(&Vendor::Amd) {
        anchors.amd = vendor_amd();
    }
    if file.vendor.contains(&Vendor::Intel) {
        anchors.intel = vendor_intel();
    }
    if file.vendor.contains(&Vendor::Nvidia) {
        anchors.nvidia = vendor_nvidia();
    }
    for one in file.amd {
        anchors.amd.push(one.read()?);
    }
    for one in file.intel {
        anchors.intel.push(one.read()?);
    }
    for one in file.nvidia {
        anchors.nvidia.push(one.read()?);
    }
    for one in file.host {
        anchors.hosts.push(one.read()?);
    }
    refuse_doubles(&anchors)?;
    Ok(anchors)
}

impl Amd {
    fn read(self) -> Result<AmdAnchor, AnchorsError> {
        let product = Product::from_name(&self.product).ok_or_else(|| AnchorsError::Value {
            field: format!("amd {:?}, product", self.label),
            expected: "Milan, Genoa or Turin",
            actual: self.product.clone(),
        })?;
        let ark = certificate(&self.label, &self.ark_pem)?;
        let intermediates = [&self.ask_pem, &self.asvk_pem]
            .into_iter()
            .flatten()
            .map(|pem| certificate(&self.label, pem))
            .collect::<Result<_, _>>()?;
        let anchor = AmdAnchor::new(&self.label, product, ark, intermediates)
            .map_err(|error| wrong_certificate(&self.label, error))?;
        expect_kind(&self.label, self.kind, anchor.anchor().kind)?;
        Ok(anchor)
    }
}

impl Intel {
    fn read(self) -> Result<IntelAnchor, AnchorsError> {
        let root = certificate(&self.label, &self.root_pem)?;
        let anchor = IntelAnchor::new(&self.label, root)
            .map_err(|error| wrong_certificate(&self.label, error))?;
        expect_kind(&self.label, self.kind, anchor.anchor().kind)?;
        Ok(anchor)
    }
}

impl Nvidia {
    fn read(self) -> Result<NvidiaAnchor, AnchorsError> {
        let device_root = certificate(&self.label, &self.device_root_pem)?;
        let rim_root = certificate(&self.label, &self.rim_root_pem)?;
        let anchor = NvidiaAnchor::new(&self.label, device_root, rim_root)
            .map_err(|error| wrong_certificate(&self.label, error))?;
        expect_kind(&self.label, self.kind, anchor.anchor().kind)?;
        Ok(anchor)
    }
}

impl Host {
    fn read(self) -> Result<HostAnchor, AnchorsError> {
        match unhex_array(&self.ed25519) {
            Some(key) => Ok(HostAnchor::new(&self.name, key)),
            None => Err(AnchorsError::Value {
                field: format!("host {:?}, ed25519", self.name),
                expected: "64 hex digits",
                actual: self.ed25519,
            }),
        }
    }
}

fn certificate(label: &str, pem: &str) -> Result<Certificate, AnchorsError> {
    let limits = PemLimits { blocks: 1, ..PemLimits::CHAIN };
    let mut certificates = certificates_from_pem(pem.as_bytes(), limits)
        .map_err(|error| wrong_certificate(label, error))?;
    certificates.pop().ok_or_else(|| AnchorsError::Value {
        field: label.to_owned(),
        expected: "one certificate",
        actual: "none".to_owned(),
    })
}

fn wrong_certificate(label: &str, error: VerifyError) -> AnchorsError {
    AnchorsError::Certificate { label: label.to_owned(), error }
}

/// Refuses a file whose author expects another kind than the key earns.
fn expect_kind(label: &str, wanted: Kind, earned: AnchorKind) -> Result<(), AnchorsError> {
    match (wanted, earned) {
        (Kind::Hardware, AnchorKind::Hardware) | (Kind::Model, AnchorKind::Model) => Ok(()),
        (Kind::Hardware, _) => Err(AnchorsError::Value {
            field: format!("{label:?}, kind"),
            expected: "\"model\": hardware is only what a vendor's own key signs",
            actual: "\"hardware\"".to_owned(),
        }),
        (Kind::Model, _) => Err(AnchorsError::Value {
            field: format!("{label:?}, kind"),
            expected: "\"hardware\": the key is a vendor's own",
            actual: "\"model\"".to_owned(),
        }),
    }
}

/// Refuses two hosts of one name or of one key: a claim must have one owner.
fn refuse_doubles(anchors: &TrustAnchors) -> Result<(), AnchorsError> {
    let mut names = std::collections::BTreeSet::new();
    let mut keys = std::collections::BTreeSet::new();
    for host in &anchors.hosts {
        let name = &host.anchor().label;
        if !names.insert(name.clone()) || !keys.insert(*host.key()) {
            return Err(AnchorsError::Value {
                field: format!("host {name:?}"),
                expected: "a name and a key that no other host has",
                actual: hex(host.key()),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_vendors_are_read() {
        let key = "07".repeat(32);
        let text = format!("vendor = [\"amd\"]\n[[host]]\nname = \"h1\"\ned25519 = \"{key}\"\n");
        let anchors = read(&text).unwrap();
        assert_eq!((anchors.amd.len(), anchors.intel.len()), (3, 0));
        assert_eq!(anchors.host("h1").unwrap().key(), &[7; 32]);
        assert!(read("").unwrap().host("h1").is_none());
        let twice = format!("{text}[[host]]\nname = \"h2\"\ned25519 = \"{key}\"\n");
        assert!(read(&twice).is_err());
    }

    #[test]
    fn unknown_keys_and_bad_values_are_named() {
        for (text, word) in [
            ("hosts = []", "hosts"),
            ("[[host]]\nname = \"h\"\ned25519 = \"00\"", "64 hex digits"),
            (
                "[[amd]]\nlabel = \"a\"\nkind = \"model\"\nproduct = \"Rome\"\nark_pem = \"\"",
                "Rome",
            ),
            ("[[intel]]\nlabel = \"a\"\nkind = \"test\"\nroot_pem = \"\"", "kind"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }
}
