//! What stapled responses say of the certificates that were used.

use crate::time::UnixTime;
use crate::x509::Certificate;

use super::chain::name_of;
use super::code::{Code, Finding, Source};
use super::memo::Memo;
use super::ocsp::{Response, Status, Verified};

/// More than eight GPUs, four switches and their manifests need.
const MAX_RESPONSES: usize = 128;

/// One certificate's status.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revocation {
    /// The manifest whose signer's chain it is in, or none for the device's chain.
    pub source: Option<Source>,
    /// The certificate's name.
    pub certificate: String,
    /// What the responder says, or why nothing that it says counts.
    pub status: Result<Verified, Finding>,
}

/// The responses that came, read once.
#[derive(Debug, Default)]
pub(crate) struct Responses<'a>(Vec<Result<Response<'a>, Finding>>);

impl<'a> Responses<'a> {
    pub(crate) fn parse(ocsp: &[&'a [u8]]) -> Self {
        Self(ocsp.iter().take(MAX_RESPONSES).map(|der| Response::parse(der)).collect())
    }

    /// The status of every certificate from `first` on; the root has none.
    pub(crate) fn chain(
        &self,
        source: Option<Source>,
        chain: &[Certificate],
        first: usize,
        now: UnixTime,
        memo: &Memo,
    ) -> Vec<Revocation> {
        let pairs = chain.windows(2).skip(first).filter_map(|pair| match pair {
            [certificate, issuer] => Some((certificate, issuer)),
            _ => None,
        });
        pairs
            .map(|(certificate, issuer)| Revocation {
                source,
                certificate: certificate.subject().common_name.clone(),
                status: self.status(certificate, issuer, now, memo),
            })
            .collect()
    }

    /// The status by the first response about `certificate`. If there are
    /// several, one that says "revoked" or the freshest that verifies counts.
    fn status(
        &self,
        certificate: &Certificate,
        issuer: &Certificate,
        now: UnixTime,
        memo: &Memo,
    ) -> Result<Verified, Finding> {
        let about = self.0.iter().flatten().filter(|one| one.is_about(certificate, issuer));
        let mut best: Option<Result<Verified, Finding>> = None;
        for response in about {
            let found = response.verify_with(certificate, issuer, now, memo);
            let better = match (&found, &best) {
                (_, None) => true,
                (Ok(Verified { status: Status::Revoked(_), .. }), _) => true,
                (_, Some(Ok(Verified { status: Status::Revoked(_), .. }))) => false,
                (Ok(new), Some(Ok(old))) => new.this_update > old.this_update,
                (Ok(_), Some(Err(_))) => true,
                (Err(_), Some(_)) => false,
            };
            if better {
                best = Some(found);
            }
        }
        best.unwrap_or_else(|| Err(self.absent(certificate)))
    }

    /// Why there is no answer: none came, or those that came cannot be read.
    fn absent(&self, certificate: &Certificate) -> Finding {
        match self.0.iter().find_map(|one| one.as_ref().err()) {
            Some(unreadable) => unreadable.clone(),
            None => {
                let field = format!("OCSP response about {}", name_of(certificate));
                Finding::new(Code::OcspAbsent, field, "one", "none")
            }
        }
    }
}

impl Revocation {
    /// The finding that the certificate is revoked, if it is.
    pub(crate) fn revoked(&self) -> Option<Finding> {
        match &self.status {
            Ok(Verified { status: status @ Status::Revoked(_), .. }) => {
                Some(self.finding(Code::OcspRevoked, "good", status.to_string()))
            }
            _ => None,
        }
    }

    /// Why the certificate is not known to be good and fresh at `now`, if it is not.
    pub fn not_good(&self, now: UnixTime, max_age_s: u64) -> Option<Finding> {
        match &self.status {
            Err(finding) => Some(match self.source {
                Some(source) => finding.clone().of(source),
                None => finding.clone(),
            }),
            Ok(Verified { status: Status::Revoked(_), .. }) => None,
            Ok(Verified { status: Status::Unknown, .. }) => {
                Some(self.finding(Code::OcspUnknown, "good", "unknown".to_owned()))
            }
            Ok(Verified { this_update, .. }) if this_update.plus_seconds(max_age_s) < now => {
                let expected = format!("an answer at most {max_age_s} s old");
                Some(self.finding(Code::OcspStale, &expected, format!("of {this_update}")))
            }
            Ok(_) => None,
        }
    }

    fn finding(&self, code: Code, expected: &str, actual: String) -> Finding {
        let finding =
            Finding::new(code, format!("certificate {}", self.certificate), expected, actual);
        match self.source {
            Some(source) => finding.of(source),
            None => finding,
        }
    }
}
