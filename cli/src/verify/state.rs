//! What was seen before, kept in a file between two runs.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context;
use casemate_attestation::{Appraisal, Claims, Seen, UnixTime, VerifyError};

/// A verifier of every family and root stays far below it.
const MAX_STATE_BYTES: u64 = 1024 * 1024;

/// Compares `claims` with what the file at `path` remembers. Where no rule
/// failed, the file remembers them from now on: what is refused anyway does not
/// move the floor.
pub(crate) fn advance(
    path: &Path,
    claims: &Claims,
    appraisal: &Appraisal,
    now: UnixTime,
    grace_days: u64,
) -> anyhow::Result<Result<(), VerifyError>> {
    let seen = read(path).with_context(|| path.display().to_string())?;
    let next = match seen.advance(claims, now, grace_days) {
        Ok(next) => next,
        Err(error) => return Ok(Err(error)),
    };
    if appraisal.failures().next().is_none() && next != seen {
        write(path, &next).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(Ok(()))
}

/// No file yet: nothing was seen.
fn read(path: &Path) -> anyhow::Result<Seen> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Seen::default()),
        metadata => {
            let length = metadata?.len();
            anyhow::ensure!(
                length <= MAX_STATE_BYTES,
                "expected at most {MAX_STATE_BYTES} bytes, got {length}"
            );
        }
    }
    Ok(serde_json::from_slice(&std::fs::read(path)?)?)
}

/// Whole or not at all.
fn write(path: &Path, seen: &Seen) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
    file.write_all(&serde_json::to_vec_pretty(seen)?)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}
