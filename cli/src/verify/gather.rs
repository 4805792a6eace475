//! What was given, sorted by what it is: told by content, never by name.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use casemate_attestation::azure::{self, TpmQuote};
use casemate_attestation::x509::Crl;
use casemate_attestation::{
    Bundle, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, UnixTime,
};

use super::collateral::Parts;
use super::devices;

/// One machine's evidence and what supports it.
#[derive(Default)]
pub(crate) struct Gathered {
    /// The evidence, the lead item first.
    pub(crate) evidence: Evidence,
    /// The endorsements that came beside it.
    pub(crate) endorsements: Endorsements,
    /// A bundle, which brings everything with it.
    pub(crate) bundle: Option<Bundle>,
    /// Files of a directory that were passed over, and why.
    pub(crate) notes: Vec<String>,
    collateral: Parts,
}

/// More than one file of these kinds ever needs.
const MAX_FILE_BYTES: u64 = 16 * 1024 * 1024;
const MAX_FILES: usize = 64;
/// A machine's folder has one for each device; deeper ones are not looked into.
const MAX_DEPTH: usize = 2;
const REPORT_BYTES: usize = 1184;

impl Gathered {
    /// Reads everything under `paths`, to be judged at `now`.
    pub(crate) fn from_paths(paths: &[PathBuf], now: UnixTime) -> anyhow::Result<Self> {
        let mut gathered = Self::default();
        for path in paths {
            if path == Path::new("-") {
                let name = "standard input";
                gathered.must_take(name, bounded(std::io::stdin(), name)?)?;
            } else if path.is_dir() {
                gathered.take_folder(path, MAX_DEPTH)?;
            } else {
                gathered.must_take(&path.display().to_string(), read(path)?)?;
            }
        }
        gathered.finish(now)
    }

    fn take_folder(&mut self, folder: &Path, depth: usize) -> anyhow::Result<()> {
        let entries = std::fs::read_dir(folder).with_context(|| folder.display().to_string())?;
        let mut files: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).take(MAX_FILES + 1).collect();
        if files.len() > MAX_FILES {
            bail!("{}: expected at most {MAX_FILES} files", folder.display());
        }
        files.sort();
        for path in files {
            if path.is_dir() {
                if depth > 0 {
                    self.take_folder(&path, depth - 1)?;
                }
            } else if !path.is_file() {
                // A pipe or a device would never end.
                self.notes.push(format!("{}: not a regular file, left out", path.display()));
            } else if !self.take(read(&path)?).with_context(|| path.display().to_string())? {
                self.notes.push(format!("{}: of no kind that is known here", path.display()));
            }
        }
        Ok(())
    }

    /// A file that was named must be of use.
    fn must_take(&mut self, name: &str, bytes: Vec<u8>) -> anyhow::Result<()> {
        if !self.take(bytes).with_context(|| name.to_owned())? {
            bail!(
                "{name}: expected evidence (SNP report, TDX quote, GPU report, Azure HCL report, vTPM \
                 quote, event log, envelope), a bundle, or endorsements (certificates, CRL, \
                 certificate table, TDX collateral, manifest, OCSP response)"
            );
        }
        Ok(())
    }

    fn take(&mut self, bytes: Vec<u8>) -> anyhow::Result<bool> {
        if let Ok(bundle) = Bundle::decode(&bytes) {
            if self.bundle.replace(bundle).is_some() {
                bail!("expected one bundle, got another");
            }
        } else if let Ok(evidence) = Evidence::decode(&bytes) {
            self.evidence.items.extend(evidence.items);
        } else if let Some(items) = devices::from_nvidia_json(&bytes) {
            self.evidence.items.extend(items);
        } else if let Some(kind) = evidence_kind(&bytes) {
            let endorsements = Vec::new();
            self.evidence.items.push(EvidenceItem { kind, evidence: bytes, endorsements });
        } else if azure::json::is_evidence(&bytes) {
            self.evidence.items.extend(azure::json::items(&bytes)?);
        } else if let Some(kind) = endorsement_kind(&bytes) {
            self.endorsements.items.push((kind, bytes));
        } else {
            return Ok(self.collateral.take(bytes));
        }
        Ok(true)
    }

    fn finish(mut self, now: UnixTime) -> anyhow::Result<Self> {
        if self.bundle.is_some() && !self.evidence.items.is_empty() {
            bail!("expected a bundle or evidence, got both: verify them one by one");
        }
        if self.bundle.is_none() && self.evidence.items.is_empty() {
            bail!("expected evidence or a bundle, got only endorsements");
        }
        devices::pair(&mut self.evidence.items, &mut self.endorsements.items);
        // The CPU's evidence leads, its event log follows.
        self.evidence.items.sort_by_key(|item| item.kind);
        let collateral = std::mem::take(&mut self.collateral);
        let bundles = collateral.bundles(&self.endorsements.items, now)?;
        self.endorsements.items.extend(bundles);
        Ok(self)
    }
}

