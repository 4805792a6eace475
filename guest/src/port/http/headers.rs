//! The headers of a request: who may send one, and that they say what the body says.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use casemate_ledger::cgp::{MCP_VERSION, RpcError, meta};
use hyper::HeaderMap;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, ORIGIN};
use serde_json::{Value, json};

use crate::port::desk::Request;
use crate::port::translate::{Era, LEGACY_VERSIONS, UNSUPPORTED_VERSION, no_meta};

/// HeaderMismatch (MCP 2026-07-28, basic/transports, error codes).
pub(super) const HEADER_MISMATCH: i64 = -32020;
/// The session of the legacy era.
pub(super) const SESSION: &str = "mcp-session-id";
const VERSION: &str = "mcp-protocol-version";
const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";
/// How a value that no header can carry is written.
const ENCODED: (&str, &str) = ("=?base64?", "?=");

/// A name that leads elsewhere, or a page from elsewhere, is a browser that was
/// tricked (DNS rebinding): the port is for programs on this machine.
pub(super) fn check_origin(headers: &HeaderMap) -> Result<(), &'static str> {
    let mut hosts = headers.get_all(HOST).iter();
    let host = hosts.next().and_then(|host| host.to_str().ok());
    if hosts.next().is_some() || !host.is_some_and(is_loopback) {
        return Err("Host: expected a loopback name");
    }
    let local = |origin: &hyper::header::HeaderValue| {
        let origin = origin.to_str().unwrap_or_default();
        origin.strip_prefix("http://").is_some_and(is_loopback)
    };
    match headers.get_all(ORIGIN).iter().all(local) {
        true => Ok(()),
        false => Err("Origin: expected none, or a loopback one"),
    }
}

/// Whether `authority` is a loopback name with or without a port.
fn is_loopback(authority: &str) -> bool {
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|name| {
        authority.strip_prefix(name).is_some_and(|rest| {
            rest.is_empty()
                || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
        })
    })
}

pub(super) fn check_types(headers: &HeaderMap) -> Result<(), &'static str> {
    let kind = one(headers, CONTENT_TYPE.as_str()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    match kind.eq_ignore_ascii_case("application/json") {
        true => Ok(()),
        false => Err("Content-Type: expected application/json"),
    }
}

pub(super) fn accepts_events(headers: &HeaderMap) -> bool {
    let wanted = |value: &hyper::header::HeaderValue| {
        value.to_str().is_ok_and(|value| value.contains("text/event-stream"))
    };
    headers.get_all(ACCEPT).iter().any(wanted)
}

/// The session that the client names, if it names one.
pub(super) fn session(headers: &HeaderMap) -> Option<&str> {
    one(headers, SESSION)
}

/// The era of `message`; in the modern one the headers must repeat what it says.
pub(super) fn check_message(headers: &HeaderMap, message: &Request) -> Result<Era, RpcError> {
    let version = one(headers, VERSION);
    let fields = message.params.get("_meta");
    let said = fields.and_then(|fields| fields.get(meta::PROTOCOL_VERSION)).and_then(Value::as_str);
    let Some(said) = said else { return check_legacy(version, message) };
    agree(VERSION, said, headers)?;
    if said != MCP_VERSION {
        return Err(unsupported(said));
    }
    agree(METHOD, &message.method, headers)?;
    let name = match message.method.as_str() {
        "tools/call" | "prompts/get" => message.params.get("name"),
        "resources/read" => message.params.get("uri"),
        _ => None,
    };
    match name.and_then(Value::as_str) {
        Some(name) => agree(NAME, name, headers)?,
        None if headers.contains_key(NAME) => {
            return Err(mismatch(NAME, "none for this method", "one"));
        }
        None => {}
    }
    Ok(Era::Modern)
}

fn check_legacy(version: Option<&str>, message: &Request) -> Result<Era, RpcError> {
    match version {
        None => Ok(Era::Legacy),
        Some(version) if LEGACY_VERSIONS.contains(&version) => Ok(Era::Legacy),
        // A notification has no answer; the modern era asks nothing of its `_meta`.
        Some(MCP_VERSION) if message.id.is_none() => Ok(Era::Modern),
        Some(MCP_VERSION) => Err(no_meta(meta::PROTOCOL_VERSION, MCP_VERSION)),
        Some(version) => Err(unsupported(version)),
    }
}

