//! The firmware digest in a leaf certificate, in its two forms.
//!
//! Hopper and LS10: tcg-dice-fwid, 2.23.133.5.4.1 (TCG DICE Attestation
//! Architecture, "CompositeDeviceID"). Blackwell: tcg-dice-TcbInfo,
//! 2.23.133.5.4.1.1 (ibid., DiceTcbInfo), field `fwids [6]`.

use crate::x509::Certificate;

use super::der::{Der, INTEGER, OCTET_STRING, OID, SEQUENCE, context};

const COMPOSITE_DEVICE_ID: &str = "2.23.133.5.4.1";
const TCB_INFO: &str = "2.23.133.5.4.1.1";
/// Content of the OBJECT IDENTIFIER 2.16.840.1.101.3.4.2.2.
const SHA384: &[u8] = &[0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02];

/// The SHA-384 firmware digest that `leaf` certifies; the first, where there are several.
pub(crate) fn certified(leaf: &Certificate) -> Option<[u8; 48]> {
    match (leaf.extension(TCB_INFO), leaf.extension(COMPOSITE_DEVICE_ID)) {
        (Some(value), None) => tcb_info(value),
        (None, Some(value)) => composite_device_id(value),
        // Two statements of one thing could differ: neither is taken.
        _ => None,
    }
}

/// SEQUENCE { version INTEGER, SubjectPublicKeyInfo, FWID }.
fn composite_device_id(value: &[u8]) -> Option<[u8; 48]> {
    let mut fields = only(value)?;
    fields.take(INTEGER)?;
    fields.take(SEQUENCE)?;
    let digest = fwid(&mut fields)?;
    fields.is_empty().then_some(digest)
}

/// SEQUENCE { vendor [0] … index [5], fwids [6] SEQUENCE OF FWID, … }.
fn tcb_info(value: &[u8]) -> Option<[u8; 48]> {
    let mut fields = only(value)?;
    while !fields.is_empty() {
        let field = fields.any()?;
        if field.tag == context(6) {
            return fwid(&mut Der::new(field.content));
        }
    }
    None
}

/// SEQUENCE { hashAlg OBJECT IDENTIFIER, digest OCTET STRING }.
fn fwid(fields: &mut Der<'_>) -> Option<[u8; 48]> {
    let mut pair = fields.sequence()?;
    let algorithm = pair.take(OID)?;
    let digest = pair.take(OCTET_STRING)?;
    (algorithm == SHA384 && pair.is_empty()).then(|| digest.try_into().ok())?
}

fn only(value: &[u8]) -> Option<Der<'_>> {
    let mut outer = Der::new(value);
    let fields = outer.sequence()?;
    outer.is_empty().then_some(fields)
}
