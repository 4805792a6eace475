//! The bytes around what is signed. `x509-parser` reads some of them loosely,
//! and no signature covers them, so they are compared with the one right form.

use crate::crypto::der::element;

/// Whether `der` is exactly SEQUENCE { `tbs`, AlgorithmIdentifier, BIT STRING
/// `signature` }, in DER, with the AlgorithmIdentifier of `tbs` byte for byte
/// (RFC 5280 sections 4.1.1.2 and 5.1.1.2).
pub(super) fn is_exact(der: &[u8], tbs: &[u8], signature: &[u8]) -> bool {
    parts(der, tbs, signature).is_some()
}

fn parts(der: &[u8], tbs: &[u8], signature: &[u8]) -> Option<()> {
    let (body, rest) = element(der, 0x30)?;
    let after = body.strip_prefix(tbs)?;
    let (_, tail) = element(after, 0x30)?;
    let algorithm = after.get(..after.len().checked_sub(tail.len())?)?;
    let (bits, end) = element(tail, 0x03)?;
    let exact = rest.is_empty()
        && end.is_empty()
        && bits.strip_prefix(&[0]) == Some(signature)
        && inner_algorithm(tbs)?.starts_with(algorithm);
    exact.then_some(())
}

/// What follows version and serial number in `tbs`.
fn inner_algorithm(tbs: &[u8]) -> Option<&[u8]> {
    let (mut content, _) = element(tbs, 0x30)?;
    for tag in [0xa0, 0x02] {
        if let Some((_, rest)) = element(content, tag) {
            content = rest;
        }
    }
    Some(content)
}
