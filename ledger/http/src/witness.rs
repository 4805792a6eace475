//! A witness over HTTP: C2SP tlog-witness, `add-checkpoint`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_ledger::witness::{AddCheckpoint, MAX_REQUEST_BYTES, Refusal};
use casemate_ledger_store::{Witness, WitnessError};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;
use tokio::time::timeout;

use crate::server::{Reply, TEXT, refuse, reply, serve};

const BODY_PATIENCE: Duration = Duration::from_secs(10);

/// Answers `POST /add-checkpoint` by `witness` until the task is dropped.
pub async fn serve_witness(listener: TcpListener, witness: Arc<Witness>) {
    serve(listener, move |request| answer(Arc::clone(&witness), request)).await;
}

async fn answer(witness: Arc<Witness>, request: Request<Incoming>) -> Reply {
    if request.uri().path() != "/add-checkpoint" {
        return refuse(StatusCode::NOT_FOUND, "path: expected /add-checkpoint");
    }
    if request.method() != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "method: expected POST");
    }
    let body = Limited::new(request.into_body(), MAX_REQUEST_BYTES).collect();
    let Ok(Ok(body)) = timeout(BODY_PATIENCE, body).await else {
        return refuse(StatusCode::BAD_REQUEST, "body: expected all of it, and not so much");
    };
    let body = body.to_bytes();
    // Keeping a checkpoint waits for the disk.
    let judged = tokio::task::spawn_blocking(move || judge(&witness, &body)).await;
    match judged {
        Ok(Ok(line)) => reply(StatusCode::OK, TEXT, "no-store", line),
        Ok(Err(WitnessError::Refused(refusal))) => refused(&refusal),
        Ok(Err(error)) => {
            tracing::error!(%error, "the checkpoint is not kept, so it is not cosigned");
            refuse(StatusCode::INTERNAL_SERVER_ERROR, "the checkpoint cannot be kept")
        }
        Err(_) => refuse(StatusCode::INTERNAL_SERVER_ERROR, "the request was dropped"),
    }
}

fn judge(witness: &Witness, body: &[u8]) -> Result<String, WitnessError> {
    let text = str::from_utf8(body).map_err(|_| Refusal::Malformed { expected: "UTF-8" })?;
    let request = AddCheckpoint::parse(text)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    witness.add_checkpoint(&request, now.as_secs())
}

fn refused(refusal: &Refusal) -> Reply {
    let status = StatusCode::from_u16(refusal.status()).unwrap_or(StatusCode::BAD_REQUEST);
    match refusal {
        // The one refusal with a body that programs read.
        Refusal::Size { known } => {
            reply(status, "text/x.tlog.size", "no-store", format!("{known}\n"))
        }
        Refusal::Fork { known } => {
            tracing::error!(known, "a log signed two heads of one size");
            refuse(status, refusal)
        }
        _ => refuse(status, refusal),
    }
}
