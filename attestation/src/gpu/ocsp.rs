//! Stapled OCSP responses (RFC 6960): read, signature and window checked.
//!
//! The profile is what NVIDIA's responder sends: one basic response, CertID
//! by SHA-256 or SHA-384, signed with ecdsa-with-SHA384 by the issuer itself
//! or by a responder that the issuer certified for it. A nonce is not asked
//! for, since responses come from a cache: freshness is the window.

use crate::crypto::{Scheme, sha256, sha384};
use crate::time::UnixTime;
use crate::x509::Certificate;

use super::chain::{because, name_of};
use super::code::{Code, Finding};
use super::der::{
    BIT_STRING, Der, ENUMERATED, Element, GENERALIZED_TIME, INTEGER, OCTET_STRING, OID, SEQUENCE,
    context,
};
use super::memo::{Link, Memo};

/// The largest response that is read; those seen have about 1000 bytes.
pub const MAX_OCSP_BYTES: usize = 8 * 1024;
const MAX_ANSWERS: usize = 16;
/// Contents of OBJECT IDENTIFIERs.
const BASIC: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 0x30, 1, 1];
const SHA256: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1];
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
const ECDSA_SHA384: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3];
const OCSP_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 9];
const EXTENDED_KEY_USAGE: &str = "2.5.29.37";

/// What a responder says of a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not revoked.
    Good,
    /// Revoked or on hold, with the CRLReason code (RFC 5280 5.3.1) if there is one.
    Revoked(Option<u8>),
    /// The responder does not know it.
    Unknown,
}

/// One answer of a response. Nothing is verified yet.
#[derive(Debug, Clone)]
struct Answer<'a> {
    hash: &'a [u8],
    issuer_name: &'a [u8],
    issuer_key: &'a [u8],
    serial: &'a [u8],
    status: Status,
    this_update: UnixTime,
    next_update: Option<UnixTime>,
}

/// A response. Nothing is verified yet.
#[derive(Debug)]
pub struct Response<'a> {
    signed: &'a [u8],
    signature: &'a [u8],
    responder: Option<Certificate>,
    answers: Vec<Answer<'a>>,
}

/// An answer whose signature and window were checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// What the responder says.
    pub status: Status,
    /// When that was known to be so.
    pub this_update: UnixTime,
    /// When a newer answer is due.
    pub next_update: UnixTime,
}

