//! What was given, sorted by what it is: told by content, never by name.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use casemate_attestation::azure;
use casemate_attestation::azure::{HclKind, HclReport};
use casemate_attestation::{
    Bundle, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, TrustAnchors,
    UnixTime, VerifyError,
};
use serde_json::{Value, json};

use super::collateral::Parts;
use super::doubt::doubt;
use super::lists::{self, Lists};
use super::{devices, kind};
use crate::input;
use crate::table::name_of;

/// One machine's evidence and what supports it.
#[derive(Default)]
pub(crate) struct Gathered {
    /// The evidence, the lead item first.
    pub(crate) evidence: Evidence,
    /// The endorsements that came beside it.
    pub(crate) endorsements: Endorsements,
    /// A bundle, which brings everything with it.
    pub(crate) bundle: Option<Bundle>,
    /// What was not judged.
    pub(crate) left_out: Vec<LeftOut>,
    /// The first list or certificate table that does not read, and the file it is in.
    pub(crate) unread: Option<(VerifyError, String)>,
    collateral: Parts,
    /// The files that no bundle is in, and what they hold.
    beside: Vec<(String, &'static str)>,
    lists: Lists,
    read: Read,
}

/// Something in a directory that was not judged.
pub(crate) struct LeftOut {
    /// The file or the folder.
    pub(crate) name: String,
    /// Why.
    pub(crate) why: String,
    /// Whether it may be evidence or an endorsement: then the answer is not yes.
    pub(crate) matters: bool,
}

/// How much was read.
#[derive(Default)]
struct Read {
    files: usize,
    bytes: usize,
}

/// More than one file of these kinds ever needs.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
/// More than one machine's files ever need, all together.
const MAX_BYTES: usize = 64 * 1024 * 1024;
/// In all folders.
const MAX_ALL_FILES: usize = 512;
/// In one folder.
const MAX_FILES: usize = 64;
/// A machine's folder has one for each device; deeper ones are not looked into.
const MAX_DEPTH: usize = 2;

impl Gathered {
    /// Reads everything under `paths`, to be judged at `now`.
    pub(crate) fn from_paths(paths: &[PathBuf], now: UnixTime) -> anyhow::Result<Self> {
        let mut gathered = Self::default();
        for path in paths {
            if path == Path::new("-") {
                let name = "standard input";
                let bytes = input::bounded(std::io::stdin(), name, MAX_FILE_BYTES)?;
                gathered.must_take(name, &bytes)?;
            } else if path.is_dir() {
                gathered.take_folder(path, MAX_DEPTH)?;
            } else {
                gathered.must_take(&name_of(path), &input::bytes(path, MAX_FILE_BYTES)?)?;
            }
        }
        gathered.finish(now)
    }

