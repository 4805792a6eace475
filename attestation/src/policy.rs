//! What a relying party asks of evidence that verified (docs/formats/policy.md).
//!
//! An appraisal policy is a typed document: a key that this library does not
//! know is an error, and every key has a default that refuses rather than
//! admits. The empty document is [`Policy::default`].

mod generations;
mod snp;
mod tdx;

pub use generations::GenerationPolicy;
pub use snp::{SnpPolicy, TcbFloor};
pub use tdx::{AdvisoryGrace, StatusGrace, TdxPolicy};

use serde::Deserialize;

use crate::boundary::{Boundary, Properties, Property, Risk};
use crate::break_list::BreakList;
use crate::gpu::GpuPolicy;
use crate::time::UnixTime;
use crate::wire::unhex;

/// The largest policy that is read.
pub const MAX_POLICY_BYTES: usize = 256 * 1024;

/// One layered policy for all evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The text that the policy was read from; it travels in bundles.
    source: String,
    document: Document,
    break_list: Option<BreakList>,
}

/// Why a policy is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// The text is larger than the limit.
    #[error("{document}: expected at most {MAX_POLICY_BYTES} bytes, got {actual}")]
    TooLong {
        /// Which document.
        document: &'static str,
        /// How long it is.
        actual: usize,
    },
    /// The text is not TOML of this shape.
    #[error("{document}: {message}")]
    Toml {
        /// Which document.
        document: &'static str,
        /// What the TOML reader says: line, key, and what it expected.
        message: String,
    },
    /// The list of broken generations is not believed.
    #[error("policy, generations: {message}")]
    Generations {
        /// What is wrong with it.
        message: String,
    },
}

/// The document, section by section.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Document {
    /// A name for people and results.
    pub(crate) name: String,
    pub(crate) snp: SnpPolicy,
    pub(crate) tdx: TdxPolicy,
    pub(crate) gpu: GpuPolicy,
    pub(crate) host: HostPolicy,
    pub(crate) risk: RiskPolicy,
    pub(crate) generations: GenerationPolicy,
}

/// What is asked of a host's claim.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostPolicy {
    /// The enrolled hosts whose word is accepted; empty: any enrolled host.
    pub hosts: Vec<String>,
    /// How old a claim may be. Default 300 seconds.
    pub max_age_seconds: u64,
    /// How far in the future a claim may be, for clocks that differ. Default 60 seconds.
    pub max_ahead_seconds: u64,
    /// Ask that the launched kernel, initrd and command line are in the
    /// reference values. Default true.
    pub require_known_launch: bool,
}

/// What each risk class asks of the boundary.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RiskPolicy {
    /// Read-only and reversible work. Default: nothing.
    pub low: Requirement,
    /// Narrow paths to real systems. Default: own_kernel and mediated.
    pub medium: Requirement,
    /// Arbitrary execution, credentials, money. Default: own_kernel,
    /// operator_excluded, attested_fresh, debug_off and mediated.
    pub high: Requirement,
}

/// What one risk class asks for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requirement {
    /// Properties that must all be there.
    #[serde(default)]
    pub properties: Properties,
    /// The lowest boundary class. Default same-host.
    #[serde(default = "lowest")]
    pub boundary: Boundary,
}

/// Exactly `N` bytes, written as hex digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HexBytes<const N: usize>(pub [u8; N]);

/// 8 to 64 bytes, written as hex digits: the bytes that name a chip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HexPrefix(pub Vec<u8>);

impl Policy {
    /// Reads a policy. Unknown keys are refused.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let document: Document = read_toml("policy", text)?;
        document
            .snp
            .refuse_doubles()
            .map_err(|message| PolicyError::Toml { document: "policy", message })?;
        let break_list = document.generations.read()?;
        Ok(Self { document, source: text.to_owned(), break_list })
    }

    /// The text that the policy was read from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The policy's name.
    pub fn name(&self) -> &str {
        &self.document.name
    }

    /// What is asked of an SEV-SNP report.
    pub fn snp(&self) -> &SnpPolicy {
        &self.document.snp
    }

    /// What is asked of a TDX quote.
    pub fn tdx(&self) -> &TdxPolicy {
        &self.document.tdx
    }

    /// What is asked of GPUs and switches.
    pub fn gpu(&self) -> &GpuPolicy {
        &self.document.gpu
    }

    /// What is asked of a host's claim.
    pub fn host(&self) -> &HostPolicy {
        &self.document.host
    }

    /// What is accepted in spite of the list of broken generations.
    pub fn generations(&self) -> &GenerationPolicy {
        &self.document.generations
    }

    /// The list of broken generations, its signature checked.
    pub fn break_list(&self) -> Option<&BreakList> {
        self.break_list.as_ref()
    }

    /// What each risk class asks of the boundary.
    pub fn risk(&self) -> &RiskPolicy {
        &self.document.risk
    }
}

