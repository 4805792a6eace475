//! The way to the collector: HTTP on the loopback interface.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Response, Uri};
use hyper_util::rt::TokioIo;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::timeout;

/// A collector's URL: `http`, a loopback address, a port and a path. Beyond this
/// host, a collector of its own carries spans on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(try_from = "String")]
pub struct CollectorUrl {
    address: SocketAddr,
    path: String,
}

impl TryFrom<String> for CollectorUrl {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || {
            format!(
                "expected http:// with a loopback address and port, such as http://127.0.0.1:4318/v1/traces, got {text:?}"
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let host = uri.host().map(|host| host.trim_matches(['[', ']']).parse::<IpAddr>());
        match (uri.scheme_str(), host, uri.port_u16()) {
            (Some("http"), Some(Ok(host)), Some(port)) if host.is_loopback() => {
                Ok(Self { address: SocketAddr::new(host, port), path: uri.path().to_owned() })
            }
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for CollectorUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "http://{}{}", self.address, self.path)
    }
}

/// Sends the exporter's requests. Its thread knows no tokio, so that the
/// gateway's own runtime does the work.
#[derive(Debug)]
pub(super) struct Collector {
    url: CollectorUrl,
    runtime: Handle,
    /// Whether the last request arrived: each change is told once.
    arrives: AtomicBool,
    /// The requests that did not arrive.
    lost: Arc<AtomicU64>,
}

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// The most of an answer that is read.
const ANSWER_BYTES: usize = 64 * 1024;

impl Collector {
    /// Counts in `lost` what does not arrive.
    pub(super) fn new(url: &CollectorUrl, lost: Arc<AtomicU64>) -> Self {
        let runtime = Handle::current();
        Self { url: url.clone(), runtime, arrives: AtomicBool::new(true), lost }
    }

    async fn deliver(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let url = self.url.clone();
        // Streams and timers are made where the runtime is, which is not here.
        self.runtime.spawn(async { timeout(PATIENCE, send(url, request)).await? }).await?
    }

    fn tell(&self, arrived: bool) {
        if !arrived {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
        if self.arrives.swap(arrived, Ordering::Relaxed) == arrived {
            return;
        }
        if arrived {
            tracing::info!(url = %self.url, "spans arrive at their collector again");
        } else {
            tracing::warn!(url = %self.url, "spans do not arrive at their collector and are lost");
        }
    }
}

impl HttpClient for Collector {
    fn send_bytes<'a, 'out>(
        &'a self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'out>>
    where
        'a: 'out,
        Self: 'out,
    {
        Box::pin(async move {
            let answer = self.deliver(request).await;
            self.tell(answer.as_ref().is_ok_and(|answer| answer.status().is_success()));
            answer
        })
    }
}

async fn send(url: CollectorUrl, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
    let (mut parts, body) = request.into_parts();
    parts.uri = url.path.parse()?;
    parts.headers.insert(HOST, HeaderValue::try_from(url.address.to_string())?);
    let stream = TcpStream::connect(url.address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let answer = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
    let (head, body) = answer.into_parts();
    let body = Limited::new(body, ANSWER_BYTES).collect().await?.to_bytes();
    Ok(Response::from_parts(head, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_host_is_a_collector() {
        for good in ["http://127.0.0.1:4318/v1/traces", "http://[::1]:1/"] {
            assert_eq!(CollectorUrl::try_from(good.to_owned()).unwrap().to_string(), good);
        }
        for bad in [
            "https://127.0.0.1:4318/v1/traces",
            "http://127.0.0.1/v1/traces",
            "http://10.0.0.1:4318/v1/traces",
            "http://localhost:4318/v1/traces",
            "127.0.0.1:4318",
            "",
        ] {
            let error = CollectorUrl::try_from(bad.to_owned()).unwrap_err();
            assert!(error.contains("loopback"), "{bad}: {error}");
        }
    }
}
