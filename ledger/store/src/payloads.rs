//! Arguments and results beside the log, under one key a task. The log holds
//! only commitments: once a task's key is deleted nobody reads its payloads
//! any more, and every proof still verifies.
//!
//! Format: docs/formats/payload.md.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use casemate_ledger::args::Commitment;
use casemate_ledger::text;

use crate::error::StoreError;
use crate::files;

/// What a commitment in the log stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Payload {
    /// Which of the two it is.
    pub kind: PayloadKind,
    /// The commitment's salt.
    pub salt: [u8; 32],
    /// The canonical JSON.
    pub bytes: Vec<u8>,
}

/// Arguments or a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadKind {
    /// A call's arguments.
    Arguments,
    /// A call's result.
    Result,
}

/// The payloads of every task.
pub struct Payloads {
    records: PathBuf,
    keys: PathBuf,
    tasks: Mutex<BTreeMap<String, Task>>,
}

struct Task {
    key: LessSafeKey,
    path: PathBuf,
    file: File,
}

/// The longest sealed payload: a result of 2 MiB and what is around it.
const MAX_SEALED: usize = 3 << 20;
/// The most that is read of one task's payloads at once.
const MAX_FILE: u64 = 4 << 30;
const HEADER: usize = 4 + 32 + NONCE_LEN;
const DOMAIN: &[u8] = b"casemate/payload1";

impl Payload {
    /// The commitment that stands in the log.
    pub fn commitment(&self) -> Commitment {
        match self.kind {
            PayloadKind::Arguments => Commitment::to_args(&self.salt, &self.bytes),
            PayloadKind::Result => Commitment::to_result(&self.salt, &self.bytes),
        }
    }
}

impl PayloadKind {
    /// The kind's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Arguments => "arguments",
            Self::Result => "result",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Arguments => 1,
            Self::Result => 2,
        }
    }
}

impl Payloads {
    /// The payloads under `records`, whose keys are under `keys`.
    pub fn open(records: &Path, keys: &Path) -> Result<Self, StoreError> {
        for directory in [records, keys] {
            let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
            made.map_err(|error| StoreError::io("creating", directory, error))?;
        }
        let tasks = Mutex::default();
        Ok(Self { records: records.to_owned(), keys: keys.to_owned(), tasks })
    }

    /// Keeps `payload` of `task`. It is with the system, and on disk when the
    /// system writes it there: the log, not this, is what a call waits for.
    pub fn keep(&self, task: &str, payload: &Payload) -> Result<(), StoreError> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        if !tasks.contains_key(task) {
            tasks.insert(task.to_owned(), self.open_task(task)?);
        }
        let Some(open) = tasks.get_mut(task) else { return Ok(()) };
        let io = |path: &Path, error| StoreError::io("writing", path, error);
        let sealed = seal(&open.key, payload).map_err(|error| io(&open.path, error))?;
        let written = files::may("write", &open.path).and_then(|()| open.file.write_all(&sealed));
        if let Err(error) = written {
            // What was half written is cut off when the file is opened next.
            let path = open.path.clone();
            tasks.remove(task);
            return Err(io(&path, error));
        }
        Ok(())
    }

    /// Deletes the key of `task`: its payloads can be read by nobody who has no
    /// copy of the key. Says whether there was one. A copy that the disk or a
    /// backup still has is out of reach of this.
    pub fn shred(&self, task: &str) -> Result<bool, StoreError> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.remove(task);
        let path = self.key_path(task);
        let io = |error| StoreError::io("deleting", &path, error);
        match OpenOptions::new().write(true).open(&path) {
            Ok(mut file) => {
                file.write_all(&[0; 64]).and_then(|()| file.sync_all()).map_err(io)?;
                fs::remove_file(&path).map_err(io)?;
                files::sync_directory(&self.keys)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(io(error)),
        }
        // Without its key the sealed text is noise.
        let _ = fs::remove_file(self.records_path(task));
        Ok(true)
    }

    /// The file with the sealed payloads of `task`.
    pub fn records_path(&self, task: &str) -> PathBuf {
        self.records.join(name(task))
    }

    /// The file with the key of `task`: 64 hex digits.
    pub fn key_path(&self, task: &str) -> PathBuf {
        self.keys.join(name(task)).with_extension("key")
    }

    fn open_task(&self, task: &str) -> Result<Task, StoreError> {
        let key_path = self.key_path(task);
        let key = match files::read_if_there(&key_path)? {
            Some(text) => read_key(&text, &key_path)?,
            None => self.make_key(&key_path)?,
        };
        let path = self.records_path(task);
        let io = |error| StoreError::io("opening", &path, error);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).map_err(io)?;
        let end = whole_length(&mut file).map_err(io)?;
        file.set_len(end).and_then(|()| file.seek(SeekFrom::Start(end))).map_err(io)?;
        Ok(Task { key: aead(&key, &key_path)?, path, file })
    }

    fn make_key(&self, path: &Path) -> Result<[u8; 32], StoreError> {
        let io = |error| StoreError::io("writing", path, error);
        let mut key = [0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| io(io::Error::other("no random bytes")))?;
        // Whole or not there: half a key would stop every later payload of the task.
        let temporary = path.with_extension("key.tmp");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&temporary).map_err(io)?;
        files::may("write", &temporary)
            .and_then(|()| file.write_all(text::hex(&key).as_bytes()))
            .and_then(|()| file.sync_all())
            .and_then(|()| fs::rename(&temporary, path))
            .map_err(io)?;
        files::sync_directory(&self.keys)?;
        Ok(key)
    }
}

