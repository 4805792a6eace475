//! Checks one receipt, step by step. Each step says what it found; a later one
//! goes on where it still can, so that one change shows as what it is.

use casemate_attestation::appraise::DeviceVerdict;
use casemate_attestation::{Appraisal, Bundle, Hardware, UnixTime};

use super::{Check, Included, Receipt, TrustFile, VerificationTree};
use crate::checkpoint::Checkpoint;
use crate::quorum::WitnessPolicy;
use crate::record::{self, Authentic};
use crate::{
    Decision, Grant, Identity, Invocation, Leaf, LeafKind, Outcome, Record, Verdict, merkle, text,
};

/// Checks the receipt `bytes` against what the auditor trusts.
pub fn verify(bytes: &[u8], trust: &TrustFile) -> VerificationTree {
    let receipt = match Receipt::decode(bytes) {
        Ok(receipt) => receipt,
        Err(error) => {
            let check = Check::fail("format", "receipt", "a receipt", error);
            return VerificationTree { subject: "not a receipt".to_owned(), checks: vec![check] };
        }
    };
    let (gateway, decision, outcome) = gateway_checks(&receipt, trust);
    let mut checks = vec![log_checks(&receipt, trust), gateway];
    let Some(decision) = decision else {
        return VerificationTree { subject: "a call that could not be read".to_owned(), checks };
    };
    let (identity_group, identity) = identity_checks(&receipt, trust, &decision);
    checks.push(identity_group);
    let (invocation_group, invocation) = invocation_checks(&decision, identity.as_ref());
    checks.push(invocation_group);
    checks.push(attestation_checks(&receipt, trust, identity.as_ref()));
    if let Some(invocation) = &invocation {
        checks.push(grant_checks(&receipt, trust, &decision, invocation, identity.as_ref()));
    }
    checks.push(scope_checks(trust));
    let subject = subject(&decision, outcome.as_deref());
    VerificationTree { subject, checks }
}

/// The call in one line.
fn subject(decision: &Decision, outcome: Option<&Outcome>) -> String {
    let call = record::peek::<Invocation>(&decision.invocation)
        .map(|(_, call)| format!("{} call {} by {}", call.tool, call.sequence, call.sandbox))
        .unwrap_or_else(|_| "a call".to_owned());
    let end = outcome.map(|outcome| format!(", {}", outcome.status.name())).unwrap_or_default();
    format!("{call}: {}{end}, at {}", verdict(decision), seconds(decision))
}

fn verdict(decision: &Decision) -> String {
    match decision.verdict {
        Verdict::Allow => format!("allowed by {}", decision.rules.join(", ")),
        Verdict::Hold(hold) => format!("held for {} person(s)", hold.needed.count()),
        Verdict::Deny(code) => {
            format!("denied {} by {}", code.name(), decision.rules.join(", "))
        }
    }
}

fn seconds(decision: &Decision) -> UnixTime {
    UnixTime(decision.time_ms / 1000)
}

/// The checkpoint is the log's, and each leaf is under it.
fn log_checks(receipt: &Receipt, trust: &TrustFile) -> Check {
    let head = Checkpoint::verify(&receipt.checkpoint, &trust.log);
    let signature = match &head {
        Ok(head) => Check::pass(
            "log.checkpoint",
            "checkpoint signed by the log",
            format!("{}, {} leaves", head.origin, head.size),
        ),
        Err(error) => Check::fail(
            "log.checkpoint",
            "checkpoint signed by the log",
            format!("a checkpoint by {}", trust.log.name()),
            error,
        ),
    };
    let mut checks = vec![signature];
    let leaves = [
        ("log.decision", "decision is in the log", Some(&receipt.decision)),
        ("log.outcome", "outcome is in the log", receipt.outcome.as_ref()),
        ("log.grant", "grant is in the log", receipt.grant.as_ref()),
    ];
    for (id, title, included) in leaves {
        match (included, &head) {
            (Some(included), Ok(head)) => checks.push(inclusion(id, title, included, head)),
            (Some(_), Err(_)) => {
                checks.push(Check::not_checkable(id, title, "without a checkpoint"));
            }
            (None, _) => {}
        }
    }
    checks.extend(trust.witnesses.as_ref().map(|policy| witnessed(policy, &receipt.checkpoint)));
    Check::group("log", "transparency log", checks)
}

