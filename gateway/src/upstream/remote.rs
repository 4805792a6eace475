//! MCP over Streamable HTTP: the library's protocol over the gateway's own
//! connections.
//!
//! Credentials join a request here, after the decision; nothing of the sandbox
//! but the call's arguments comes this far. Answers are bounded while they are
//! read. A server gets no standing stream: what it wants to say outside of an
//! answer is not heard.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use rmcp::model::{ClientJsonRpcMessage, ErrorData, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    HttpStatusError, SseError, StreamableHttpClient, StreamableHttpError,
    StreamableHttpPostResponse,
};
use sse_stream::{Sse, SseStream};

use super::config::RemoteConfig;
use crate::native::url::Url;
use crate::net::{Client, NetError};
use crate::secrets::Secrets;

/// A server, and what is added to each request to it.
#[derive(Clone)]
pub(super) struct Remote {
    client: Client,
    host: Arc<str>,
    port: u16,
    path: Arc<str>,
    /// With credentials, each marked sensitive.
    headers: Arc<[(HeaderName, HeaderValue)]>,
    /// The most bytes of one answer.
    limit: usize,
}

type Failed = StreamableHttpError<NetError>;
type Events = BoxStream<'static, Result<Sse, SseError>>;

const SESSION: HeaderName = HeaderName::from_static("mcp-session-id");
/// The most bytes of an answer that says no.
const REFUSAL_BYTES: usize = 64 * 1024;

impl StreamableHttpClient for Remote {
    type Error = NetError;

    async fn post_message(
        &self,
        _uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        _auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let body = serde_json::to_vec(&message)?;
        let request = self.request(Method::POST, session.as_deref(), headers, body)?;
        let answer = self.send(request).await?;
        let status = answer.status();
        if matches!(status, StatusCode::ACCEPTED | StatusCode::NO_CONTENT) {
            return Ok(StreamableHttpPostResponse::Accepted);
        }
        if status == StatusCode::NOT_FOUND && session.is_some() {
            return Err(StreamableHttpError::SessionExpired);
        }
        if !status.is_success() {
            return refused(&message, answer).await;
        }
        self.read(answer, matches!(message, ClientJsonRpcMessage::Request(_))).await
    }

    async fn delete_session(
        &self,
        _uri: Arc<str>,
        session: Arc<str>,
        _auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failed> {
        let request = self.request(Method::DELETE, Some(&session), headers, Vec::new())?;
        self.send(request).await.map(drop)
    }

    async fn get_stream(
        &self,
        _uri: Arc<str>,
        _session: Option<Arc<str>>,
        _last_event: Option<String>,
        _auth: Option<String>,
        _headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<Events, Failed> {
        Err(StreamableHttpError::ServerDoesNotSupportSse)
    }
}

impl Remote {
    /// A server of the configuration, with its credentials.
    pub(super) fn new(
        config: &RemoteConfig,
        secrets: &Secrets,
        limit: usize,
    ) -> Result<Self, String> {
        let url = Url::parse(&config.url).map_err(|breach| breach.expected)?;
        let client = Client::new(config.roots.as_deref(), &config.networks)
            .map_err(|error| error.to_string())?;
        let headers = config.headers.iter().map(|(name, file)| secrets.header(name, file));
        Ok(Self {
            client,
            host: url.host.as_str().into(),
            port: url.port,
            path: url.target().into(),
            headers: headers.collect::<Result<_, _>>()?,
            limit,
        })
    }

    fn request(
        &self,
        method: Method,
        session: Option<&str>,
        headers: HashMap<HeaderName, HeaderValue>,
        body: Vec<u8>,
    ) -> Result<Request<Full<Bytes>>, Failed> {
        let wrong = |error: &dyn std::fmt::Display| {
            StreamableHttpError::UnexpectedServerResponse(Cow::Owned(error.to_string()))
        };
        let mut request = Request::new(Full::new(Bytes::from(body)));
        *request.method_mut() = method;
        *request.uri_mut() = self.path.parse().map_err(|error| wrong(&error))?;
        let all = request.headers_mut();
        all.extend(headers);
        if let Some(session) = session {
            all.insert(SESSION, HeaderValue::from_str(session).map_err(|error| wrong(&error))?);
        }
        let host = if self.port == 443 {
            self.host.to_string()
        } else {
            format!("{}:{}", self.host, self.port)
        };
        all.insert(HOST, HeaderValue::from_str(&host).map_err(|error| wrong(&error))?);
        all.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        all.insert(ACCEPT, HeaderValue::from_static("application/json, text/event-stream"));
        // Last, so that nothing takes a credential's place.
        for (name, value) in self.headers.iter() {
            all.insert(name, value.clone());
        }
        Ok(request)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Failed> {
        self.client.send(&self.host, self.port, request).await.map_err(StreamableHttpError::Client)
    }

    async fn read(
        &self,
        answer: Response<Incoming>,
        expected: bool,
    ) -> Result<StreamableHttpPostResponse, Failed> {
        let text = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let session = text(SESSION).map(str::to_owned);
        let kind = text(CONTENT_TYPE)
            .map(|kind| kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase());
        let body = Limited::new(answer.into_body(), self.limit);
        match kind.as_deref() {
            Some("text/event-stream") => Ok(StreamableHttpPostResponse::Sse(
                SseStream::new(body.map_err(std::io::Error::other)).boxed(),
                session,
            )),
            Some("application/json") => {
                let too_large =
                    |_| StreamableHttpError::ResponseBodyTooLarge { max_size: self.limit };
                let bytes = body.collect().await.map_err(too_large)?.to_bytes();
                match serde_json::from_slice::<ServerJsonRpcMessage>(&bytes) {
                    Ok(message) => Ok(StreamableHttpPostResponse::Json(message, session)),
                    Err(_) if !expected => Ok(StreamableHttpPostResponse::Accepted),
                    Err(error) => Err(error.into()),
                }
            }
            _ if !expected => Ok(StreamableHttpPostResponse::Accepted),
            _ => Err(StreamableHttpError::UnexpectedContentType(kind)),
        }
    }
}

/// Statuses that say nothing of the request: who asks, how often, how slowly.
const NOT_OF_THE_REQUEST: [StatusCode; 4] = [
    StatusCode::UNAUTHORIZED,
    StatusCode::FORBIDDEN,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::TOO_MANY_REQUESTS,
];

/// An answer that is not a success. One that refuses the request is a JSON-RPC
/// error, whether its body says so or not: that is how a server of the older
/// era refuses the probe of the newer one, and how one of the newer era tells
/// of a mistake. Everything else is a server that does not answer.
async fn refused(
    message: &ClientJsonRpcMessage,
    answer: Response<Incoming>,
) -> Result<StreamableHttpPostResponse, Failed> {
    let status = answer.status();
    let asked = match message {
        ClientJsonRpcMessage::Request(request) => Some(request.id.clone()),
        _ => None,
    };
    let body = Limited::new(answer.into_body(), REFUSAL_BYTES).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    let error = match serde_json::from_slice(&body) {
        Ok(ServerJsonRpcMessage::Error(error)) => Some(error.error),
        _ => None,
    };
    match (asked, error) {
        (Some(id), error) if status.is_client_error() && !NOT_OF_THE_REQUEST.contains(&status) => {
            let unsaid = || ErrorData::invalid_request(format!("HTTP {status}"), None);
            let error = error.unwrap_or_else(unsaid);
            let message = ServerJsonRpcMessage::error(error, Some(id));
            Ok(StreamableHttpPostResponse::Json(message, None))
        }
        _ => Err(HttpStatusError::new(status.as_u16(), None).into()),
    }
}
