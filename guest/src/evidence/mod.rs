//! Evidence: collected as bytes and forwarded, never judged here.

mod psp;
pub mod tsm;

use casemate_attestation::{Evidence, EvidenceItem, EvidenceKind};

use crate::host::{Host, HostError};
pub use psp::Psp;
use tsm::{Tsm, TsmError};

/// Why there is no evidence.
#[derive(Debug, thiserror::Error)]
pub enum EvidenceError {
    /// The TEE's driver failed.
    #[error(transparent)]
    Tsm(#[from] TsmError),
    /// The host did not answer.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Something that states `report_data` together with facts about the machine.
pub trait Source {
    /// The source's name, for people.
    fn name(&self) -> &'static str;

    /// One piece of evidence over `report_data`.
    fn collect(
        &mut self,
        report_data: &[u8; 64],
    ) -> impl Future<Output = Result<EvidenceItem, EvidenceError>>;
}

/// The sources of this machine, the strongest first.
#[derive(Debug)]
pub struct Sources {
    tsm: Option<Tsm>,
    psp: Option<Psp>,
    host: Host,
}

impl Sources {
    /// Finds out what there is: the TEE's driver, else the model of the PSP if
    /// the host offers one, and always the host's claim.
    pub fn find(host: Host, psp: Option<Psp>) -> Result<Self, EvidenceError> {
        let tsm = Tsm::open(tsm::ROOT.as_ref())?;
        let psp = if tsm.is_some() { None } else { psp };
        Ok(Self { tsm, psp, host })
    }

    /// The names of the sources, for people.
    pub fn names(&self) -> Vec<&'static str> {
        let tsm = self.tsm.as_ref().map(Source::name);
        let psp = self.psp.as_ref().map(Source::name);
        tsm.into_iter().chain(psp).chain([self.host.name()]).collect()
    }

    /// Evidence of every source over the same `report_data`.
    pub async fn collect(&mut self, report_data: &[u8; 64]) -> Result<Evidence, EvidenceError> {
        let mut items = Vec::new();
        if let Some(tsm) = &mut self.tsm {
            items.push(tsm.collect(report_data).await?);
        }
        if let Some(psp) = &mut self.psp {
            items.push(psp.collect(report_data).await?);
        }
        items.push(self.host.collect(report_data).await?);
        Ok(Evidence { items })
    }
}

impl Source for Host {
    fn name(&self) -> &'static str {
        "the host's claim"
    }

    async fn collect(&mut self, report_data: &[u8; 64]) -> Result<EvidenceItem, EvidenceError> {
        let evidence = self.claim(report_data).await?;
        Ok(EvidenceItem { kind: EvidenceKind::HostClaim, evidence, endorsements: Vec::new() })
    }
}