/// Enough witnesses cosigned the checkpoint, by the trust file's policy.
fn witnessed(policy: &WitnessPolicy, note: &str) -> Check {
    const ID: &str = "log.witness";
    const TITLE: &str = "checkpoint cosigned by a quorum of witnesses";
    match policy.witnessed(note) {
        Some(time) => Check::pass(ID, TITLE, format!("witnessed at {}", UnixTime(time))),
        None => Check::fail(ID, TITLE, "the trust file's quorum", "fewer cosignatures"),
    }
}

fn inclusion(id: &'static str, title: &str, included: &Included, head: &Checkpoint) -> Check {
    let hash = merkle::leaf_hash(&included.leaf);
    let result =
        merkle::verify_inclusion(&hash, included.index, head.size, &included.proof, &head.root);
    match result {
        Ok(()) => Check::pass(id, title, format!("leaf {}", included.index)),
        Err(error) => Check::fail(id, title, "a proof that leads to the checkpoint's root", error),
    }
}

type GatewayPart = (Check, Option<Authentic<Decision>>, Option<Authentic<Outcome>>);

/// Decision and outcome are the gateway's and belong together.
fn gateway_checks(receipt: &Receipt, trust: &TrustFile) -> GatewayPart {
    let key = &trust.gateway_key;
    let (check, decision) = signed::<Decision>(
        "gateway.decision",
        "decision signed by the gateway",
        (LeafKind::Decision, &receipt.decision),
        key,
    );
    let mut checks = vec![check];
    let mut outcome = None;
    if let Some(included) = &receipt.outcome {
        let (check, found) = signed::<Outcome>(
            "gateway.outcome",
            "outcome signed by the gateway",
            (LeafKind::Outcome, included),
            key,
        );
        checks.push(check);
        outcome = found;
    }
    if let Some(decision) = &decision {
        checks.push(Check::pass("gateway.verdict", "decision", verdict(decision)));
        checks.push(pairing(receipt, decision, outcome.as_ref()));
    }
    (Check::group("gateway", "gateway", checks), decision, outcome)
}

/// A leaf's record, if it is of the kind and by the key.
fn signed<T: Record>(
    id: &'static str,
    title: &str,
    (kind, included): (LeafKind, &Included),
    key: &[u8; 32],
) -> (Check, Option<Authentic<T>>) {
    let by = format!("a record by key {}", text::hex(key));
    let leaf = match Leaf::decode(&included.leaf) {
        Ok(leaf) if leaf.kind == kind => leaf,
        Ok(_) => return (Check::fail(id, title, by, "a leaf of another kind"), None),
        Err(error) => return (Check::fail(id, title, by, error), None),
    };
    match T::verify(&leaf.record, key) {
        Ok(record) => (Check::pass(id, title, record.signer()), Some(record)),
        Err(error) => (Check::fail(id, title, by, error), None),
    }
}

/// An allowed call has its outcome behind it; a denied one has none.
fn pairing(
    receipt: &Receipt,
    decision: &Authentic<Decision>,
    outcome: Option<&Authentic<Outcome>>,
) -> Check {
    const ID: &str = "gateway.outcome-of-decision";
    const TITLE: &str = "outcome";
    match (decision.verdict.is_allow(), &receipt.outcome, outcome) {
        (true, Some(included), Some(outcome)) => {
            if outcome.decision != decision.digest() {
                return Check::fail(ID, TITLE, "that of this decision", "that of another");
            }
            if included.index <= receipt.decision.index {
                return Check::fail(ID, TITLE, "a leaf behind the decision's", "one before it");
            }
            Check::pass(ID, TITLE, describe(outcome))
        }
        (true, Some(_), None) => Check::not_checkable(ID, TITLE, "without a signed outcome"),
        (true, None, _) => {
            Check::not_checkable(ID, TITLE, "the receipt was made before the call had ended")
        }
        (false, None, _) => Check::pass(ID, TITLE, "none: the call was denied and never sent"),
        (false, Some(_), _) => Check::fail(ID, TITLE, "none, as the call was denied", "one"),
    }
}

