//! The one writer: what is waiting goes into one transaction, and each caller
//! hears only after the transaction is on the disk (group commit).

use std::time::Duration;

use casemate_attestation::seen::{MAX_WAITING, rolled_back};
use casemate_attestation::x509::CrlNumber;
use casemate_attestation::{Mark, UnixTime, VerifyError};
use sqlx::sqlite::SqlitePool;
use sqlx::{Connection, Row, SqliteConnection};
use tokio::sync::{mpsc, oneshot};

use super::StoreError;
use crate::vault::Terms;

/// One durable act. Its audit row is written with it or not at all.
#[derive(Debug, Clone)]
pub(crate) enum Write {
    /// A challenge was answered and the evidence affirmed.
    Attested(Box<Attested>),
    /// A challenge was answered and refused: the nonce is used up all the same.
    Refused {
        /// Digest and end of the nonce.
        nonce: ([u8; 32], UnixTime),
        /// The audit row.
        audit: AuditRow,
    },
    /// A secret is about to leave.
    Leased(Leased),
    /// A secret is stored or replaced.
    PutSecret {
        /// Its terms.
        terms: Terms,
        /// Its value, sealed by the vault.
        sealed: Vec<u8>,
        /// The audit row.
        audit: AuditRow,
    },
    /// A lease ends now.
    RevokeLease {
        /// The lease's id.
        lease: String,
        /// The audit row.
        audit: AuditRow,
    },
    /// An identity and all its leases end now.
    RevokeSandbox {
        /// The sandbox's SPIFFE ID.
        sandbox: String,
        /// The audit row.
        audit: AuditRow,
    },
    /// Something happened that changes nothing but the audit.
    Audit(AuditRow),
}

/// An affirmed attestation.
#[derive(Debug, Clone)]
pub(crate) struct Attested {
    /// Digest and end of the nonce.
    pub nonce: ([u8; 32], UnixTime),
    /// The identity as it stands from now on.
    pub sandbox: super::Sandbox,
    /// The boot incarnation.
    pub epoch: u64,
    /// The attestation bundle.
    pub bundle: Vec<u8>,
    /// How new the endorsements are that it rests on.
    pub marks: Vec<Mark>,
    /// Marks that were first seen by then are what newer ones may not fall below.
    pub counts_until: UnixTime,
    /// The audit row.
    pub audit: AuditRow,
}

/// A lease of a secret.
#[derive(Debug, Clone)]
pub(crate) struct Leased {
    /// The lease's id.
    pub id: String,
    /// The secret's name.
    pub secret: String,
    /// The sandbox's SPIFFE ID.
    pub sandbox: String,
    /// When the lease ends.
    pub expires_at: UnixTime,
    /// The audit row.
    pub audit: AuditRow,
}

/// One line of the audit.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct AuditRow {
    /// When, in seconds since 1970.
    pub at: u64,
    /// What was asked: `attest`, `release`, `put-secret`, ….
    pub event: String,
    /// `done`, or the code of the denial.
    pub outcome: String,
    /// Whom it concerns: a SPIFFE ID, a secret, a lease.
    pub subject: String,
    /// The facts, as JSON.
    pub detail: String,
}

/// What a write found when it compared inside the transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The nonce was used before.
    NonceUsed,
    /// The identity was revoked.
    Revoked,
    /// The identity attested before with another sealing key or a higher epoch.
    Changed,
    /// The endorsements are older than those of an earlier attestation: which.
    RolledBack(Box<VerifyError>),
    /// There is no such row, or it is revoked already.
    Absent,
}

/// The way to the writing task.
#[derive(Debug, Clone)]
pub(super) struct Writer {
    jobs: mpsc::Sender<Job>,
    pool: SqlitePool,
}

struct Job {
    write: Write,
    done: oneshot::Sender<Outcome>,
}

type Outcome = Result<Result<(), Refusal>, StoreError>;

/// The most writes in one transaction.
const BATCH: usize = 64;
/// The most writes waiting; more callers wait to hand theirs over.
const WAITING: usize = 256;
/// Seconds between removals of nonces that are too old to be accepted anyway.
const CLEAN_EVERY: Duration = Duration::from_secs(60);

