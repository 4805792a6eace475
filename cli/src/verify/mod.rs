//! `casemate verify`: judge evidence offline, whatever it comes in.
//!
//! Files, directories and standard input; kinds are told apart by content. All
//! that is given is one machine's: its evidence, and endorsements for it.

mod bundled;
mod collateral;
mod devices;
mod doubt;
mod gather;
mod kind;
mod lists;
mod print;
mod state;
mod tree;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail, ensure};
use casemate_attestation::bundle::Asked;
use casemate_attestation::policy::MAX_POLICY_BYTES;
use casemate_attestation::seen::GRACE_DAYS;
use casemate_attestation::{
    Appraisal, Bundle, Check, Claims, Expected, Policy, ReferenceValues, TrustAnchors, UnixTime,
    Verified, VerifyError, appraise, verify,
};
use clap::Args;

use crate::output::{Said, complain, reason};
use crate::table::name_of;
use crate::{Answer, input};
use gather::{Gathered, LeftOut};
use print::{Refusal, Setting};

/// A file of anchors holds some certificates for each vendor.
const MAX_TRUST_BYTES: u64 = 1024 * 1024;

#[derive(Args)]
pub(crate) struct Arguments {
    /// Evidence, endorsements, bundles, or directories of them; `-` is standard input.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// Trust anchors (docs/formats/trust-anchors.md); the vendors' roots if not given.
    #[arg(long, value_name = "FILE")]
    trust: Option<PathBuf>,
    /// The appraisal policy (docs/formats/policy.md); the strict defaults if not given.
    /// Beside a bundle: what its own must be, as with the next three.
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
    /// The time to judge at, as 2025-01-31, as 2025-01-31T00:00:00Z or in seconds since
    /// 1970; now if not given. Bundles have their own.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<UnixTime>,
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
    let said = match judge(arguments) {
        Err(error) if arguments.json => {
            complain(&reason(&error));
            Said::input(&reason(&error))
        }
        outcome => outcome?,
    };
    said.write()
}

impl Arguments {
    /// The 64 bytes of `--report-data`.
    fn report_data(&self) -> anyhow::Result<Option<[u8; 64]>> {
        let Some(text) = &self.report_data else { return Ok(None) };
        let bytes: Vec<u8> = input::unhex(text).context("--report-data")?;
        let length = bytes.len();
        match bytes.try_into() {
            Ok(bytes) => Ok(Some(bytes)),
            Err(_) => bail!("--report-data: expected 64 bytes, got {length}"),
        }
    }

    /// The bytes of `--nonce`.
    fn nonce(&self) -> anyhow::Result<Option<Vec<u8>>> {
        let Some(text) = &self.nonce else { return Ok(None) };
        let nonce = input::unhex(text).context("--nonce")?;
        ensure!(!nonce.is_empty(), "--nonce: expected at least one byte in hex digits, got none");
        Ok(Some(nonce))
    }
}

fn judge(arguments: &Arguments) -> anyhow::Result<Said> {
    let anchors = match &arguments.trust {
        Some(path) => TrustAnchors::from_toml(&input::text(path, MAX_TRUST_BYTES)?)?,
        None => TrustAnchors::vendor(),
    };
    // What is asked is read before what answers: a bad argument is one whatever comes.
    let (report_data, nonce) = (arguments.report_data()?, arguments.nonce()?);
    let expected = match (&nonce, report_data) {
        (Some(nonce), _) => Expected::TpmNonce(nonce),
        (None, Some(data)) => Expected::ReportData(data),
        (None, None) => Expected::Nothing,
    };
    let now = arguments.at.map_or_else(clock, Ok)?;
    refuse_bundle_inside(arguments)?;
    let mut gathered = Gathered::from_paths(&arguments.paths, now)?;
    gathered.leave_out_strangers(&anchors);
    if let Some(bundle) = &gathered.bundle {
        return bundled::judge(arguments, bundle, &gathered.left_out, &anchors);
    }
    let setting = Setting {
        as_json: arguments.json,
        time: now,
        clock: if arguments.at.is_some() { "as --at says" } else { "now" },
        left_out: &gathered.left_out,
        bundle: None,
    };
    let claims = match verified(&gathered, &anchors, now) {
        Ok(claims) => claims,
        Err(refusal) => {
            return Ok(print::not_verified(&refusal, gathered.lacks_its_root(), &setting));
        }
    };
    appraised(arguments, &gathered, &claims, expected, &setting)
}

