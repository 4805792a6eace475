//! Policy only: does what was verified satisfy the relying party?
//!
//! [`appraise`] is total: it lists every rule with its outcome, what was
//! expected, what was there, and what would make it pass. [`Appraisal::affirmed`]
//! is the one way to an [`Affirmed`], and only that opens a release.

mod affirm;
mod azure;
mod checks;
mod generation;
mod gpu;
mod host;
mod snp;
mod tdx;

pub use affirm::{Affirmed, Denial};
pub use checks::{Check, Checks, NOT_ASKED, Outcome};

use crate::anchors::{Anchor, AnchorKind};
use crate::binding::Binding;
use crate::boundary::{Boundary, Properties, Property};
use crate::crypto::sha256;
use crate::policy::{Policy, RiskPolicy};
use crate::reference::{ImageReference, ReferenceValues};
use crate::time::UnixTime;
use crate::verify::{Claims, Verified};
use crate::wire::hex;

/// What the evidence must be bound to.
#[derive(Debug, Clone, Copy)]
pub enum Expected<'a> {
    /// An instance's nonce, keys and channel.
    Binding(&'a Binding),
    /// These 64 bytes, for evidence of other systems.
    ReportData([u8; 64]),
    /// A nonce that the vTPM of an Azure machine answers, whose CPU report is
    /// as old as its boot.
    TpmNonce(&'a [u8]),
    /// Nothing: freshness cannot be judged, and so nothing can be affirmed.
    Nothing,
}

/// What is known about the hardware.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hardware {
    /// No CPU evidence.
    None,
    /// CPU evidence of a software model: real formats, no hardware.
    Model,
    /// CPU evidence under a vendor's own root.
    Genuine,
}

/// The result of an appraisal. It is neither yes nor no: a relying party asks
/// with [`Appraisal::affirmed`] for the risk at hand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appraisal {
    policy: String,
    appraised_at: UnixTime,
    checks: Vec<Check>,
    boundary: Boundary,
    properties: Properties,
    hardware: Hardware,
    anchor: Option<Anchor>,
    host: Option<String>,
    image: Option<String>,
    measurement: Option<Vec<u8>>,
    fresh: bool,
    devices: Vec<DeviceVerdict>,
    known_attacks: Vec<String>,
    risk: RiskPolicy,
}

/// One GPU or switch in a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceVerdict {
    /// `gpu0`, `nvswitch3`: the kind, and its place in the evidence.
    pub name: String,
    /// Whether every rule about devices holds; it is one machine's verdict.
    pub accepted: bool,
    /// What the vendor's evidence says of this device alone.
    pub outcome: crate::gpu::Outcome,
    /// What is known about the hardware.
    pub hardware: Hardware,
    /// The anchor that its certificates lead to.
    pub anchor: Option<String>,
    /// Where it is, as far as it is known; its report does not say it.
    pub location: String,
    /// The rules that this device breaks, and how.
    pub reasons: Vec<String>,
    /// What the device's evidence says, under the vendor's claim names.
    pub claims: serde_json::Map<String, serde_json::Value>,
}

/// What the parts of an appraisal add up to, while it is made.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) checks: Checks,
    /// Properties that hardware evidence proves.
    pub(crate) proved: Properties,
    /// Properties and class that the host claims.
    pub(crate) claimed: Properties,
    pub(crate) claimed_boundary: Option<Boundary>,
    pub(crate) hardware: Hardware,
    /// A vendor's hardware keeps the operator out and debugging is off.
    pub(crate) tee: bool,
    pub(crate) anchor: Option<Anchor>,
    pub(crate) host: Option<String>,
    pub(crate) image: Option<String>,
    pub(crate) measurement: Option<Vec<u8>>,
    /// The evidence carries the expected report data.
    pub(crate) fresh: bool,
    pub(crate) devices: Vec<DeviceVerdict>,
    /// The entries of the list of broken generations that the CPU falls under,
    /// be they accepted or not.
    pub(crate) known_attacks: Vec<String>,
    /// On Azure: the vTPM's registers, or none without a quote that answers the
    /// challenge.
    pub(crate) vtpm: Option<Vec<[u8; 32]>>,
}