impl RiskPolicy {
    /// What `risk` asks for.
    pub fn requirement(&self, risk: Risk) -> &Requirement {
        match risk {
            Risk::Low => &self.low,
            Risk::Medium => &self.medium,
            Risk::High => &self.high,
        }
    }
}

impl Default for Document {
    fn default() -> Self {
        Self {
            name: "default".to_owned(),
            snp: SnpPolicy::default(),
            tdx: TdxPolicy::default(),
            gpu: GpuPolicy::default(),
            host: HostPolicy::default(),
            risk: RiskPolicy::default(),
            generations: GenerationPolicy::default(),
        }
    }
}

impl Default for HostPolicy {
    fn default() -> Self {
        Self {
            hosts: vec![],
            max_age_seconds: 300,
            max_ahead_seconds: 60,
            require_known_launch: true,
        }
    }
}

impl Default for RiskPolicy {
    fn default() -> Self {
        use Property::{AttestedFresh, DebugOff, Mediated, OperatorExcluded, OwnKernel};
        let ask = |properties: &[Property]| Requirement {
            properties: properties.iter().copied().collect(),
            boundary: lowest(),
        };
        Self {
            low: ask(&[]),
            medium: ask(&[OwnKernel, Mediated]),
            high: ask(&[OwnKernel, OperatorExcluded, AttestedFresh, DebugOff, Mediated]),
        }
    }
}

/// Reads one of this library's TOML documents.
pub(crate) fn read_toml<T: serde::de::DeserializeOwned>(
    document: &'static str,
    text: &str,
) -> Result<T, PolicyError> {
    if text.len() > MAX_POLICY_BYTES {
        return Err(PolicyError::TooLong { document, actual: text.len() });
    }
    toml::from_str(text).map_err(|error| PolicyError::Toml { document, message: error.to_string() })
}

fn lowest() -> Boundary {
    Boundary::SameHost
}

/// A time in a document, in RFC 3339.
fn time<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<UnixTime, D::Error> {
    let text = String::deserialize(deserializer)?;
    UnixTime::from_rfc3339(&text).ok_or_else(|| {
        serde::de::Error::custom(format!("expected a time like 2027-01-31T00:00:00Z, got {text:?}"))
    })
}

impl<'de, const N: usize> Deserialize<'de> for HexBytes<N> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        crate::wire::unhex_array(&text).map(Self).ok_or_else(|| {
            serde::de::Error::custom(format!("expected {} hex digits, got {text:?}", N * 2))
        })
    }
}

impl<'de> Deserialize<'de> for HexPrefix {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match unhex(&text) {
            Some(bytes) if (8..=64).contains(&bytes.len()) => Ok(Self(bytes)),
            _ => Err(serde::de::Error::custom(format!(
                "expected 16 to 128 hex digits, got {text:?}"
            ))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_document_is_the_default() {
        assert_eq!(Policy::from_toml("").unwrap(), Policy::default());
    }

    #[test]
    fn two_floors_for_one_product_and_date_are_refused() {
        let floor = "product = \"Milan\"\nsnp = 24\n";
        let later = format!("{floor}since = \"2027-01-01T00:00:00Z\"\n");
        for list in ["tcb", "committed_tcb", "launch_tcb"] {
            let with = |second: &str| {
                Policy::from_toml(&format!("[[snp.{list}]]\n{floor}[[snp.{list}]]\n{second}"))
            };
            assert!(with(&later).is_ok());
            let error = with(floor).unwrap_err().to_string();
            assert!(error.contains("two for Milan") && error.contains(list), "{error}");
        }
    }

    #[test]
    fn a_document_is_read_and_unknown_keys_are_refused() {
        let policy = Policy::from_toml(
            "name = \"p\"\n[snp]\nmin_report_version = 5\n\
             [[snp.tcb]]\nproduct = \"Milan\"\nsnp = 24\n\
             [risk.low]\nproperties = [\"own_kernel\"]\nboundary = \"microvm\"\n",
        )
        .unwrap();
        assert_eq!(policy.snp().tcb[0].tcb().snp, 24);
        assert_eq!(policy.risk().requirement(Risk::Low).boundary, Boundary::MicroVm);
        assert_eq!(policy.risk().high, RiskPolicy::default().high);
        for bad in [
            "snip = 1",
            "[snp]\nvmpll = 1",
            "[snp]\nvmpl = 4294967295",
            "[[snp.tcb]]\nproduct = \"Rome\"",
        ] {
            assert!(Policy::from_toml(bad).is_err(), "{bad}");
        }
    }
}
