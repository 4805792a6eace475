//! The static layout of a log: C2SP tlog-tiles.

/// The hashes in a full tile, and the leaves in a full entry bundle.
pub const TILE_WIDTH: u64 = 256;
/// The levels of the tree in one tile.
pub const TILE_HEIGHT: u32 = 8;

/// The path of the hash tile `index` at tile level `level`, `width` hashes wide.
pub fn hash_path(level: u32, index: u64, width: u64) -> String {
    format!("tile/{level}/{}{}", number(index), partial(width))
}

/// The path of the entry bundle `index` with `width` leaves.
pub fn entries_path(index: u64, width: u64) -> String {
    format!("tile/entries/{}{}", number(index), partial(width))
}

/// An entry bundle: each leaf after its length in 16 bits, big endian.
/// A leaf that is too long gives nothing.
pub fn bundle<'a>(leaves: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for leaf in leaves {
        bytes.extend(u16::try_from(leaf.len()).ok()?.to_be_bytes());
        bytes.extend_from_slice(leaf);
    }
    Some(bytes)
}

/// The leaves of an entry bundle; bytes that do not come out even give nothing.
pub fn unbundle(mut bytes: &[u8]) -> Option<Vec<&[u8]>> {
    let mut leaves = Vec::new();
    while !bytes.is_empty() {
        let (length, rest) = bytes.split_first_chunk::<2>()?;
        let (leaf, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length)))?;
        leaves.push(leaf);
        bytes = rest;
    }
    Some(leaves)
}

/// `index` in groups of three digits, all but the last marked with an x.
fn number(index: u64) -> String {
    let mut text = format!("{:03}", index % 1000);
    let mut rest = index / 1000;
    while rest > 0 {
        text = format!("x{:03}/{text}", rest % 1000);
        rest /= 1000;
    }
    text
}

fn partial(width: u64) -> String {
    if width == TILE_WIDTH { String::new() } else { format!(".p/{width}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_specification() {
        // C2SP tlog-tiles, "Merkle Tree": 1234067 is x001/x234/067.
        assert_eq!(hash_path(0, 1_234_067, 256), "tile/0/x001/x234/067");
        assert_eq!(hash_path(1, 0, 1), "tile/1/000.p/1");
        assert_eq!(entries_path(1000, 255), "tile/entries/x001/000.p/255");
    }

    #[test]
    fn bundles_read_back() {
        let long = vec![7; 65_535];
        let leaves: [&[u8]; 3] = [b"a", b"", &long];
        let bytes = bundle(leaves).unwrap();
        assert_eq!(unbundle(&bytes).unwrap(), leaves);
        assert_eq!(unbundle(&bytes[..bytes.len() - 1]), None);
        assert_eq!(bundle([vec![0; 65_536].as_slice()]), None);
    }
}