/// Opens every payload in the file `records` under the key in the file `key`.
/// Each is what its commitment stands for: that was checked.
pub fn read_payloads(records: &Path, key: &Path) -> Result<Vec<(Commitment, Payload)>, StoreError> {
    let text = fs::read(key).map_err(|error| StoreError::io("reading", key, error))?;
    let secret = aead(&read_key(&text, key)?, key)?;
    let mut file =
        File::open(records).map_err(|error| StoreError::io("opening", records, error))?;
    let mut found = Vec::new();
    loop {
        match next_record(&mut file) {
            Ok(None) => return Ok(found),
            Ok(Some((digest, nonce, sealed))) => {
                let payload = unseal(&secret, &digest, nonce, sealed);
                let payload = payload.filter(|one| one.commitment().digest == digest);
                let payload = payload.ok_or_else(|| {
                    let expected = format!("payload {} under this key", text::hex(&digest));
                    StoreError::corrupt(records, expected, "bytes that do not open")
                })?;
                found.push((payload.commitment(), payload));
            }
            Err(error) => return Err(StoreError::io("reading", records, error)),
        }
    }
}

fn name(task: &str) -> String {
    text::hex(&casemate_ledger::digest(task.as_bytes()))
}

fn read_key(text: &[u8], path: &Path) -> Result<[u8; 32], StoreError> {
    let key = std::str::from_utf8(text).ok().and_then(|text| text::from_hex(text.trim_end()));
    key.and_then(|key| key.try_into().ok())
        .ok_or_else(|| StoreError::corrupt(path, "a key of 64 hex digits", "other bytes"))
}

fn aead(key: &[u8; 32], path: &Path) -> Result<LessSafeKey, StoreError> {
    UnboundKey::new(&AES_256_GCM_SIV, key)
        .map(LessSafeKey::new)
        .map_err(|_| StoreError::corrupt(path, "a key of 32 bytes", "another length"))
}

/// Length u32, commitment, nonce, then the sealed kind, salt and bytes.
fn seal(key: &LessSafeKey, payload: &Payload) -> io::Result<Vec<u8>> {
    let digest = payload.commitment().digest;
    let mut nonce = [0; NONCE_LEN];
    aws_lc_rs::rand::fill(&mut nonce).map_err(|_| io::Error::other("no random bytes"))?;
    let mut sealed = [&[payload.kind.code()][..], &payload.salt, &payload.bytes].concat();
    let sealing = key.seal_in_place_append_tag(
        Nonce::assume_unique_for_key(nonce),
        Aad::from([DOMAIN, &digest].concat()),
        &mut sealed,
    );
    sealing.map_err(|_| io::Error::other("sealing failed"))?;
    let length = u32::try_from(sealed.len()).ok().filter(|_| sealed.len() <= MAX_SEALED);
    let length = length.ok_or_else(|| io::Error::other("a payload that is too long"))?;
    Ok([&length.to_le_bytes()[..], &digest, &nonce, &sealed].concat())
}

fn unseal(
    key: &LessSafeKey,
    digest: &[u8; 32],
    nonce: [u8; NONCE_LEN],
    mut sealed: Vec<u8>,
) -> Option<Payload> {
    let aad = Aad::from([DOMAIN, digest].concat());
    let opened = key.open_in_place(Nonce::assume_unique_for_key(nonce), aad, &mut sealed).ok()?;
    let (code, rest) = opened.split_first()?;
    let (salt, bytes) = rest.split_first_chunk::<32>()?;
    let kinds = [PayloadKind::Arguments, PayloadKind::Result];
    let kind = kinds.into_iter().find(|kind| kind.code() == *code)?;
    Some(Payload { kind, salt: *salt, bytes: bytes.to_vec() })
}

