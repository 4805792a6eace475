//! What the targets share: an input of several parts.

/// One part of an input.
#[derive(Debug, Clone, Copy)]
pub struct Part<'a> {
    /// What the part stands for; each target has its own list.
    pub kind: u8,
    pub bytes: &'a [u8],
}

/// Splits an input into parts: kind u8, length u16 little-endian, bytes. The
/// last part may be cut off, so that every input means something.
pub fn parts(mut input: &[u8]) -> Vec<Part<'_>> {
    let mut parts = Vec::new();
    while let Some((&[kind, low, high], rest)) = input.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        parts.push(Part { kind, bytes });
        input = rest;
    }
    parts
}
