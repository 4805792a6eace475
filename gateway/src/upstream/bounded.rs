//! A stream whose lines cannot grow without end.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, ReadBuf};

/// Reads from `inner` until a line is longer than `limit`; then it fails, and
/// the connection with it.
pub(super) struct BoundedLines<R> {
    inner: R,
    limit: usize,
    line: usize,
}

impl<R> BoundedLines<R> {
    pub(super) fn new(inner: R, limit: usize) -> Self {
        Self { inner, limit, line: 0 }
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for BoundedLines<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        let result = Pin::new(&mut self.inner).poll_read(context, out);
        let (mut line, mut longest) = (self.line, 0);
        for byte in out.filled().get(before..).unwrap_or_default() {
            line = if *byte == b'\n' { 0 } else { line + 1 };
            longest = longest.max(line);
        }
        self.line = line;
        if longest > self.limit {
            // A reader that fails must not have filled anything.
            out.set_filled(before);
            return Poll::Ready(Err(io::Error::other("a line beyond the limit")));
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn long_lines_end_the_stream_and_many_short_ones_do_not() {
        let mut out = Vec::new();
        let short = b"abc\n".repeat(100);
        BoundedLines::new(&short[..], 3).read_to_end(&mut out).await.unwrap();
        assert_eq!(out, short);
        assert!(BoundedLines::new(&b"abcd\n"[..], 3).read_to_end(&mut out).await.is_err());
    }
}
