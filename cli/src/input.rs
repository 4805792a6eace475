//! Files that somebody names: read up to a limit, whatever is behind the name.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::table::name_of;

/// The bytes of the file at `path`, at most `max` of them.
pub(crate) fn bytes(path: &Path, max: u64) -> anyhow::Result<Vec<u8>> {
    let name = name_of(path);
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    // Of a device or a pipe the size is not known, and it may never end.
    let size = file.metadata().ok().filter(std::fs::Metadata::is_file).map(|data| data.len());
    if let Some(size) = size.filter(|size| *size > max) {
        bail!("{name}: expected at most {max} bytes, got {size}");
    }
    bounded(file, &name, max)
}

/// All of `source`, at most `max` bytes.
pub(crate) fn bounded(source: impl Read, name: &str, max: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = source.take(max.saturating_add(1)).read_to_end(&mut bytes);
    let length = read.with_context(|| format!("cannot read {name}"))?;
    if u64::try_from(length)? > max {
        bail!("{name}: expected at most {max} bytes, got more");
    }
    Ok(bytes)
}

/// The text of the file at `path`, at most `max` bytes.
pub(crate) fn text(path: &Path, max: u64) -> anyhow::Result<String> {
    let text = String::from_utf8(bytes(path, max)?);
    text.with_context(|| format!("{}: expected UTF-8 text", name_of(path)))
}

/// Bytes in hex digits, with or without `0x`.
pub(crate) fn unhex(text: &str) -> anyhow::Result<Vec<u8>> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    hex::decode(digits).with_context(|| format!("expected hex digits, got {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_is_refused() {
        let error = bytes(Path::new("/dev/zero"), 1000).unwrap_err().to_string();
        assert_eq!(error, "/dev/zero: expected at most 1000 bytes, got more");
        assert!(bounded(&b"1234"[..], "four", 4).is_ok());
        assert!(bounded(&b"12345"[..], "five", 4).is_err());
    }

    #[test]
    fn hex_may_say_that_it_is_hex() {
        assert_eq!(unhex("0x0aFF").unwrap(), [0x0a, 0xff]);
        assert_eq!(unhex("0aff").unwrap(), [0x0a, 0xff]);
        assert!(unhex("0x0").is_err() && unhex("0x0x00").is_err());
    }
}