type Sealed = ([u8; 32], [u8; NONCE_LEN], Vec<u8>);

/// The next record; nothing at the end, and nothing for a torn one.
fn next_record(file: &mut File) -> io::Result<Option<Sealed>> {
    let mut header = [0; HEADER];
    if !fill(file, &mut header)? {
        return Ok(None);
    }
    let (length, rest) = header.split_at(4);
    let (digest, nonce) = rest.split_at(32);
    let length = length.try_into().map(u32::from_le_bytes).unwrap_or(u32::MAX);
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > MAX_SEALED {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a record that is too long"));
    }
    let mut sealed = vec![0; length];
    if !fill(file, &mut sealed)? {
        return Ok(None);
    }
    let (Ok(digest), Ok(nonce)) = (digest.try_into(), nonce.try_into()) else { return Ok(None) };
    Ok(Some((digest, nonce, sealed)))
}

/// Fills `buffer`, or says that the file ended before.
fn fill(file: &mut File, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// The length of the whole records at the start of `file`.
fn whole_length(file: &mut File) -> io::Result<u64> {
    let total = file.metadata()?.len();
    if total > MAX_FILE {
        return Err(io::Error::other("a file of payloads that is too long"));
    }
    let mut end = 0;
    while next_record(file)?.is_some() {
        end = file.stream_position()?;
    }
    Ok(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(kind: PayloadKind, bytes: &[u8]) -> Payload {
        Payload { kind, salt: [7; 32], bytes: bytes.to_vec() }
    }

    #[test]
    fn payloads_open_under_their_tasks_key_alone_and_never_after_shredding() {
        let directory = tempfile::tempdir().unwrap();
        let (records, keys) = (directory.path().join("payloads"), directory.path().join("keys"));
        let arguments = payload(PayloadKind::Arguments, b"{\"to\":\"alice\"}");
        let result = payload(PayloadKind::Result, b"{\"ok\":true}");
        let store = Payloads::open(&records, &keys).unwrap();
        store.keep("report", &arguments).unwrap();
        store.keep("other", &result).unwrap();
        drop(store);
        let store = Payloads::open(&records, &keys).unwrap();
        store.keep("report", &result).unwrap();
        let (file, key) = (store.records_path("report"), store.key_path("report"));
        let read = read_payloads(&file, &key).unwrap();
        assert_eq!(
            read.iter().map(|(_, one)| one).collect::<Vec<_>>(),
            [&arguments, &result],
            "in order, across a restart"
        );
        assert_eq!(read.first().map(|(known, _)| *known), Some(arguments.commitment()));
        assert!(read_payloads(&file, &store.key_path("other")).is_err(), "another task's key");
        let sealed = fs::read(&file).unwrap();
        assert!(!sealed.windows(5).any(|part| part == b"alice"), "in clear");
        assert!(store.shred("report").unwrap());
        assert!(!key.exists() && !store.shred("report").unwrap());
        fs::write(&file, sealed).unwrap();
        assert!(read_payloads(&file, &key).is_err(), "a copy of the file without the key");
        assert_eq!(
            read_payloads(&store.records_path("other"), &store.key_path("other")).unwrap().len(),
            1
        );
    }

    #[test]
    fn a_torn_end_is_cut_and_a_flipped_bit_does_not_open() {
        let directory = tempfile::tempdir().unwrap();
        let store = Payloads::open(directory.path(), directory.path()).unwrap();
        let one = payload(PayloadKind::Arguments, b"{}");
        store.keep("t", &one).unwrap();
        let (path, key) = (store.records_path("t"), store.key_path("t"));
        let whole = fs::read(&path).unwrap();
        for torn in 1..whole.len() {
            fs::write(&path, [&whole[..], &whole[..torn]].concat()).unwrap();
            let store = Payloads::open(directory.path(), directory.path()).unwrap();
            store.keep("t", &one).unwrap();
            assert_eq!(read_payloads(&path, &key).unwrap().len(), 2, "torn at {torn}");
        }
        for at in 4..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, bytes).unwrap();
            assert!(read_payloads(&path, &key).is_err(), "byte {at}");
        }
    }
}
