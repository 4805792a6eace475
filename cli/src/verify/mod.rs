//! `casemate verify`: judge evidence offline, whatever it comes in.
//!
//! Files, directories and standard input; kinds are told apart by content. All
//! that is given is one machine's: its evidence, and endorsements for it.

mod collateral;
mod devices;
mod gather;
mod print;
mod state;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use casemate_attestation::bundle::Asked;
use casemate_attestation::seen::GRACE_DAYS;
use casemate_attestation::{
    Appraisal, Bundle, Check, Expected, Policy, ReferenceValues, TrustAnchors, UnixTime, appraise,
    verify,
};
use clap::Args;

use crate::Answer;
use gather::Gathered;
pub(crate) use print::unknown;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Evidence, endorsements, bundles, or directories of them; `-` is standard input.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Trust anchors (docs/formats/trust-anchors.md); the vendors' roots if not given.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// The appraisal policy (docs/formats/policy.md); the strict defaults if not given.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Reference values of the images to accept.
    #[arg(long, value_name = "FILE")]
    reference: Option<PathBuf>,
    /// The 64 bytes that the evidence must carry, in hex.
    #[arg(long, value_name = "HEX")]
    report_data: Option<String>,
    /// The nonce that the vTPM of an Azure machine must have answered, in hex.
    #[arg(long, value_name = "HEX", conflicts_with = "report_data")]
    nonce: Option<String>,
    /// The time to judge at, seconds since 1970; now if not given. Bundles have their own.
    #[arg(long, value_name = "SECONDS")]
    at: Option<u64>,
    /// Writes what was judged, and how it came out, to a file that verifies again
    /// years later (docs/formats/bundle.md).
    #[arg(long, value_name = "FILE")]
    bundle: Option<PathBuf>,
    /// Remembers in this file how new the endorsements of an affirmed machine were,
    /// and refuses older ones (docs/formats/verify.md).
    #[arg(long, value_name = "FILE")]
    state: Option<PathBuf>,
    /// Days for which the state still lets older endorsements pass after newer
    /// ones were first seen; 0 is none.
    #[arg(long, value_name = "DAYS", default_value_t = GRACE_DAYS, requires = "state",
          value_parser = clap::value_parser!(u64).range(..=365))]
    state_grace_days: u64,
    /// The result as JSON, version 1 (docs/formats/verify.md).
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Answer> {
    match judge(arguments) {
        Err(error) if arguments.json => Ok(unknown(&error)),
        outcome => outcome,
    }
}

fn judge(arguments: &Arguments) -> anyhow::Result<Answer> {
    let anchors = match &arguments.trust {
        Some(path) => TrustAnchors::from_toml(&read(path)?)?,
        None => TrustAnchors::vendor(),
    };
    let now = UnixTime(arguments.at.map_or_else(clock, Ok)?);
    let gathered = Gathered::from_paths(&arguments.paths, now)?;
    for note in &gathered.notes {
        eprintln!("casemate: {note}");
    }
    if let Some(bundle) = &gathered.bundle {
        only_the_bundle(arguments)?;
        return match bundle.reverify(&anchors) {
            Ok(appraisal) => {
                let open = undecided(&Given::in_bundle(bundle), &appraisal);
                Ok(print::appraisal(&appraisal, &open, arguments.json))
            }
            Err(error) => Ok(print::refusal("bundle", &error.to_string(), arguments.json)),
        };
    }
    let claims = match verify(&gathered.evidence, &anchors, &gathered.endorsements, now) {
        Ok(claims) => claims,
        Err(error) => {
            return Ok(print::not_verified(&error, arguments.json));
        }
    };
    let policy = Policy::from_toml(&text_of(arguments.policy.as_ref())?)?;
    let references = ReferenceValues::from_toml(&text_of(arguments.reference.as_ref())?)?;
    let nonce = arguments.nonce.as_deref().map(hex::decode).transpose().context("--nonce")?;
    let expected = match &nonce {
        Some(nonce) => Expected::TpmNonce(nonce),
        None => expected(arguments)?,
    };
    let appraisal = appraise(&claims, &policy, &references, expected, now);
    if let Some(path) = &arguments.state
        && let Err(error) =
            state::advance(path, &claims, &appraisal, now, arguments.state_grace_days)?
    {
        return Ok(print::not_verified(&error, arguments.json));
    }
    if let Some(path) = &arguments.bundle {
        let (evidence, endorsements) = (&gathered.evidence, &gathered.endorsements);
        let bundle =
            Bundle::new(evidence, expected, endorsements, &policy, &references, &appraisal);
        write_bundle(path, &bundle.encode())?;
    }
    let open = undecided(&Given::on_command_line(arguments), &appraisal);
    Ok(print::appraisal(&appraisal, &open, arguments.json))
}

