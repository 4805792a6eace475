//! The door of Streamable HTTP (MCP 2026-07-28 and, up to 2025-11-25, with
//! sessions): one POST a message. A call is answered with JSON, or with a
//! stream of events when there is something to tell before the answer.

mod headers;
mod reply;
mod sessions;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use casemate_ledger::cgp::{RpcError, error_code};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::desk::{self, Client, Desk, Open, PARSE_ERROR, Taken, Told, told_error};
use super::translate::{Era, UNSUPPORTED_VERSION};
use crate::gateway::Tools;
use headers::{HEADER_MISMATCH, SESSION};
use reply::Body;
use sessions::Sessions;

/// Where the port listens in the workload's network.
pub const ADDRESS: std::net::SocketAddrV4 =
    std::net::SocketAddrV4::new(std::net::Ipv4Addr::LOCALHOST, 7007);
/// The path of the one resource.
pub const PATH: &str = "/mcp";

/// How long a client may take to send a request, or wait before its next one.
const PATIENCE: Duration = Duration::from_secs(60);
/// After this long without an answer the client is at least given a status.
const SILENCE: Duration = Duration::from_secs(10);
/// Messages that wait for a slow client; more progress is dropped.
const WAITING: usize = 16;

/// The door; clones share it.
#[derive(Debug, Clone)]
pub(super) struct Door<T> {
    desk: Desk<T>,
    sessions: Arc<Sessions>,
}

impl<T: Tools> Door<T> {
    pub(super) fn new(desk: Desk<T>) -> Self {
        Self { desk, sessions: Arc::default() }
    }

    /// Serves one connection until it or its patience ends.
    pub(super) async fn serve<S>(self, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(|request| {
            let door = self.clone();
            async move { Ok::<_, Infallible>(door.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(PATIENCE)
            .max_buf_size(64 * 1024)
            .serve_connection(TokioIo::new(stream), service);
        // A client that breaks the protocol or leaves is no event.
        let _ = connection.await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if let Err(reason) = headers::check_origin(request.headers()) {
            return reply::text(StatusCode::FORBIDDEN, reason);
        }
        if request.uri().path() != PATH {
            return reply::text(StatusCode::NOT_FOUND, "the port is at /mcp");
        }
        match *request.method() {
            Method::POST => self.post(request).await,
            Method::DELETE => match headers::session(request.headers()) {
                Some(id) if self.sessions.end(id) => reply::empty(StatusCode::NO_CONTENT),
                _ => reply::text(StatusCode::METHOD_NOT_ALLOWED, "POST is the one method"),
            },
            _ => reply::text(StatusCode::METHOD_NOT_ALLOWED, "POST is the one method"),
        }
    }

    async fn post(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        if let Err(reason) = headers::check_types(&parts.headers) {
            return reply::text(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason);
        }
        let limit = self.desk.shared.limits.max_line_bytes;
        let body = match timeout(PATIENCE, Limited::new(body, limit).collect()).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(_)) => {
                let text = format!("body: expected at most {limit} bytes, whole");
                return reply::text(StatusCode::PAYLOAD_TOO_LARGE, &text);
            }
            Err(_) => return reply::text(StatusCode::REQUEST_TIMEOUT, "the body did not come"),
        };
        let message = match self.desk.read(&body) {
            Ok(message) => message,
            // What a client answers is an answer to nothing: nothing was asked.
            Err(_) if is_response(&body) => return reply::empty(StatusCode::ACCEPTED),
            Err(told) => return finished(told, Era::Modern),
        };
        let id = message.id.clone().unwrap_or_default();
        let era = match headers::check_message(&parts.headers, &message) {
            Ok(era) => era,
            Err(error) => return finished(told_error(&id, error), Era::Modern),
        };
        match (era, headers::session(&parts.headers)) {
            (Era::Legacy, Some(session)) => match self.sessions.open(session) {
                Some(open) => self.take(&parts.headers, era, message, open).await,
                None => reply::text(StatusCode::NOT_FOUND, "no such session"),
            },
            (Era::Legacy, None) if message.method == "initialize" => {
                let (session, open) = self.sessions.begin();
                let mut response = self.take(&parts.headers, era, message, open).await;
                if let Ok(value) = session.parse() {
                    response.headers_mut().insert(SESSION, value);
                }
                response
            }
            _ => self.take(&parts.headers, era, message, Open::default()).await,
        }
    }

    async fn take(
        &self,
        headers: &hyper::HeaderMap,
        era: Era,
        message: desk::Request,
        open: Open,
    ) -> Response<Body> {
        let (told, mut queue) = mpsc::channel(WAITING);
        let taken = self.desk.take(message, &Client { told, open });
        match taken {
            Taken::Nothing => return reply::empty(StatusCode::ACCEPTED),
            Taken::Answer(told) => return finished(told, era),
            Taken::Running => {}
        }
        let events = headers::accepts_events(headers);
        loop {
            let first = match events {
                true => timeout(SILENCE, queue.recv()).await,
                false => Ok(queue.recv().await),
            };
            match first {
                Ok(Some(told @ Told::Answer(..))) => return finished(told, era),
                Ok(Some(Told::Notice(_))) if !events => {}
                Ok(Some(notice)) => return reply::events(Some(notice), queue),
                Ok(None) => return reply::empty(StatusCode::NO_CONTENT), // cancelled
                Err(_) => return reply::events(None, queue),
            }
        }
    }
}

/// The status that goes with an answer that is known before anything was sent.
fn finished(told: Told, era: Era) -> Response<Body> {
    let Told::Answer(bytes, code) = told else { return reply::empty(StatusCode::NO_CONTENT) };
    let status = match code {
        Some(error_code::METHOD_NOT_FOUND) if era == Era::Modern => StatusCode::NOT_FOUND,
        Some(error_code::INVALID_PARAMS) if era == Era::Modern => StatusCode::BAD_REQUEST,
        Some(PARSE_ERROR | error_code::INVALID_REQUEST | HEADER_MISMATCH | UNSUPPORTED_VERSION) => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::OK,
    };
    reply::json(status, bytes)
}

fn is_response(body: &[u8]) -> bool {
    let fields = serde_json::from_slice::<serde_json::Map<String, Value>>(body);
    fields.is_ok_and(|fields| {
        !fields.contains_key("method")
            && (fields.contains_key("result") || fields.contains_key("error"))
    })
}

/// Says that there is no place.
pub(super) async fn refuse(most: usize, mut stream: impl AsyncWrite + Unpin) {
    use tokio::io::AsyncWriteExt as _;
    let message = format!("connections: expected at most {most}, got one more");
    let error = told_error(&Value::Null, RpcError::new(error_code::OVERLOAD, message));
    let body = error.into_bytes();
    let head = format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    let _ = timeout(PATIENCE, stream.write_all(&[head.as_bytes(), &body].concat())).await;
}

#[cfg(test)]
mod tests;
