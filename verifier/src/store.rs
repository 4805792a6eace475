//! What the service remembers: used nonces, identities, secrets, leases, audit.
//!
//! Writing goes through one task that puts what is waiting into one durable
//! transaction ([`writer`]); each write carries its audit row, and what must be
//! compared is compared inside the transaction. Reading has a small pool.
//! SQLite in WAL mode with full synchronisation; the SQL is kept plain so that
//! another database can be put under it.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use casemate_attestation::{Risk, UnixTime};
use sqlx::Row;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteRow,
    SqliteSynchronous,
};

use crate::vault::Terms;

pub use writer::AuditRow;
pub(crate) use writer::{Attested, Leased, Refusal, Write};

mod writer;

/// The service's database.
#[derive(Debug, Clone)]
pub struct Store {
    reading: SqlitePool,
    writing: writer::Writer,
}

/// Why the store did not do it. Nothing was decided then.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// There is no room for another row.
    #[error("store: the disk is full")]
    Full,
    /// The database does not answer, or not in the form it should.
    #[error("store: {0}")]
    Unavailable(String),
}

/// An identity that attested.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sandbox {
    /// Its SPIFFE ID.
    pub id: String,
    /// Its Ed25519 key.
    pub identity_key: [u8; 32],
    /// Its X25519 key.
    pub sealing_key: [u8; 32],
    /// The task it was admitted for.
    pub task: String,
    /// SHA-256 of the bundle of its last attestation.
    pub bundle: [u8; 32],
    /// When it needs a new attestation for new leases.
    pub expires_at: UnixTime,
    /// When it was revoked, if it was.
    pub revoked_at: Option<UnixTime>,
}

/// A secret that was released to a sandbox for a time.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Lease {
    /// The lease's id; who knows it may ask how the lease stands.
    pub lease: String,
    /// The secret's name.
    pub secret: String,
    /// The sandbox's SPIFFE ID.
    pub sandbox: String,
    /// When it was released, in seconds since 1970.
    pub released_at: u64,
    /// When it ends, in seconds since 1970.
    pub expires_at: u64,
    /// When it was revoked, if it was.
    pub revoked_at: Option<u64>,
}

/// The most rows that one listing returns.
pub(crate) const MAX_LISTED: u32 = 1000;
const READERS: u32 = 4;
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

impl Store {
    /// Opens the database at `path`, making it and its tables if they are not there.
    pub(crate) async fn open(path: &Path) -> Result<Self, StoreError> {
        // SQLite gives its other files the mode of this one.
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        file.map_err(|error| StoreError::Unavailable(format!("{}: {error}", path.display())))?;
        Self::connect(SqliteConnectOptions::new().filename(path)).await
    }

    async fn connect(options: SqliteConnectOptions) -> Result<Self, StoreError> {
        let options = options
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(BUSY_TIMEOUT);
        let pool = |connections| {
            let pool = SqlitePoolOptions::new().max_connections(connections);
            pool.acquire_timeout(BUSY_TIMEOUT).connect_with(options.clone())
        };
        let writing = pool(1).await?;
        let migrated = sqlx::migrate!().run(&writing).await;
        migrated.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let reading = pool(READERS).await?;
        Ok(Self { reading, writing: writer::Writer::start(writing) })
    }

    /// Does `write` with its audit row, durably, or refuses and leaves no trace.
    pub(crate) async fn write(&self, write: Write) -> Result<Result<(), Refusal>, StoreError> {
        self.writing.write(write).await
    }

    /// The identity `id`.
    pub(crate) async fn sandbox(&self, id: &str) -> Result<Option<Sandbox>, StoreError> {
        let row = sqlx::query(
            "SELECT id, identity_key, sealing_key, task, bundle, expires_at, revoked_at
             FROM sandboxes WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.reading)
        .await?;
        row.map(|row| Sandbox::from_row(&row)).transpose()
    }