/// Appraises verified `claims`. Never fails: a refusal is a result.
pub fn appraise<'a>(
    claims: &Verified<Claims>,
    policy: &Policy,
    references: &ReferenceValues,
    expected: impl Into<Expected<'a>>,
    now: UnixTime,
) -> Appraisal {
    let expected = expected.into();
    let report_data = expected.report_data();
    let mut findings = Findings::new();
    let challenge = match claims.azure() {
        Some(azure) => azure::appraise(azure, claims.vtpm(), expected, &mut findings),
        None => report_data.map_or(Challenge::NotGiven, Challenge::ReportData),
    };
    if let Some(snp) = claims.snp() {
        generation::snp(snp, policy, now, &mut findings);
        snp::appraise(snp, policy.snp(), references, challenge, now, &mut findings);
    }
    if let Some(tdx) = claims.tdx() {
        generation::tdx(tdx, policy, now, &mut findings);
        tdx::appraise(tdx, policy.tdx(), references, challenge, now, &mut findings);
        tdx::event_log(claims.event_log(), policy.tdx(), &mut findings);
    }
    if let Some(host) = claims.host() {
        host::appraise(host, policy.host(), references, report_data, now, &mut findings);
    }
    gpu::appraise(&mut gpu::Devices::of(claims), policy.gpu(), expected, now, &mut findings);
    findings.checks.compare(
        "evidence.bound",
        findings.fresh,
        "evidence or a host claim that carries the expected report data",
        if findings.fresh { "carried" } else { "not shown" },
        "attest again with a fresh nonce, and give the binding to the appraisal",
    );
    findings.into_appraisal(policy, now)
}

impl Expected<'_> {
    fn report_data(self) -> Option<[u8; 64]> {
        match self {
            Self::Binding(binding) => Some(binding.report_data()),
            Self::ReportData(bytes) => Some(bytes),
            Self::TpmNonce(_) | Self::Nothing => None,
        }
    }
}

/// How a CPU report is tied to what the relying party asked.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Challenge {
    /// Nothing was asked.
    NotGiven,
    /// The report must carry these bytes.
    ReportData([u8; 64]),
    /// The report carries a digest of what carries it, or does not.
    Wrapped(bool),
}

impl Challenge {
    /// The rule `rule` on a report that carries `actual`: whether it is fresh.
    fn check(self, rule: &'static str, actual: &[u8; 64], findings: &mut Findings) -> bool {
        let expected = match self {
            Self::NotGiven | Self::Wrapped(_) => {
                findings.checks.not_asked(rule, hex(actual));
                return matches!(self, Self::Wrapped(true));
            }
            Self::ReportData(expected) => expected,
        };
        findings.checks.compare(
            rule,
            *actual == expected,
            hex(&expected),
            hex(actual),
            "the evidence answers another challenge; attest again on this connection",
        );
        *actual == expected
    }
}

impl<'a> From<&'a Binding> for Expected<'a> {
    fn from(binding: &'a Binding) -> Self {
        Self::Binding(binding)
    }
}

impl Findings {
    fn new() -> Self {
        Self {
            checks: Checks::default(),
            proved: Properties::default(),
            claimed: Properties::default(),
            claimed_boundary: None,
            hardware: Hardware::None,
            tee: false,
            anchor: None,
            host: None,
            image: None,
            measurement: None,
            fresh: false,
            devices: vec![],
            known_attacks: vec![],
            vtpm: None,
        }
    }

    /// Notes which of the images `known` by the CPU's measurement this is: what
    /// it enforces. On Azure the CPU measured the paravisor alone, which many
    /// images share, so that there the vTPM's registers decide.
    pub(crate) fn image(&mut self, known: &[&ImageReference]) -> Properties {
        let image = match &self.vtpm {
            None => known.first(),
            Some(pcrs) => {
                let boots = |image: &&&ImageReference| image.azure.iter().any(|a| a.fits(pcrs));
                let image = known.iter().find(boots);
                booted(pcrs, known.first().copied(), image.is_some(), &mut self.checks);
                image
            }
        };
        self.image = image.map(|image| image.label.clone());
        image.map(|image| image.properties.clone()).unwrap_or_default()
    }

