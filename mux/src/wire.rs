//! What both ends set the connection up with.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};
use yamux::{Config, Connection, Mode};

use crate::{MAX_STREAMS, MAX_WRITE};

pub(crate) type Yamux<T> = Connection<Compat<ShortWrites<T>>>;

/// A yamux connection over `wire`.
pub(crate) fn connect<T: AsyncRead + AsyncWrite + Unpin>(wire: T, mode: Mode) -> Yamux<T> {
    let mut config = Config::default();
    // Twice our own limit: one stream too many is refused by us with a
    // reason; yamux's limit, which ends the connection, stops a peer that
    // goes on opening.
    config.set_max_num_streams(YAMUX_STREAMS);
    config.set_max_connection_receive_window(Some(RECEIVE_WINDOW));
    Connection::new(ShortWrites(wire).compat(), config, mode)
}

/// A wire that takes at most [`MAX_WRITE`] bytes a write.
#[derive(Debug)]
pub(crate) struct ShortWrites<T>(T);

impl<T: AsyncRead + Unpin> AsyncRead for ShortWrites<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ShortWrites<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let short = bytes.get(..MAX_WRITE).unwrap_or(bytes);
        Pin::new(&mut self.0).poll_write(cx, short)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

const YAMUX_STREAMS: usize = 2 * MAX_STREAMS;
// The window that yamux demands for each stream (its DEFAULT_CREDIT).
const RECEIVE_WINDOW: usize = YAMUX_STREAMS * 256 * 1024;