    /// The attestation bundle with SHA-256 `digest`.
    pub(crate) async fn bundle(&self, digest: &[u8; 32]) -> Result<Option<Vec<u8>>, StoreError> {
        let row = sqlx::query("SELECT bytes FROM bundles WHERE digest = $1")
            .bind(&digest[..])
            .fetch_optional(&self.reading)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// The terms and the sealed value of the secret `name`.
    pub(crate) async fn secret(&self, name: &str) -> Result<Option<(Terms, Vec<u8>)>, StoreError> {
        let row =
            sqlx::query("SELECT name, risk, ttl_seconds, sealed FROM secrets WHERE name = $1")
                .bind(name)
                .fetch_optional(&self.reading)
                .await?;
        row.map(|row| Ok((Terms::from_row(&row)?, row.try_get("sealed")?))).transpose()
    }

    /// The terms of all secrets, by name.
    pub(crate) async fn secrets(&self) -> Result<Vec<Terms>, StoreError> {
        let rows =
            sqlx::query("SELECT name, risk, ttl_seconds FROM secrets ORDER BY name LIMIT $1")
                .bind(MAX_LISTED)
                .fetch_all(&self.reading)
                .await?;
        rows.iter().map(Terms::from_row).collect()
    }

    /// The lease `id`.
    pub(crate) async fn lease(&self, id: &str) -> Result<Option<Lease>, StoreError> {
        let row = sqlx::query(
            "SELECT id, secret, sandbox, released_at, expires_at, revoked_at
             FROM leases WHERE id = $1",
        )
        .bind(id)
        .fetch_optional(&self.reading)
        .await?;
        row.map(|row| Lease::from_row(&row)).transpose()
    }

    /// The newest leases, newest first.
    pub(crate) async fn leases(&self) -> Result<Vec<Lease>, StoreError> {
        let rows = sqlx::query(
            "SELECT id, secret, sandbox, released_at, expires_at, revoked_at
             FROM leases ORDER BY released_at DESC, id LIMIT $1",
        )
        .bind(MAX_LISTED)
        .fetch_all(&self.reading)
        .await?;
        rows.iter().map(Lease::from_row).collect()
    }

    /// The newest `limit` audit rows, oldest first.
    pub(crate) async fn audit(&self, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT at, event, outcome, subject, detail FROM audit ORDER BY seq DESC LIMIT $1",
        )
        .bind(limit.min(MAX_LISTED))
        .fetch_all(&self.reading)
        .await?;
        rows.iter().rev().map(AuditRow::from_row).collect()
    }

    /// Ends both sides; every later call is refused.
    pub async fn close(&self) {
        self.writing.close().await;
        self.reading.close().await;
    }
}

impl Sandbox {
    fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            id: row.try_get("id")?,
            identity_key: fixed(row, "identity_key")?,
            sealing_key: fixed(row, "sealing_key")?,
            task: row.try_get("task")?,
            bundle: fixed(row, "bundle")?,
            expires_at: time(row, "expires_at")?,
            revoked_at: optional_time(row, "revoked_at")?,
        })
    }
}

impl Terms {
    fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        let risk: String = row.try_get("risk")?;
        let risk =
            risk.parse::<Risk>().map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Self { name: row.try_get("name")?, risk, ttl_seconds: time(row, "ttl_seconds")?.0 })
    }
}

impl Lease {
    fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            lease: row.try_get("id")?,
            secret: row.try_get("secret")?,
            sandbox: row.try_get("sandbox")?,
            released_at: time(row, "released_at")?.0,
            expires_at: time(row, "expires_at")?.0,
            revoked_at: optional_time(row, "revoked_at")?.map(|time| time.0),
        })
    }
}

