//! `request`: HTTPS to listed places, with credentials that the caller never
//! sees.
//!
//! A request is understood whole, matched against the rules, and written anew.
//! A redirect is an answer like any other: where it points is another call.

use std::collections::BTreeMap;
use std::path::PathBuf;

use casemate_ledger::json as strict;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderName, HeaderValue, LOCATION, USER_AGENT};
use hyper::{Method, Request};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::url::Url;
use super::{Breach, Failure, arguments};
use crate::net::{Client, NetError, Network};
use crate::secrets::Secrets;

/// What `gateway.toml` says of the places that may be asked.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// Who may vouch for servers (PEM). Default the system's authorities.
    #[serde(default)]
    pub roots: Option<PathBuf>,
    /// Addresses that may be reached beside public ones.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// The requests that may be made.
    #[serde(rename = "rule")]
    pub rules: Vec<HttpRule>,
}

/// One kind of request.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct HttpRule {
    /// `api.example.com`, or `*.example.com` for one more label.
    pub host: String,
    /// Default 443.
    #[serde(default = "default_port")]
    pub port: u16,
    /// Default `["GET"]`.
    #[serde(default = "default_methods")]
    pub methods: Vec<String>,
    /// `/v1/users/{int}`: segments, or `{int}`, `{id}` (letters, digits, `-`, `_`), `{any}`.
    pub path: String,
    /// The parameters that may be given: each `int`, `id` or `text`.
    #[serde(default)]
    pub query: BTreeMap<String, Kind>,
    /// The headers that may be given, in lower case.
    #[serde(default)]
    pub headers: Vec<String>,
    /// The places of a JSON body that may be given: JSON pointers, `*` for any one step.
    #[serde(default)]
    pub body: Vec<String>,
    /// The content types that an answer may have.
    #[serde(default = "default_types")]
    pub answers: Vec<String>,
    /// Headers that are added after the decision: name and the file with the value.
    #[serde(default)]
    pub inject: BTreeMap<String, PathBuf>,
}

/// What a parameter or a segment may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Digits, at most 18.
    Int,
    /// 1 to 128 of letters, digits, `-` and `_`.
    Id,
    /// Any text of at most 1024 bytes.
    Text,
}

/// The tool.
pub(crate) struct Http {
    client: Client,
    rules: Vec<HttpRule>,
    injected: Vec<Vec<(HeaderName, HeaderValue)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    method: String,
    url: String,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    body: Option<Value>,
}

/// Headers that say who asks, to whom, and where the message ends.
const NEVER_GIVEN: [&str; 14] = [
    "authorization",
    "connection",
    "content-length",
    "content-type",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "x-forwarded-for",
];
const METHODS: [&str; 6] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];

impl HttpConfig {
    /// The first rule that says what no rule can.
    pub(crate) fn mistake(&self) -> Option<String> {
        let wrong = |rule: &HttpRule| {
            let host = rule.host.strip_prefix("*.").unwrap_or(&rule.host);
            let wild = rule.host.starts_with("*.");
            let last = host.rsplit('.').next().unwrap_or_default();
            let alphabetic = last.starts_with(|c: char| c.is_ascii_alphabetic());
            let readable = Url::parse(&format!("https://{host}/")).is_ok();
            if !readable || (wild && (!alphabetic || !host.contains('.'))) {
                return Some(format!("host {:?}", rule.host));
            }
            if let Some(odd) = rule.methods.iter().find(|one| !METHODS.contains(&one.as_str())) {
                return Some(format!("method {odd:?}"));
            }
            if !rule.path.starts_with('/') {
                return Some(format!("path {:?}", rule.path));
            }
            let given = rule.headers.iter();
            given
                .chain(rule.inject.keys().filter(|name| name.as_str() != "authorization"))
                .find(|name| {
                    NEVER_GIVEN.contains(&name.as_str())
                        || name.bytes().any(|b| b.is_ascii_uppercase())
                        || HeaderName::from_bytes(name.as_bytes()).is_err()
                })
                .map(|name| format!("header {name:?}"))
        };
        self.rules.iter().find_map(wrong)
    }
}

impl Http {
    /// Reads the credentials of `config`.
    pub(crate) fn open(config: &HttpConfig, secrets: &Secrets) -> Result<Self, String> {
        let client = Client::new(config.roots.as_deref(), &config.networks)
            .map_err(|error| error.to_string())?;
        let injected = config.rules.iter().map(|rule| {
            rule.inject.iter().map(|(name, file)| secrets.header(name, file)).collect()
        });
        let injected = injected.collect::<Result<_, String>>()?;
        Ok(Self { client, rules: config.rules.clone(), injected })
    }

