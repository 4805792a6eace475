//! HTTP/1.1 on one connection: POST JSON, read JSON, bounded in size and time.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;

/// The longest wait for one answer: an appraisal may fetch endorsements.
const PATIENCE: Duration = Duration::from_secs(60);
const MAX_ANSWER_BYTES: usize = 4 * 1024 * 1024;

/// Why a request has no good answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The connection broke or does not speak HTTP.
    #[error("{path}: {source}")]
    Hyper {
        /// The request's path.
        path: String,
        /// Why.
        source: hyper::Error,
    },
    /// No answer in time.
    #[error("{path}: no answer within {seconds} s", seconds = PATIENCE.as_secs())]
    Timeout {
        /// The request's path.
        path: String,
    },
    /// The answer is not what it should be.
    #[error("{path}: {message}")]
    Answer {
        /// The request's path.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// The service said no, and why.
    #[error("{path}: {denial}")]
    Denied {
        /// The request's path.
        path: String,
        /// The answer's status.
        status: u16,
        /// Its explanation.
        denial: Box<Denial>,
    },
}

impl HttpError {
    /// Whether the service said no to this request, which asking again does not
    /// change: not when it was busy, full, late or broken (RFC 9110 15.5, 15.6;
    /// RFC 6585 4).
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { status: 400..=499, .. })
            && !matches!(self, Self::Denied { status: 408 | 429, .. })
    }
}

/// How a service explains a refusal. Unknown fields are ignored: it is shown
/// to people; acted upon is its code alone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Denial {
    /// The stable code.
    pub code: String,
    /// The rule that refused.
    pub rule: String,
    /// What the rule asks for.
    pub expected: String,
    /// What it met.
    pub actual: String,
    /// What to do about it.
    pub hint: String,
}

impl core::fmt::Display for Denial {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let Self { code, rule, expected, actual, hint } = self;
        write!(f, "refused ({code}): {rule}: expected {expected}, got {actual}; {hint}")
    }
}

/// One HTTP/1.1 connection.
#[derive(Debug)]
pub struct Http {
    sender: SendRequest<Full<Bytes>>,
    authority: String,
}

impl Http {
    /// Speaks HTTP over `stream`, in a task of the current tokio runtime.
    pub async fn start<S>(stream: S, authority: &str) -> Result<Self, HttpError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let started = handshake(TokioIo::new(stream)).await;
        let (sender, connection) =
            started.map_err(|source| HttpError::Hyper { path: authority.to_owned(), source })?;
        // The sender sees the connection's end; nothing else needs to.
        tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, authority: authority.to_owned() })
    }

    /// Sends `body` and reads the answer to it.
    pub async fn post<A: DeserializeOwned>(
        &mut self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<A, HttpError> {
        let wrong = |message: String| HttpError::Answer { path: path.to_owned(), message };
        let body = serde_json::to_vec(body).map_err(|error| wrong(error.to_string()))?;
        let exchange = timeout(PATIENCE, self.exchange(path, body)).await;
        let (status, bytes) =
            exchange.map_err(|_| HttpError::Timeout { path: path.to_owned() })??;
        if status == StatusCode::OK {
            return serde_json::from_slice(&bytes).map_err(|error| wrong(error.to_string()));
        }
        match serde_json::from_slice::<Denial>(&bytes) {
            Ok(denial) if !denial.code.is_empty() => {
                let (path, status) = (path.to_owned(), status.as_u16());
                Err(HttpError::Denied { path, status, denial: Box::new(denial) })
            }
            _ => Err(wrong(format!("expected 200 or an explained denial, got status {status}"))),
        }
    }

    async fn exchange(
        &mut self,
        path: &str,
        body: Vec<u8>,
    ) -> Result<(StatusCode, Bytes), HttpError> {
        let hyper = |source| HttpError::Hyper { path: path.to_owned(), source };
        let wrong = |message: String| HttpError::Answer { path: path.to_owned(), message };
        let request = Request::post(path)
            .header("host", &self.authority)
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| wrong(error.to_string()))?;
        self.sender.ready().await.map_err(hyper)?;
        let response = self.sender.send_request(request).await.map_err(hyper)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES).collect().await;
        let body = body.map_err(|error| wrong(format!("answer body: {error}")))?;
        Ok((status, body.to_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn answered(answer: &'static str) -> Result<serde_json::Value, HttpError> {
        let (client, mut server) = tokio::io::duplex(1 << 16);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            let _ = server.read(&mut buffer).await;
            let _ = server.write_all(answer.as_bytes()).await;
        });
        let mut http = Http::start(client, "verifier.test").await.unwrap();
        http.post("/v1/x", &serde_json::json!({})).await
    }

    #[tokio::test]
    async fn answers_and_refusals_are_told_apart() {
        let good = answered("HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{\"a\":1}").await;
        assert_eq!(good.unwrap()["a"], 1);
        let denied = answered(
            "HTTP/1.1 403 Forbidden\r\ncontent-length: 33\r\n\r\n{\"code\":\"risk\",\"rule\":\"boundary\"}",
        )
        .await;
        assert!(matches!(denied, Err(HttpError::Denied { status: 403, .. })), "{denied:?}");
        assert!(denied.unwrap_err().is_refusal());
        for (status, refusal) in [
            (400, true),
            (404, true),
            (408, false),
            (429, false),
            (500, false),
            (503, false),
            (507, false),
        ] {
            let denial = Box::new(Denial { code: "some".into(), ..Denial::default() });
            let error = HttpError::Denied { path: "/v1/x".into(), status, denial };
            assert_eq!(error.is_refusal(), refusal, "{status}");
        }
        for answer in [
            "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{a}",
            "HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{}",
            "HTTP/1.1 500 No\r\ncontent-length: 2\r\n\r\n{}",
            "not http at all\r\n\r\n",
            "",
        ] {
            assert!(answered(answer).await.is_err(), "{answer}");
        }
    }
}
