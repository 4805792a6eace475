//! The revocation lists that were given: those that no rule asks for, because nobody here
//! knows who made them, are named. A damaged name must not hide a list.

use casemate_attestation::tdx::{Collateral, Quote};
use casemate_attestation::x509::{
    Certificate, Crl, Name, PemLimits, certificates_from_pem, crls_der_or_pem,
};
use casemate_attestation::{EndorsementKind, Evidence, EvidenceItem, EvidenceKind, TrustAnchors};

use super::gather::LeftOut;
use crate::table::line;

/// Intel's CAs for PCK certificates. A folder may well have the list of the other one.
const PCK_CAS: [&str; 2] = ["Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"];

/// The issuer of each list, and the file it is in.
#[derive(Default)]
pub(crate) struct Lists(Vec<(String, Name)>);

impl Lists {
    pub(crate) fn take(&mut self, name: &str, list: &Crl) {
        self.0.push((name.to_owned(), list.issuer().clone()));
    }

    /// The files with lists of nobody who is known.
    pub(crate) fn strangers(&self, evidence: &Evidence, anchors: &TrustAnchors) -> Vec<LeftOut> {
        let inside = inside(evidence);
        if self.0.is_empty() && inside.is_empty() {
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
        let stranger = |(file, issuer): &(String, Name)| {
            let name = line(&issuer.common_name);
            (!is_known(issuer)).then(|| LeftOut {
                name: file.clone(),
                why: format!("a revocation list by {name:?}, which no trust anchor is"),
                matters: true,
            })
        };
        self.0.iter().chain(&inside).filter_map(stranger).collect()
    }
}

/// The revocation lists in an endorsement, as far as they read.
pub(super) fn of(kind: EndorsementKind, bytes: &[u8]) -> Vec<Crl> {
    let lists = match kind {
        EndorsementKind::Crl => vec![bytes.to_vec()],
        EndorsementKind::TdxCollateral => Collateral::decode(bytes)
            .map_or_else(|_| vec![], |set| [vec![set.root_crl], set.pck_crls].concat()),
        _ => vec![],
    };
    lists.iter().filter_map(|bytes| crls_der_or_pem(bytes).ok()).flatten().collect()
}

/// The issuers of the lists that envelopes bring.
fn inside(evidence: &Evidence) -> Vec<(String, Name)> {
    let sent = evidence.items.iter().flat_map(|item| &item.endorsements);
    let lists = sent.flat_map(|(kind, bytes)| of(*kind, bytes));
    lists.map(|list| ("an envelope".to_owned(), list.issuer().clone())).collect()
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
