//! The software model of the AMD PSP, which the host may offer on the mux. It
//! speaks like the real one; who signed is the verifier's question.

use casemate_attestation::{EndorsementKind, EvidenceItem, EvidenceKind};
use casemate_mux::Guest;
use tokio::io::AsyncWriteExt;

use super::{EvidenceError, Source};
use crate::host::{HostError, read_block, within};

const SERVICE: &str = "psp";
/// An ATTESTATION_REPORT is 1184 bytes (AMD 56860, table 23).
const MAX_REPORT_BYTES: usize = 4096;
const MAX_TABLE_BYTES: usize = 64 * 1024;

/// The model's place on the mux.
#[derive(Debug)]
pub struct Psp(pub Guest);

impl Source for Psp {
    fn name(&self) -> &'static str {
        "the model of the AMD PSP"
    }

    async fn collect(&mut self, report_data: &[u8; 64]) -> Result<EvidenceItem, EvidenceError> {
        let exchange = async {
            let mut stream = self.0.open(SERVICE).await?;
            let io = |source| HostError::Io { asked: SERVICE, source };
            stream.write_all(report_data).await.map_err(io)?;
            stream.flush().await.map_err(io)?;
            let evidence = read_block(SERVICE, &mut stream, MAX_REPORT_BYTES).await?;
            let table = read_block(SERVICE, &mut stream, MAX_TABLE_BYTES).await?;
            Ok(EvidenceItem {
                kind: EvidenceKind::SnpReport,
                evidence,
                endorsements: vec![(EndorsementKind::SnpCertTable, table)],
            })
        };
        Ok(within(SERVICE, exchange).await?)
    }
}
