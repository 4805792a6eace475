//! The guest's end: opens streams, takes none.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;
use yamux::Mode;

use crate::line;
use crate::stream::Stream;
use crate::wire::{Yamux, connect};
use crate::{LINE_TIMEOUT, MAX_STREAMS, MuxError};

/// The guest's end of the wire. Clones share it; when the last is dropped,
/// the connection closes and its streams end.
#[derive(Debug, Clone)]
pub struct Guest {
    requests: mpsc::Sender<Reply>,
    places: Arc<Semaphore>,
}

impl Guest {
    /// Speaks the protocol over `wire`, in a task of the current tokio runtime.
    pub fn start<T>(wire: T) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (requests, incoming) = mpsc::channel(MAX_STREAMS);
        tokio::spawn(drive(connect(wire, Mode::Client), incoming));
        Self { requests, places: Arc::new(Semaphore::new(MAX_STREAMS)) }
    }

    /// A stream to `service`, once the host said `ok`. Waits for a place
    /// among the [`MAX_STREAMS`] open ones.
    pub async fn open(&self, service: &str) -> Result<Stream, MuxError> {
        line::check_name(service)?;
        let opened = timeout(LINE_TIMEOUT, self.open_unnamed()).await;
        let mut stream = opened.map_err(|_| MuxError::Timeout)??;
        line::write(&mut stream, service).await?;
        let answer = line::read(&mut stream).await?;
        match answer.split_once(' ') {
            None if answer == "ok" => Ok(stream),
            Some(("err", reason)) => {
                Err(MuxError::Refused { service: service.to_owned(), reason: reason.to_owned() })
            }
            _ => Err(MuxError::Line {
                expected: "\"ok\" or \"err <reason>\"",
                actual: line::shorten(&answer),
            }),
        }
    }

    /// Waits until the wire is gone.
    pub async fn closed(&self) {
        self.requests.closed().await;
    }

    async fn open_unnamed(&self) -> Result<Stream, MuxError> {
        let place = Arc::clone(&self.places).acquire_owned().await;
        let place = place.map_err(|_| MuxError::Closed)?;
        let (reply, stream) = oneshot::channel();
        self.requests.send(reply).await.map_err(|_| MuxError::Closed)?;
        Ok(Stream::new(stream.await.map_err(|_| MuxError::Closed)?, place))
    }
}

type Reply = oneshot::Sender<yamux::Stream>;

async fn drive<T>(mut connection: Yamux<T>, mut requests: mpsc::Receiver<Reply>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let mut waiting = None;
    poll_fn(|cx| step(&mut connection, &mut requests, &mut waiting, cx)).await;
    drop(requests);
    // The peer may be gone already; there is nobody to tell.
    let _ = poll_fn(|cx| connection.poll_close(cx)).await;
}

/// Serves requests and the connection until one of them ends.
fn step<T>(
    connection: &mut Yamux<T>,
    requests: &mut mpsc::Receiver<Reply>,
    waiting: &mut Option<Reply>,
    cx: &mut Context<'_>,
) -> Poll<()>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    loop {
        if waiting.is_none() {
            match requests.poll_recv(cx) {
                Poll::Ready(Some(reply)) => *waiting = Some(reply),
                Poll::Ready(None) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        if waiting.is_some() {
            match connection.poll_new_outbound(cx) {
                Poll::Ready(Ok(stream)) => {
                    // An opener that gave up drops the stream, which resets it.
                    let _ = waiting.take().map(|reply| reply.send(stream));
                    continue;
                }
                Poll::Ready(Err(_)) => return Poll::Ready(()),
                Poll::Pending => {}
            }
        }
        match connection.poll_next_inbound(cx) {
            // The host opens no streams; one that comes is reset.
            Poll::Ready(Some(Ok(stream))) => drop(stream),
            Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
            Poll::Pending => return Poll::Pending,
        }
    }
}
