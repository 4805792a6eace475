//! A reader of DER (X.690) for the few structures of this module: definite
//! lengths in their shortest form, one element after the other.

/// The elements not read yet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Der<'a>(&'a [u8]);

/// One element.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// Tag, length and content.
    pub(crate) whole: &'a [u8],
}

pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const OID: u8 = 0x06;
pub(crate) const ENUMERATED: u8 = 0x0a;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;

/// The constructed context tag `number`.
pub(crate) const fn context(number: u8) -> u8 {
    0xa0 | number
}

impl<'a> Der<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn any(&mut self) -> Option<Element<'a>> {
        let (tag, after) = self.0.split_first()?;
        // Tags above 30 take more bytes and are used nowhere here.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (length, after) = length(after)?;
        let (content, rest) = after.split_at_checked(length)?;
        let whole = self.0.get(..self.0.len().checked_sub(rest.len())?)?;
        self.0 = rest;
        Some(Element { tag: *tag, content, whole })
    }

    /// The content of the next element, which must have `tag`.
    pub(crate) fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.any().filter(|element| element.tag == tag).map(|element| element.content)
    }

    /// The content of the next element if it has `tag`.
    pub(crate) fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.0.first() == Some(&tag) { self.take(tag) } else { None }
    }

    /// A reader of the next element, a SEQUENCE.
    pub(crate) fn sequence(&mut self) -> Option<Self> {
        self.take(SEQUENCE).map(Self)
    }
}

fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    match bytes {
        [0x82, high, low, rest @ ..] if *high != 0 => {
            Some((usize::from(u16::from_be_bytes([*high, *low])), rest))
        }
        [0x81, length, rest @ ..] if *length >= 0x80 => Some((usize::from(*length), rest)),
        [length, rest @ ..] if *length < 0x80 => Some((usize::from(*length), rest)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_in_the_shortest_form_only() {
        let mut der = Der::new(&[0x30, 3, 2, 1, 5, 4, 0]);
        let mut inner = der.sequence().unwrap();
        assert_eq!(inner.take(INTEGER), Some([5].as_slice()));
        assert!(inner.is_empty());
        assert_eq!((der.optional(OID), der.optional(OCTET_STRING)), (None, Some([].as_slice())));
        for bad in [&[0x30, 0x81, 1, 0][..], &[0x30, 0x80], &[0x30, 2, 0], &[0x1f, 0x81, 1, 0], &[]]
        {
            assert!(Der::new(bad).any().is_none(), "{bad:x?}");
        }
    }
}
