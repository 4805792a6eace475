//! Cryptography only: which bytes did which key vouch for.

use crate::anchors::{Anchor, TrustAnchors};
use crate::azure::{self, AzureClaims, TpmQuote};
use crate::error::{Reason, VerifyError};
use crate::eventlog::{EventLog, EventLogClaims};
use crate::evidence::{EndorsementKind, Evidence, EvidenceItem, EvidenceKind};
use crate::gpu::{self, DeviceResult, Inventory};
use crate::host_claim::HostClaim;
use crate::snp::{self, SnpClaims};
use crate::tdx::{self, TdxClaims};
use crate::time::UnixTime;

/// A value that a signature under a trust anchor vouches for. Only this
/// library makes one, after it has checked that signature over the received
/// bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// Called where the last signature has just verified, and nowhere else.
    pub(crate) fn new(value: T) -> Self {
        Self(value)
    }

    /// The value alone. The proof is gone with the wrapper.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> core::ops::Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// What the caller adds to what the attester sent: certificates, revocation
/// lists, TDX collateral, reference manifests.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endorsements {
    /// Each with its kind, as in the evidence envelope.
    pub items: Vec<(EndorsementKind, Vec<u8>)>,
}

/// What a whole envelope says, item by item, in the envelope's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    /// One for each item.
    pub items: Vec<ItemClaims>,
}

/// What one item says.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ItemClaims {
    /// An SEV-SNP report.
    Snp(Box<SnpClaims>),
    /// A TDX quote.
    Tdx(Box<TdxClaims>),
    /// An Azure HCL report, the SNP report inside it verified.
    Azure(Box<AzureClaims>),
    /// A quote by the vTPM that the HCL report names.
    Vtpm(Box<TpmQuote>),
    /// An event log that replays to the registers of the machine's TDX quote.
    EventLog(Box<EventLogClaims>),
    /// A GPU or NVSwitch.
    Device(Box<DeviceResult>),
    /// The guest's list of its devices.
    Inventory(Inventory),
    /// The host's statement.
    Host(Box<HostClaims>),
}

/// The host's statement, and the enrolment that vouches for its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostClaims {
    /// What the host says.
    pub claim: HostClaim,
    /// The enrolled host.
    pub anchor: Anchor,
}

impl Claims {
    /// The SNP report, if the envelope had one, be it inside an HCL report.
    pub fn snp(&self) -> Option<&SnpClaims> {
        self.items.iter().find_map(|item| match item {
            ItemClaims::Snp(claims) => Some(claims.as_ref()),
            ItemClaims::Azure(claims) => claims.snp.as_ref(),
            _ => None,
        })
    }

    /// The TDX quote, if the envelope had one.
    pub fn tdx(&self) -> Option<&TdxClaims> {
        self.items.iter().find_map(|item| match item {
            ItemClaims::Tdx(claims) => Some(claims.as_ref()),
            _ => None,
        })
    }

    /// What Azure's paravisor adds, if the envelope had an HCL report.
    pub fn azure(&self) -> Option<&AzureClaims> {
        self.items.iter().find_map(|item| match item {
            ItemClaims::Azure(claims) => Some(claims.as_ref()),
            _ => None,
        })
    }

    /// The vTPM's quote, if the envelope had one beside its HCL report.
    pub fn vtpm(&self) -> Option<&TpmQuote> {
        self.items.iter().find_map(|item| match item {
            ItemClaims::Vtpm(quote) => Some(quote.as_ref()),
            _ => None,
        })
    }

    /// The event log that replays to the TDX quote, if the envelope had one.
    pub fn event_log(&self) -> Option<&EventLogClaims> {
        self.items.iter().find_map(|item| match item {
            ItemClaims::EventLog(claims) => Some(claims.as_ref()),
            _ => None,
        })
    }

    /// The GPUs and switches, in the envelope's order.
    pub fn devices(&self) -> impl Iterator<Item = &DeviceResult> {
        self.items.iter().filter_map(|item| match item {
            ItemClaims::Device(result) => Some(result.as_ref()),
            _ => None,
        })
    }

    /// The guest's list of its devices, if the envelope had one.
    pub fn inventory(&self) -> Option<&Inventory> {
        self.items.iter().find_map(|item| match item {
            ItemClaims::Inventory(inventory) => Some(inventory),
            _ => None,
        })
    }

    /// The host's statement, if the envelope had one.
    pub fn host(&self) -> Option<&HostClaims> {
        self.items.iter().find_map(|item| match item {
            ItemClaims::Host(claims) => Some(claims.as_ref()),
            _ => None,
        })
    }
}

