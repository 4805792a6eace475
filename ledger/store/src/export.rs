//! A log with what lies beside it, as an auditor gets it: copies of the
//! directories `log`, `certificates`, `policies` and, where they are disclosed,
//! `payloads`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use casemate_attestation::x509::MAX_CERTIFICATE_BYTES;
use casemate_ledger::audit::{Auditor, Material, Report, Rules};
use casemate_ledger::policy::MAX_POLICY_BYTES;
use casemate_ledger::receipt::TrustFile;
use casemate_ledger::text;

use crate::error::StoreError;
use crate::files::read_if_there;
use crate::payloads::read_payloads;
use crate::publish::WITNESSED;
use crate::published::Published;

/// An export, its payloads opened where their keys are there.
pub struct Export {
    directory: PathBuf,
    payloads: BTreeMap<[u8; 32], Vec<u8>>,
}

impl Export {
    /// Opens the export in `directory`. `keys` has the keys of tasks whose
    /// payloads are disclosed; a task without one stays closed.
    pub fn open(directory: &Path, keys: Option<&Path>) -> Result<Self, StoreError> {
        let mut payloads = BTreeMap::new();
        for key in keys.map(list).transpose()?.unwrap_or_default() {
            let task = key.file_stem().unwrap_or_default();
            let records = directory.join("payloads").join(task);
            if key.extension().is_some_and(|kind| kind == "key") && records.is_file() {
                let opened = read_payloads(&records, &key)?.into_iter();
                payloads.extend(opened.map(|(known, payload)| (known.digest, payload.bytes)));
            }
        }
        Ok(Self { directory: directory.to_owned(), payloads })
    }

    /// Walks every leaf under the export's signed head, whose root must come
    /// out. `rules` evaluates the organisation's rules.
    pub fn audit(
        &self,
        trust: &TrustFile,
        rules: Option<&dyn Rules>,
    ) -> Result<Report, StoreError> {
        let directory = self.directory.join("log");
        let log = Published::open(&directory, &trust.log)?;
        let mut auditor = Auditor::new(trust, self);
        if let Some(rules) = rules {
            auditor = auditor.with_rules(rules);
        }
        let note = read_if_there(&directory.join(WITNESSED))?;
        let note = note.map(String::from_utf8).transpose();
        auditor.cosigned(note.unwrap_or(Some(String::new())).as_deref());
        for bundle in 0..log.head().size.div_ceil(casemate_ledger::tile::TILE_WIDTH) {
            for leaf in log.bundle(bundle)? {
                auditor.leaf(&leaf);
            }
        }
        if auditor.root() != log.head().root {
            let entries = directory.join("tile/entries");
            return Err(StoreError::corrupt(
                &entries,
                format!("the {} leaves of the signed head", log.head().size),
                "leaves with another root",
            ));
        }
        Ok(auditor.finish())
    }
}

impl Material for Export {
    fn certificate(&self, digest: &[u8; 32]) -> Option<Vec<u8>> {
        read_up_to(
            &self.directory.join("certificates").join(text::hex(digest)),
            MAX_CERTIFICATE_BYTES,
        )
    }

    fn policy(&self, digest: &[u8; 32]) -> Option<Vec<u8>> {
        read_up_to(&self.directory.join("policies").join(text::hex(digest)), MAX_POLICY_BYTES)
    }

    fn payload(&self, commitment: &[u8; 32]) -> Option<Vec<u8>> {
        self.payloads.get(commitment).cloned()
    }
}

/// A file that is there and not larger than `most` bytes.
fn read_up_to(path: &Path, most: usize) -> Option<Vec<u8>> {
    let size = std::fs::metadata(path).ok()?.len();
    let fits = usize::try_from(size).is_ok_and(|size| size <= most);
    fits.then(|| std::fs::read(path).ok()).flatten()
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, StoreError> {
    let io = |error| StoreError::io("listing", directory, error);
    let entries = std::fs::read_dir(directory).map_err(io)?;
    entries.map(|entry| Ok(entry.map_err(io)?.path())).collect()
}