impl Writer {
    pub(super) fn start(pool: SqlitePool) -> Self {
        let (jobs, waiting) = mpsc::channel(WAITING);
        tokio::spawn(run(pool.clone(), waiting));
        Self { jobs, pool }
    }

    pub(super) async fn write(&self, write: Write) -> Outcome {
        let gone = || StoreError::Unavailable("the writer has ended".to_owned());
        let (done, answer) = oneshot::channel();
        self.jobs.send(Job { write, done }).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }

    pub(super) async fn close(&self) {
        self.pool.close().await;
    }
}

async fn run(pool: SqlitePool, mut waiting: mpsc::Receiver<Job>) {
    let mut cleaned = std::time::Instant::now();
    let mut jobs = Vec::with_capacity(BATCH);
    while waiting.recv_many(&mut jobs, BATCH).await > 0 {
        let outcomes = commit_all(&pool, &jobs).await;
        for (job, outcome) in jobs.drain(..).zip(outcomes) {
            // A caller that stopped waiting does not undo what is written.
            drop(job.done.send(outcome));
        }
        if cleaned.elapsed() >= CLEAN_EVERY {
            cleaned = std::time::Instant::now();
            clean(&pool).await;
        }
    }
    pool.close().await;
}

/// Commits all jobs in one transaction; if that fails, each in its own, so that
/// one bad row does not fail its neighbours.
async fn commit_all(pool: &SqlitePool, jobs: &[Job]) -> Vec<Outcome> {
    match commit(pool, jobs).await {
        Ok(outcomes) => outcomes.into_iter().map(Ok).collect(),
        Err(error) if jobs.len() == 1 => vec![Err(error)],
        Err(_) => {
            let mut outcomes = Vec::with_capacity(jobs.len());
            for job in jobs {
                let alone = commit(pool, std::slice::from_ref(job)).await;
                outcomes.push(alone.map(|outcomes| outcomes.into_iter().next().unwrap_or(Ok(()))));
            }
            outcomes
        }
    }
}

async fn commit(pool: &SqlitePool, jobs: &[Job]) -> Result<Vec<Result<(), Refusal>>, StoreError> {
    let mut connection = pool.acquire().await?;
    let committed = transact(&mut connection, jobs).await;
    if committed.is_err() {
        // SQLite ends a transaction by itself when the disk is full, and sqlx
        // does not learn of it: only a new connection is surely without one.
        drop(connection.close().await);
    }
    committed
}

async fn transact(
    connection: &mut SqliteConnection,
    jobs: &[Job],
) -> Result<Vec<Result<(), Refusal>>, StoreError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let mut outcomes = Vec::with_capacity(jobs.len());
    for job in jobs {
        outcomes.push(apply(&mut transaction, &job.write).await?);
    }
    transaction.commit().await?;
    Ok(outcomes)
}

