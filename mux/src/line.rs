//! The first line of a stream, in both directions.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::{LINE_TIMEOUT, MAX_LINE, MuxError};

/// Reads one line without its newline: printable ASCII, bounded in length and time.
pub(crate) async fn read(from: &mut (impl AsyncRead + Unpin)) -> Result<String, MuxError> {
    timeout(LINE_TIMEOUT, read_unhurried(from)).await.map_err(|_| MuxError::Timeout)?
}

/// Writes `text` and a newline.
pub(crate) async fn write(to: &mut (impl AsyncWrite + Unpin), text: &str) -> Result<(), MuxError> {
    let line = format!("{text}\n");
    let sent = async {
        to.write_all(line.as_bytes()).await?;
        to.flush().await
    };
    timeout(LINE_TIMEOUT, sent).await.map_err(|_| MuxError::Timeout)?.map_err(|_| MuxError::Closed)
}

/// Whether `name` may be a service's name.
pub(crate) fn check_name(name: &str) -> Result<(), MuxError> {
    let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.');
    let starts = name.starts_with(|first: char| first.is_ascii_lowercase());
    if starts && name.len() <= 63 && name.bytes().all(known) {
        return Ok(());
    }
    Err(MuxError::Name { actual: shorten(name) })
}

/// `text` as it may stand in one reply line.
pub(crate) fn printable(text: &str) -> String {
    let room = MAX_LINE - "err \n".len();
    text.chars().map(|c| if (' '..='~').contains(&c) { c } else { '?' }).take(room).collect()
}

/// The start of `text`, for an error message.
pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

// Byte by byte, because what follows the newline belongs to the service.
async fn read_unhurried(from: &mut (impl AsyncRead + Unpin)) -> Result<String, MuxError> {
    let mut line = String::new();
    loop {
        let byte = from.read_u8().await.map_err(|_| MuxError::Closed)?;
        match byte {
            b'\n' => return Ok(line),
            b' '..=b'~' if line.len() + 1 < MAX_LINE => line.push(char::from(byte)),
            _ => return Err(refuse(&line)),
        }
    }
}

fn refuse(line: &str) -> MuxError {
    MuxError::Line {
        expected: "at most 255 printable ASCII characters and a newline",
        actual: shorten(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_ends_at_its_newline() {
        let mut bytes: &[u8] = b"verifier\nrest";
        assert_eq!(read(&mut bytes).await.unwrap(), "verifier");
        assert_eq!(bytes, b"rest");
    }

    #[tokio::test]
    async fn long_truncated_and_binary_lines_are_refused() {
        let long = [b'a'; MAX_LINE + 1];
        assert!(matches!(read(&mut &long[..]).await, Err(MuxError::Line { .. })));
        assert!(matches!(read(&mut &b"half"[..]).await, Err(MuxError::Closed)));
        assert!(matches!(read(&mut &b"a\0b\n"[..]).await, Err(MuxError::Line { .. })));
    }

    #[test]
    fn names_are_checked() {
        assert!(check_name("gateway").is_ok());
        for bad in ["", "Gateway", "a b", "1a", "a\n", &"a".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