    /// The tool's definition.
    pub(crate) fn definitions(&self) -> Vec<Value> {
        vec![json!({
            "name": "request",
            "description": "Makes one HTTPS request to a place that the operator listed. \
                            Credentials are added where needed. Redirects are not followed.",
            "inputSchema": {
                "type": "object",
                "properties": {
                    "method": {"type": "string", "enum": METHODS},
                    "url": {"type": "string", "maxLength": 4096},
                    "headers": {"type": "object", "additionalProperties": {"type": "string"}},
                    "body": {},
                },
                "required": ["method", "url"],
                "additionalProperties": false,
            },
        })]
    }

    /// Whether some rule gives this request.
    pub(crate) fn check(&self, value: &Value) -> Result<(), Breach> {
        self.understand(value).map(drop)
    }

    /// Makes the request.
    pub(crate) async fn call(
        &self,
        value: &Value,
        limit: usize,
    ) -> Result<Map<String, Value>, Failure> {
        let (at, url, wanted) = self.understand(value)?;
        let Some(rule) = self.rules.get(at) else { return Err(no_rule(&url).into()) };
        let request = self.request(at, &url, &wanted)?;
        let sent = self.client.send(&url.host, url.port, request).await;
        let answer = sent.map_err(|error| match error {
            NetError::Address { .. } => {
                Breach::reach("http/address", "a public or listed address", error).into()
            }
            error => Failure::Upstream(error.to_string()),
        })?;
        let status = answer.status().as_u16();
        let text =
            |name| answer.headers().get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (kind, location) = (text(CONTENT_TYPE), text(LOCATION));
        let essence = kind.as_deref().and_then(|kind| kind.split(';').next()).map(str::trim);
        let body = Limited::new(answer.into_body(), limit).collect().await;
        let body = body.map_err(|error| match error.downcast_ref::<hyper::Error>() {
            Some(error) => Failure::Upstream(error.to_string()),
            None => Failure::Blocked(format!("expected at most {limit} bytes")),
        })?;
        let body = body.to_bytes();
        let may_pass = |one: &str| rule.answers.iter().any(|kind| kind.eq_ignore_ascii_case(one));
        if !body.is_empty() && !essence.is_some_and(may_pass) {
            return Err(Failure::Blocked(format!("content type {}", kind.unwrap_or_default())));
        }
        let mut found = Map::new();
        found.insert("status".to_owned(), status.into());
        found.insert("content_type".to_owned(), kind.clone().into());
        if let Some(location) = location {
            found.insert("location".to_owned(), location.into());
        }
        match strict::parse(&body, limit) {
            Ok(value) if essence == Some("application/json") => {
                found.insert("json".to_owned(), value);
            }
            _ => {
                let text = String::from_utf8(body.to_vec())
                    .map_err(|_| Failure::Blocked("an answer that is not UTF-8".to_owned()))?;
                found.insert("text".to_owned(), text.into());
            }
        }
        Ok(found)
    }

    /// The place of the rule, and the request as it was understood.
    fn understand(&self, value: &Value) -> Result<(usize, Url, Arguments), Breach> {
        let wanted: Arguments = arguments(value)?;
        let url = Url::parse(&wanted.url)?;
        let place = |rule: &HttpRule| {
            host_fits(&rule.host, &url.host)
                && rule.port == url.port
                && rule.methods.contains(&wanted.method)
                && path_fits(&rule.path, &url)
        };
        let at = self.rules.iter().position(place).ok_or_else(|| no_rule(&url))?;
        if let Some(rule) = self.rules.get(at) {
            fields_fit(rule, &url, &wanted)?;
        }
        Ok((at, url, wanted))
    }

