//! The operator's door: JSON lines on a unix socket of mode 0600.
//!
//! Format: docs/formats/verifier-api.md, "Operator". [`call`] is the client.

use std::io::{BufRead, BufReader, Read, Write as _};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use casemate_attestation::Risk;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Semaphore, watch};
use tokio::time::timeout;
use zeroize::Zeroizing;

use crate::body;
use crate::config::is_name;
use crate::denial::{Code, Denial};
use crate::server::stopped;
use crate::store::{AuditRow, Lease, Refusal, Write};
use crate::vault::{MAX_SECRET_BYTES, Terms};
use crate::verifier::Verifier;

/// What an operator may ask.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Command {
    /// Store or replace a secret.
    PutSecret {
        /// Its name.
        name: String,
        /// The harm that its loss could do.
        risk: Risk,
        /// Seconds that a lease of it runs.
        ttl_seconds: u64,
        /// Its value, base64url without padding.
        value: String,
    },
    /// List the terms of all secrets.
    ListSecrets,
    /// List the newest leases.
    ListLeases,
    /// End a lease.
    RevokeLease {
        /// The lease's id.
        lease: String,
    },
    /// End an identity and all its leases, for good.
    RevokeIdentity {
        /// The sandbox's SPIFFE ID.
        sandbox: String,
    },
    /// List the newest audit rows.
    Audit {
        /// How many, at most 1000.
        limit: u32,
    },
    /// Ask how the service stands.
    Status,
}

/// What the service answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "content", rename_all = "snake_case")]
pub enum Reply {
    /// It is done, and durable.
    Done,
    /// It is not done.
    Refused(Denial),
    /// The secrets' terms.
    Secrets(Vec<SecretTerms>),
    /// The leases, newest first.
    Leases(Vec<Lease>),
    /// The audit rows, oldest first.
    Audit(Vec<AuditRow>),
    /// How the service stands.
    Status(Status),
}

/// A secret without its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretTerms {
    /// Its name.
    pub name: String,
    /// The harm that its loss could do.
    pub risk: Risk,
    /// Seconds that a lease of it runs.
    pub ttl_seconds: u64,
}

/// How the service stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The tenant.
    pub tenant: String,
    /// The trust domain.
    pub trust_domain: String,
    /// Seconds since 1970, by the service's clock.
    pub now: u64,
    /// The version of the service.
    pub version: String,
}

/// Why an operator got no answer.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The socket does not answer.
    #[error("{socket}: {source}; is the verifier running?")]
    Socket {
        /// The socket's path.
        socket: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The answer is not one.
    #[error("{socket}: expected one line of JSON, got {source}")]
    Answer {
        /// The socket's path.
        socket: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// The service said no.
    #[error(transparent)]
    Refused(Box<Denial>),
}

const LINE_BYTES: usize = 2 * MAX_SECRET_BYTES;
const ANSWER_BYTES: u64 = 64 * 1024 * 1024;
const WAIT: Duration = Duration::from_secs(10);
const OPERATORS: usize = 8;
const MAX_TTL_SECONDS: u64 = 24 * 3600;

impl Command {
    /// The command that stores `value` under `name`.
    pub fn put_secret(name: &str, risk: Risk, ttl_seconds: u64, value: &[u8]) -> Self {
        Self::PutSecret { name: name.to_owned(), risk, ttl_seconds, value: body::encode(value) }
    }
}

/// Asks the verifier whose admin socket is at `socket`. A refusal is an error.
pub fn call(socket: &Path, command: &Command) -> Result<Reply, AdminError> {
    let name = socket.display().to_string();
    let line = ask(socket, command)
        .map_err(|source| AdminError::Socket { socket: name.clone(), source })?;
    match serde_json::from_slice(&line) {
        Ok(Reply::Refused(denial)) => Err(AdminError::Refused(Box::new(denial))),
        Ok(reply) => Ok(reply),
        Err(source) => Err(AdminError::Answer { socket: name, source }),
    }
}

fn ask(socket: &Path, command: &Command) -> std::io::Result<Vec<u8>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(WAIT))?;
    stream.set_write_timeout(Some(WAIT))?;
    let line = Zeroizing::new(serde_json::to_string(command)? + "\n");
    stream.write_all(line.as_bytes())?;
    let mut answer = Vec::new();
    BufReader::new(stream.take(ANSWER_BYTES)).read_until(b'\n', &mut answer)?;
    Ok(answer)
}