impl AuditRow {
    fn from_row(row: &SqliteRow) -> Result<Self, StoreError> {
        Ok(Self {
            at: time(row, "at")?.0,
            event: row.try_get("event")?,
            outcome: row.try_get("outcome")?,
            subject: row.try_get("subject")?,
            detail: row.try_get("detail")?,
        })
    }
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        // SQLITE_FULL, primary result code 13 (sqlite.org/rescode.html).
        let code = error.as_database_error().and_then(|error| error.code());
        match code.and_then(|code| code.parse::<u32>().ok()) {
            Some(code) if code & 0xff == 13 => Self::Full,
            _ => Self::Unavailable(error.to_string()),
        }
    }
}

fn fixed(row: &SqliteRow, column: &str) -> Result<[u8; 32], StoreError> {
    let bytes: Vec<u8> = row.try_get(column)?;
    bytes.try_into().map_err(|_| StoreError::Unavailable(format!("{column}: expected 32 bytes")))
}

fn time(row: &SqliteRow, column: &str) -> Result<UnixTime, StoreError> {
    stored(row.try_get(column)?, column)
}

fn optional_time(row: &SqliteRow, column: &str) -> Result<Option<UnixTime>, StoreError> {
    row.try_get::<Option<i64>, _>(column)?.map(|time| stored(time, column)).transpose()
}

fn stored(number: i64, column: &str) -> Result<UnixTime, StoreError> {
    let number = u64::try_from(number);
    number.map(UnixTime).map_err(|_| StoreError::Unavailable(format!("{column}: below zero")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(detail: &str) -> AuditRow {
        let text = str::to_owned;
        let (event, outcome, subject) = (text("test"), text("done"), text("nobody"));
        AuditRow { at: 1, event, outcome, subject, detail: text(detail) }
    }

    fn nonce(digest: u8, detail: &str) -> Write {
        Write::Refused { nonce: ([digest; 32], UnixTime(9)), audit: row(detail) }
    }

    async fn fill(store: &Store) -> StoreError {
        let page = "x".repeat(4096);
        loop {
            if let Err(error) = store.write(Write::Audit(row(&page))).await {
                return error;
            }
        }
    }

    #[tokio::test]
    async fn a_full_disk_is_said_and_leaves_no_trace() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        // The database's own limit gives the error that a full disk gives.
        let small = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .pragma("max_page_count", "64");
        let store = Store::connect(small).await.unwrap();
        assert_eq!(fill(&store).await, StoreError::Full);
        let page = "x".repeat(4096);
        assert_eq!(store.write(nonce(1, &page)).await, Err(StoreError::Full));
        let denial = crate::Denial::from(StoreError::Full);
        assert_eq!((denial.status, denial.code.as_ref()), (507, "store-full"));
        store.close().await;
        // With room again, the nonce of the failed write is still unused.
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.write(nonce(1, "")).await, Ok(Ok(())));
        assert_eq!(store.write(nonce(1, "")).await, Ok(Err(Refusal::NonceUsed)));
    }

    #[tokio::test]
    async fn writes_at_once_share_transactions_and_keep_their_own_outcome() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("db")).await.unwrap();
        let writes: Vec<_> = (0..100_u8)
            .map(|n| {
                let store = store.clone();
                tokio::spawn(async move { store.write(nonce(n / 2, "")).await })
            })
            .collect();
        let mut used = 0;
        for write in writes {
            used += usize::from(write.await.unwrap().unwrap() == Err(Refusal::NonceUsed));
        }
        assert_eq!(used, 50);
        assert_eq!(store.audit(1000).await.unwrap().len(), 50);
    }

    #[tokio::test]
    async fn a_locked_database_is_unavailable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let store = Store::open(&path).await.unwrap();
        let other = SqlitePool::connect(path.to_str().unwrap()).await.unwrap();
        let mut held = other.acquire().await.unwrap();
        sqlx::query("BEGIN IMMEDIATE").execute(&mut *held).await.unwrap();
        let refused = store.write(nonce(1, "")).await;
        assert!(matches!(refused, Err(StoreError::Unavailable(_))), "{refused:?}");
        sqlx::query("ROLLBACK").execute(&mut *held).await.unwrap();
        assert_eq!(store.write(nonce(1, "")).await, Ok(Ok(())));
    }
}
