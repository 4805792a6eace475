//! One GPU or NVSwitch: its report, its chain, its manifests, its revocation.

use std::sync::Arc;

use crate::anchors::{Anchor, NvidiaAnchor};
use crate::crypto::Scheme;
use crate::time::UnixTime;
use crate::wire;
use crate::x509::{Certificate, PemLimits, certificates_from_pem};

use super::binding::DeviceDigests;
use super::chain::{self, DEVICE};
use super::code::{Code, Finding, Source};
use super::compare::Comparison;
use super::facts::{DeviceKind, Facts};
use super::fwid;
use super::memo::Memo;
use super::report::Report;
use super::revocation::{Responses, Revocation};
use super::rim::Checked;
use super::roots::Roots;

/// NVML's chain has about 4500 bytes; eight blocks leave room to say "too long".
pub(super) const CHAIN_LIMITS: PemLimits = PemLimits { bytes: 16 * 1024, blocks: 8 };

/// Verifies device evidence under fixed anchors. It remembers the signatures
/// that it checked, and may be shared between threads.
#[derive(Debug, Default)]
pub struct Verifier {
    roots: Roots,
    memo: Arc<Memo>,
}

/// The evidence of one device and what was found to judge it by.
#[derive(Debug, Clone, Copy, Default)]
pub struct DeviceEvidence<'a> {
    /// The SPDM request and response.
    pub report: &'a [u8],
    /// The device's certificates in PEM, leaf first.
    pub chain: &'a [u8],
    /// Reference manifests, each for one part of the device.
    pub manifests: &'a [(Source, &'a [u8])],
    /// OCSP responses in DER, in any order.
    pub ocsp: &'a [&'a [u8]],
}

/// Where a device's manifests come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Manifests<'a> {
    /// The caller knows which manifest is for which part.
    Slots(&'a [(Source, Arc<Checked>)]),
    /// Those that fit are looked for.
    Pool(&'a [Arc<Checked>]),
}

/// One device's evidence, read as far as it is shared or can fail alone.
struct Judged<'a> {
    report: &'a Report<'a>,
    chain: &'a [u8],
    manifests: Manifests<'a>,
    responses: &'a Responses<'a>,
}

/// How far the evidence goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Nothing is wrong, and every part of the device was compared.
    Pass,
    /// Nothing is wrong, but a manifest is missing: the device is not affirmed.
    Partial,
    /// Something is wrong.
    Fail,
}

/// A manifest that was used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Used {
    /// The part of the device it was used for.
    pub source: Source,
    /// SHA-256 of the document; an id alone may name several.
    pub sha256: [u8; 32],
    /// When its signer's chain stops being valid.
    pub not_after: Option<UnixTime>,
    /// The anchor that its signer leads to.
    pub anchor: Option<Anchor>,
    /// The manufacturer's number that it names.
    pub manufacturer: Option<String>,
}

/// Everything that was found out about one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceResult {
    /// The digests of the evidence, for the binding.
    pub digests: DeviceDigests,
    /// What is wrong, in the order of the checks.
    pub findings: Vec<Finding>,
    /// What the device says, unless its report does not parse. Believe it only
    /// if there is no finding.
    pub facts: Option<Facts>,
    /// The comparison, if a manifest came.
    pub comparison: Option<Comparison>,
    /// The manifests.
    pub manifests: Vec<Used>,
    /// What responders say of the certificates.
    pub revocation: Vec<Revocation>,
    /// The root that the chain leads to, if it does.
    pub anchor: Option<Anchor>,
    /// When the device's chain stops being valid.
    pub not_after: Option<UnixTime>,
}

impl Verifier {
    /// A verifier that accepts what leads to `anchors`, and remembers with them:
    /// whoever keeps the anchors keeps the memory.
    pub fn new(anchors: &[NvidiaAnchor]) -> Self {
        let memo = anchors.first().map(|anchor| Arc::clone(anchor.memo())).unwrap_or_default();
        Self { roots: Roots::new(anchors), memo }
    }

    /// Reads and checks a manifest; its dates are checked when it is used.
    pub fn manifest(&self, bytes: &[u8]) -> Arc<Checked> {
        Checked::new(bytes, &self.roots, &self.memo)
    }

    /// Judges one device at the time `now`. Without a `nonce` to compare with,
    /// nothing is said about freshness.
    pub fn device(
        &self,
        evidence: &DeviceEvidence<'_>,
        nonce: Option<&[u8; 32]>,
        now: UnixTime,
    ) -> DeviceResult {
        let manifests: Vec<_> = evidence
            .manifests
            .iter()
            .map(|(source, bytes)| (*source, self.manifest(bytes)))
            .collect();
        let responses = Responses::parse(evidence.ocsp);
        self.device_with(evidence, Manifests::Slots(&manifests), &responses, nonce, now)
    }

