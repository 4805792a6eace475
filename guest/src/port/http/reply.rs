//! What goes back: nothing, text, JSON, or events until the answer.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use hyper::body::{Bytes, Frame, SizeHint};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::sync::mpsc;

use crate::port::desk::Told;

/// A response's body.
#[derive(Debug)]
pub(super) enum Body {
    /// All of it, once.
    Whole(Option<Bytes>),
    /// Events as they come; the last is the answer.
    Events { first: Option<Told>, queue: mpsc::Receiver<Told>, over: bool },
}

pub(super) fn empty(status: StatusCode) -> Response<Body> {
    response(status, Body::Whole(None))
}

pub(super) fn text(status: StatusCode, text: &str) -> Response<Body> {
    let body = Bytes::from(format!("{text}\n"));
    with_type(response(status, Body::Whole(Some(body))), "text/plain")
}

pub(super) fn json(status: StatusCode, bytes: Vec<u8>) -> Response<Body> {
    let body = Body::Whole(Some(Bytes::from(bytes)));
    with_type(response(status, body), "application/json")
}

/// `first`, then what comes from `queue` until the answer.
pub(super) fn events(first: Option<Told>, queue: mpsc::Receiver<Told>) -> Response<Body> {
    let body = Body::Events { first, queue, over: false };
    let mut response = with_type(response(StatusCode::OK, body), "text/event-stream");
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn response(status: StatusCode, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response
}

fn with_type(mut response: Response<Body>, kind: &'static str) -> Response<Body> {
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// A message in the format of server-sent events; JSON has no line breaks in it.
fn event(told: Told) -> Bytes {
    let bytes = told.into_bytes();
    Bytes::from([b"event: message\ndata: ", bytes.as_slice(), b"\n\n"].concat())
}

impl hyper::body::Body for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = |bytes| Some(Ok(Frame::data(bytes)));
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().and_then(frame)),
            Self::Events { over: true, .. } => Poll::Ready(None),
            Self::Events { first, queue, over } => {
                let next = match first.take() {
                    Some(first) => Poll::Ready(Some(first)),
                    None => queue.poll_recv(context),
                };
                next.map(|told| {
                    *over = !matches!(told, Some(Told::Notice(_)));
                    told.map(event).and_then(frame)
                })
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Events { over: true, .. })
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                let length = bytes.as_ref().map_or(0, Bytes::len);
                SizeHint::with_exact(u64::try_from(length).unwrap_or(u64::MAX))
            }
            Self::Events { .. } => SizeHint::default(),
        }
    }
}