    /// Notes a verified CPU report. Called by each TEE's own rules with what
    /// its evidence shows; what follows from it is decided here, once.
    pub(crate) fn cpu(&mut self, anchor: &Anchor, cpu: CpuFindings) {
        self.anchor = Some(anchor.clone());
        self.measurement = Some(cpu.measurement);
        self.fresh |= cpu.fresh;
        if anchor.kind != AnchorKind::Hardware {
            // A model's word is about formats. It proves nothing about the
            // machine, not even that debugging is off.
            self.hardware = Hardware::Model;
            return;
        }
        self.hardware = Hardware::Genuine;
        // A host that may debug can change all that was measured: its own word
        // is then the only one.
        if cpu.debug {
            return;
        }
        self.tee = true;
        if cpu.fresh {
            self.proved.insert(Property::AttestedFresh);
        }
        self.proved.insert(Property::OwnKernel);
        self.proved.insert(Property::HardwareVirtualization);
        self.proved.insert(Property::DeviceIsolation);
        self.proved.insert(Property::DebugOff);
        self.proved.insert(Property::OperatorExcluded);
        cpu.image_properties.iter().filter(|p| enforceable(*p)).for_each(|p| self.proved.insert(p));
    }

    fn into_appraisal(self, policy: &Policy, now: UnixTime) -> Appraisal {
        let boundary = if self.tee {
            Boundary::Tee
        } else {
            self.claimed_boundary.unwrap_or(Boundary::SameHost)
        };
        // Hardware evidence stands alone; below it the host's word is added.
        let mut properties = self.proved;
        if !self.tee {
            self.claimed.iter().for_each(|property| properties.insert(property));
        }
        Appraisal {
            policy: policy.name().to_owned(),
            appraised_at: now,
            checks: self.checks.into_list(),
            boundary,
            properties,
            hardware: self.hardware,
            anchor: self.anchor,
            host: self.host,
            image: self.image,
            measurement: self.measurement,
            fresh: self.fresh,
            devices: self.devices,
            known_attacks: self.known_attacks,
            risk: policy.risk().clone(),
        }
    }
}

/// What one CPU report shows, whatever the TEE.
#[derive(Debug)]
pub(crate) struct CpuFindings {
    /// The launch measurement.
    pub(crate) measurement: Vec<u8>,
    /// The report data is the expected one.
    pub(crate) fresh: bool,
    /// The host may debug the guest.
    pub(crate) debug: bool,
    /// What the reference values say that the measured image enforces.
    pub(crate) image_properties: Properties,
}

/// The rule on the registers of an Azure machine whose paravisor `first` has.
fn booted(pcrs: &[[u8; 32]], first: Option<&ImageReference>, fits: bool, checks: &mut Checks) {
    let actual = match pcrs {
        [] => "no vTPM quote that answers this challenge".to_owned(),
        pcrs => format!("SHA-256 of PCR 0 to 23: {}", hex(&sha256(&pcrs.concat()))),
    };
    let Some(first) = first else { return checks.not_asked("azure.pcrs", actual) };
    let expected = format!("the registers of a known boot, as of image {}", first.label);
    let hint = "ask for a vTPM quote over the challenge, boot what the reference values know, or \
                add its registers to them";
    checks.compare("azure.pcrs", fits, expected, actual, hint);
}

/// What software inside the machine can see to; the rest is the hardware's.
fn enforceable(property: Property) -> bool {
    matches!(property, Property::Mediated | Property::OwnKernel)
}

impl Hardware {
    /// The label in results and receipts.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Model => "model",
            Self::Genuine => "genuine",
        }
    }
}

