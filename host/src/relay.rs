//! Carries a stream to a configured address without looking into it.

use std::io;
use std::time::Duration;

use casemate_mux::{Incoming, Stream};
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;

use crate::config::Address;

/// Connects first, so that a dead service is an answer and not a silence.
pub(crate) async fn relay(incoming: Incoming, address: &Address) {
    let service = incoming.service().to_owned();
    let refused = |error: io::Error| {
        tracing::warn!(%service, %address, %error, "service not reached");
        format!("the {service} cannot be reached")
    };
    match address {
        Address::Tcp(target) => match within(TcpStream::connect(target)).await {
            Ok(upstream) => {
                // Small messages go back and forth; waiting to fill packets doubles their time.
                let _ = upstream.set_nodelay(true);
                carry(incoming.accept().await.ok(), upstream).await;
            }
            Err(error) => drop(incoming.refuse(&refused(error)).await),
        },
        Address::Unix(path) => match within(UnixStream::connect(path)).await {
            Ok(upstream) => carry(incoming.accept().await.ok(), upstream).await,
            Err(error) => drop(incoming.refuse(&refused(error)).await),
        },
    }
}

/// Both directions until both ended. Nothing is held but two buffers; how long
/// it may take is bounded by the machine's own life.
async fn carry(stream: Option<Stream>, mut upstream: impl AsyncRead + AsyncWrite + Unpin) {
    if let Some(mut stream) = stream {
        let _ = copy_bidirectional_with_sizes(&mut stream, &mut upstream, BUFFER, BUFFER).await;
    }
}

async fn within<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(CONNECT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer within 10 s")))
}

const CONNECT: Duration = Duration::from_secs(10);
const BUFFER: usize = 32 * 1024;