fn evidence_kind(bytes: &[u8]) -> Option<EvidenceKind> {
    let word = |at: usize| bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    if bytes.len() == REPORT_BYTES && word(0).is_some_and(|version| version < 16) {
        return Some(EvidenceKind::SnpReport);
    }
    if devices::is_report(bytes) {
        return Some(EvidenceKind::GpuReport);
    }
    // Quote header: version 4 or 5, TEE type 0x81 at offset 4.
    let version = word(0).map(|word| word & 0xffff);
    if matches!(version, Some(4 | 5)) && word(4) == Some(0x81) {
        return Some(EvidenceKind::TdxQuote);
    }
    if bytes.starts_with(b"HCLA") {
        return Some(EvidenceKind::AzureHcl);
    }
    if TpmQuote::decode(bytes).is_ok() {
        return Some(EvidenceKind::AzureQuote);
    }
    // The first entry of a TCG log: register 0, EV_NO_ACTION, "Spec ID Event03".
    let log = word(4) == Some(3) && bytes.get(32..47) == Some(b"Spec ID Event03");
    log.then_some(EvidenceKind::EventLog)
}

fn endorsement_kind(bytes: &[u8]) -> Option<EndorsementKind> {
    if bytes.starts_with(b"-----BEGIN CERTIFICATE") {
        return Some(EndorsementKind::CertificateChain);
    }
    if bytes.starts_with(b"-----BEGIN X509 CRL") || Crl::parse(bytes).is_ok() {
        return Some(EndorsementKind::Crl);
    }
    if casemate_attestation::x509::Certificate::parse(bytes).is_ok() {
        return Some(EndorsementKind::CertificateChain);
    }
    if casemate_attestation::snp::table::entries(bytes).is_ok_and(|entries| !entries.is_empty()) {
        return Some(EndorsementKind::SnpCertTable);
    }
    if casemate_attestation::gpu::ocsp::Response::parse(bytes).is_ok() {
        return Some(EndorsementKind::Ocsp);
    }
    let manifest = bytes.windows(16).take(4096).any(|window| window == b"SoftwareIdentity");
    manifest.then_some(EndorsementKind::Rim)
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let name = path.display().to_string();
    let file = std::fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
    bounded(file, &name)
}

fn bounded(source: impl Read, name: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = source.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes);
    let length = read.with_context(|| format!("cannot read {name}"))?;
    if u64::try_from(length)? > MAX_FILE_BYTES {
        bail!("{name}: expected at most {MAX_FILE_BYTES} bytes, got more");
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_by_content() {
        let mut report = vec![0; REPORT_BYTES];
        report[0] = 3;
        assert_eq!(evidence_kind(&report), Some(EvidenceKind::SnpReport));
        let mut quote = vec![0; 700];
        quote[0] = 4;
        quote[4] = 0x81;
        assert_eq!(evidence_kind(&quote), Some(EvidenceKind::TdxQuote));
        assert_eq!(evidence_kind(b"HCLA and more"), Some(EvidenceKind::AzureHcl));
        assert_eq!(evidence_kind(b"hello"), None);
        assert_eq!(endorsement_kind(b"hello"), None);
        let pem = b"-----BEGIN CERTIFICATE-----";
        assert_eq!(endorsement_kind(pem), Some(EndorsementKind::CertificateChain));
    }

    #[test]
    fn endorsements_alone_are_no_evidence() {
        assert!(Gathered::default().finish(UnixTime(0)).is_err());
    }
}