/// Verifies every item of `evidence` under `anchors` at `now`.
///
/// All or nothing: one item that does not verify refuses the envelope, so that
/// nobody can hide a bad item behind a good one. At most one CPU report, one
/// event log, one device inventory and one host claim are accepted.
pub fn verify(
    evidence: &Evidence,
    anchors: &TrustAnchors,
    endorsements: &Endorsements,
    now: UnixTime,
) -> Result<Verified<Claims>, VerifyError> {
    refuse_doubles(evidence)?;
    let devices = gpu::set::Devices::new(evidence, anchors, endorsements);
    let items = evidence
        .items
        .iter()
        .map(|item| match item.kind {
            EvidenceKind::GpuReport => {
                devices.verify(item, now).map(|result| ItemClaims::Device(Box::new(result)))
            }
            _ => verify_item(item, anchors, endorsements, now),
        })
        .collect::<Result<_, _>>()?;
    let claims = Claims { items };
    check_event_log(&claims)?;
    azure::check(&claims)?;
    Ok(Verified::new(claims))
}

/// A log is worth something only beside the registers that it replays to.
fn check_event_log(claims: &Claims) -> Result<(), VerifyError> {
    match (claims.event_log(), claims.tdx()) {
        (None, _) => Ok(()),
        (Some(log), Some(quote)) => log.rtmrs.check(&quote.report.rtmrs),
        (Some(_), None) => {
            Err(VerifyError::new(Reason::EventLog, "event log", "a TDX quote beside it", "none"))
        }
    }
}

fn verify_item(
    item: &EvidenceItem,
    anchors: &TrustAnchors,
    endorsements: &Endorsements,
    now: UnixTime,
) -> Result<ItemClaims, VerifyError> {
    match item.kind {
        EvidenceKind::SnpReport => {
            let claims = snp::verify_item(item, anchors, endorsements, now)?;
            Ok(ItemClaims::Snp(Box::new(claims.into_inner())))
        }
        EvidenceKind::HostClaim => {
            verify_host(&item.evidence, anchors).map(|claims| ItemClaims::Host(Box::new(claims)))
        }
        EvidenceKind::TdxQuote => {
            let claims = tdx::verify_item(item, anchors, endorsements, now)?;
            Ok(ItemClaims::Tdx(Box::new(claims.into_inner())))
        }
        EvidenceKind::AzureHcl => {
            let claims = azure::verify_item(item, anchors, endorsements, now)?;
            Ok(ItemClaims::Azure(Box::new(claims)))
        }
        EvidenceKind::AzureQuote => {
            azure::read_quote(item).map(|quote| ItemClaims::Vtpm(Box::new(quote)))
        }
        EvidenceKind::EventLog => {
            let log = EventLog::parse(&item.evidence)?;
            Ok(ItemClaims::EventLog(Box::new(EventLogClaims::of(&log))))
        }
        EvidenceKind::DeviceInventory => {
            gpu::set::verify_inventory(item).map(ItemClaims::Inventory)
        }
        // Devices share manifests, and are verified together.
        EvidenceKind::GpuReport => Err(VerifyError::new(
            Reason::Unsupported,
            "evidence item",
            "an item that is verified alone",
            format!("{:?}", item.kind),
        )),
    }
}

fn refuse_doubles(evidence: &Evidence) -> Result<(), VerifyError> {
    let count = |kinds: &[EvidenceKind]| {
        evidence.items.iter().filter(|item| kinds.contains(&item.kind)).count()
    };
    let cpus = count(&[EvidenceKind::SnpReport, EvidenceKind::TdxQuote]);
    let wrapped = count(&[EvidenceKind::SnpReport, EvidenceKind::AzureHcl]);
    let quotes = count(&[EvidenceKind::AzureQuote]);
    let hosts = count(&[EvidenceKind::HostClaim]);
    let logs = count(&[EvidenceKind::EventLog]);
    let inventories = count(&[EvidenceKind::DeviceInventory]);
    for (what, count) in [
        ("CPU reports", cpus),
        ("SNP and HCL reports", wrapped),
        ("vTPM quotes", quotes),
        ("host claims", hosts),
        ("event logs", logs),
        ("device inventories", inventories),
    ] {
        if count > 1 {
            return Err(VerifyError::new(Reason::Malformed, what, "at most one", count));
        }
    }
    Ok(())
}

/// A host's claim, by the key that the claimed name is enrolled with.
fn verify_host(bytes: &[u8], anchors: &TrustAnchors) -> Result<HostClaims, VerifyError> {
    let mut last = VerifyError::new(
        Reason::HostUnknown,
        "host claim",
        "the signature of an enrolled host",
        "no host is enrolled",
    );
    for host in &anchors.hosts {
        match HostClaim::verify(bytes, host.key()) {
            Ok(claim) if claim.host == host.anchor().label => {
                return Ok(HostClaims { claim, anchor: host.anchor().clone() });
            }
            Ok(claim) => {
                last = VerifyError::new(
                    Reason::HostClaim,
                    "host claim, host",
                    host.anchor().label.clone(),
                    claim.host,
                );
            }
            Err(error) => {
                let reason = match error {
                    crate::host_claim::HostClaimError::Cose(crate::cose::CoseError::KeyId {
                        ..
                    }) => Reason::HostUnknown,
                    _ => Reason::HostClaim,
                };
                let wrong =
                    VerifyError::new(reason, "host claim", "one that verifies", error.to_string());
                if last.reason == Reason::HostUnknown {
                    last = wrong;
                }
            }
        }
    }
    Err(last)
}