fn describe(outcome: &Outcome) -> String {
    let server = outcome.upstream.as_ref().map(|upstream| {
        let program = upstream.executable.map(|digest| text::hex(&digest)).unwrap_or_default();
        format!(" by {} {} (program {program})", upstream.kind, upstream.name)
    });
    let result = outcome.result.map(|r| format!(", result of {} bytes", r.length));
    let reason = outcome.reason.as_ref().map(|reason| format!(", {reason}"));
    [Some(outcome.status.name().to_owned()), server, result, reason].into_iter().flatten().collect()
}

/// The caller's certificate is the verifier's, and the one that the gateway saw.
fn identity_checks(
    receipt: &Receipt,
    trust: &TrustFile,
    decision: &Decision,
) -> (Check, Option<Identity>) {
    let title = "certificate by the verifier's identity CA, valid at the decision";
    let identity = Identity::verify(&receipt.certificate, &trust.identity_ca, seconds(decision));
    let first = match &identity {
        Ok(identity) => Check::pass("identity.certificate", title, &identity.sandbox),
        Err(error) => Check::fail("identity.certificate", title, "a valid certificate", error),
    };
    let seen = Check::equal(
        "identity.seen",
        "the certificate that the gateway saw",
        text::hex(&decision.certificate),
        text::hex(&crate::digest(&receipt.certificate)),
    );
    (Check::group("identity", "caller", vec![first, seen]), identity.ok())
}

/// The call was signed by the caller and says what its certificate says.
fn invocation_checks(
    decision: &Decision,
    identity: Option<&Identity>,
) -> (Check, Option<Authentic<Invocation>>) {
    const SIGNATURE: &str = "call signed by the caller's attested key";
    let Some(identity) = identity else {
        let check = Check::not_checkable("call.signature", SIGNATURE, "without a caller");
        return (Check::group("call", "call", vec![check]), None);
    };
    let call = match Invocation::verify(&decision.invocation, &identity.key) {
        Ok(call) => call,
        Err(error) => {
            let check = Check::fail("call.signature", SIGNATURE, "its signature", error);
            return (Check::group("call", "call", vec![check]), None);
        }
    };
    let claims = &identity.claims;
    let told = format!(
        "{} epoch {} {} {} {}",
        call.sandbox,
        call.epoch,
        call.boundary.class,
        text::hex(&call.boundary.bundle),
        text::hex(&call.boundary.measurement)
    );
    let attested = format!(
        "{} epoch {} {} {} {}",
        identity.sandbox,
        claims.epoch,
        claims.boundary,
        text::hex(&claims.bundle),
        text::hex(&claims.measurement)
    );
    let what =
        format!("{} of {}, arguments of {} bytes", call.method, call.tool, call.arguments.length);
    let mut same =
        Check::equal("call.sandbox", "sandbox and boundary as certified", attested, told);
    if same.expected.is_empty() {
        same.actual = format!("epoch {}, boundary {}", call.epoch, call.boundary.class);
    }
    let checks = vec![
        Check::pass("call.signature", SIGNATURE, call.signer()),
        same,
        Check::pass("call.tool", "what was asked", what),
        Check::pass("call.sequence", "place in the sandbox's sequence", call.sequence),
    ];
    (Check::group("call", "call", checks), Some(call))
}