/// What cannot be read again is not written: a bundle over a limit of the format
/// is an error that names the limit.
fn write_bundle(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    Bundle::decode(bytes).context("--bundle: what was judged does not fit into a bundle")?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}

/// A bundle is judged by what is in it, at its own time: whoever also names a
/// policy or a challenge must not think that it was used.
fn only_the_bundle(arguments: &Arguments) -> anyhow::Result<()> {
    let given = [
        ("--policy", arguments.policy.is_some()),
        ("--reference", arguments.reference.is_some()),
        ("--report-data", arguments.report_data.is_some()),
        ("--nonce", arguments.nonce.is_some()),
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

/// What evidence is compared with, and was given.
struct Given {
    question: bool,
    references: bool,
    policy: bool,
}

impl Given {
    fn on_command_line(arguments: &Arguments) -> Self {
        Self {
            question: arguments.report_data.is_some() || arguments.nonce.is_some(),
            references: arguments.reference.is_some(),
            policy: arguments.policy.is_some(),
        }
    }

    fn in_bundle(bundle: &Bundle) -> Self {
        Self {
            question: bundle.asked != Asked::Nothing,
            references: !bundle.references.is_empty(),
            policy: !bundle.policy.is_empty(),
        }
    }
}

/// The rules that failed only because what they compare with was not given:
/// neither yes nor no.
fn undecided(given: &Given, appraisal: &Appraisal) -> Vec<&'static str> {
    let fresh = ["evidence.bound", "host.report-data", "azure.pcrs"].as_slice();
    let image = ["snp.measurement", "tdx.measurement", "host.launch"].as_slice();
    let mut open = Vec::new();
    if !given.question {
        open.extend_from_slice(fresh);
    }
    if !given.references {
        open.extend_from_slice(image);
    }
    if !given.policy {
        open.push("gpu.count");
    }
    // Report data alone names no challenge that devices could have answered.
    open.extend_from_slice(&["gpu.bound", "gpu.nonce"]);
    let said = |check: &Check| check.rule == "gpu.inventory" && check.actual == "INVENTORY_MISSING";
    if appraisal.failures().any(said) {
        open.push("gpu.inventory");
    }
    let failed = |rule: &&'static str| appraisal.failures().any(|check| check.rule == *rule);
    open.into_iter().filter(failed).collect()
}

fn expected(arguments: &Arguments) -> anyhow::Result<Expected<'static>> {
    let Some(text) = &arguments.report_data else { return Ok(Expected::Nothing) };
    let bytes: Vec<u8> = hex::decode(text).context("--report-data")?;
    let length = bytes.len();
    match <[u8; 64]>::try_from(bytes) {
        Ok(bytes) => Ok(Expected::ReportData(bytes)),
        Err(_) => bail!("--report-data: expected 64 bytes, got {length}"),
    }
}

fn clock() -> anyhow::Result<u64> {
    Ok(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs())
}

fn text_of(path: Option<&PathBuf>) -> anyhow::Result<String> {
    path.map_or_else(|| Ok(String::new()), read)
}

fn read(path: &PathBuf) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}
