//! Signs the gateway's records and puts them into the log.

use std::sync::Arc;
use std::time::Instant;

use casemate_ledger::checkpoint::Checkpoint;
use casemate_ledger::merkle::Hash;
use casemate_ledger::{Authentic, Leaf, LeafKind, Record};
use casemate_ledger_store::{Log, Proof, StoreError};
use tokio::sync::oneshot;

use crate::keys::SigningKey;
use crate::metrics::{Counters, Stage};

/// The log and the key that signs what goes into it.
pub(crate) struct Journal {
    log: Log,
    key: Arc<SigningKey>,
    counters: Arc<Counters>,
}

/// A record in the log, not yet known to be on disk.
pub(crate) struct Written<T> {
    /// The leaf's index.
    pub(crate) index: u64,
    /// The record.
    pub(crate) record: Authentic<T>,
    durable: oneshot::Receiver<Result<(), StoreError>>,
}

impl Journal {
    pub(crate) fn new(log: Log, key: Arc<SigningKey>) -> Self {
        Self { log, key, counters: Arc::default() }
    }

    /// Signs `record` and appends it. Does not wait for the disk.
    pub(crate) fn write<T: Record + 'static>(
        &self,
        kind: LeafKind,
        record: T,
    ) -> Result<Written<T>, StoreError> {
        self.counters.note(&record);
        let record = record.sign(self.key.public(), |message| self.key.sign(message));
        let (index, durable) = self.append(kind, record.bytes())?;
        Ok(Written { index, record, durable })
    }

    /// Appends a record that somebody else signed.
    pub(crate) fn append(
        &self,
        kind: LeafKind,
        record: &[u8],
    ) -> Result<(u64, oneshot::Receiver<Result<(), StoreError>>), StoreError> {
        let (sender, durable) = oneshot::channel();
        let (began, counters) = (Instant::now(), Arc::clone(&self.counters));
        let index = self.log.append(Leaf::new(kind, record).encode(), move |result| {
            counters.took(Stage::Commit, began.elapsed());
            let _ = sender.send(result);
        })?;
        Ok((index, durable))
    }

    /// What was written since the start, counted.
    pub(crate) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Whether the log still takes records.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        self.log.check()
    }

    /// The number of records on disk.
    pub(crate) fn size(&self) -> u64 {
        self.log.size()
    }

    /// A checkpoint and proofs of the leaves at `indices`.
    pub(crate) fn prove(&self, indices: &[u64]) -> Result<(String, Vec<Proof>), StoreError> {
        self.log.prove(indices)
    }

    /// The head that was published last.
    pub(crate) fn head(&self) -> Option<(Checkpoint, String)> {
        self.log.head()
    }

    /// The hashes that prove that the log of `new` leaves continues that of `old`.
    pub(crate) fn consistency(&self, old: u64, new: u64) -> Result<Vec<Hash>, StoreError> {
        self.log.consistency(old, new)
    }

    /// Proofs of the leaves at `indices` under a head that was published before.
    pub(crate) fn prove_under(
        &self,
        head: &Checkpoint,
        indices: &[u64],
    ) -> Result<Vec<Proof>, StoreError> {
        self.log.prove_under(head, indices)
    }

    /// A COSE receipt of the leaf at `index`.
    pub(crate) fn cose_receipt(&self, index: u64) -> Result<Vec<u8>, StoreError> {
        self.log.cose_receipt(index)
    }

    /// Keeps a head that a quorum of witnesses cosigned.
    pub(crate) fn keep_witnessed(&self, note: &str) -> Result<(), StoreError> {
        self.log.keep_witnessed(note)
    }

    /// The note that was kept last.
    pub(crate) fn witnessed(&self) -> Result<Option<String>, StoreError> {
        self.log.witnessed()
    }

    /// The leaf at `index`.
    pub(crate) fn leaf(&self, index: u64) -> Result<Vec<u8>, StoreError> {
        self.log.leaf(index)
    }
}

impl<T> Written<T> {
    /// What to wait for until the record is on disk.
    pub(crate) fn pending(self) -> oneshot::Receiver<Result<(), StoreError>> {
        self.durable
    }

    /// Waits until the record is on disk.
    pub(crate) async fn durable(self) -> Result<(u64, Authentic<T>), StoreError> {
        wait(self.durable).await?;
        Ok((self.index, self.record))
    }
}

/// Waits for one append.
pub(crate) async fn wait(
    durable: oneshot::Receiver<Result<(), StoreError>>,
) -> Result<(), StoreError> {
    durable.await.unwrap_or(Err(StoreError::Closed))
}
