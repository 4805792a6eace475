//! Rules on a host's claim.

use super::{Findings, Hardware};
use crate::boundary::Property;
use crate::policy::HostPolicy;
use crate::reference::ReferenceValues;
use crate::time::UnixTime;
use crate::verify::HostClaims;
use crate::wire::hex;

pub(super) fn appraise(
    host: &HostClaims,
    policy: &HostPolicy,
    references: &ReferenceValues,
    report_data: Option<[u8; 64]>,
    now: UnixTime,
    findings: &mut Findings,
) {
    let before = findings.checks.failed();
    name(host, policy, findings);
    bound(host, report_data, findings);
    age(host, policy, now, findings);
    let image = launch(host, policy, references, findings);
    if findings.checks.failed() > before {
        return;
    }
    findings.fresh |= report_data.is_some();
    // A vendor's hardware says itself what it measured.
    if findings.hardware != Hardware::Genuine && findings.image.is_none() {
        findings.image = image;
    }
    findings.host = Some(host.anchor.label.clone());
    findings.anchor.get_or_insert_with(|| host.anchor.clone());
    findings.claimed_boundary = Some(host.claim.boundary);
    findings.claimed = host.claim.properties.iter().filter(|p| believable(*p)).collect();
}

fn name(host: &HostClaims, policy: &HostPolicy, findings: &mut Findings) {
    let name = &host.claim.host;
    if policy.hosts.is_empty() {
        return findings.checks.not_asked("host.name", name);
    }
    findings.checks.compare(
        "host.name",
        policy.hosts.contains(name),
        format!("one of {}", policy.hosts.join(", ")),
        name,
        "run on an accepted host, or add this one to host.hosts in the policy",
    );
}

fn bound(host: &HostClaims, report_data: Option<[u8; 64]>, findings: &mut Findings) {
    let actual = hex(&host.claim.report_data);
    match report_data {
        // Nothing ties the claim to this evidence, and a claim of another
        // machine of the host would do.
        None => findings.checks.compare(
            "host.report-data",
            false,
            "report data that both sides know",
            actual,
            "give the report data or the binding; a vTPM's nonce does not bind a host's claim",
        ),
        Some(expected) => findings.checks.compare(
            "host.report-data",
            host.claim.report_data == expected,
            hex(&expected),
            actual,
            "the claim answers another challenge; attest again on this connection",
        ),
    }
}

fn age(host: &HostClaims, policy: &HostPolicy, now: UnixTime, findings: &mut Findings) {
    let issued = host.claim.issued_at;
    let fresh = issued <= now.plus_seconds(policy.max_ahead_seconds)
        && now <= issued.plus_seconds(policy.max_age_seconds);
    findings.checks.compare(
        "host.age",
        fresh,
        format!(
            "made within {} s before or {} s after {now}",
            policy.max_age_seconds, policy.max_ahead_seconds
        ),
        issued,
        "ask the host for a new claim, and compare its clock with the verifier's",
    );
}

fn launch(
    host: &HostClaims,
    policy: &HostPolicy,
    references: &ReferenceValues,
    findings: &mut Findings,
) -> Option<String> {
    let launch = &host.claim.launch;
    let actual = format!(
        "kernel {}, initrd {}, cmdline {}",
        hex(&launch.kernel),
        hex(&launch.initrd),
        hex(&launch.cmdline)
    );
    if !policy.require_known_launch {
        findings.checks.not_asked("host.launch", actual);
        return None;
    }
    let image = references.by_launch(launch);
    findings.checks.compare(
        "host.launch",
        image.is_some(),
        "kernel, initrd and command line of a known image",
        actual,
        "launch a known image, or add these digests to the reference values",
    );
    image.map(|image| image.label.clone())
}

/// What a host may be believed about: what it built, not what it cannot see to.
fn believable(property: Property) -> bool {
    matches!(
        property,
        Property::OwnKernel
            | Property::HardwareVirtualization
            | Property::DeviceIsolation
            | Property::Mediated
    )
}