    /// The same with manifests and responses that were read before; those of
    /// `evidence` are ignored.
    pub(crate) fn device_with(
        &self,
        evidence: &DeviceEvidence<'_>,
        manifests: Manifests<'_>,
        responses: &Responses<'_>,
        nonce: Option<&[u8; 32]>,
        now: UnixTime,
    ) -> DeviceResult {
        let mut result = DeviceResult {
            digests: super::set::digests_of(evidence),
            findings: Vec::new(),
            facts: None,
            comparison: None,
            manifests: Vec::new(),
            revocation: Vec::new(),
            anchor: None,
            not_after: None,
        };
        match Report::parse(evidence.report) {
            Ok(report) => {
                let judged =
                    Judged { report: &report, chain: evidence.chain, manifests, responses };
                self.fill(&mut result, &judged, nonce, now);
            }
            Err(finding) => result.findings.push(finding),
        }
        result
    }

    fn fill(
        &self,
        result: &mut DeviceResult,
        judged: &Judged<'_>,
        nonce: Option<&[u8; 32]>,
        now: UnixTime,
    ) {
        let report = judged.report;
        let chain = match certificates_from_pem(judged.chain, CHAIN_LIMITS) {
            Ok(chain) => chain,
            Err(error) => {
                result.findings.push(chain::because(Code::ChainParse, error));
                Vec::new()
            }
        };
        result.not_after = chain.iter().map(Certificate::not_after).min();
        self.check_chain(result, &chain, now);
        let signed = check_report(result, report, chain.first(), nonce);
        let mut chosen = Vec::new();
        match Facts::read(report, &chain, signed) {
            Ok(facts) => {
                // An unsigned report contradicts nobody.
                if signed {
                    result.findings.extend(facts.contradictions());
                }
                chosen = judged.manifests.choose(&facts, result.anchor.as_ref(), now);
                check_manifests(result, &facts, &chosen, now);
                compare(result, report, &facts, &chosen);
                result.facts = Some(facts);
            }
            Err(finding) => result.findings.push(finding),
        }
        self.check_revocation(result, &chain, &chosen, judged.responses, now);
    }

    fn check_chain(&self, result: &mut DeviceResult, chain: &[Certificate], now: UnixTime) {
        if chain.is_empty() {
            return;
        }
        match chain::check(&DEVICE, chain, &self.roots.devices, &self.memo) {
            Ok(anchor) => {
                result.anchor = Some(anchor.clone());
                result.findings.extend(chain::check_dates(&DEVICE, chain, now).err());
            }
            Err(finding) => result.findings.push(finding),
        }
    }

    /// Looks for every certificate's status; being revoked is a finding, the
    /// rest is the policy's to judge. A chain that leads nowhere is not asked about.
    fn check_revocation(
        &self,
        result: &mut DeviceResult,
        chain: &[Certificate],
        manifests: &[(Source, Arc<Checked>)],
        responses: &Responses<'_>,
        now: UnixTime,
    ) {
        if result.anchor.is_some() {
            // The leaf names no responder (docs/formats/gpu-binding.md).
            result.revocation.extend(responses.chain(None, chain, 1, now, &self.memo));
        }
        for (source, checked) in manifests.iter().filter(|(_, one)| one.anchor.is_some()) {
            let found = responses.chain(Some(*source), &checked.chain, 0, now, &self.memo);
            result.revocation.extend(found);
        }
        let revoked: Vec<_> = result.revocation.iter().filter_map(Revocation::revoked).collect();
        result.findings.extend(revoked);
    }
}

impl Manifests<'_> {
    /// The manifests for a device: as given, or for each part the one that fits
    /// version and chip. Of several, one without fault wins, then the one
    /// signed last: manifests are re-issued under one id. One that leads to
    /// another anchor than the device's does not fit.
    fn choose(
        self,
        facts: &Facts,
        anchor: Option<&Anchor>,
        now: UnixTime,
    ) -> Vec<(Source, Arc<Checked>)> {
        let pool = match self {
            Self::Slots(slots) => return slots.to_vec(),
            Self::Pool(pool) => pool,
        };
        let best = |source: &Source| {
            let fits = |checked: &&Arc<Checked>| {
                let manifest = checked.manifest.as_ref();
                manifest.is_some()
                    && foreign(anchor, checked).is_none()
                    && facts.manifest_mismatch(*source, manifest).is_empty()
            };
            let merit = |checked: &&Arc<Checked>| {
                let signed_at = checked.chain.first().map(Certificate::not_before);
                (checked.findings_at(now).is_empty(), signed_at)
            };
            let found = pool.iter().filter(fits).max_by_key(merit)?;
            Some((*source, Arc::clone(found)))
        };
        facts.kind.sources().iter().filter_map(best).collect()
    }
}