/// Compares first, then writes, so that a refusal has written nothing.
async fn apply(
    db: &mut SqliteConnection,
    write: &Write,
) -> Result<Result<(), Refusal>, StoreError> {
    let (refusal, audit) = match write {
        Write::Attested(attested) => (attest(db, attested).await?, &attested.audit),
        Write::Refused { nonce, audit } => (use_nonce(db, nonce).await?, audit),
        Write::Leased(leased) => (lease(db, leased).await?, &leased.audit),
        Write::PutSecret { terms, sealed, audit } => {
            (put_secret(db, terms, sealed, audit.at).await?, audit)
        }
        Write::RevokeLease { lease, audit } => (revoke_lease(db, lease, audit.at).await?, audit),
        Write::RevokeSandbox { sandbox, audit } => {
            (revoke_sandbox(db, sandbox, audit.at).await?, audit)
        }
        Write::Audit(audit) => (None, audit),
    };
    if let Some(refusal) = refusal {
        return Ok(Err(refusal));
    }
    sqlx::query(
        "INSERT INTO audit (at, event, outcome, subject, detail) VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(number(audit.at))
    .bind(&audit.event)
    .bind(&audit.outcome)
    .bind(&audit.subject)
    .bind(&audit.detail)
    .execute(db)
    .await?;
    Ok(Ok(()))
}

async fn attest(db: &mut SqliteConnection, new: &Attested) -> Result<Option<Refusal>, StoreError> {
    let sandbox = &new.sandbox;
    let old = sqlx::query("SELECT sealing_key, epoch, revoked_at FROM sandboxes WHERE id = $1")
        .bind(&sandbox.id)
        .fetch_optional(&mut *db)
        .await?;
    if let Some(old) = old {
        if old.try_get::<Option<i64>, _>("revoked_at")?.is_some() {
            return Ok(Some(Refusal::Revoked));
        }
        let same_key = old.try_get::<&[u8], _>("sealing_key")? == sandbox.sealing_key;
        if !same_key || old.try_get::<i64, _>("epoch")? > number(new.epoch) {
            return Ok(Some(Refusal::Changed));
        }
    }
    if let Some(older) = older(db, new).await? {
        return Ok(Some(Refusal::RolledBack(Box::new(older))));
    }
    // Last of the comparisons: it writes, and after it nothing refuses.
    if let Some(used) = use_nonce(db, &new.nonce).await? {
        return Ok(Some(used));
    }
    sqlx::query(
        "INSERT INTO sandboxes
         (id, identity_key, sealing_key, epoch, task, bundle, attested_at, expires_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
         ON CONFLICT (id) DO UPDATE SET epoch = excluded.epoch, task = excluded.task,
         bundle = excluded.bundle, attested_at = excluded.attested_at,
         expires_at = excluded.expires_at",
    )
    .bind(&sandbox.id)
    .bind(&sandbox.identity_key[..])
    .bind(&sandbox.sealing_key[..])
    .bind(number(new.epoch))
    .bind(&sandbox.task)
    .bind(&sandbox.bundle[..])
    .bind(number(new.audit.at))
    .bind(number(sandbox.expires_at.0))
    .execute(&mut *db)
    .await?;
    sqlx::query("INSERT INTO bundles (digest, sandbox, made_at, bytes) VALUES ($1, $2, $3, $4)")
        .bind(&sandbox.bundle[..])
        .bind(&sandbox.id)
        .bind(number(new.audit.at))
        .bind(&new.bundle)
        .execute(&mut *db)
        .await?;
    remember(db, new).await?;
    Ok(None)
}

/// The refusal of an endorsement that is older than one that earlier results
/// rested on, long enough ago.
async fn older(
    db: &mut SqliteConnection,
    new: &Attested,
) -> Result<Option<VerifyError>, StoreError> {
    for mark in &new.marks {
        let newer = sqlx::query(
            "SELECT value, since FROM seen WHERE name = $1 AND value > $2 AND since <= $3
             ORDER BY value DESC LIMIT 1",
        )
        .bind(&mark.name)
        .bind(&mark.value.to_be_bytes()[..])
        .bind(number(new.counts_until.0))
        .fetch_optional(&mut *db)
        .await?;
        if let Some(newer) = newer {
            let value = CrlNumber::from_be_bytes(newer.try_get("value")?).unwrap_or_default();
            let since = u64::try_from(newer.try_get::<i64, _>("since")?).unwrap_or_default();
            return Ok(Some(rolled_back(mark, value, UnixTime(since))));
        }
    }
    Ok(None)
}

/// Keeps what is newer than all that [`older`] has compared with, each with the
/// time of this attestation; what a newer one has replaced for good goes.
async fn remember(db: &mut SqliteConnection, new: &Attested) -> Result<(), StoreError> {
    let counts = number(new.counts_until.0);
    for mark in &new.marks {
        sqlx::query(
            "DELETE FROM seen WHERE name = $1 AND value <
             (SELECT MAX(value) FROM seen WHERE name = $1 AND since <= $2)",
        )
        .bind(&mark.name)
        .bind(counts)
        .execute(&mut *db)
        .await?;
        sqlx::query(
            "INSERT INTO seen (name, value, since) SELECT $1, $2, $3
             WHERE $2 > COALESCE((SELECT MAX(value) FROM seen WHERE name = $1), $4)
             AND (SELECT COUNT(*) FROM seen WHERE name = $1) <= $5",
        )
        .bind(&mark.name)
        .bind(&mark.value.to_be_bytes()[..])
        .bind(number(new.audit.at))
        .bind(&CrlNumber::default().to_be_bytes()[..])
        .bind(i64::try_from(MAX_WAITING).unwrap_or(i64::MAX))
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

async fn use_nonce(
    db: &mut SqliteConnection,
    (digest, expires_at): &([u8; 32], UnixTime),
) -> Result<Option<Refusal>, StoreError> {
    let inserted = sqlx::query(
        "INSERT INTO nonces (digest, expires_at) VALUES ($1, $2) ON CONFLICT DO NOTHING",
    )
    .bind(&digest[..])
    .bind(number(expires_at.0))
    .execute(db)
    .await?;
    Ok((inserted.rows_affected() != 1).then_some(Refusal::NonceUsed))
}

async fn lease(db: &mut SqliteConnection, lease: &Leased) -> Result<Option<Refusal>, StoreError> {
    // The lease is there only if its identity stands at this very moment.
    let inserted = sqlx::query(
        "INSERT INTO leases (id, secret, sandbox, released_at, expires_at)
         SELECT $1, $2, id, $4, $5 FROM sandboxes WHERE id = $3 AND revoked_at IS NULL",
    )
    .bind(&lease.id)
    .bind(&lease.secret)
    .bind(&lease.sandbox)
    .bind(number(lease.audit.at))
    .bind(number(lease.expires_at.0))
    .execute(db)
    .await?;
    Ok((inserted.rows_affected() != 1).then_some(Refusal::Revoked))
}

async fn put_secret(
    db: &mut SqliteConnection,
    terms: &Terms,
    sealed: &[u8],
    at: u64,
) -> Result<Option<Refusal>, StoreError> {
    sqlx::query(
        "INSERT INTO secrets (name, risk, ttl_seconds, sealed, stored_at)
         VALUES ($1, $2, $3, $4, $5)
         ON CONFLICT (name) DO UPDATE SET risk = excluded.risk,
         ttl_seconds = excluded.ttl_seconds, sealed = excluded.sealed,
         stored_at = excluded.stored_at",
    )
    .bind(&terms.name)
    .bind(terms.risk.name())
    .bind(number(terms.ttl_seconds))
    .bind(sealed)
    .bind(number(at))
    .execute(db)
    .await?;
    Ok(None)
}

async fn revoke_lease(
    db: &mut SqliteConnection,
    lease: &str,
    at: u64,
) -> Result<Option<Refusal>, StoreError> {
    let updated =
        sqlx::query("UPDATE leases SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
            .bind(lease)
            .bind(number(at))
            .execute(db)
            .await?;
    Ok((updated.rows_affected() != 1).then_some(Refusal::Absent))
}

async fn revoke_sandbox(
    db: &mut SqliteConnection,
    sandbox: &str,
    at: u64,
) -> Result<Option<Refusal>, StoreError> {
    let updated =
        sqlx::query("UPDATE sandboxes SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL")
            .bind(sandbox)
            .bind(number(at))
            .execute(&mut *db)
            .await?;
    if updated.rows_affected() != 1 {
        return Ok(Some(Refusal::Absent));
    }
    sqlx::query("UPDATE leases SET revoked_at = $2 WHERE sandbox = $1 AND revoked_at IS NULL")
        .bind(sandbox)
        .bind(number(at))
        .execute(db)
        .await?;
    Ok(None)
}

/// Forgets nonces that are too old; the clock is the newest audit row's, so
/// that nothing is forgotten before the service itself would call it too old.
async fn clean(pool: &SqlitePool) {
    let cleaned = sqlx::query(
        "DELETE FROM nonces WHERE expires_at <
         (SELECT COALESCE(MAX(at), 0) FROM audit WHERE seq = (SELECT MAX(seq) FROM audit)) - 3600",
    )
    .execute(pool)
    .await;
    if let Err(error) = cleaned {
        tracing::warn!(%error, "old nonces stay for now");
    }
}

/// A number as the database keeps it; no time or epoch in use is near the end.
fn number(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