    fn request(
        &self,
        at: usize,
        url: &Url,
        wanted: &Arguments,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        let wrong = |error: &dyn std::fmt::Display| Failure::Upstream(error.to_string());
        let body = wanted.body.as_ref().map(strict::canonical).transpose();
        let body = body.map_err(|error| wrong(&error))?;
        let mut request = Request::new(Full::new(Bytes::from(body.unwrap_or_default())));
        *request.method_mut() =
            Method::from_bytes(wanted.method.as_bytes()).map_err(|error| wrong(&error))?;
        *request.uri_mut() = url.target().parse().map_err(|error| wrong(&error))?;
        let host =
            if url.port == 443 { url.host.clone() } else { format!("{}:{}", url.host, url.port) };
        let headers = request.headers_mut();
        headers.insert(HOST, HeaderValue::from_str(&host).map_err(|error| wrong(&error))?);
        headers.insert(USER_AGENT, HeaderValue::from_static("casemate"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json, text/plain"));
        if wanted.body.is_some() {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        for (name, value) in &wanted.headers {
            let name = HeaderName::from_bytes(name.as_bytes()).map_err(|error| wrong(&error))?;
            headers.insert(name, HeaderValue::from_str(value).map_err(|error| wrong(&error))?);
        }
        // Last, so that nothing takes a credential's place.
        for (name, value) in self.injected.get(at).into_iter().flatten() {
            headers.insert(name, value.clone());
        }
        Ok(request)
    }
}

/// Whether what was found says that the server itself failed: a 5xx.
pub(super) fn is_failure(found: &Value) -> bool {
    found.get("status").and_then(Value::as_u64).is_some_and(|status| status >= 500)
}

/// Whether a result is the answer of a server that failed.
pub(crate) fn failed(result: &Value) -> bool {
    let is_error = result.get("isError").and_then(Value::as_bool).unwrap_or(false);
    is_error && result.get("structuredContent").is_some_and(is_failure)
}

fn no_rule(url: &Url) -> Breach {
    let target: String = url.target().chars().take(80).collect();
    let actual = format!("{}:{}{target}", url.host, url.port);
    Breach::reach("http/rule", "a method, host, port and path that a rule gives", actual)
}

fn host_fits(rule: &str, host: &str) -> bool {
    match rule.strip_prefix('*') {
        Some(rest) => host.strip_suffix(rest).is_some_and(|label| {
            // A label that only looks like one in another script is not taken.
            !label.is_empty() && !label.contains('.') && !label.starts_with("xn--")
        }),
        None => rule == host,
    }
}

fn path_fits(rule: &str, url: &Url) -> bool {
    let inner = rule.strip_prefix('/').unwrap_or(rule);
    let slash = inner.is_empty() || inner.ends_with('/');
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    let wanted: Vec<&str> = if inner.is_empty() { Vec::new() } else { inner.split('/').collect() };
    let fits = |(wanted, segment): (&&str, &String)| match *wanted {
        "{int}" => kind_fits(Kind::Int, segment),
        "{id}" => kind_fits(Kind::Id, segment),
        "{any}" => true,
        literal => literal == segment,
    };
    slash == url.slash
        && wanted.len() == url.segments.len()
        && wanted.iter().zip(&url.segments).all(fits)
}

fn kind_fits(kind: Kind, text: &str) -> bool {
    match kind {
        Kind::Int => (1..=18).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit()),
        Kind::Id => {
            (1..=128).contains(&text.len())
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        }
        Kind::Text => text.len() <= 1024,
    }
}

fn fields_fit(rule: &HttpRule, url: &Url, wanted: &Arguments) -> Result<(), Breach> {
    for (name, value) in &url.query {
        let Some(kind) = rule.query.get(name) else {
            return Err(Breach::reach("http/query", "a parameter that the rule gives", name));
        };
        if !kind_fits(*kind, value) {
            return Err(Breach::reach(
                "http/query",
                format!("{name} as {kind:?}"),
                "another value",
            ));
        }
    }
    for (name, value) in &wanted.headers {
        if !rule.headers.contains(name) {
            return Err(Breach::reach("http/headers", "a header that the rule gives", name));
        }
        if value.len() > 1024 || !value.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(Breach::reach("http/headers", "at most 1024 printable characters", name));
        }
    }
    let Some(body) = &wanted.body else { return Ok(()) };
    if matches!(wanted.method.as_str(), "GET" | "HEAD") || rule.body.is_empty() {
        return Err(Breach::reach("http/body", "no body", "a body"));
    }
    let allowed: Vec<Vec<&str>> = rule.body.iter().map(|pointer| steps(pointer)).collect();
    body_fits(&allowed, body, &mut Vec::new())
}

fn steps(pointer: &str) -> Vec<&str> {
    pointer.split('/').skip(1).collect()
}

/// Each value of the body that has no values inside must be at a given place.
fn body_fits(allowed: &[Vec<&str>], value: &Value, path: &mut Vec<String>) -> Result<(), Breach> {
    let inside: Vec<(String, &Value)> = match value {
        Value::Object(members) => members.iter().map(|(k, v)| (k.clone(), v)).collect(),
        Value::Array(items) => {
            items.iter().enumerate().map(|(at, v)| (at.to_string(), v)).collect()
        }
        _ => Vec::new(),
    };
    for (key, value) in &inside {
        path.push(key.clone());
        body_fits(allowed, value, path)?;
        path.pop();
    }
    let given = |steps: &Vec<&str>| {
        steps.len() == path.len()
            && steps.iter().zip(path.iter()).all(|(step, key)| *step == "*" || step == key)
    };
    if inside.is_empty() && !allowed.iter().any(given) {
        let actual: String = format!("/{}", path.join("/")).chars().take(80).collect();
        return Err(Breach::reach("http/body", "a field that the rule gives", actual));
    }
    Ok(())
}

fn default_port() -> u16 {
    443
}

fn default_methods() -> Vec<String> {
    vec!["GET".to_owned()]
}

fn default_types() -> Vec<String> {
    ["application/json", "text/plain"].map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(rules: &str) -> Http {
        let config: HttpConfig = toml::from_str(rules).unwrap();
        assert_eq!(config.mistake(), None);
        let key = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap();
        let roots = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(roots.path(), key.cert.pem()).unwrap();
        let client = Client::new(Some(roots.path()), &[]).unwrap();
        Http { client, injected: vec![Vec::new(); config.rules.len()], rules: config.rules }
    }

    const RULES: &str = r#"
        [[rule]]
        host = "api.example.com"
        path = "/v1/users/{int}"
        query = { page = "int", q = "text" }
        headers = ["x-request-id"]
        [[rule]]
        host = "api.example.com"
        methods = ["POST"]
        path = "/v1/pay"
        body = ["/amount", "/to/name", "/lines/*/text"]
        [[rule]]
        host = "*.files.example.com"
        path = "/{id}/"
    "#;

    #[test]
    fn what_a_rule_gives_passes() {
        let http = http(RULES);
        for value in [
            json!({"method": "GET", "url": "https://api.example.com/v1/users/7?page=2&q=a%20b"}),
            json!({"method": "GET", "url": "https://api.example.com/v1/users/7", "headers": {"x-request-id": "1"}}),
            json!({"method": "POST", "url": "https://api.example.com/v1/pay",
                   "body": {"amount": "1", "to": {"name": "x"}, "lines": [{"text": "a"}, {"text": "b"}]}}),
            json!({"method": "GET", "url": "https://eu.files.example.com/a-1/"}),
        ] {
            assert_eq!(http.check(&value), Ok(()), "{value}");
        }
    }

    #[test]
    fn what_no_rule_gives_does_not() {
        let http = http(RULES);
        let get = |url: &str| json!({"method": "GET", "url": url});
        let pay = |body: Value| json!({"method": "POST", "url": "https://api.example.com/v1/pay", "body": body});
        for value in [
            get("https://api.example.com/v1/users/x"),
            get("https://api.example.com/v1/users/7/"),
            get("https://api.example.com/v1/users"),
            get("https://api.example.com:8443/v1/users/7"),
            get("https://api.example.com.evil.com/v1/users/7"),
            get("https://evil.com/v1/users/7"),
            get("https://api.example.com/v1/users/7?page=x"),
            get("https://api.example.com/v1/users/7?admin=1"),
            get("https://api.example.com/v1/users/0000000000000000001"),
            get("https://files.example.com/a/"),
            get("https://a.b.files.example.com/a/"),
            get("https://xn--e1awd7f.files.example.com/a/"),
            get("https://127.0.0.1/v1/users/7"),
            json!({"method": "DELETE", "url": "https://api.example.com/v1/users/7"}),
            json!({"method": "get", "url": "https://api.example.com/v1/users/7"}),
            json!({"method": "GET", "url": "https://api.example.com/v1/users/7", "headers": {"Authorization": "x"}}),
            json!({"method": "GET", "url": "https://api.example.com/v1/users/7", "headers": {"x-request-id": "a\r\nb: c"}}),
            json!({"method": "GET", "url": "https://api.example.com/v1/users/7", "body": {}}),
            json!({"method": "GET", "url": "https://api.example.com/v1/users/7", "proxy": "x"}),
            pay(json!({"amount": "1", "admin": true})),
            pay(json!({"amount": {"value": 1}})),
            pay(json!({"to": {"name": {"deep": 1}}})),
            pay(json!({})),
            pay(json!([])),
            pay(json!("text")),
        ] {
            assert!(http.check(&value).is_err(), "{value}");
        }
    }

    #[test]
    fn rules_that_say_too_much_are_mistakes() {
        for (line, word) in [
            ("host = \"*\"\npath = \"/\"", "host"),
            ("host = \"*.com\"\npath = \"/\"", "host"),
            ("host = \"A.b\"\npath = \"/\"", "host"),
            ("host = \"*.1\"\npath = \"/\"", "host"),
            ("host = \"a.b\"\npath = \"x\"", "path"),
            ("host = \"a.b\"\npath = \"/\"\nmethods = [\"CONNECT\"]", "method"),
            ("host = \"a.b\"\npath = \"/\"\nheaders = [\"cookie\"]", "header"),
            ("host = \"a.b\"\npath = \"/\"\nheaders = [\"Authorization\"]", "header"),
            ("host = \"a.b\"\npath = \"/\"\ninject = { host = \"f\" }", "header"),
        ] {
            let config: HttpConfig = toml::from_str(&format!("[[rule]]\n{line}")).unwrap();
            assert!(config.mistake().is_some_and(|text| text.starts_with(word)), "{line}");
        }
    }
}