/// Compares what the evidence says with what was asked, and keeps what is to be kept.
fn appraised(
    arguments: &Arguments,
    gathered: &Gathered,
    claims: &Verified<Claims>,
    expected: Expected<'_>,
    setting: &Setting<'_>,
) -> anyhow::Result<Said> {
    let policy = Policy::from_toml(&text_of(arguments.policy.as_deref())?)?;
    let references = ReferenceValues::from_toml(&text_of(arguments.reference.as_deref())?)?;
    ensure!(
        arguments.nonce.is_none() || claims.azure().is_some(),
        "--nonce: expected the HCL report of an Azure machine, whose vTPM answers a nonce, got \
         none; any other machine is asked with --report-data"
    );
    let now = setting.time;
    let appraisal = appraise(claims, &policy, &references, expected, now);
    if let Some(path) = &arguments.state
        && let (days, whole) = (arguments.state_grace_days, setting.doubt().is_none())
        && let Err(error) = state::advance(path, claims, &appraisal, now, days, whole)?
    {
        return Ok(print::not_verified(&Refusal { error, file: None }, false, setting));
    }
    if let Some(path) = &arguments.bundle {
        let (evidence, endorsements) = (&gathered.evidence, &gathered.endorsements);
        let bundle =
            Bundle::new(evidence, expected, endorsements, &policy, &references, &appraisal);
        write_bundle(path, &bundle.encode(), &gathered.left_out)?;
    }
    let open = undecided(&Given::on_command_line(arguments), &appraisal);
    Ok(print::appraisal(&appraisal, &open, setting))
}

/// What the evidence says, or why it is refused. A list or table that does not read is a
/// refusal whether or not this evidence made the library look at it: what it says of the machine
/// is not known.
fn verified<'a>(
    gathered: &'a Gathered,
    anchors: &TrustAnchors,
    now: UnixTime,
) -> Result<Verified<Claims>, Refusal<'a>> {
    let outcome = verify(&gathered.evidence, anchors, &gathered.endorsements, now);
    let named = |error: VerifyError| Refusal { file: gathered.file_of(&error), error };
    let Some((unread, file)) = &gathered.unread else {
        return outcome.map_err(named);
    };
    match outcome {
        Err(error) if error.reason != unread.reason && !print::is_missing(error.reason) => {
            Err(named(error))
        }
        _ => Err(Refusal { error: unread.clone(), file: Some(file) }),
    }
}

/// A bundle among the evidence would be judged in its place the next time.
fn refuse_bundle_inside(arguments: &Arguments) -> anyhow::Result<()> {
    let Some(bundle) = &arguments.bundle else { return Ok(()) };
    let folder = bundle.parent().filter(|parent| !parent.as_os_str().is_empty());
    let Ok(folder) = folder.unwrap_or(Path::new(".")).canonicalize() else { return Ok(()) };
    let mut folders = arguments.paths.iter().filter(|path| path.is_dir());
    let read = folders.find(|path| path.canonicalize().is_ok_and(|path| folder.starts_with(path)));
    match read {
        None => Ok(()),
        Some(path) => bail!(
            "--bundle: expected a file outside of what is read, got {} in {}",
            name_of(bundle),
            name_of(path)
        ),
    }
}

/// What cannot be read again is not written: a bundle over a limit of the format
/// is an error that names the limit. Nor is one that would forget what was left out.
fn write_bundle(path: &Path, bytes: &[u8], left_out: &[LeftOut]) -> anyhow::Result<()> {
    if let Some(one) = left_out.iter().find(|one| one.matters) {
        bail!("--bundle: expected nothing left out that may matter, got {}: {}", one.name, one.why);
    }
    Bundle::decode(bytes).context("--bundle: what was judged does not fit into a bundle")?;
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", name_of(path)))
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

fn clock() -> anyhow::Result<UnixTime> {
    Ok(UnixTime(SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs()))
}

/// A time in any of the forms of `--at`.
fn time(text: &str) -> Result<UnixTime, String> {
    let seconds = || text.parse().ok().map(UnixTime);
    let day = || UnixTime::from_rfc3339(&format!("{text}T00:00:00Z"));
    UnixTime::from_rfc3339(text)
        .or_else(day)
        .or_else(seconds)
        .ok_or_else(|| "expected 2025-01-31, 2025-01-31T00:00:00Z or seconds since 1970".to_owned())
}

fn text_of(path: Option<&Path>) -> anyhow::Result<String> {
    let max = u64::try_from(MAX_POLICY_BYTES)?;
    path.map_or_else(|| Ok(String::new()), |path| input::text(path, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_come_in_three_forms() {
        for text in ["2025-01-01", "2025-01-01T00:00:00Z", "1735689600"] {
            assert_eq!(time(text), Ok(UnixTime(1_735_689_600)), "{text}");
        }
        for text in ["yesterday", "2025-13-01", "2025-01-01 00:00", "-1", ""] {
            assert!(time(text).unwrap_err().contains("2025-01-31T00:00:00Z"), "{text}");
        }
    }
}