impl DeviceResult {
    /// How far the evidence goes, by the vendor's word alone.
    pub fn outcome(&self) -> Outcome {
        let needed = match &self.facts {
            Some(facts) => facts.kind.sources(),
            None => return Outcome::Fail,
        };
        let has = |source: &Source| self.manifests.iter().any(|used| used.source == *source);
        match (self.findings.is_empty(), needed.iter().all(has)) {
            (false, _) => Outcome::Fail,
            (true, true) => Outcome::Pass,
            (true, false) => Outcome::Partial,
        }
    }

    /// The names of the findings, each once, in the order of the checks.
    pub fn codes(&self) -> Vec<String> {
        let mut names = Vec::new();
        for name in self.findings.iter().map(Finding::name) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// Checks signature, nonce and firmware; tells whether the signature holds.
fn check_report(
    result: &mut DeviceResult,
    report: &Report<'_>,
    leaf: Option<&Certificate>,
    nonce: Option<&[u8; 32]>,
) -> bool {
    let scheme = Scheme::EcdsaP384Sha384Raw;
    let signed =
        leaf.is_some_and(|leaf| leaf.key().verify(scheme, report.signed, &report.signature));
    if !signed {
        let (expected, actual) = ("one by the leaf's key", "one that does not verify");
        let field = "signature of the report";
        result.findings.push(Finding::new(Code::ReportSignature, field, expected, actual));
    }
    if let Some(nonce) = nonce.filter(|nonce| report.nonce != **nonce) {
        let (expected, actual) = (wire::hex(nonce), wire::hex(&report.nonce));
        result.findings.push(Finding::new(Code::NonceMismatch, "nonce", expected, actual));
    }
    let reported = report.opaque.fwid();
    if let (Ok(Some(reported)), Some(leaf)) = (reported, leaf) {
        let certified = fwid::certified(leaf);
        if certified != Some(reported) {
            let expected = certified.map_or("(none certified)".into(), |one| wire::hex(&one));
            let actual = wire::hex(&reported);
            result.findings.push(Finding::new(Code::FwidMismatch, "firmware id", expected, actual));
        }
    }
    signed
}

/// What is wrong with a manifest that leads to another anchor than the device:
/// an anchor vouches for its own devices. A chain that leads nowhere has a
/// finding of its own.
fn foreign(device: Option<&Anchor>, checked: &Checked) -> Option<Finding> {
    let (device, manifest) = (device?, checked.anchor.as_ref()?);
    let (expected, actual) = (device.label.as_str(), manifest.label.as_str());
    (device != manifest)
        .then(|| Finding::new(Code::RimChainRoot, "anchor of the signer", expected, actual))
}

fn check_manifests(
    result: &mut DeviceResult,
    facts: &Facts,
    manifests: &[(Source, Arc<Checked>)],
    now: UnixTime,
) {
    for (source, checked) in manifests {
        let mut findings = checked.findings_at(now);
        findings.extend(foreign(result.anchor.as_ref(), checked));
        findings.extend(facts.manifest_mismatch(*source, checked.manifest.as_ref()));
        result.findings.extend(findings.into_iter().map(|finding| finding.of(*source)));
        result.manifests.push(Used {
            source: *source,
            sha256: checked.sha256,
            not_after: checked.not_after(),
            anchor: checked.anchor.clone(),
            manufacturer: checked.manifest.as_ref().and_then(|one| one.manufacturer.clone()),
        });
    }
}

fn compare(
    result: &mut DeviceResult,
    report: &Report<'_>,
    facts: &Facts,
    manifests: &[(Source, Arc<Checked>)],
) {
    let readable: Vec<_> = manifests
        .iter()
        .filter_map(|(source, checked)| Some((*source, checked.manifest.as_ref()?)))
        .collect();
    if readable.is_empty() {
        return;
    }
    let nvdec0 = if facts.kind == DeviceKind::Gpu { facts.nvdec0 } else { None };
    let comparison = Comparison::new(report, nvdec0, &readable);
    result.findings.extend(comparison.findings());
    result.comparison = Some(comparison);
}