    fn take_folder(&mut self, folder: &Path, depth: usize) -> anyhow::Result<()> {
        let what = || format!("cannot read {}", name_of(folder));
        let mut entries = std::fs::read_dir(folder).with_context(what)?;
        let some = entries.by_ref().take(MAX_FILES + 1).map(|entry| Ok(entry?.path()));
        let mut files = some.collect::<std::io::Result<Vec<PathBuf>>>().with_context(what)?;
        if files.len() > MAX_FILES {
            let count = files.len().saturating_add(entries.count());
            bail!("{}: expected at most {MAX_FILES} files, got {count}", name_of(folder));
        }
        files.sort();
        for path in files {
            if path.is_dir() && depth == 0 {
                self.leave_out(&path, "a folder so deep is not looked into", true);
            } else if path.is_dir() {
                self.take_folder(&path, depth - 1)?;
            } else if !path.is_file() {
                // A pipe or a device would never end.
                self.leave_out(&path, "not a regular file, not read", true);
            } else {
                if path.metadata().is_ok_and(|data| data.len() > MAX_FILE_BYTES) {
                    self.leave_out(&path, "more than 16 MiB, not read", true);
                    continue;
                }
                let bytes = input::bytes(&path, MAX_FILE_BYTES)?;
                if !self.take(&name_of(&path), &bytes)? {
                    let doubt = doubt(&path, &bytes);
                    let why = doubt.as_deref().unwrap_or("of no kind that is known here");
                    self.leave_out(&path, why, doubt.is_some());
                }
            }
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: &str, matters: bool) {
        self.left_out.push(LeftOut { name: name_of(path), why: why.to_owned(), matters });
    }

    /// A file that was named must be of use.
    fn must_take(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
        ensure!(
            self.take(name, bytes)?,
            "{name}: expected evidence (SNP report, TDX quote, GPU report, Azure HCL report, vTPM \
             quote, event log, envelope), a bundle, or endorsements (certificates, CRL, \
             certificate table, TDX collateral, manifest, OCSP response), got {}",
            kind::why_unknown(bytes)
        );
        Ok(())
    }

    fn take(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<bool> {
        self.read.files = self.read.files.saturating_add(1);
        self.read.bytes = self.read.bytes.saturating_add(bytes.len());
        let Read { files, bytes: sum } = self.read;
        ensure!(
            files <= MAX_ALL_FILES && sum <= MAX_BYTES,
            "{name}: expected at most {MAX_ALL_FILES} files and {MAX_BYTES} bytes in all, got more"
        );
        if let Ok(bundle) = Bundle::decode(bytes) {
            ensure!(
                self.bundle.replace(bundle).is_none(),
                "{name}: expected one bundle, got another: verify them one by one"
            );
            return Ok(true);
        }
        let Some(what) = self.take_part(name, bytes)? else { return Ok(false) };
        self.beside.push((name.to_owned(), what));
        Ok(true)
    }

    /// Takes what no bundle is; says what it was, if it was of use.
    fn take_part(&mut self, name: &str, bytes: &[u8]) -> anyhow::Result<Option<&'static str>> {
        if let Ok(evidence) = Evidence::decode(bytes) {
            self.evidence.items.extend(evidence.items);
        } else if let Some(items) = devices::from_nvidia_json(bytes) {
            self.evidence.items.extend(items);
        } else if let Some(kind) = kind::evidence(bytes) {
            let endorsements = Vec::new();
            self.evidence.items.push(EvidenceItem { kind, evidence: bytes.to_vec(), endorsements });
        } else if azure::json::is_evidence(bytes) {
            let items = azure::json::items(bytes).with_context(|| name.to_owned())?;
            self.evidence.items.extend(items);
        } else if let Some(kind) = kind::endorsement(bytes) {
            self.take_endorsement(name, kind, kind::trimmed(bytes).to_vec());
            return Ok(Some("endorsements"));
        } else {
            return Ok(self.collateral.take(bytes.to_vec()).then_some("TDX collateral"));
        }
        Ok(Some("evidence"))
    }

    fn take_endorsement(&mut self, name: &str, kind: EndorsementKind, bytes: Vec<u8>) {
        match kind::unread(kind, &bytes) {
            // A certificate only ever helps: where it is missed, the library says so.
            Some(error) if kind == EndorsementKind::CertificateChain => {
                self.left_out.push(LeftOut {
                    name: name.to_owned(),
                    why: error.to_string(),
                    matters: true,
                });
            }
            Some(error) => _ = self.unread.get_or_insert((error, name.to_owned())),
            None => lists::of(kind, &bytes).iter().for_each(|list| self.lists.take(name, list)),
        }
        self.endorsements.items.push((kind, bytes));
    }

    fn finish(mut self, now: UnixTime) -> anyhow::Result<Self> {
        if self.bundle.is_some() {
            if let Some((name, what)) = self.beside.first() {
                bail!(
                    "{name}: expected nothing beside a bundle, got {what}: a bundle is judged by \
                     what is inside it; to judge its evidence by more, give the evidence itself"
                );
            }
            return Ok(self);
        }
        if self.evidence.items.is_empty() {
            let found = if self.beside.is_empty() { "neither" } else { "only endorsements" };
            bail!("expected evidence or a bundle, got {found}{}", self.first_left_out());
        }
        devices::pair(&mut self.evidence.items, &mut self.endorsements.items);
        // The CPU's evidence leads, its event log follows.
        self.evidence.items.sort_by_key(|item| item.kind);
        let whole = self.has_whole_collateral();
        let collateral = std::mem::take(&mut self.collateral);
        if !(whole && collateral.is_empty()) {
            let bundles = collateral.bundles(&self.endorsements.items, now)?;
            self.endorsements.items.extend(bundles);
        }
        Ok(self)
    }

    fn first_left_out(&self) -> String {
        let first = self.left_out.iter().find(|one| one.matters).or(self.left_out.first());
        first.map_or_else(String::new, |one| format!("; {} was left out: {}", one.name, one.why))
    }

    /// Whether collateral in one piece is there.
    fn has_whole_collateral(&self) -> bool {
        let sent = self.evidence.items.iter().flat_map(|item| &item.endorsements);
        let mut all = sent.chain(&self.endorsements.items);
        all.any(|(kind, _)| *kind == EndorsementKind::TdxCollateral)
    }

    /// The file that does not read for the reason that `error` gives.
    pub(crate) fn file_of(&self, error: &VerifyError) -> Option<&str> {
        let why = error.to_string();
        self.left_out.iter().find(|one| one.why == why).map(|one| one.name.as_str())
    }

    /// Leaves out the revocation lists of nobody whom `anchors` or the evidence know.
    pub(crate) fn leave_out_strangers(&mut self, anchors: &TrustAnchors) {
        self.left_out.extend(self.lists.strangers(&self.evidence, anchors));
    }

    /// Whether evidence is there without that which alone makes it worth something: an
    /// event log without its quote, a TDREPORT without one, a vTPM's quote without its key.
    pub(crate) fn lacks_its_root(&self) -> bool {
        let items = &self.evidence.items;
        let has = |kind: EvidenceKind| items.iter().any(|item| item.kind == kind);
        let of_tdx = |item: &EvidenceItem| {
            item.kind == EvidenceKind::AzureHcl
                && HclReport::parse(&item.evidence).is_ok_and(|hcl| hcl.kind == HclKind::Tdx)
        };
        let needs_quote = has(EvidenceKind::EventLog) || items.iter().any(of_tdx);
        (needs_quote && !has(EvidenceKind::TdxQuote))
            || (has(EvidenceKind::AzureQuote) && !has(EvidenceKind::AzureHcl))
    }
}

impl LeftOut {
    /// As a member of `left_out`.
    pub(crate) fn to_json(&self) -> Value {
        json!({"name": self.name, "why": self.why, "matters": self.matters})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endorsements_alone_are_no_evidence() {
        assert!(Gathered::default().finish(UnixTime(0)).is_err());
    }
}
