//! Asks a witness for its cosignature.

use std::time::Duration;

use casemate_ledger::witness::AddCheckpoint;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A witness's submission prefix: `http://host:port[/path]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    authority: String,
    path: String,
}

/// What a witness answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Its signature lines. Not yet checked.
    Cosigned(String),
    /// It saw this size last; ask again from there.
    Size(u64),
    /// It refuses.
    Refused(u16, String),
}

/// Why a witness gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The prefix is not one that this client speaks to.
    #[error("witness url: expected http://host:port[/path], got {0:?}")]
    Prefix(String),
    /// It cannot be reached.
    #[error("witness {authority}: {source}")]
    Connect {
        /// Host and port.
        authority: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It does not speak HTTP as it should.
    #[error("witness {authority}: {reason}")]
    Http {
        /// Host and port.
        authority: String,
        /// What is wrong.
        reason: String,
    },
    /// It took too long.
    #[error("witness {authority}: expected an answer within {} s", PATIENCE.as_secs())]
    Late {
        /// Host and port.
        authority: String,
    },
}

const PATIENCE: Duration = Duration::from_secs(5);
const MAX_ANSWER_BYTES: usize = 16 * 1024;

impl Prefix {
    /// Reads a URL.
    pub fn parse(url: &str) -> Result<Self, ClientError> {
        let error = || ClientError::Prefix(url.to_owned());
        let rest = url.strip_prefix("http://").ok_or_else(error)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = authority.rsplit_once(':').filter(|(host, port)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        });
        let plain = url.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'@' | b'?' | b'#'));
        if host.is_none() || !plain {
            return Err(error());
        }
        let path = path.trim_end_matches('/');
        let path = if path.is_empty() { String::new() } else { format!("/{path}") };
        Ok(Self { authority: authority.to_owned(), path })
    }
}

/// Sends `request` to the witness at `prefix`.
pub async fn add_checkpoint(
    prefix: &Prefix,
    request: &AddCheckpoint,
) -> Result<Answer, ClientError> {
    let late = |_| ClientError::Late { authority: prefix.authority.clone() };
    timeout(PATIENCE, ask(prefix, request)).await.map_err(late)?
}

async fn ask(prefix: &Prefix, request: &AddCheckpoint) -> Result<Answer, ClientError> {
    let authority = || prefix.authority.clone();
    let connect = |source| ClientError::Connect { authority: authority(), source };
    let http = |error: hyper::Error| ClientError::Http {
        authority: authority(),
        reason: error.to_string(),
    };
    let stream = TcpStream::connect(&prefix.authority).await.map_err(connect)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
    let driver = tokio::spawn(connection);
    let request = Request::post(format!("{}/add-checkpoint", prefix.path))
        .header(HOST, &prefix.authority)
        .body(Full::new(Bytes::from(request.encode())))
        .map_err(|error| ClientError::Http { authority: authority(), reason: error.to_string() })?;
    let response = sender.send_request(request).await.map_err(http)?;
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER_BYTES).collect().await;
    driver.abort();
    let reason = "expected at most 16384 bytes of text".to_owned();
    let text = body.ok().and_then(|body| String::from_utf8(body.to_bytes().to_vec()).ok());
    let text = text.ok_or(ClientError::Http { authority: authority(), reason })?;
    let is_size = head.headers.get(CONTENT_TYPE).is_some_and(|kind| kind == "text/x.tlog.size");
    Ok(match (head.status, text.trim_end().parse()) {
        (StatusCode::OK, _) => Answer::Cosigned(text),
        (StatusCode::CONFLICT, Ok(size)) if is_size => Answer::Size(size),
        (status, _) => Answer::Refused(status.as_u16(), text.chars().take(200).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_plain_http_with_a_port() {
        let read = Prefix::parse("http://w.example:80/a/b/").unwrap();
        assert_eq!((read.authority.as_str(), read.path.as_str()), ("w.example:80", "/a/b"));
        assert_eq!(Prefix::parse("http://[::1]:8000").unwrap().path, "");
        for bad in [
            "https://w:1",
            "http://w",
            "http://:1",
            "http://w:0",
            "http://u@w:1",
            "w:1",
            "http://w:1/a b",
        ] {
            assert!(Prefix::parse(bad).is_err(), "{bad}");
        }
    }
}