/// The header `name`, once, saying `said`.
fn agree(name: &'static str, said: &str, headers: &HeaderMap) -> Result<(), RpcError> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().and_then(|value| decoded(value.to_str().ok()?));
    match value {
        Some(value) if value == said && values.next().is_none() => Ok(()),
        Some(value) => Err(mismatch(name, said, &value)),
        None => Err(mismatch(name, said, "none that reads")),
    }
}

/// A header's value, out of the base64 form that stands for other characters.
fn decoded(value: &str) -> Option<String> {
    let inner = value.strip_prefix(ENCODED.0).and_then(|rest| rest.strip_suffix(ENCODED.1));
    match inner {
        None => Some(value.to_owned()),
        Some(inner) => String::from_utf8(STANDARD.decode(inner).ok()?).ok(),
    }
}

fn one<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

fn mismatch(name: &str, expected: &str, actual: &str) -> RpcError {
    let (expected, actual) = (cut(expected), cut(actual));
    RpcError::new(HEADER_MISMATCH, format!("{name}: expected {expected:?}, got {actual:?}"))
}

fn unsupported(version: &str) -> RpcError {
    RpcError {
        code: UNSUPPORTED_VERSION,
        message: "unsupported protocol version".to_owned(),
        details: json!({"supported": [MCP_VERSION], "requested": cut(version)}),
    }
}

fn cut(text: &str) -> String {
    text.chars().take(128).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_ledger::cgp::error_code;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_loopback_names_and_pages_are_answered() {
        for host in ["localhost", "127.0.0.1:7007", "[::1]:1", "localhost:80"] {
            let origin = format!("http://{host}");
            assert!(check_origin(&headers(&[("host", host)])).is_ok(), "{host}");
            assert!(check_origin(&headers(&[("host", host), ("origin", &origin)])).is_ok());
        }
        for host in ["evil.test", "localhost.evil.test", "127.0.0.1:x", "127.0.0.1@evil", ""] {
            assert!(check_origin(&headers(&[("host", host)])).is_err(), "{host}");
        }
        assert!(check_origin(&headers(&[])).is_err());
        assert!(check_origin(&headers(&[("host", "localhost"), ("host", "evil")])).is_err());
        for origin in ["http://evil.test", "null", "https://localhost.evil", "file://localhost"] {
            let headers = headers(&[("host", "localhost"), ("origin", origin)]);
            assert!(check_origin(&headers).is_err(), "{origin}");
        }
    }

    fn call(name: &str) -> Request {
        let params = json!({"name": name, "_meta": {(meta::PROTOCOL_VERSION): MCP_VERSION}});
        Request { id: Some(json!(1)), method: "tools/call".to_owned(), params }
    }

    #[test]
    fn headers_repeat_the_body() {
        let good = [(VERSION, MCP_VERSION), (METHOD, "tools/call"), (NAME, "echo")];
        assert_eq!(check_message(&headers(&good), &call("echo")), Ok(Era::Modern));
        let encoded = [good[0], good[1], (NAME, "=?base64?w6k=?=")];
        assert_eq!(check_message(&headers(&encoded), &call("é")), Ok(Era::Modern));
        for (at, wrong) in [(0, "2025-11-25"), (1, "tools/list"), (2, "other"), (2, "=?base64?!?=")]
        {
            let mut pairs = good;
            pairs[at].1 = wrong;
            let error = check_message(&headers(&pairs), &call("echo")).unwrap_err();
            assert_eq!(error.code, HEADER_MISMATCH, "{wrong}");
            let missing: Vec<_> =
                good.iter().copied().filter(|pair| pair.0 != pairs[at].0).collect();
            let error = check_message(&headers(&missing), &call("echo")).unwrap_err();
            assert_eq!(error.code, HEADER_MISMATCH, "{wrong}");
        }
        let twice = [good[0], good[1], good[2], good[2]];
        assert!(check_message(&headers(&twice), &call("echo")).is_err());
    }

    #[test]
    fn the_version_header_belongs_to_an_era() {
        let ping =
            Request { id: Some(json!(1)), method: "ping".to_owned(), params: Value::default() };
        for version in LEGACY_VERSIONS {
            assert_eq!(check_message(&headers(&[(VERSION, version)]), &ping), Ok(Era::Legacy));
        }
        assert_eq!(check_message(&headers(&[]), &ping), Ok(Era::Legacy));
        let code =
            |version| check_message(&headers(&[(VERSION, version)]), &ping).unwrap_err().code;
        assert_eq!(code(MCP_VERSION), error_code::INVALID_PARAMS);
        assert_eq!(code("2030-01-01"), UNSUPPORTED_VERSION);
    }
}
