//! The accept loop: every wait is bounded, every connection counted.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// An answer with a body that is there already.
pub(crate) type Reply = Response<Full<Bytes>>;

const CONNECTIONS: usize = 128;
const HEAD_BYTES: usize = 16 * 1024;
const HEADERS: usize = 32;
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
const CONNECTION_LIFE: Duration = Duration::from_secs(120);
/// How long to wait after an accept that failed, as it may at once again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers each request by `answer` until the task is dropped.
pub(crate) async fn serve<F>(
    listener: TcpListener,
    answer: impl Fn(Request<Incoming>) -> F + Clone + Send + 'static,
) where
    F: Future<Output = Reply> + Send,
{
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let reply = answer(request);
                async move { Ok::<_, Infallible>(reply.await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_PATIENCE)
                .max_buf_size(HEAD_BYTES)
                .max_headers(HEADERS)
                .serve_connection(TokioIo::new(stream), service);
            if let Ok(Err(error)) = timeout(CONNECTION_LIFE, connection).await {
                tracing::debug!(%error, "connection");
            }
            drop(slot);
        });
    }
}

/// An answer of `kind` that may be kept as `cache` says.
pub(crate) fn reply(
    status: StatusCode,
    kind: &'static str,
    cache: &'static str,
    body: impl Into<Bytes>,
) -> Reply {
    let mut reply = Response::new(Full::new(body.into()));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static(cache));
    reply
}

/// A refusal in one line of text.
pub(crate) fn refuse(status: StatusCode, why: impl std::fmt::Display) -> Reply {
    reply(status, TEXT, "no-store", format!("{why}\n"))
}

/// Plain text.
pub(crate) const TEXT: &str = "text/plain; charset=utf-8";
