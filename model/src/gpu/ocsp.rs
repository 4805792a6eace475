//! OCSP responses (RFC 6960) that an issuer signs itself.

use casemate_attestation::UnixTime;
use casemate_attestation::crypto::{sha256, sha384};
use casemate_attestation::x509::Certificate;

use super::certificate::{Authority, algorithm};
use crate::{ModelError, der};

/// What the response says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OcspStatus {
    /// Not revoked.
    Good,
    /// On hold (CRLReason 6).
    OnHold,
    /// Not known.
    Unknown,
}

/// A response about `certificate` by its `issuer`.
pub(super) fn signed(
    certificate: &Certificate,
    issuer: &Authority,
    status: OcspStatus,
    this_update: UnixTime,
    next_update: UnixTime,
) -> Result<Vec<u8>, ModelError> {
    let hash = der::sequence(&[&der::oid("2.16.840.1.101.3.4.2.2"), &der::null()]);
    let id = der::sequence(&[
        &hash,
        &der::octets(&sha384(&certificate.issuer().der)),
        &der::octets(&sha384(issuer.key.point())),
        &der::integer(certificate.serial()),
    ]);
    let status = match status {
        OcspStatus::Good => der::element(0x80, &[]),
        OcspStatus::OnHold => {
            let reason = der::element(0xa0, &der::element(0x0a, &[6]));
            der::element(0xa1, &[time(this_update), reason].concat())
        }
        OcspStatus::Unknown => der::element(0x82, &[]),
    };
    let next = der::element(0xa0, &time(next_update));
    let answer = der::sequence(&[&id, &status, &time(this_update), &next]);
    // responderID by key; the model names it by the first bytes of a SHA-256.
    let responder: Vec<u8> = sha256(issuer.key.point()).into_iter().take(20).collect();
    let tbs = der::sequence(&[
        &der::element(0xa2, &der::octets(&responder)),
        &time(this_update),
        &der::sequence(&[&answer]),
    ]);
    let signature = issuer.key.sign_der(&tbs)?;
    let basic = der::sequence(&[&tbs, &algorithm(), &der::bits(&signature)]);
    let typed = der::sequence(&[&der::oid("1.3.6.1.5.5.7.48.1.1"), &der::octets(&basic)]);
    Ok(der::sequence(&[&der::element(0x0a, &[0]), &der::element(0xa0, &typed)]))
}

/// A GeneralizedTime.
fn time(at: UnixTime) -> Vec<u8> {
    // Of a UTCTime only the century is missing.
    let element = der::time(at.0);
    match element.split_first_chunk::<2>() {
        Some(([0x17, _], utc)) => der::element(0x18, &[b"20", utc].concat()),
        _ => element,
    }
}
