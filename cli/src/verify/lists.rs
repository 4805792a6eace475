//! The revocation lists that were given: those that no rule asks for, because nobody here
//! knows who made them, are named. A damaged name must not hide a list.

use casemate_attestation::tdx::Quote;
use casemate_attestation::x509::{Certificate, Crl, Name, PemLimits, certificates_from_pem};
use casemate_attestation::{Evidence, EvidenceItem, EvidenceKind, TrustAnchors};

use super::gather::LeftOut;
use crate::table::line;

/// Intel's CAs for PCK certificates. A folder may well have the list of the other one.
const PCK_CAS: [&str; 2] = ["Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"];

/// The issuers of each file's lists.
#[derive(Default)]
pub(crate) struct Lists(Vec<(String, Vec<Name>)>);

impl Lists {
    pub(crate) fn take(&mut self, name: &str, lists: &[Crl]) {
        let issuers = lists.iter().map(|list| list.issuer().clone()).collect();
        self.0.push((name.to_owned(), issuers));
    }

    /// The files with lists of nobody who is known.
    pub(crate) fn strangers(&self, evidence: &Evidence, anchors: &TrustAnchors) -> Vec<LeftOut> {
        if self.0.is_empty() {
            return vec![];
        }
        let chains = chains(evidence);
        // A vendor whose roots were not asked for is nobody's damage.
        let vendor = TrustAnchors::vendor();
        let all = [anchors, &vendor];
        let amd = all.iter().flat_map(|anchors| &anchors.amd).map(|anchor| anchor.ark());
        let intel = all.iter().flat_map(|anchors| &anchors.intel).map(|anchor| anchor.root());
        let known: Vec<&Certificate> = amd.chain(intel).chain(&chains).collect();
        let here = |name: &str| chains.iter().any(|one| one.subject().common_name == name);
        let is_known = |issuer: &Name| {
            let other_ca = PCK_CAS.iter().any(|ca| issuer.common_name == *ca && !here(ca));
            other_ca || known.iter().any(|one| one.subject().der == issuer.der)
        };
        let stranger = |(file, issuers): &(String, Vec<Name>)| {
            let issuer = issuers.iter().find(|issuer| !is_known(issuer))?;
            let issuer = line(&issuer.common_name);
            Some(LeftOut {
                name: file.clone(),
                why: format!("a revocation list by {issuer:?}, which no trust anchor is"),
                matters: true,
            })
        };
        self.0.iter().filter_map(stranger).collect()
    }
}

/// The certificates that quotes bring.
fn chains(evidence: &Evidence) -> Vec<Certificate> {
    let chain = |item: &EvidenceItem| {
        let quote = Quote::parse(&item.evidence).ok()?;
        certificates_from_pem(quote.pck_chain, PemLimits::CHAIN).ok()
    };
    let quotes = evidence.items.iter().filter(|item| item.kind == EvidenceKind::TdxQuote);
    quotes.filter_map(chain).flatten().collect()
}
