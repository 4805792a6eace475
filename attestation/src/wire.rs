//! Reading fixed binary layouts out of bytes that nobody vouches for yet.
//!
//! Every read names its field, so that a refusal can say which one is short or
//! wrong. Nothing here allocates more than the error text.

/// Why bytes are not the structure that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, got {actual}")]
pub struct ParseError {
    /// The field, as the format's document calls it.
    pub field: &'static str,
    /// What the format allows there.
    pub expected: String,
    /// What was there.
    pub actual: String,
}

impl ParseError {
    /// The error that `field` is not `expected`.
    pub fn new(
        field: &'static str,
        expected: impl Into<String>,
        actual: impl core::fmt::Display,
    ) -> Self {
        Self { field, expected: expected.into(), actual: actual.to_string() }
    }
}

/// A cursor over untrusted bytes.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    /// A cursor at the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes, position: 0 }
    }

    /// How many bytes were read so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// How many bytes are left.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// What is left, without reading it.
    pub fn peek(&self) -> &'a [u8] {
        self.rest
    }

    /// The next `length` bytes.
    pub fn slice(&mut self, field: &'static str, length: usize) -> Result<&'a [u8], ParseError> {
        let Some((head, tail)) = self.rest.split_at_checked(length) else {
            return Err(ParseError::new(
                field,
                format!("{length} bytes at offset {}", self.position),
                format!("{} bytes", self.rest.len()),
            ));
        };
        self.rest = tail;
        self.position = self.position.saturating_add(length);
        Ok(head)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], ParseError> {
        let mut out = [0; N];
        out.copy_from_slice(self.slice(field, N)?);
        Ok(out)
    }

    /// A cursor over the next `length` bytes.
    pub fn sub(&mut self, field: &'static str, length: usize) -> Result<Self, ParseError> {
        let position = self.position;
        Ok(Self { rest: self.slice(field, length)?, position })
    }

    /// The next byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, ParseError> {
        self.array::<1>(field).map(|[byte]| byte)
    }

    /// The next two bytes, little-endian.
    pub fn u16_le(&mut self, field: &'static str) -> Result<u16, ParseError> {
        self.array(field).map(u16::from_le_bytes)
    }

    /// The next four bytes, little-endian.
    pub fn u32_le(&mut self, field: &'static str) -> Result<u32, ParseError> {
        self.array(field).map(u32::from_le_bytes)
    }

    /// The next eight bytes, little-endian.
    pub fn u64_le(&mut self, field: &'static str) -> Result<u64, ParseError> {
        self.array(field).map(u64::from_le_bytes)
    }

    /// The next two bytes, big-endian.
    pub fn u16_be(&mut self, field: &'static str) -> Result<u16, ParseError> {
        self.array(field).map(u16::from_be_bytes)
    }

    /// The next four bytes, big-endian.
    pub fn u32_be(&mut self, field: &'static str) -> Result<u32, ParseError> {
        self.array(field).map(u32::from_be_bytes)
    }

    /// The next eight bytes, big-endian.
    pub fn u64_be(&mut self, field: &'static str) -> Result<u64, ParseError> {
        self.array(field).map(u64::from_be_bytes)
    }

    /// The next four bytes, little-endian, as a length or an offset.
    pub fn length_le(&mut self, field: &'static str) -> Result<usize, ParseError> {
        let value = self.u32_le(field)?;
        usize::try_from(value).map_err(|_| ParseError::new(field, "a length in memory", value))
    }

    /// Reads `length` bytes that must all be zero.
    pub fn zeros(&mut self, field: &'static str, length: usize) -> Result<(), ParseError> {
        let start = self.position;
        let bytes = self.slice(field, length)?;
        match bytes.iter().position(|byte| *byte != 0) {
            None => Ok(()),
            Some(at) => Err(ParseError::new(
                field,
                "zero bytes",
                format!("a non-zero byte at offset {}", start.saturating_add(at)),
            )),
        }
    }

    /// Ends the reading: bytes that are left are an error.
    pub fn end(self, field: &'static str) -> Result<(), ParseError> {
        match self.rest.len() {
            0 => Ok(()),
            left => Err(ParseError::new(
                field,
                format!("the end at offset {}", self.position),
                format!("{left} more bytes"),
            )),
        }
    }
}

/// Bytes as lower-case hex, for messages and text formats.
pub fn hex(bytes: &[u8]) -> String {
    use core::fmt::Write as _;
    let mut out = String::with_capacity(bytes.len().saturating_mul(2));
    for byte in bytes {
        // Writing to a String cannot fail.
        let _infallible = write!(out, "{byte:02x}");
    }
    out
}

/// Hex digits of either case as bytes; `None` for anything else.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits
        .chunks_exact(2)
        .map(|pair| match pair {
            [high, low] => Some(nibble(*high)? << 4 | nibble(*low)?),
            _ => None,
        })
        .collect()
}

/// Hex digits of either case as exactly `N` bytes.
pub fn unhex_array<const N: usize>(text: &str) -> Option<[u8; N]> {
    unhex(text)?.try_into().ok()
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_rests() {
        let mut reader = Reader::new(&[1, 2, 0, 0, 0, 0, 0, 0, 3, 9]);
        assert_eq!(reader.u8("a"), Ok(1));
        assert_eq!(reader.u16_le("b"), Ok(2));
        reader.zeros("c", 3).unwrap();
        assert_eq!(reader.u16_be("d"), Ok(0));
        assert_eq!(
            reader.clone().end("e").unwrap_err().to_string(),
            "e: expected the end at offset 8, got 2 more bytes"
        );
        assert!(reader.clone().zeros("f", 2).unwrap_err().to_string().contains("offset 8"));
        assert!(reader.u32_le("g").unwrap_err().to_string().starts_with("g: expected 4 bytes"));
        reader.slice("h", 2).unwrap();
        reader.end("i").unwrap();
    }

    #[test]
    fn hex_round_trip() {
        assert_eq!(unhex(&hex(&[0, 0xab, 0xff])), Some(vec![0, 0xab, 0xff]));
        assert_eq!(unhex("AbC"), None);
        assert_eq!(unhex("0g"), None);
        assert_eq!(unhex_array::<2>("00"), None);
    }
}