impl<'a> Response<'a> {
    /// Reads a response.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Finding> {
        if bytes.len() > MAX_OCSP_BYTES {
            let actual = bytes.len().to_string();
            return Err(Finding::new(
                Code::OcspParse,
                "OCSP response",
                "at most 8192 bytes",
                actual,
            ));
        }
        let (signed, signature, certificate) = outer(bytes).ok_or_else(malformed)?;
        let responder = certificate.map(Certificate::parse).transpose();
        let responder = responder.map_err(|error| because(Code::OcspParse, error))?;
        let answers = answers(signed).ok_or_else(malformed)?;
        Ok(Self { signed, signature, responder, answers })
    }

    /// Whether an answer is about `certificate`, issued by `issuer`.
    pub fn is_about(&self, certificate: &Certificate, issuer: &Certificate) -> bool {
        self.answer(certificate, issuer).is_some()
    }

    /// Checks the answer about `certificate`, whose issuer's own chain the
    /// caller has checked, at `now`.
    pub fn verify(
        &self,
        certificate: &Certificate,
        issuer: &Certificate,
        now: UnixTime,
    ) -> Result<Verified, Finding> {
        self.verify_with(certificate, issuer, now, &Memo::default())
    }

    /// The same, with signatures that were checked before.
    pub(crate) fn verify_with(
        &self,
        certificate: &Certificate,
        issuer: &Certificate,
        now: UnixTime,
        memo: &Memo,
    ) -> Result<Verified, Finding> {
        let subject = name_of(certificate);
        let answer = self.answer(certificate, issuer).ok_or_else(|| {
            let actual = "an answer about another certificate";
            Finding::new(Code::OcspCertId, "OCSP response", subject.clone(), actual)
        })?;
        self.check_signature(&subject, issuer, now, memo)?;
        let next = answer.next_update;
        let field = format!("OCSP response about {subject}");
        let window = || {
            let next = next.map_or("(no next update)".to_owned(), |next| next.to_string());
            format!("{} to {next}", answer.this_update)
        };
        if now < answer.this_update {
            return Err(Finding::new(Code::OcspNotYetValid, field, window(), now.to_string()));
        }
        match next {
            Some(next_update) if now <= next_update => {
                let (status, this_update) = (answer.status.clone(), answer.this_update);
                Ok(Verified { status, this_update, next_update })
            }
            _ => Err(Finding::new(Code::OcspStale, field, window(), now.to_string())),
        }
    }

    fn answer(&self, certificate: &Certificate, issuer: &Certificate) -> Option<&Answer<'a>> {
        let (name, key) = (&issuer.subject().der, issuer.key().bytes());
        self.answers.iter().find(|answer| {
            // The serial first: it costs nothing and decides most often.
            answer.serial == certificate.serial()
                && match answer.hash {
                    SHA256 => {
                        answer.issuer_name == sha256(name) && answer.issuer_key == sha256(key)
                    }
                    _ => answer.issuer_name == sha384(name) && answer.issuer_key == sha384(key),
                }
        })
    }

    fn check_signature(
        &self,
        subject: &str,
        issuer: &Certificate,
        now: UnixTime,
        memo: &Memo,
    ) -> Result<(), Finding> {
        let mut links = Vec::new();
        let signer = match &self.responder {
            None => issuer,
            Some(responder) => {
                links.extend(authorised(responder, issuer, now, memo)?);
                responder
            }
        };
        let link = Link::message(signer, self.signed, self.signature);
        if !memo.knows(link) {
            if !signer.key().verify(Scheme::EcdsaP384Sha384Der, self.signed, self.signature) {
                let expected = format!("one by {}", name_of(signer));
                let actual = "one that does not verify";
                let field = format!("signature of the OCSP response about {subject}");
                return Err(Finding::new(Code::OcspSignature, field, expected, actual));
            }
            links.push(link);
        }
        if !links.is_empty() {
            memo.keep(&links);
        }
        Ok(())
    }
}

/// Checks that `issuer` certified `responder` for OCSP signing (RFC 6960, 4.2.2.2).
fn authorised(
    responder: &Certificate,
    issuer: &Certificate,
    now: UnixTime,
    memo: &Memo,
) -> Result<Option<Link>, Finding> {
    let refuse = |error| because(Code::OcspResponder, error);
    if !responder.extension(EXTENDED_KEY_USAGE).is_some_and(for_ocsp) {
        let field = name_of(responder);
        return Err(Finding::new(Code::OcspResponder, field, "for OCSP signing", "not"));
    }
    responder.check_scheme(Scheme::EcdsaP384Sha384Der).map_err(refuse)?;
    responder.check_validity(now).map_err(refuse)?;
    let link = Link::certificate(responder, issuer);
    // The memory holds keys, not names: a known link still needs its issuer's name.
    if memo.knows(link) && responder.issuer().der == issuer.subject().der {
        return Ok(None);
    }
    responder.check_issued_by(issuer).map_err(refuse)?;
    Ok(Some(link))
}

fn for_ocsp(usage: &[u8]) -> bool {
    let Some(mut purposes) = Der::new(usage).sequence() else { return false };
    core::iter::from_fn(|| purposes.take(OID)).any(|purpose| purpose == OCSP_SIGNING)
}

/// OCSPResponse and BasicOCSPResponse (RFC 6960, 4.2.1): the signed bytes, the
/// signature, and the first certificate.
#[expect(clippy::type_complexity, reason = "three slices, used once")]
fn outer(bytes: &[u8]) -> Option<(&[u8], &[u8], Option<&[u8]>)> {
    let mut response = only_sequence(bytes)?;
    let successful = response.take(ENUMERATED)? == [0];
    let mut typed = only_sequence(response.take(context(0))?)?;
    let basic = typed.take(OID)? == BASIC;
    let mut body = only_sequence(typed.take(OCTET_STRING)?)?;
    let signed = body.any().filter(|element| element.tag == SEQUENCE)?;
    let mut algorithm = body.sequence()?;
    let known = algorithm.take(OID)? == ECDSA_SHA384 && algorithm.is_empty();
    let signature = body.take(BIT_STRING)?.strip_prefix(&[0])?;
    let certificate = match body.optional(context(0)) {
        Some(list) => only_sequence(list)?.any().map(|first| first.whole),
        None => None,
    };
    let ended = response.is_empty() && typed.is_empty() && body.is_empty();
    (successful && basic && known && ended).then_some((signed.whole, signature, certificate))
}

