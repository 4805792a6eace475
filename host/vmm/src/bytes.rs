//! Reading and writing little-endian fields of byte tables, without indexing.

/// Writes `from` at `at`; what does not fit is a bug of ours and is left out.
pub(crate) fn put(table: &mut [u8], at: usize, from: &[u8]) {
    let place = at.checked_add(from.len()).and_then(|end| table.get_mut(at..end));
    debug_assert!(place.is_some(), "{} bytes at {at} of {}", from.len(), 0);
    if let Some(place) = place {
        place.copy_from_slice(from);
    }
}

/// The `N` bytes at `at`.
pub(crate) fn array<const N: usize>(table: &[u8], at: usize) -> Option<[u8; N]> {
    table.get(at..at.checked_add(N)?)?.try_into().ok()
}

/// A u16 at `at`.
pub(crate) fn u16_at(table: &[u8], at: usize) -> Option<u16> {
    array(table, at).map(u16::from_le_bytes)
}

/// A u32 at `at`.
pub(crate) fn u32_at(table: &[u8], at: usize) -> Option<u32> {
    array(table, at).map(u32::from_le_bytes)
}

/// A u64 at `at`.
pub(crate) fn u64_at(table: &[u8], at: usize) -> Option<u64> {
    array(table, at).map(u64::from_le_bytes)
}

/// At most the first eight bytes as a little-endian number.
pub(crate) fn number(bytes: &[u8]) -> u64 {
    bytes.iter().take(8).rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

/// Fills `to` with the low bytes of `value`, zero beyond eight.
pub(crate) fn fill(to: &mut [u8], value: u64) {
    to.fill(0);
    for (to, from) in to.iter_mut().zip(value.to_le_bytes()) {
        *to = from;
    }
}

/// Copies from `table` at `offset` into `to`; beyond the table is zero.
pub(crate) fn window(table: &[u8], offset: usize, to: &mut [u8]) {
    to.fill(0);
    let rest = table.get(offset.min(table.len())..).unwrap_or_default();
    for (to, from) in to.iter_mut().zip(rest) {
        *to = *from;
    }
}

/// The low half of a wide number.
pub(crate) fn low_u32(value: u64) -> u32 {
    let [a, b, c, d, ..] = value.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The low 16 bits of a number.
pub(crate) fn low_u16(value: u64) -> u16 {
    let [a, b, ..] = value.to_le_bytes();
    u16::from_le_bytes([a, b])
}

/// The lowest byte of a number.
pub(crate) fn low_u8(value: u64) -> u8 {
    let [a, ..] = value.to_le_bytes();
    a
}

/// A length as a u64: this crate runs on 64-bit machines only.
pub(crate) fn wide(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

/// An offset as a usize: this crate runs on 64-bit machines only.
pub(crate) fn narrow(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_beyond_the_end_are_absent() {
        assert_eq!(u32_at(&[1, 0, 0, 0, 2], 0), Some(1));
        assert_eq!(u32_at(&[1, 0, 0, 0, 2], 2), None);
        assert_eq!(u64_at(&[0; 8], usize::MAX), None);
    }

    #[test]
    fn windows_pad_with_zero() {
        let mut to = [9; 4];
        window(&[1, 2, 3], 2, &mut to);
        assert_eq!(to, [3, 0, 0, 0]);
        window(&[1, 2, 3], 100, &mut to);
        assert_eq!(to, [0; 4]);
    }

    #[test]
    fn numbers_round_trip() {
        let mut bytes = [0; 4];
        fill(&mut bytes, 0x1_2345_6789);
        assert_eq!(number(&bytes), 0x2345_6789);
        assert_eq!((low_u32(u64::MAX), low_u16(0x1_0002), low_u8(0x103)), (u32::MAX, 2, 3));
    }
}