/// The certificate rests on evidence that verifies again, today, offline.
fn attestation_checks(receipt: &Receipt, trust: &TrustFile, identity: Option<&Identity>) -> Check {
    const BUNDLE: &str = "attestation bundle named by the certificate";
    let Some(identity) = identity else {
        let check = Check::not_checkable("attestation.bundle", BUNDLE, "without a caller");
        return Check::group("attestation", "attestation", vec![check]);
    };
    let claims = &identity.claims;
    let mut checks = vec![Check::equal(
        "attestation.bundle",
        BUNDLE,
        text::hex(&claims.bundle),
        text::hex(&crate::digest(&receipt.bundle)),
    )];
    let verified = Bundle::decode(&receipt.bundle)
        .and_then(|bundle| Ok((bundle.binding()?, bundle.reverify(&trust.anchors)?, bundle)));
    match verified {
        Err(error) => checks.push(Check::fail(
            "attestation.evidence",
            "evidence verifies again under the trust anchors",
            "evidence that verifies",
            error,
        )),
        Ok((binding, appraisal, bundle)) => {
            checks.push(anchor(&appraisal));
            checks.push(same_age(receipt, trust, bundle.time));
            checks.push(Check::equal(
                "attestation.key",
                "evidence is bound to the caller's key and epoch",
                format!("{} epoch {}", text::hex(&identity.key), claims.epoch),
                format!("{} epoch {}", text::hex(&binding.identity_key), binding.epoch),
            ));
            checks.extend(appraisal_checks(identity, &appraisal, &bundle));
            checks.extend(device_checks(&appraisal));
            checks.extend(pinned_checks(trust, &bundle));
        }
    }
    Check::group("attestation", "attestation", checks)
}

/// Whose word the evidence is, in words.
fn anchor(appraisal: &Appraisal) -> Check {
    let label = appraisal.anchor().map_or("no anchor", |anchor| anchor.label.as_str());
    let words = match appraisal.hardware() {
        Hardware::Genuine => format!("genuine hardware, vendor root {label}"),
        Hardware::Model => format!("a software MODEL, not hardware: root {label}"),
        Hardware::None => format!("no hardware evidence: the host's own word ({label})"),
    };
    Check::pass("attestation.evidence", "evidence verifies again under the trust anchors", words)
}

/// Evidence of another age is not what a certificate of today rests on.
fn same_age(receipt: &Receipt, trust: &TrustFile, time: UnixTime) -> Check {
    const ID: &str = "attestation.time";
    const TITLE: &str = "certificate valid when its evidence was verified";
    match Identity::verify(&receipt.certificate, &trust.identity_ca, time) {
        Ok(_) => Check::pass(ID, TITLE, time),
        Err(error) => Check::fail(ID, TITLE, format!("a certificate valid at {time}"), error),
    }
}

/// The policy and the reference values are the auditor's, where the auditor says which.
fn pinned_checks(trust: &TrustFile, bundle: &Bundle) -> Vec<Check> {
    let pins = [
        (
            "attestation.policy-pinned",
            "the trust file's policy",
            trust.policy_sha256,
            &bundle.policy,
        ),
        (
            "attestation.reference-pinned",
            "the trust file's reference values",
            trust.reference_sha256,
            &bundle.references,
        ),
    ];
    pins.into_iter()
        .filter_map(|(id, title, pin, found)| {
            let found = text::hex(&crate::digest(found.as_bytes()));
            pin.map(|pin| Check::equal(id, title, text::hex(&pin), found))
        })
        .collect()
}

/// The launch measurement that was certified is the one that evidence `proved`.
fn measurement(certified: &[u8], proved: Option<&[u8]>) -> Check {
    const ID: &str = "attestation.measurement";
    const TITLE: &str = "launch measurement";
    if certified.is_empty() && proved.is_none_or(<[u8]>::is_empty) {
        return Check::not_checkable(ID, TITLE, "no CPU evidence; the launch is the host's word");
    }
    Check::equal(ID, TITLE, text::hex(certified), text::hex(proved.unwrap_or_default()))
}

