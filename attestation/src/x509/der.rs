//! The DER framing that the certificate parser reads too leniently or not at all.

/// One element shorter than 16 MiB with its length in the shortest form
/// (X.690 10.1): tag, content, and what follows.
pub(crate) fn element(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (tag, length, rest) = match bytes {
        [tag, 0x83, high @ 1..=0xff, middle, low, rest @ ..] => {
            (*tag, usize::try_from(u32::from_be_bytes([0, *high, *middle, *low])).ok()?, rest)
        }
        [tag, 0x82, high @ 1..=0xff, low, rest @ ..] => {
            (*tag, usize::from(u16::from_be_bytes([*high, *low])), rest)
        }
        [tag, 0x81, length @ 0x80..=0xff, rest @ ..] => (*tag, usize::from(*length), rest),
        [tag, length @ 0..=0x7f, rest @ ..] => (*tag, usize::from(*length), rest),
        _ => return None,
    };
    let (content, after) = rest.split_at_checked(length)?;
    Some((tag, content, after))
}

/// Whether the AlgorithmIdentifier after the signed part `tbs` of `der` is byte
/// for byte the one inside of it (RFC 5280 4.1.1.2 and 5.1.1.2).
pub(super) fn names_one_algorithm(der: &[u8], tbs: &[u8]) -> bool {
    let algorithms = || {
        let (_, content, _) = element(der)?;
        let outer = whole(content.strip_prefix(tbs)?)?;
        let (_, mut inner, _) = element(tbs)?;
        // Version and serial number come first.
        while let Some((0xa0 | 0x02, _, after)) = element(inner) {
            inner = after;
        }
        Some(outer == whole(inner)?)
    };
    algorithms().unwrap_or(false)
}

/// Whether every number, truth value and time in `bytes` has the one form that
/// DER gives it (X.690 8.3.2, 11.1), times in seconds and Z: what was read loosely
/// could mean something else to another reader. Extensions' contents are octets
/// here.
pub(super) fn is_strict(bytes: &[u8]) -> bool {
    let mut open = vec![bytes];
    while let Some(rest) = open.pop() {
        if rest.is_empty() {
            continue;
        }
        let Some((tag, content, after)) = element(rest) else { return false };
        if tag & 0x1f == 0x1f || !is_primitive_strict(tag, content) {
            return false;
        }
        open.push(after);
        if tag & 0x20 != 0 {
            open.push(content);
        }
    }
    true
}

fn is_primitive_strict(tag: u8, content: &[u8]) -> bool {
    let is_time = |digits: usize| {
        let (number, zone) = content.split_at_checked(digits).unwrap_or_default();
        zone == b"Z" && number.iter().all(u8::is_ascii_digit)
    };
    match (tag, content) {
        (0x01, content) => matches!(content, [0 | 0xff]),
        (0x02, [] | [0, 0..=0x7f, ..] | [0xff, 0x80..=0xff, ..]) => false,
        (0x05, content) => content.is_empty(),
        (0x17, _) => is_time(12),
        (0x18, _) => is_time(14),
        _ => true,
    }
}

/// The first element of `bytes`, header and all.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let (_, _, after) = element(bytes)?;
    bytes.get(..bytes.len().checked_sub(after.len())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_have_one_form() {
        assert_eq!(element(&[4, 1, 7, 9]), Some((4, &[7][..], &[9][..])));
        let long = [&[4, 0x82, 1, 0][..], &[0; 256]].concat();
        assert_eq!(element(&long).map(|(_, content, _)| content.len()), Some(256));
        for wrong in [&[4, 0x81, 1, 7][..], &[4, 2, 7], &[4, 0x80, 0, 0], &[4], &[]] {
            assert_eq!(element(wrong), None, "{wrong:x?}");
        }
    }

    #[test]
    fn numbers_truth_and_times_have_one_form() {
        let strict: [&[u8]; 7] = [
            &[0x30, 6, 2, 1, 0, 1, 1, 0xff],
            &[2, 2, 0, 0x80],
            &[2, 1, 0xff],
            &[5, 0],
            b"\x17\x0d260101000000Z",
            b"\x18\x0f20260101000000Z",
            &[],
        ];
        for bytes in strict {
            assert!(is_strict(bytes), "{bytes:x?}");
        }
        let loose: [&[u8]; 10] = [
            &[0x30, 4, 2, 2, 0, 0x7f],
            &[0xa0, 4, 2, 2, 0xff, 0x80],
            &[2, 0],
            &[1, 1, 1],
            &[1, 0],
            &[5, 1, 0],
            b"\x17\x0b2601010000Z",
            b"\x17\x11260101000000+0000",
            b"\x18\x1120260101000000.5Z",
            &[0x30, 5, 2, 1, 0],
        ];
        for bytes in loose {
            assert!(!is_strict(bytes), "{bytes:x?}");
        }
    }

    #[test]
    fn the_two_algorithms_are_compared_as_bytes() {
        let tbs = [0x30, 8, 0xa0, 0, 2, 0, 0x30, 2, 5, 0];
        for (outer, same) in [([0x30, 2, 5, 0], true), ([0x30, 2, 6, 0], false)] {
            let der = [&[0x30, 14][..], &tbs, &outer].concat();
            assert_eq!(names_one_algorithm(&der, &tbs), same);
        }
    }
}
