//! Reports of a TEE through the kernel's configfs-tsm interface
//! (Documentation/ABI/testing/configfs-tsm-report, Linux 6.12).

use std::fs::{self, OpenOptions};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use casemate_attestation::{EndorsementKind, EvidenceItem, EvidenceKind};

use super::{EvidenceError, Source};

/// Where the kernel offers the interface.
pub const ROOT: &str = "/sys/kernel/config/tsm/report";
const ENTRY: &str = "casemate";
/// A TDX quote with its chain is about 5 KiB; an SNP certificate table about 4 KiB.
const MAX_BLOB_BYTES: u64 = 64 * 1024;

/// Why the interface gave no report.
#[derive(Debug, thiserror::Error)]
pub enum TsmError {
    /// A file of the entry could not be used.
    #[error("configfs-tsm, {attribute}: {source}")]
    Attribute {
        /// The file.
        attribute: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Somebody else used the entry between our write and our read.
    #[error("configfs-tsm, generation: expected {expected}, got {actual}")]
    Generation {
        /// The number after our one write.
        expected: u64,
        /// The number there was.
        actual: u64,
    },
    /// A file holds something else than it should.
    #[error("configfs-tsm, {attribute}: expected {expected}, got {actual:?}")]
    Content {
        /// The file.
        attribute: &'static str,
        /// What it should hold.
        expected: &'static str,
        /// What it holds.
        actual: String,
    },
}

/// One entry of the interface; it is removed when this is dropped.
#[derive(Debug)]
pub struct Tsm {
    entry: PathBuf,
    provider: Provider,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Provider {
    SevGuest,
    TdxGuest,
}

impl Tsm {
    /// Makes an entry below `root`; none when the kernel has no TEE to offer.
    pub fn open(root: &Path) -> Result<Option<Self>, TsmError> {
        let entry = root.join(ENTRY);
        match fs::create_dir(&entry) {
            Ok(()) => Self::with_entry(entry).map(Some),
            // No interface, or the interface without a provider (ENXIO).
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
            Err(source) => Err(TsmError::Attribute { attribute: "entry", source }),
        }
    }

    fn with_entry(entry: PathBuf) -> Result<Self, TsmError> {
        let provider = match text(&entry, "provider")?.as_str() {
            "sev_guest" => Provider::SevGuest,
            "tdx_guest" => Provider::TdxGuest,
            other => return Err(content("provider", "sev_guest or tdx_guest", other)),
        };
        Ok(Self { entry, provider })
    }

    /// Evidence over `report_data`: one write, the reads, and the proof that
    /// nobody wrote in between.
    pub fn report(&self, report_data: &[u8; 64]) -> Result<EvidenceItem, TsmError> {
        let before = self.generation()?;
        write(&self.entry, "inblob", report_data)?;
        let evidence = read(&self.entry, "outblob")?;
        let table = match self.provider {
            Provider::SevGuest => read(&self.entry, "auxblob")?,
            Provider::TdxGuest => Vec::new(),
        };
        let (expected, actual) = (before.wrapping_add(1), self.generation()?);
        if actual != expected {
            return Err(TsmError::Generation { expected, actual });
        }
        if evidence.is_empty() {
            return Err(content("outblob", "a report", ""));
        }
        let kind = match self.provider {
            Provider::SevGuest => EvidenceKind::SnpReport,
            Provider::TdxGuest => EvidenceKind::TdxQuote,
        };
        let endorsements = if table.is_empty() {
            Vec::new()
        } else {
            vec![(EndorsementKind::SnpCertTable, table)]
        };
        Ok(EvidenceItem { kind, evidence, endorsements })
    }

    fn generation(&self) -> Result<u64, TsmError> {
        let text = text(&self.entry, "generation")?;
        text.parse().map_err(|_| content("generation", "a number", &text))
    }
}

impl Source for Tsm {
    fn name(&self) -> &'static str {
        match self.provider {
            Provider::SevGuest => "AMD SEV-SNP",
            Provider::TdxGuest => "Intel TDX",
        }
    }