/// What the evidence proves is what the certificate says.
fn appraisal_checks(identity: &Identity, appraisal: &Appraisal, bundle: &Bundle) -> Vec<Check> {
    let claims = &identity.claims;
    let failed: Vec<&str> = appraisal.failures().map(|check| check.rule).collect();
    let rules = if failed.is_empty() {
        let image = appraisal.image().unwrap_or("none");
        let actual = format!(
            "every rule of {} holds, image {image}, policy {}, reference values {}",
            appraisal.policy(),
            text::hex(&crate::digest(bundle.policy.as_bytes())),
            text::hex(&crate::digest(bundle.references.as_bytes())),
        );
        Check::pass("attestation.policy", "appraisal policy", actual)
    } else {
        let actual = format!("failed: {}", failed.join(", "));
        Check::fail("attestation.policy", "appraisal policy", "every rule to hold", actual)
    };
    vec![
        rules,
        measurement(&claims.measurement, appraisal.measurement()),
        Check::equal(
            "attestation.boundary",
            "boundary",
            format!("{} {}", claims.boundary, claims.properties),
            format!("{} {}", appraisal.boundary(), appraisal.properties()),
        ),
        Check::equal(
            "attestation.hardware",
            "hardware",
            claims.hardware.clone(),
            appraisal.hardware().name().to_owned(),
        ),
    ]
}

/// What the evidence proves of each device, and what it cannot.
fn device_checks(appraisal: &Appraisal) -> Vec<Check> {
    const TITLE: &str = "device bound to the same evidence";
    let anchor = |device: &DeviceVerdict| {
        let label = device.anchor.as_deref().unwrap_or("no anchor");
        match device.hardware {
            Hardware::Model => format!("{}, a software MODEL under {label}", device.name),
            _ => format!("{}, {} under {label}", device.name, device.hardware.name()),
        }
    };
    const ID: &str = "attestation.device";
    let check = |device: &DeviceVerdict| match (device.accepted, device.reasons.is_empty()) {
        (true, _) => Check::pass(ID, TITLE, anchor(device)),
        (false, false) => {
            let actual = format!("{}: {}", device.name, device.reasons.join("; "));
            Check::fail(ID, TITLE, "every rule about devices to hold", actual)
        }
        // Nothing is wrong with this one; the policy's check names what is.
        (false, true) => {
            let why = format!("{}: the machine's set of devices is not accepted", device.name);
            Check::not_checkable(ID, TITLE, why)
        }
    };
    let mut checks: Vec<Check> = appraisal.devices().iter().map(check).collect();
    if let Some(device) = appraisal.devices().first() {
        let place = device.location.clone();
        checks.push(Check::not_checkable("attestation.location", "where the devices are", place));
    }
    checks
}

/// The grant is its issuer's, and covers the call as far as a receipt shows.
fn grant_checks(
    receipt: &Receipt,
    trust: &TrustFile,
    decision: &Decision,
    call: &Invocation,
    identity: Option<&Identity>,
) -> Check {
    const SIGNATURE: &str = "grant signed by its issuer";
    let group = |checks| Check::group("grant", "grant", checks);
    let (Some(included), Some(named)) = (&receipt.grant, call.grant) else {
        let check = if decision.verdict.is_allow() {
            Check::fail("grant.signature", SIGNATURE, "a grant, as the call was allowed", "none")
        } else {
            Check::not_checkable("grant.signature", SIGNATURE, "the call named no known grant")
        };
        return group(vec![check]);
    };
    let issuer = Leaf::decode(&included.leaf)
        .ok()
        .and_then(|leaf| record::peek::<Grant>(&leaf.record).ok())
        .and_then(|(_, grant)| trust.issuers.get(&grant.issuer));
    let Some(key) = issuer else {
        let expected = "an issuer of the trust file";
        return group(vec![Check::fail("grant.signature", SIGNATURE, expected, "another")]);
    };
    let (check, grant) =
        signed::<Grant>("grant.signature", SIGNATURE, (LeafKind::Grant, included), key);
    let mut checks = vec![check];
    if let Some(grant) = grant {
        checks.push(Check::equal(
            "grant.digest",
            "the grant that the call names",
            text::hex(&named.digest),
            text::hex(&grant.digest()),
        ));
        checks.push(order(included, &receipt.decision));
        if decision.verdict.is_allow() {
            checks.push(coverage(&grant, decision, call, identity));
        }
    }
    group(checks)
}

