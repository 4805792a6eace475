//! A bundle, which nobody signed: it is judged by the policy, the reference values, the
//! challenge and the time inside it. What those are is said with the answer, and whoever
//! knows what they must be says so.

use anyhow::bail;
use casemate_attestation::bundle::Asked;
use casemate_attestation::crypto::sha256;
use casemate_attestation::policy::MAX_POLICY_BYTES;
use casemate_attestation::{Bundle, TrustAnchors, UnixTime};
use serde_json::{Value, json};

use super::gather::LeftOut;
use super::print::{self, Setting};
use super::{Arguments, Given, undecided};
use crate::output::Said;
use crate::{Answer, input};

/// What a bundle is judged by, for whoever reads the answer.
pub(crate) struct Facts {
    digest: [u8; 32],
    policy: [u8; 32],
    references: [u8; 32],
    kind: &'static str,
    challenge: Option<Vec<u8>>,
    time: UnixTime,
}

impl Facts {
    fn of(bundle: &Bundle) -> Self {
        let (kind, challenge) = match &bundle.asked {
            Asked::Binding(_) => ("binding", report_data(bundle).map(Vec::from)),
            Asked::ReportData(bytes) => ("report-data", Some(bytes.to_vec())),
            Asked::TpmNonce(nonce) => ("nonce", Some(nonce.clone())),
            Asked::Nothing => ("none", None),
        };
        Self {
            digest: bundle.digest(),
            policy: sha256(bundle.policy.as_bytes()),
            references: sha256(bundle.references.as_bytes()),
            kind,
            challenge,
            time: bundle.time,
        }
    }

    /// The member `bundle`.
    pub(crate) fn to_json(&self) -> Value {
        json!({
            "sha256": hex::encode(self.digest),
            "policy_sha256": hex::encode(self.policy),
            "reference_sha256": hex::encode(self.references),
            "asked": self.kind,
            "challenge": self.challenge.as_ref().map(hex::encode),
            "time": self.time.0,
        })
    }

    /// The same for people.
    pub(crate) fn lines(&self, time: UnixTime) -> Vec<String> {
        let challenge = match &self.challenge {
            Some(bytes) => format!("{} {}", self.kind, hex::encode(bytes)),
            None => "nothing was asked".to_owned(),
        };
        vec![
            format!(
                "judged     by the policy, reference values and challenge inside the bundle, at {}",
                time.rfc3339()
            ),
            format!("policy     SHA-256 {}", hex::encode(self.policy)),
            format!("reference  SHA-256 {}", hex::encode(self.references)),
            format!("challenge  {challenge}"),
        ]
    }
}

/// Verifies `bundle` again, under the caller's anchors.
pub(crate) fn judge(
    arguments: &Arguments,
    bundle: &Bundle,
    left_out: &[LeftOut],
    anchors: &TrustAnchors,
) -> anyhow::Result<Said> {
    refuse_flags(arguments)?;
    let setting = Setting {
        as_json: arguments.json,
        time: bundle.time,
        clock: "the bundle's",
        left_out,
        bundle: Some(Facts::of(bundle)),
    };
    if let Some(differs) = differs(arguments, bundle)? {
        return Ok(print::refusal(Answer::No, "bundle", &differs, &setting));
    }
    Ok(match bundle.reverify(anchors) {
        Ok(appraisal) => {
            let open = undecided(&Given::in_bundle(bundle), &appraisal);
            print::appraisal(&appraisal, &open, &setting)
        }
        Err(error) => print::refusal(Answer::No, "bundle", &error.to_string(), &setting),
    })
}

/// Whoever names a time or a state must not think that it was used.
fn refuse_flags(arguments: &Arguments) -> anyhow::Result<()> {
    let given = [
        ("--at", arguments.at.is_some()),
        ("--bundle", arguments.bundle.is_some()),
        ("--state", arguments.state.is_some()),
    ];
    if let Some((flag, _)) = given.iter().find(|(_, given)| *given) {
        bail!(
            "{flag}: a bundle is judged by the policy, challenge and time inside it; to judge its \
             evidence by others, give the evidence itself"
        );
    }
    Ok(())
}

/// Which flag names another policy, other reference values or another challenge than those
/// inside.
fn differs(arguments: &Arguments, bundle: &Bundle) -> anyhow::Result<Option<String>> {
    let digest = |text: &str| format!("SHA-256 {}", hex::encode(sha256(text.as_bytes())));
    let texts = [
        ("--policy", &arguments.policy, &bundle.policy),
        ("--reference", &arguments.reference, &bundle.references),
    ];
    for (flag, path, inside) in texts {
        let Some(path) = path else { continue };
        let text = input::text(path, u64::try_from(MAX_POLICY_BYTES)?)?;
        if text != *inside {
            let (expected, actual) = (digest(&text), digest(inside));
            return Ok(Some(format!(
                "{flag}: expected the bundle to be judged by this file, {expected}, got {actual} \
                 inside it"
            )));
        }
    }
    let (flag, expected, actual) = if let Some(data) = arguments.report_data()? {
        ("--report-data", data.to_vec(), report_data(bundle).map(Vec::from))
    } else if let Some(nonce) = arguments.nonce()? {
        let inside = match &bundle.asked {
            Asked::TpmNonce(inside) => Some(inside.clone()),
            _ => None,
        };
        ("--nonce", nonce, inside)
    } else {
        return Ok(None);
    };
    if actual.as_ref() == Some(&expected) {
        return Ok(None);
    }
    let actual = actual.map_or_else(|| "no such challenge".to_owned(), hex::encode);
    let expected = hex::encode(expected);
    Ok(Some(format!("{flag}: expected the bundle to answer {expected}, got {actual} inside it")))
}

/// The 64 bytes that the evidence inside had to carry, if any.
fn report_data(bundle: &Bundle) -> Option<[u8; 64]> {
    match &bundle.asked {
        Asked::Binding(_) => bundle.binding().ok().map(|binding| binding.report_data()),
        Asked::ReportData(bytes) => Some(*bytes),
        Asked::TpmNonce(_) | Asked::Nothing => None,
    }
}
