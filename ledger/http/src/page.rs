//! One page of text, made anew for each who asks, for programs of this host.

use std::net::IpAddr;
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::HOST;
use hyper::http::uri::Authority;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;

use crate::server::{refuse, reply, serve};

/// Serves `text` of the content type `kind` at `path`, and nothing else, until
/// the task is dropped. A request must name this host, so that no page in a
/// browser reads it under a name of its own.
pub async fn serve_page(
    listener: TcpListener,
    path: &'static str,
    kind: &'static str,
    text: impl Fn() -> String + Send + Sync + 'static,
) {
    let text = Arc::new(text);
    serve(listener, move |request| {
        let text = Arc::clone(&text);
        async move {
            match wrong(&request, path) {
                Some((status, why)) => refuse(status, why),
                None => reply(StatusCode::OK, kind, "no-store", text()),
            }
        }
    })
    .await;
}

fn wrong(request: &Request<Incoming>, path: &str) -> Option<(StatusCode, String)> {
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    if !host.is_some_and(is_this_host) {
        let why = "host: expected a loopback address".to_owned();
        return Some((StatusCode::MISDIRECTED_REQUEST, why));
    }
    if request.uri().path() != path {
        return Some((StatusCode::NOT_FOUND, format!("path: expected {path}")));
    }
    let why = "method: expected GET".to_owned();
    (request.method() != Method::GET).then_some((StatusCode::METHOD_NOT_ALLOWED, why))
}

fn is_this_host(host: &str) -> bool {
    let authority = host.parse::<Authority>();
    authority.is_ok_and(|authority| {
        let name = authority.host().trim_matches(['[', ']']);
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_names_of_this_host_are_answered() {
        for (host, own) in [
            ("127.0.0.1:9464", true),
            ("[::1]:9464", true),
            ("localhost", true),
            ("127.0.0.1.evil.example", false),
            ("evil.example:9464", false),
            ("10.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(super::is_this_host(host), own, "{host}");
        }
    }
}