/// A grant that came after the decision was not what allowed it.
fn order(grant: &Included, decision: &Included) -> Check {
    const ID: &str = "grant.order";
    const TITLE: &str = "the grant was in the log before the decision";
    if grant.index < decision.index {
        Check::pass(ID, TITLE, format!("leaf {} before {}", grant.index, decision.index))
    } else {
        Check::fail(ID, TITLE, format!("a leaf before {}", decision.index), grant.index)
    }
}

/// An allowed call is within the grant's subject, time, tools and boundary.
fn coverage(
    grant: &Grant,
    decision: &Decision,
    call: &Invocation,
    identity: Option<&Identity>,
) -> Check {
    let clause = decision.rules.iter().find_map(|rule| rule.strip_prefix("grant/tools/"));
    let clause = clause.and_then(|at| at.parse::<usize>().ok()).and_then(|at| grant.tools.get(at));
    let subject = identity.is_some_and(|identity| {
        identity.tenant == grant.tenant
            && identity.claims.task == grant.task
            && identity.claims.properties.missing(&grant.require).is_empty()
    });
    let facts = [
        ("its tenant, task and boundary", subject),
        ("a time within the grant's", grant.is_timely(seconds(decision))),
        ("the tool of the clause that decided", clause.is_some_and(|c| c.tool == call.tool)),
        ("a risk within the ceiling", decision.risk <= grant.risk_ceiling),
    ];
    const TITLE: &str = "the grant covers the call";
    match facts.iter().find(|(_, holds)| !holds) {
        Some((fact, _)) => Check::fail("grant.coverage", TITLE, fact, "a call outside"),
        None => {
            let actual =
                format!("issuer {}, task {}, until {}", grant.issuer, grant.task, grant.expires);
            Check::pass("grant.coverage", TITLE, actual)
        }
    }
}

/// What a single receipt cannot show, said rather than left out.
fn scope_checks(trust: &TrustFile) -> Check {
    const WANTED: &str = "whether this policy and these reference values are the ones you want";
    let pinned = trust.policy_sha256.is_some() && trust.reference_sha256.is_some();
    let wanted = (!pinned).then_some((
        "scope.policy",
        WANTED,
        "the trust file does not pin both policy_sha256 and reference_sha256",
    ));
    let open = [
        ("scope.payload", "arguments and result", "only their commitments are in the receipt"),
        ("scope.sequence", "no call is missing before this one", "needs the sandbox's other calls"),
        ("scope.revocation", "grant not revoked before this call", "needs the log up to here"),
    ];
    let unwitnessed = trust.witnesses.is_none().then_some((
        "scope.witness",
        "others see the same log",
        "the trust file names no witnesses",
    ));
    let open = wanted.into_iter().chain(open).chain(unwitnessed);
    let checks = open.map(|(id, title, why)| Check::not_checkable(id, title, why)).collect();
    Check::group("scope", "beyond one receipt", checks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receipt::Outcome;

    #[test]
    fn no_measurement_is_no_proof_of_one() {
        let nothing = measurement(&[], None);
        assert_eq!(nothing.outcome, Outcome::NotCheckable);
        assert!(nothing.actual.contains("the host's word"), "{}", nothing.actual);
        assert_eq!(measurement(&[1], None).outcome, Outcome::Fail);
        assert_eq!(measurement(&[], Some(&[1])).outcome, Outcome::Fail);
        assert_eq!(measurement(&[1], Some(&[1])).outcome, Outcome::Pass);
    }
}
