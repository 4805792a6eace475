//! The host's end: takes streams for the services it offers, opens none.

use std::collections::BTreeSet;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Interval, MissedTickBehavior, interval};
use yamux::Mode;

use crate::line;
use crate::stream::Stream;
use crate::wire::{Yamux, connect};
use crate::{MAX_STREAMS, MuxError};

/// The host's end of the wire. Dropping it closes the connection and its streams.
#[derive(Debug)]
pub struct Host {
    incoming: mpsc::Receiver<Incoming>,
}

/// A stream whose first line named an offered service and that waits for the answer.
#[derive(Debug)]
pub struct Incoming {
    service: String,
    stream: Stream,
}

impl Host {
    /// Speaks the protocol over `wire`, in tasks of the current tokio runtime.
    /// A service that is not among `services` is refused here.
    pub fn start<T, S>(wire: T, services: impl IntoIterator<Item = S>) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S: Into<String>,
    {
        let services = Arc::new(services.into_iter().map(Into::into).collect());
        let (sender, incoming) = mpsc::channel(MAX_STREAMS);
        tokio::spawn(drive(connect(wire, Mode::Server), services, sender));
        Self { incoming }
    }

    /// The next stream to an offered service; `None` once the wire is gone.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }
}

impl Incoming {
    /// The service that the guest asked for.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Answers `ok` and gives the stream.
    pub async fn accept(mut self) -> Result<Stream, MuxError> {
        line::write(&mut self.stream, "ok").await?;
        Ok(self.stream)
    }

    /// Answers `err` with `reason`, shortened to a line of printable ASCII.
    pub async fn refuse(self, reason: &str) -> Result<(), MuxError> {
        refuse(self.stream, reason).await
    }
}

type Services = Arc<BTreeSet<String>>;

async fn drive<T>(mut connection: Yamux<T>, services: Services, sender: mpsc::Sender<Incoming>)
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let places = Arc::new(Semaphore::new(MAX_STREAMS));
    let mut openings = Openings::new();
    loop {
        let inbound = tokio::select! {
            inbound = poll_fn(|cx| connection.poll_next_inbound(cx)) => inbound,
            () = sender.closed() => break,
        };
        let Some(Ok(stream)) = inbound else { break };
        openings.admit().await;
        // Beyond the limit the stream is dropped, which resets it.
        if let Ok(place) = Arc::clone(&places).try_acquire_owned() {
            tokio::spawn(greet(stream, place, Arc::clone(&services), sender.clone()));
        }
    }
    let _ = poll_fn(|cx| connection.poll_close(cx)).await;
}

/// Reads the first line and hands an offered service on.
async fn greet(
    stream: yamux::Stream,
    place: OwnedSemaphorePermit,
    services: Services,
    sender: mpsc::Sender<Incoming>,
) {
    let mut stream = Stream::new(stream, place);
    let Ok(service) = line::read(&mut stream).await else { return };
    if services.contains(&service) {
        let _ = sender.send(Incoming { service, stream }).await;
    } else {
        let _ = refuse(stream, "unknown service").await;
    }
}

async fn refuse(mut stream: Stream, reason: &str) -> Result<(), MuxError> {
    line::write(&mut stream, &format!("err {}", line::printable(reason))).await?;
    tokio::io::AsyncWriteExt::shutdown(&mut stream).await.map_err(|_| MuxError::Closed)
}

/// How fast the guest may open streams: a burst of [`MAX_STREAMS`], then one
/// every [`OPEN_INTERVAL`]. Faster, and its whole connection waits, so that
/// only it is slowed.
struct Openings {
    left: usize,
    refill: Interval,
}

impl Openings {
    fn new() -> Self {
        let mut refill = interval(OPEN_INTERVAL);
        refill.set_missed_tick_behavior(MissedTickBehavior::Burst);
        Self { left: MAX_STREAMS, refill }
    }

    async fn admit(&mut self) {
        if self.left == 0 {
            self.refill.tick().await;
            return;
        }
        self.left -= 1;
        if self.left == 0 {
            self.refill.reset();
        }
    }
}

const OPEN_INTERVAL: Duration = Duration::from_millis(5);