    async fn collect(&mut self, report_data: &[u8; 64]) -> Result<EvidenceItem, EvidenceError> {
        Ok(self.report(report_data)?)
    }
}

impl Drop for Tsm {
    fn drop(&mut self) {
        // In configfs an entry is removed as a whole; in any other file system
        // this fails, and the machine's end removes it.
        let _ = fs::remove_dir(&self.entry);
    }
}

fn text(entry: &Path, attribute: &'static str) -> Result<String, TsmError> {
    Ok(String::from_utf8_lossy(&read(entry, attribute)?).trim().to_owned())
}

fn read(entry: &Path, attribute: &'static str) -> Result<Vec<u8>, TsmError> {
    let failed = |source| TsmError::Attribute { attribute, source };
    let file = fs::File::open(entry.join(attribute)).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_BLOB_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_BLOB_BYTES {
        return Err(content(attribute, "at most 64 KiB", "more"));
    }
    Ok(bytes)
}

/// One write call: the interface takes a blob whole.
fn write(entry: &Path, attribute: &'static str, bytes: &[u8]) -> Result<(), TsmError> {
    let failed = |source| TsmError::Attribute { attribute, source };
    let mut file = OpenOptions::new().write(true).open(entry.join(attribute)).map_err(failed)?;
    file.write_all(bytes).map_err(failed)
}

fn content(attribute: &'static str, expected: &'static str, actual: &str) -> TsmError {
    TsmError::Content { attribute, expected, actual: actual.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::super::{Devices, Psp, Sources};
    use super::*;
    use crate::host::Host;
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    /// A directory that answers like the kernel's. `generation` is a FIFO, so
    /// that each reading gets the next of `generations`.
    fn stand_in(provider: &str, generations: &'static [&'static str]) -> (tempfile::TempDir, Tsm) {
        let root = tempfile::tempdir().unwrap();
        let entry = root.path().join(ENTRY);
        fs::create_dir(&entry).unwrap();
        fs::write(entry.join("provider"), format!("{provider}\n")).unwrap();
        fs::write(entry.join("inblob"), b"").unwrap();
        fs::write(entry.join("outblob"), b"report").unwrap();
        fs::write(entry.join("auxblob"), b"table").unwrap();
        let fifo = entry.join("generation");
        mknodat(CWD, &fifo, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        std::thread::spawn(move || {
            for generation in generations {
                let Ok(()) = fs::write(&fifo, generation) else { return };
                // The reader takes the end of the file before the next number comes.
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
        });
        let tsm = Tsm::with_entry(entry).unwrap();
        (root, tsm)
    }

    #[test]
    fn an_snp_report_comes_with_its_table() {
        let (root, tsm) = stand_in("sev_guest", &["7\n", "8\n"]);
        let item = tsm.report(&[5; 64]).unwrap();
        assert_eq!(item.kind, EvidenceKind::SnpReport);
        assert_eq!(item.evidence, b"report");
        assert_eq!(item.endorsements, [(EndorsementKind::SnpCertTable, b"table".to_vec())]);
        assert_eq!(fs::read(root.path().join(ENTRY).join("inblob")).unwrap(), [5; 64]);
    }

    #[tokio::test]
    async fn in_a_tee_the_host_s_models_have_no_say() {
        let mux = casemate_mux::Guest::start(tokio::io::duplex(64).0);
        let bus = tempfile::tempdir().unwrap();
        let names = |tsm| {
            let devices = Devices::new(bus.path(), Some(mux.clone()));
            Sources::of(tsm, Host::new(mux.clone()), Some(Psp(mux.clone())), devices).names()
        };
        let models =
            ["the model of the AMD PSP", "the host's claim", "model devices of NVIDIA's kind"];
        assert_eq!(names(None), models);
        let (_root, tsm) = stand_in("sev_guest", &[]);
        assert_eq!(names(Some(tsm)), ["AMD SEV-SNP", "the host's claim"]);
    }

    #[test]
    fn a_tdx_quote_comes_alone() {
        let (_root, tsm) = stand_in("tdx_guest", &["0", "1"]);
        let item = tsm.report(&[5; 64]).unwrap();
        assert_eq!((item.kind, item.endorsements), (EvidenceKind::TdxQuote, Vec::new()));
    }

    #[test]
    fn another_writer_is_noticed() {
        let (_root, tsm) = stand_in("tdx_guest", &["0", "2"]);
        let error = tsm.report(&[5; 64]).unwrap_err();
        assert!(matches!(error, TsmError::Generation { expected: 1, actual: 2 }), "{error}");
    }

    #[test]
    fn no_interface_is_none_and_an_unknown_provider_an_error() {
        let root = tempfile::tempdir().unwrap();
        assert!(Tsm::open(&root.path().join("absent")).unwrap().is_none());
        let entry = root.path().join(ENTRY);
        fs::create_dir(&entry).unwrap();
        fs::write(entry.join("provider"), "cca_guest\n").unwrap();
        let error = Tsm::with_entry(entry).unwrap_err().to_string();
        assert!(error.contains("cca_guest"), "{error}");
    }
}
