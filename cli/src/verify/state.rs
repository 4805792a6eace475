//! What was seen before, kept in a file between two runs.

use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use casemate_attestation::{Appraisal, Claims, Seen, UnixTime, VerifyError};

use crate::input;
use crate::table::name_of;

/// A verifier of every family and root stays far below it.
const MAX_STATE_BYTES: u64 = 1024 * 1024;
/// How long another run is waited for; it holds the file for some milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// Compares `claims` with what the file at `path` remembers. Where no rule
/// failed and the machine is `whole`, with nothing left out that may matter, the
/// file remembers them from now on: what is no yes anyway does not move the floor.
pub(crate) fn advance(
    path: &Path,
    claims: &Claims,
    appraisal: &Appraisal,
    now: UnixTime,
    grace_days: u64,
    whole: bool,
) -> anyhow::Result<Result<(), VerifyError>> {
    let _alone = lock(path)?;
    let seen = read(path).with_context(|| format!("--state: {}", name_of(path)))?;
    let next = match seen.advance(claims, now, grace_days) {
        Ok(next) => next,
        Err(error) => return Ok(Err(error)),
    };
    if whole && appraisal.failures().next().is_none() && next != seen {
        write(path, &next).with_context(|| format!("cannot write {}", name_of(path)))?;
    }
    Ok(Ok(()))
}

/// Keeps other runs out between reading and writing, or one would forget what
/// the other saw. The file beside stays: the lock on it ends with the run.
fn lock(path: &Path) -> anyhow::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let what = || format!("cannot lock {}", name_of(Path::new(&name)));
    let file = File::options().create(true).append(true).open(&name).with_context(what)?;
    let begun = Instant::now();
    while let Err(error) = file.try_lock() {
        let TryLockError::WouldBlock = error else { return Err(error).with_context(what) };
        anyhow::ensure!(begun.elapsed() < PATIENCE, "{}: another run holds it", what());
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(file)
}

/// No file yet: nothing was seen.
fn read(path: &Path) -> anyhow::Result<Seen> {
    match File::open(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Seen::default()),
        _ => Ok(serde_json::from_slice(&input::bytes(path, MAX_STATE_BYTES)?)?),
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_run_forgets_what_another_saw() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        std::fs::write(&path, "0").unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..25 {
                        let _alone = lock(&path).unwrap();
                        let seen: u32 = std::fs::read_to_string(&path).unwrap().parse().unwrap();
                        std::thread::yield_now();
                        std::fs::write(&path, (seen + 1).to_string()).unwrap();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "200");
    }
}