/// ResponseData: [0] version, responderID, producedAt, responses, [1] extensions.
fn answers(signed: &[u8]) -> Option<Vec<Answer<'_>>> {
    let mut fields = only_sequence(signed)?;
    let Element { tag, .. } = fields.any()?;
    if tag != context(1) && tag != context(2) {
        return None;
    }
    fields.take(GENERALIZED_TIME)?;
    let mut list = fields.sequence()?;
    let mut answers = Vec::new();
    while !list.is_empty() {
        if answers.len() >= MAX_ANSWERS {
            return None;
        }
        answers.push(answer(list.sequence()?)?);
    }
    no_critical(fields.optional(context(1)))?;
    fields.is_empty().then_some(answers)
}

/// SingleResponse: certID, certStatus, thisUpdate, [0] nextUpdate, [1] extensions.
fn answer(mut fields: Der<'_>) -> Option<Answer<'_>> {
    let mut id = fields.sequence()?;
    let mut algorithm = id.sequence()?;
    let hash = algorithm.take(OID).filter(|oid| [SHA256, SHA384].contains(oid))?;
    let (issuer_name, issuer_key) = (id.take(OCTET_STRING)?, id.take(OCTET_STRING)?);
    let serial = id.take(INTEGER)?;
    let status = fields.any()?;
    let status = match status.tag {
        0x80 if status.content.is_empty() => Status::Good,
        0xa1 => Status::Revoked(reason(status.content)?),
        0x82 if status.content.is_empty() => Status::Unknown,
        _ => return None,
    };
    let this_update = time(fields.take(GENERALIZED_TIME)?)?;
    let next_update = match fields.optional(context(0)) {
        Some(next) => Some(time(Der::new(next).take(GENERALIZED_TIME)?)?),
        None => None,
    };
    no_critical(fields.optional(context(1)))?;
    let ended = fields.is_empty() && id.is_empty();
    let answer = Answer { hash, issuer_name, issuer_key, serial, status, this_update, next_update };
    ended.then_some(answer)
}

/// RevokedInfo: the time, and [0] the reason if there is one.
fn reason(content: &[u8]) -> Option<Option<u8>> {
    let mut fields = Der::new(content);
    fields.take(GENERALIZED_TIME)?;
    match fields.optional(context(0)) {
        None => Some(None),
        Some(inner) => match Der::new(inner).take(ENUMERATED)? {
            [reason] => Some(Some(*reason)),
            _ => None,
        },
    }
}

/// Extensions are not read; one that must be understood is refused.
fn no_critical(extensions: Option<&[u8]>) -> Option<()> {
    let Some(extensions) = extensions else { return Some(()) };
    let mut list = only_sequence(extensions)?;
    while !list.is_empty() {
        let mut extension = list.sequence()?;
        extension.take(OID)?;
        extension.take(OCTET_STRING)?;
    }
    Some(())
}

fn time(text: &[u8]) -> Option<UnixTime> {
    UnixTime::from_generalized(core::str::from_utf8(text).ok()?)
}

fn only_sequence(bytes: &[u8]) -> Option<Der<'_>> {
    let mut outer = Der::new(bytes);
    let inner = outer.sequence()?;
    outer.is_empty().then_some(inner)
}

fn malformed() -> Finding {
    Finding::new(
        Code::OcspParse,
        "OCSP response",
        "a successful basic response in the profile",
        "another structure",
    )
}

impl core::fmt::Display for Status {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Good => f.write_str("good"),
            Self::Revoked(Some(6)) => f.write_str("revoked (on hold)"),
            Self::Revoked(Some(reason)) => write!(f, "revoked (reason {reason})"),
            Self::Revoked(None) => f.write_str("revoked"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}
