//! The two DER shapes that keys and signatures come in, read strictly.

/// A DER ECDSA signature as `r | s` of `N` bytes each (`N` is 32 or 48).
pub(super) fn ecdsa_raw<const N: usize>(der: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = two_integers(der)?;
    let mut out = vec![0; N.checked_mul(2)?];
    let (left, right) = out.split_at_mut_checked(N)?;
    place(left, r)?;
    place(right, s)?;
    Some(out)
}

/// Modulus and exponent of a DER RSAPublicKey (RFC 8017 A.1.1).
pub(super) fn rsa_public_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    two_integers(der)
}

fn place(out: &mut [u8], integer: &[u8]) -> Option<()> {
    let pad = out.len().checked_sub(integer.len())?;
    out.get_mut(pad..)?.copy_from_slice(integer);
    Some(())
}

/// A SEQUENCE of exactly two positive INTEGERs, without leading zeros.
fn two_integers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (body, rest) = element(der, 0x30)?;
    let (first, body) = positive(body)?;
    let (second, body) = positive(body)?;
    (rest.is_empty() && body.is_empty()).then_some((first, second))
}

fn positive(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (value, rest) = element(bytes, 0x02)?;
    match value {
        [0, tail @ ..] if tail.first().is_some_and(|byte| byte & 0x80 != 0) => Some((tail, rest)),
        [first, ..] if *first != 0 && first & 0x80 == 0 => Some((value, rest)),
        _ => None,
    }
}

/// One element with `tag`: its content and what follows. Lengths below 16 MiB,
/// in the shortest form only (X.690 10.1).
pub(crate) fn element(bytes: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (length, rest) = match bytes {
        [t, 0x83, top, high, low, rest @ ..] if *t == tag && *top != 0 => {
            let length = u32::from_be_bytes([0, *top, *high, *low]);
            (usize::try_from(length).ok()?, rest)
        }
        [t, 0x82, high, low, rest @ ..] if *t == tag && *high != 0 => {
            (usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        [t, 0x81, length, rest @ ..] if *t == tag && *length >= 0x80 => {
            (usize::from(*length), rest)
        }
        [t, length, rest @ ..] if *t == tag && *length < 0x80 => (usize::from(*length), rest),
        _ => return None,
    };
    rest.split_at_checked(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_shortest_form_is_read() {
        let mut raw = [0; 64];
        raw[31] = 5;
        raw[63] = 0x80;
        assert_eq!(ecdsa_raw::<32>(&[0x30, 7, 2, 1, 5, 2, 2, 0, 0x80]).unwrap(), raw);
        for bad in [
            &[0x30, 8, 2, 2, 0, 5, 2, 2, 0, 0x80][..],
            &[0x30, 7, 2, 1, 5, 2, 2, 0, 0x80, 0],
            &[0x30, 6, 2, 1, 5, 2, 1, 0x80],
            &[0x30, 0x81, 7, 2, 1, 5, 2, 2, 0, 0x80],
            &[0x30, 6, 2, 1, 0, 2, 1, 1],
            &[],
        ] {
            assert_eq!(ecdsa_raw::<32>(bad), None, "{bad:x?}");
        }
    }
}
