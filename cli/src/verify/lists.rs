//! The revocation lists that were given, also those that no rule asks for: a list that is
//! damaged, or that revokes what the evidence rests on, is never passed over.

use casemate_attestation::tdx::{Collateral, Quote};
use casemate_attestation::x509::{
    Certificate, Crl, Name, PemLimits, certificates_from_pem, crls_der_or_pem, der_or_pem,
};
use casemate_attestation::{
    EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, TrustAnchors, VerifyError,
};

use super::gather::LeftOut;
use crate::table::line;

/// Intel's CAs for PCK certificates. A folder may well have the list of the other one.
const PCK_CAS: [&str; 2] = ["Intel SGX PCK Platform CA", "Intel SGX PCK Processor CA"];

/// The lists of each file.
#[derive(Default)]
pub(crate) struct Lists(Vec<(String, Vec<Crl>)>);

/// What lists say of the machine.
#[derive(Default)]
pub(crate) struct Judged {
    /// The first refusal, and the file that it is for.
    pub(crate) refused: Option<(VerifyError, String)>,
    /// Lists of nobody who is known here.
    pub(crate) left_out: Vec<LeftOut>,
}

impl Lists {
    /// Takes the lists in `bytes`, which were found to read.
    pub(crate) fn take(&mut self, name: &str, bytes: &[u8]) {
        self.0.push((name.to_owned(), crls_der_or_pem(bytes).unwrap_or_default()));
    }

    /// Each list must be by the issuer that it names, and must not revoke anything that
    /// the evidence brings or that was given with it.
    pub(crate) fn judge(
        &self,
        evidence: &Evidence,
        endorsements: &Endorsements,
        anchors: &TrustAnchors,
    ) -> Judged {
        let mut judged = Judged::default();
        if self.0.is_empty() {
            return judged;
        }
        let certificates = certificates(evidence, endorsements);
        let amd = anchors.amd.iter().map(|anchor| anchor.ark());
        let issuers: Vec<&Certificate> = amd
            .chain(anchors.intel.iter().map(|anchor| anchor.root()))
            .chain(&certificates)
            .collect();
        for (name, list) in
            self.0.iter().flat_map(|(name, all)| all.iter().map(move |one| (name, one)))
        {
            let own = issuers.iter().filter(|one| one.subject().der == list.issuer().der);
            let signed: Vec<_> = own.map(|issuer| list.check_issued_by(issuer)).collect();
            let outcome = match signed.iter().find(|one| one.is_ok()).or(signed.first()) {
                None if is_known(list.issuer(), &certificates) => Ok(()),
                None => {
                    judged.left_out.push(stranger(name, list.issuer()));
                    Ok(())
                }
                Some(signed) => signed.clone().and_then(|()| {
                    let of_issuer =
                        certificates.iter().filter(|one| one.issuer().der == list.issuer().der);
                    of_issuer.into_iter().try_for_each(|one| list.check_not_revoked(one))
                }),
            };
            if let Err(error) = outcome {
                judged.refused.get_or_insert((error, name.clone()));
            }
        }
        judged
    }
}

/// Whether somebody of that name issues lists, if not for this machine: a vendor whose
/// roots were not asked for, or Intel's other CA.
fn is_known(issuer: &Name, certificates: &[Certificate]) -> bool {
    let vendor = TrustAnchors::vendor();
    let amd = vendor.amd.iter().map(|anchor| anchor.ark());
    let mut roots = amd.chain(vendor.intel.iter().map(|anchor| anchor.root()));
    let here = |name: &str| certificates.iter().any(|one| one.subject().common_name == name);
    let pck = PCK_CAS.iter().any(|name| issuer.common_name == *name && !here(name));
    pck || roots.any(|root| root.subject().der == issuer.der)
}

fn stranger(name: &str, issuer: &Name) -> LeftOut {
    let issuer = line(&issuer.common_name);
    LeftOut {
        name: name.to_owned(),
        why: format!("a revocation list by {issuer:?}, which no trust anchor is"),
        matters: true,
    }
}

/// The certificates of quotes, of collateral, and beside them. What of them does not read
/// is refused elsewhere where it counts.
fn certificates(evidence: &Evidence, endorsements: &Endorsements) -> Vec<Certificate> {
    let quote = |item: &EvidenceItem| {
        let quote = Quote::parse(&item.evidence).ok()?;
        certificates_from_pem(quote.pck_chain, PemLimits::CHAIN).ok()
    };
    let quotes = evidence.items.iter().filter(|item| item.kind == EvidenceKind::TdxQuote);
    let mut out: Vec<_> = quotes.filter_map(quote).flatten().collect();
    let sent = evidence.items.iter().flat_map(|item| &item.endorsements);
    for (kind, bytes) in sent.chain(&endorsements.items) {
        let read = match kind {
            EndorsementKind::CertificateChain => der_or_pem(bytes, PemLimits::CHAIN).ok(),
            EndorsementKind::TdxCollateral => Collateral::decode(bytes).ok().and_then(|set| {
                certificates_from_pem(&set.tcb_signing_chain, PemLimits::CHAIN).ok()
            }),
            _ => None,
        };
        out.extend(read.unwrap_or_default());
    }
    out
}
