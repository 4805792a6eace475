//! A witness's memory: for each log the last checkpoint that it cosigned.
//! Judging and keeping are one step under one lock, and what is cosigned was
//! on disk before: a crash never lets a witness go back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::cosignature::WitnessKey;
use casemate_ledger::text;
use casemate_ledger::witness::{AddCheckpoint, Refusal};

use crate::error::StoreError;
use crate::files;
use crate::log::lock_directory;
use crate::publish::Sign;

/// A witness that watches some logs.
pub struct Witness {
    directory: PathBuf,
    key: WitnessKey,
    sign: Sign,
    logs: BTreeMap<String, VerifierKey>,
    known: Mutex<BTreeMap<String, Checkpoint>>,
    _lock: File,
}

/// Why a witness did not cosign.
#[derive(Debug, thiserror::Error)]
pub enum WitnessError {
    /// It will not.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot keep what it would have cosigned.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Witness {
    /// Opens the witness's memory in `directory`. What it knows of a log must
    /// be signed by that log's key in `logs`.
    pub fn open(
        directory: &Path,
        key: WitnessKey,
        sign: Sign,
        logs: impl IntoIterator<Item = VerifierKey>,
    ) -> Result<Self, StoreError> {
        fs::create_dir_all(directory)
            .map_err(|error| StoreError::io("creating", directory, error))?;
        let lock = lock_directory(directory)?;
        let logs: BTreeMap<_, _> =
            logs.into_iter().map(|log| (log.name().to_owned(), log)).collect();
        let mut known = BTreeMap::new();
        for (origin, log) in &logs {
            let path = path_of(directory, origin);
            let Some(bytes) = files::read_if_there(&path)? else { continue };
            let note = String::from_utf8(bytes).unwrap_or_default();
            let head = Checkpoint::verify(&note, log).map_err(|error| {
                StoreError::corrupt(&path, format!("a checkpoint of {origin}"), error.to_string())
            })?;
            known.insert(origin.clone(), head);
        }
        let (directory, known) = (directory.to_owned(), Mutex::new(known));
        Ok(Self { directory, key, sign, logs, known, _lock: lock })
    }

    /// Cosigns at `time`, seconds since 1970, or says why not. The checkpoint
    /// is on disk when this returns a signature line.
    pub fn add_checkpoint(
        &self,
        request: &AddCheckpoint,
        time: u64,
    ) -> Result<String, WitnessError> {
        let origin = request.note.split('\n').next().unwrap_or_default();
        let log = self.logs.get(origin);
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let head = request.judge(log, known.get(origin))?;
        if known.get(origin) != Some(&head) {
            files::write_whole(&path_of(&self.directory, origin), request.note.as_bytes())?;
            files::sync_directory(&self.directory)?;
            known.insert(origin.to_owned(), head.clone());
        }
        Ok(self.key.cosign(&head, time, &self.sign))
    }
}

fn path_of(directory: &Path, origin: &str) -> PathBuf {
    let name = text::hex(&casemate_ledger::digest(origin.as_bytes()));
    directory.join(name).with_extension("checkpoint")
}