impl Appraisal {
    /// The name of the policy.
    pub fn policy(&self) -> &str {
        &self.policy
    }

    /// The time that the rules were applied at.
    pub fn appraised_at(&self) -> UnixTime {
        self.appraised_at
    }

    /// Every rule with its outcome.
    pub fn checks(&self) -> &[Check] {
        &self.checks
    }

    /// The rules that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.outcome == Outcome::Fail)
    }

    /// The boundary class that was earned; below tee it is the host's claim.
    pub fn boundary(&self) -> Boundary {
        self.boundary
    }

    /// The properties that were earned or, below tee, claimed by the host.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// What is known about the hardware.
    pub fn hardware(&self) -> Hardware {
        self.hardware
    }

    /// The anchor that vouches for the CPU evidence or, without any, for the host.
    pub fn anchor(&self) -> Option<&Anchor> {
        self.anchor.as_ref()
    }

    /// The enrolled host whose claim was accepted.
    pub fn host(&self) -> Option<&str> {
        self.host.as_deref()
    }

    /// The GPUs and switches, in the order of the evidence.
    pub fn devices(&self) -> &[DeviceVerdict] {
        &self.devices
    }

    /// The attacks that the policy's list of broken generations knows against this
    /// CPU, by their ids: also those that the policy accepts for a while.
    pub fn known_attacks(&self) -> &[String] {
        &self.known_attacks
    }

    /// The label of the known image.
    pub fn image(&self) -> Option<&str> {
        self.image.as_deref()
    }

    /// The CPU's launch measurement.
    pub fn measurement(&self) -> Option<&[u8]> {
        self.measurement.as_deref()
    }

    /// One line for people: what the boundary rests on.
    pub fn label(&self) -> String {
        let stands_on = self.stands_on();
        match self.known_attacks.as_slice() {
            [] => stands_on,
            ids => format!("{stands_on}; generation under known attack ({})", ids.join(", ")),
        }
    }

    fn stands_on(&self) -> String {
        let anchor = self.anchor.as_ref().map_or("nobody", |anchor| anchor.label.as_str());
        match (self.hardware, self.host.as_deref()) {
            (Hardware::Genuine, _) if self.boundary == Boundary::Tee => {
                format!("{}, proved by hardware under {anchor}", self.boundary)
            }
            (Hardware::Genuine, host) => format!(
                "{}, claimed by host {}; hardware under {anchor}, but the guest may be debugged",
                self.boundary,
                host.unwrap_or("(none)")
            ),
            (Hardware::Model, host) => format!(
                "{}, claimed by host {}; model, not hardware, under {anchor}",
                self.boundary,
                host.unwrap_or("(none)")
            ),
            (Hardware::None, Some(host)) => format!("{}, claimed by host {host}", self.boundary),
            (Hardware::None, None) => format!("{}, nothing shown", self.boundary),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::boundary::Risk;

    fn judged(debug: bool) -> Appraisal {
        let mut findings = Findings::new();
        let mediated: Properties = [Property::Mediated].into_iter().collect();
        let cpu = CpuFindings {
            measurement: vec![1; 48],
            fresh: true,
            debug,
            image_properties: mediated,
        };
        let anchor = Anchor { label: "a vendor".to_owned(), kind: AnchorKind::Hardware };
        findings.cpu(&anchor, cpu);
        findings.into_appraisal(&Policy::default(), UnixTime(0))
    }

    /// Whatever the policy allows: it says which rules may fail, not what is proved.
    #[test]
    fn a_guest_that_may_be_debugged_proves_nothing() {
        let sound = judged(false);
        assert_eq!(sound.boundary(), Boundary::Tee);
        assert!(sound.affirmed(Risk::Medium).is_ok());
        let open = judged(true);
        assert_eq!((open.boundary(), open.hardware()), (Boundary::SameHost, Hardware::Genuine));
        assert_eq!(*open.properties(), Properties::default());
        assert!(open.affirmed(Risk::Medium).is_err() && open.affirmed(Risk::High).is_err());
    }
}