/// Answers operators on the configured socket until `stop` says so.
pub(crate) async fn serve(
    listener: tokio::net::UnixListener,
    verifier: Arc<Verifier>,
    mut stop: watch::Receiver<bool>,
) {
    let socket = verifier.config().admin_socket.clone();
    let owner = std::fs::metadata(&socket).map(|file| file.uid());
    let places = Arc::new(Semaphore::new(OPERATORS));
    loop {
        let accepted = tokio::select! {
            () = stopped(&mut stop) => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        // The mode of the socket says the same; this holds in the moment before it is set.
        let peer = stream.peer_cred().map(|peer| peer.uid());
        let may = matches!((&peer, &owner), (Ok(peer), Ok(owner)) if peer == owner || *peer == 0);
        let Some(place) = places.clone().try_acquire_owned().ok().filter(|_| may) else { continue };
        let verifier = verifier.clone();
        tokio::spawn(async move {
            if let Err(error) = converse(stream, &verifier).await {
                tracing::debug!(%error, "operator");
            }
            drop(place);
        });
    }
    drop(std::fs::remove_file(socket));
}

async fn converse(mut stream: tokio::net::UnixStream, verifier: &Verifier) -> std::io::Result<()> {
    let (reading, mut writing) = stream.split();
    let mut reading = tokio::io::BufReader::new(reading);
    loop {
        let mut line = Zeroizing::new(Vec::new());
        let limit = u64::try_from(LINE_BYTES).unwrap_or(u64::MAX);
        let mut bounded = (&mut reading).take(limit);
        if timeout(WAIT, bounded.read_until(b'\n', &mut line)).await?? == 0 {
            return Ok(());
        }
        let reply = if line.last() == Some(&b'\n') {
            answer(verifier, &line).await
        } else {
            let expected = format!("one line of at most {LINE_BYTES} bytes");
            Err(Denial::field("line", &expected, "no end of line"))
        };
        let last = reply.is_err();
        let mut reply = serde_json::to_vec(&reply.unwrap_or_else(Reply::Refused))?;
        reply.push(b'\n');
        timeout(WAIT, writing.write_all(&reply)).await??;
        if last {
            return Ok(());
        }
    }
}

async fn answer(verifier: &Verifier, line: &[u8]) -> Result<Reply, Denial> {
    let command: Command = serde_json::from_slice(line)
        .map_err(|error| Denial::field("line", "a known operation", error.to_string()))?;
    let store = verifier.store();
    match command {
        Command::PutSecret { name, risk, ttl_seconds, value } => {
            let value = Zeroizing::new(body::decode("value", &value, MAX_SECRET_BYTES)?);
            put_secret(verifier, Terms { name, risk, ttl_seconds }, &value).await
        }
        Command::ListSecrets => {
            let terms = |Terms { name, risk, ttl_seconds }| SecretTerms { name, risk, ttl_seconds };
            Ok(Reply::Secrets(store.secrets().await?.into_iter().map(terms).collect()))
        }
        Command::ListLeases => Ok(Reply::Leases(store.leases().await?)),
        Command::RevokeLease { lease } => {
            let audit = done(verifier, "revoke-lease", &lease);
            let absent =
                Denial::new(Code::LeaseUnknown, "lease", "a lease that stands", lease.as_str());
            revoke(verifier, Write::RevokeLease { lease, audit }, absent).await
        }
        Command::RevokeIdentity { sandbox } => {
            let audit = done(verifier, "revoke-identity", &sandbox);
            let expected = "an identity that attested and stands";
            let absent = Denial::new(Code::IdentityUnknown, "sandbox", expected, sandbox.as_str());
            revoke(verifier, Write::RevokeSandbox { sandbox, audit }, absent).await
        }
        Command::Audit { limit } => Ok(Reply::Audit(store.audit(limit).await?)),
        Command::Status => Ok(Reply::Status(Status {
            tenant: verifier.config().tenant.clone(),
            trust_domain: verifier.config().trust_domain.clone(),
            now: verifier.now().0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })),
    }
}

async fn put_secret(verifier: &Verifier, terms: Terms, value: &[u8]) -> Result<Reply, Denial> {
    if !is_name(&terms.name) {
        let expected = "1 to 63 of a-z, 0-9, '.', '_' and '-', not only dots";
        return Err(Denial::field("name", expected, terms.name));
    }
    if !(1..=MAX_TTL_SECONDS).contains(&terms.ttl_seconds) {
        let actual = terms.ttl_seconds.to_string();
        return Err(Denial::field("ttl_seconds", "1 to 86400", actual));
    }
    if value.is_empty() {
        return Err(Denial::field("value", "1 to 65536 bytes", "0 bytes"));
    }
    let sealed = verifier.vault().seal(&terms, value).map_err(Denial::internal)?;
    let mut audit = done(verifier, "put-secret", &terms.name);
    audit.detail =
        serde_json::json!({"risk": terms.risk, "ttl_seconds": terms.ttl_seconds}).to_string();
    let written = verifier.store().write(Write::PutSecret { terms, sealed, audit }).await?;
    written.map_err(|refusal| Denial::internal(format!("{refusal:?}")))?;
    Ok(Reply::Done)
}

async fn revoke(verifier: &Verifier, write: Write, absent: Denial) -> Result<Reply, Denial> {
    match verifier.store().write(write).await? {
        Ok(()) => Ok(Reply::Done),
        Err(Refusal::Absent) => Err(absent),
        Err(refusal) => Err(Denial::internal(format!("{refusal:?}"))),
    }
}

fn done(verifier: &Verifier, event: &str, subject: &str) -> AuditRow {
    AuditRow {
        at: verifier.now().0,
        event: event.to_owned(),
        outcome: "done".to_owned(),
        subject: subject.to_owned(),
        detail: "{}".to_owned(),
    }
}
