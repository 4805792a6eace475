//! PEM (RFC 7468) as chains come in it: blocks one after the other.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::{Certificate, Crl};
use crate::error::{Reason, VerifyError};

/// How much PEM is read.
#[derive(Debug, Clone, Copy)]
pub struct PemLimits {
    /// The most bytes of text.
    pub bytes: usize,
    /// The most blocks.
    pub blocks: usize,
}

impl PemLimits {
    /// The limits of a CPU's chain: leaf, intermediates and root.
    pub const CHAIN: Self = Self { bytes: 16 * 1024, blocks: 4 };
    /// The limits of a file of revocation lists.
    pub const CRLS: Self = Self { bytes: 512 * 1024, blocks: 4 };
}

/// Every certificate in `text`, in order. At least one; nothing but blank
/// space and NUL bytes may stand outside the blocks.
pub fn certificates_from_pem(
    text: &[u8],
    limits: PemLimits,
) -> Result<Vec<Certificate>, VerifyError> {
    blocks(text, "CERTIFICATE", limits)?.iter().map(|der| Certificate::parse(der)).collect()
}

/// Every revocation list in `text`, in order.
pub fn crls_from_pem(text: &[u8], limits: PemLimits) -> Result<Vec<Crl>, VerifyError> {
    // Text that is no PEM, such as an error page, is no certificate either.
    let blocks = blocks(text, "X509 CRL", limits).map_err(|error| match error.reason {
        Reason::CertMalformed => VerifyError { reason: Reason::CrlMalformed, ..error },
        _ => error,
    });
    blocks?.iter().map(|der| Crl::parse(der)).collect()
}

/// The certificates in `bytes`, which may be one in DER or several in PEM.
pub fn der_or_pem(bytes: &[u8], limits: PemLimits) -> Result<Vec<Certificate>, VerifyError> {
    match bytes.first() {
        Some(0x30) => Ok(vec![Certificate::parse(bytes)?]),
        _ => certificates_from_pem(bytes, limits),
    }
}

/// The revocation lists in `bytes`, which may be one in DER or several in PEM.
pub fn crls_der_or_pem(bytes: &[u8]) -> Result<Vec<Crl>, VerifyError> {
    match bytes.first() {
        Some(0x2d) => crls_from_pem(bytes, PemLimits::CRLS),
        _ => Ok(vec![Crl::parse(bytes)?]),
    }
}

fn blocks(text: &[u8], label: &str, limits: PemLimits) -> Result<Vec<Vec<u8>>, VerifyError> {
    if text.len() > limits.bytes {
        return Err(VerifyError::new(
            Reason::Limit,
            "PEM",
            format!("at most {} bytes", limits.bytes),
            text.len(),
        ));
    }
    let text = core::str::from_utf8(text).map_err(|_| malformed("ASCII text", "other bytes"))?;
    let (begin, end) = (format!("-----BEGIN {label}-----"), format!("-----END {label}-----"));
    let mut rest = text.trim_matches(is_blank);
    let mut out = Vec::new();
    while !rest.is_empty() {
        let body = rest
            .strip_prefix(begin.as_str())
            .ok_or_else(|| malformed(begin.clone(), "other text"))?;
        let (body, after) =
            body.split_once(end.as_str()).ok_or_else(|| malformed(end.clone(), "no end line"))?;
        if out.len() == limits.blocks {
            return Err(malformed(format!("at most {} blocks", limits.blocks), "more"));
        }
        out.push(decode(body)?);
        rest = after.trim_matches(is_blank);
    }
    if out.is_empty() {
        return Err(malformed(begin, "nothing"));
    }
    Ok(out)
}

fn decode(body: &str) -> Result<Vec<u8>, VerifyError> {
    let digits: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
    STANDARD.decode(digits).map_err(|error| malformed("base64", error))
}

/// Real chains end in a NUL, and some have blank lines between the blocks.
fn is_blank(c: char) -> bool {
    c.is_ascii_whitespace() || c == '\0'
}

fn malformed(expected: impl Into<String>, actual: impl core::fmt::Display) -> VerifyError {
    VerifyError::new(Reason::CertMalformed, "PEM", expected, actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_strictly() {
        let good = b"-----BEGIN X-----\nAAEC\n-----END X-----\n\n-----BEGIN X-----\nAw==\n-----END X-----\n\0";
        let limits = PemLimits { bytes: 200, blocks: 2 };
        assert_eq!(blocks(good, "X", limits).unwrap(), [vec![0, 1, 2], vec![3]]);
        for bad in [
            &b""[..],
            b"junk -----BEGIN X-----\nAAEC\n-----END X-----",
            b"-----BEGIN X-----\nAAEC\n-----END X----- junk",
            b"-----BEGIN X-----\nAA!C\n-----END X-----",
            b"-----BEGIN X-----\nAAEC\n",
        ] {
            assert!(blocks(bad, "X", limits).is_err());
        }
        assert!(blocks(good, "X", PemLimits { blocks: 1, ..limits }).is_err());
    }
}
