//! HTTP to types and back; no judgement.

use std::sync::Arc;
use std::time::Duration;

use casemate_attestation::release::MAX_RELEASE_PROOF_BYTES;
use http_body_util::Full;
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};

use crate::attest::{self, Brought};
use crate::body;
use crate::challenge::NONCE_BYTES;
use crate::denial::{Code, Denial};
use crate::release;
use crate::tls::Channel;
use crate::verifier::Verifier;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChallengeRequest {}

#[derive(Debug, Serialize)]
struct ChallengeAnswer {
    nonce: String,
    expires_at: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttestRequest {
    nonce: String,
    evidence: String,
    identity_key: String,
    sealing_key: String,
    epoch: u64,
    task: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReleaseRequest {
    proof: String,
}

/// The largest integer that every JSON reader keeps exactly (RFC 8259 section 6).
const MAX_EPOCH: u64 = (1 << 53) - 1;
const MAX_TASK_BYTES: usize = 128;
const MAX_SECRET_NAME_BYTES: usize = 64;
const SMALL_BODY: usize = 16 * 1024;

/// Answers one request of the connection whose [`Channel`] is in its extensions.
pub async fn answer<B>(verifier: &Arc<Verifier>, request: Request<B>) -> Response<Full<Bytes>>
where
    B: Body<Data = Bytes> + Unpin,
{
    let limit = Duration::from_millis(verifier.config().limits.request_timeout_ms);
    let late = || {
        let expected = format!("all within {} ms", limit.as_millis());
        Err(Denial::new(Code::Timeout, "request", expected, "more"))
    };
    let answered = tokio::time::timeout(limit, route(verifier, request)).await;
    match answered.unwrap_or_else(|_| late()) {
        Ok(json) => respond(StatusCode::OK, json),
        Err(denial) => deny(&denial),
    }
}

async fn route<B>(verifier: &Arc<Verifier>, request: Request<B>) -> Result<Vec<u8>, Denial>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (head, request_body) = request.into_parts();
    let channel = head.extensions.get::<Channel>().copied();
    let channel = channel.ok_or_else(|| Denial::internal("a request without a channel"))?;
    let segments: Vec<&str> = head.uri.path().split('/').skip(1).collect();
    match segments.as_slice() {
        ["v1", "challenge"] => {
            only(&head.method, &Method::POST)?;
            let body = verifier.bodies().read(request_body, SMALL_BODY).await?;
            challenge(verifier, &channel, body.json()?)
        }
        ["v1", "attest"] => {
            only(&head.method, &Method::POST)?;
            let limits = &verifier.config().limits;
            // Base64 takes four bytes for three; the other fields are small.
            let body = limits.evidence_bytes.div_ceil(3) * 4 + SMALL_BODY;
            let body = verifier.bodies().read(request_body, body).await?;
            let brought = brought(body.json()?, limits.evidence_bytes)?;
            json(&attest::attest(verifier, &channel, brought).await?)
        }
        ["v1", "secrets", name] => {
            only(&head.method, &Method::POST)?;
            at_most("secret", MAX_SECRET_NAME_BYTES, name)?;
            let body = verifier.bodies().read(request_body, SMALL_BODY).await?;
            let ReleaseRequest { proof } = body.json()?;
            let proof = body::decode("proof", &proof, MAX_RELEASE_PROOF_BYTES)?;
            json(&release::release(verifier, &channel, name, &proof).await?)
        }
        [".well-known", "jwks.json"] => {
            only(&head.method, &Method::GET)?;
            json(&verifier.tokens().jwks())
        }
        ["v1", "leases", id] => {
            only(&head.method, &Method::GET)?;
            lease(verifier, id).await
        }
        _ => Err(Denial::new(Code::NotFound, "path", "a route", head.uri.path())),
    }
}

fn challenge(
    verifier: &Verifier,
    channel: &Channel,
    ChallengeRequest {}: ChallengeRequest,
) -> Result<Vec<u8>, Denial> {
    let fresh = verifier.challenger().issue(&channel.attest, verifier.now())?;
    json(&ChallengeAnswer { nonce: body::encode(&fresh.nonce), expires_at: fresh.expires_at.0 })
}

fn brought(request: AttestRequest, evidence_bytes: usize) -> Result<Brought, Denial> {
    if request.epoch > MAX_EPOCH {
        let actual = request.epoch.to_string();
        return Err(Denial::field("epoch", "at most 2^53 - 1", actual));
    }
    at_most("task", MAX_TASK_BYTES, &request.task)?;
    Ok(Brought {
        nonce: body::decode("nonce", &request.nonce, NONCE_BYTES)?,
        evidence: body::decode("evidence", &request.evidence, evidence_bytes)?,
        identity_key: body::decode_fixed("identity_key", &request.identity_key)?,
        sealing_key: body::decode_fixed("sealing_key", &request.sealing_key)?,
        epoch: request.epoch,
        task: request.task,
    })
}

/// Refuses a name that is too long to be kept in an audit row, and does not
/// repeat it.
fn at_most(field: &str, limit: usize, name: &str) -> Result<(), Denial> {
    if name.len() <= limit {
        return Ok(());
    }
    let (expected, actual) = (format!("at most {limit} bytes"), format!("{} bytes", name.len()));
    Err(Denial::field(field, &expected, actual))
}

async fn lease(verifier: &Verifier, id: &str) -> Result<Vec<u8>, Denial> {
    let lease = verifier.store().lease(id).await?;
    json(&lease.ok_or_else(|| Denial::new(Code::LeaseUnknown, "lease", "an id of a lease", id))?)
}

fn only(actual: &Method, expected: &Method) -> Result<(), Denial> {
    if actual == expected {
        return Ok(());
    }
    let (expected, actual) = (expected.as_str(), actual.as_str());
    Err(Denial::new(Code::MethodNotAllowed, "method", expected, actual))
}

fn json(answer: &impl Serialize) -> Result<Vec<u8>, Denial> {
    serde_json::to_vec(answer).map_err(Denial::internal)
}

fn deny(denial: &Denial) -> Response<Full<Bytes>> {
    let status = StatusCode::from_u16(denial.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = respond(status, serde_json::to_vec(denial).unwrap_or_default());
    if status == StatusCode::METHOD_NOT_ALLOWED
        && let Ok(allow) = HeaderValue::from_str(&denial.expected)
    {
        response.headers_mut().insert(ALLOW, allow);
    }
    response
}

fn respond(status: StatusCode, json: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(json)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
