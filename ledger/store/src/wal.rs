//! The write-ahead log: what makes a leaf durable.
//!
//! Segment files `wal/<first index>.wal` start with 16 bytes: "CMWAL1\0\n" and
//! the first index. A record is, little endian: length u32 of the leaf, CRC-32C
//! u32 over all but itself, index u64, batch u64, the leaf. The batch is the
//! index of the first leaf that was written by the same `write`.
//!
//! A batch is written only after the one before it is on disk. So a bad record
//! with a later batch behind it was on disk once: that is damage, and the log
//! does not open. Nor does it with a bad record under its signed head. Any other
//! bad record with nothing of a later batch behind it is a write that a crash
//! tore; nobody was told that it happened, and it is cut off. What was flipped
//! in the last batch before the next head is signed looks the same, and is cut.
//!
//! What the head does not cover is written again before the log opens: a crash
//! or a failed `fdatasync` may have left it in the system's memory alone.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use casemate_ledger::leaf::MAX_LEAF_BYTES;

use crate::crc::crc32c;
use crate::error::StoreError;
use crate::files;

/// The open write-ahead log.
pub(crate) struct Wal {
    directory: PathBuf,
    segment_bytes: u64,
    path: PathBuf,
    file: File,
    length: u64,
    next: u64,
}

const MAGIC: [u8; 8] = *b"CMWAL1\0\n";
const SEGMENT_HEADER: u64 = 16;
const RECORD_HEADER: usize = 24;

impl Wal {
    /// Opens the log in `directory`, gives each leaf to `each` in order, cuts a
    /// torn end off, makes sure of what is on disk, and is ready to write. Its
    /// first `covered` leaves are under a signed head.
    pub(crate) fn open(
        directory: &Path,
        segment_bytes: u64,
        covered: u64,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), StoreError>,
    ) -> Result<Self, StoreError> {
        fs::create_dir_all(directory)
            .map_err(|error| StoreError::io("creating", directory, error))?;
        let segments = segments(directory)?;
        let mut next = 0;
        let mut end = None;
        for (at, (first, path)) in segments.iter().enumerate() {
            let is_last = at + 1 == segments.len();
            if *first != next {
                let before = end.as_ref().map(|(path, _): &(PathBuf, u64)| path.as_path());
                return Err(gap(path, before, *first, next));
            }
            let length = read_segment(path, (is_last, covered), &mut next, &mut each)?;
            end = Some((path.clone(), length));
        }
        let (path, length) = match end {
            Some(end) => end,
            None => create_segment(directory, 0)?,
        };
        let mut file = OpenOptions::new()
            .write(true)
            .open(&path)
            .map_err(|error| StoreError::io("opening", &path, error))?;
        file.seek(SeekFrom::Start(length))
            .map_err(|error| StoreError::io("seeking", &path, error))?;
        Ok(Self { directory: directory.to_owned(), segment_bytes, path, file, length, next })
    }

    fn write_durably(&mut self, bytes: &[u8]) -> io::Result<()> {
        crate::step!("wal.before-write");
        files::may("write", &self.path)?;
        #[cfg(feature = "failpoints")]
        for part in bytes.chunks(bytes.len().div_ceil(2).max(1)) {
            self.file.write_all(part)?;
            crate::step!("wal.half-written");
            files::may("write the rest of", &self.path)?;
        }
        #[cfg(not(feature = "failpoints"))]
        self.file.write_all(bytes)?;
        crate::step!("wal.written");
        files::may("sync", &self.path)?;
        self.file.sync_data()?;
        crate::step!("wal.synced");
        Ok(())
    }

    /// The index that the next leaf gets.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// Writes `leaves` as one batch and returns when they are on disk.
    pub(crate) fn commit<'a>(
        &mut self,
        leaves: impl IntoIterator<Item = &'a [u8]>,
    ) -> Result<(), StoreError> {
        if self.length >= self.segment_bytes {
            let (path, length) = create_segment(&self.directory, self.next)?;
            self.file = OpenOptions::new()
                .append(true)
                .open(&path)
                .map_err(|error| StoreError::io("opening", &path, error))?;
            (self.path, self.length) = (path, length);
        }
        let mut bytes = Vec::new();
        let mut index = self.next;
        for leaf in leaves {
            write_record(&mut bytes, index, self.next, leaf);
            index += 1;
        }
        self.write_durably(&bytes).map_err(|error| StoreError::io("writing", &self.path, error))?;
        self.length += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        self.next = index;
        Ok(())
    }
}

fn write_record(out: &mut Vec<u8>, index: u64, batch: u64, leaf: &[u8]) {
    let length = u32::try_from(leaf.len()).unwrap_or(u32::MAX).to_le_bytes();
    let (index, batch) = (index.to_le_bytes(), batch.to_le_bytes());
    let crc = crc32c(&[&length, &index, &batch, leaf]);
    out.extend(length);
    out.extend(crc.to_le_bytes());
    out.extend(index);
    out.extend(batch);
    out.extend_from_slice(leaf);
}

/// The record at the start of `bytes`: its index, batch, leaf and what follows.
fn read_record(bytes: &[u8]) -> Option<(u64, u64, &[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let (crc, rest) = rest.split_first_chunk::<4>()?;
    let (index, rest) = rest.split_first_chunk::<8>()?;
    let (batch, rest) = rest.split_first_chunk::<8>()?;
    let count = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if count > MAX_LEAF_BYTES {
        return None;
    }
    let (leaf, rest) = rest.split_at_checked(count)?;
    let good = crc32c(&[length, index, batch, leaf]) == u32::from_le_bytes(*crc);
    good.then(|| (u64::from_le_bytes(*index), u64::from_le_bytes(*batch), leaf, rest))
}

/// Reads one segment and returns the length of its good part. The last segment
/// is cut to it, and on disk from its first leaf after the `covered` ones.
fn read_segment(
    path: &Path,
    (is_last, covered): (bool, u64),
    next: &mut u64,
    each: &mut impl FnMut(u64, &[u8]) -> Result<(), StoreError>,
) -> Result<u64, StoreError> {
    let bytes = read_all(path)?;
    let total = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    let header = [MAGIC, next.to_le_bytes()].concat();
    let Some(mut rest) = bytes.strip_prefix(header.as_slice()) else {
        if is_last && total < SEGMENT_HEADER && *next >= covered {
            // The crash came before the segment was ever used.
            rewrite_header(path, *next)?;
            return Ok(SEGMENT_HEADER);
        }
        return Err(StoreError::corrupt(path, "the header of its segment", "other bytes"));
    };
    let mut uncovered = rest;
    while !rest.is_empty() {
        match read_record(rest) {
            Some((index, _, leaf, after)) if index == *next => {
                each(index, leaf)?;
                *next += 1;
                rest = after;
                if *next <= covered {
                    uncovered = rest;
                }
            }
            _ if is_last && *next >= covered && !continues_later(rest, *next) => break,
            _ => {
                return Err(StoreError::corrupt(
                    path,
                    format!("leaf {next} at byte {}", bytes.len() - rest.len()),
                    "a damaged record that was on disk once",
                ));
            }
        }
    }
    let good = total - u64::try_from(rest.len()).unwrap_or(0);
    if is_last {
        let again = uncovered.strip_suffix(rest).unwrap_or_default();
        let start = good - u64::try_from(again.len()).unwrap_or(0);
        settle(path, start, again, good)
            .map_err(|error| StoreError::io("settling", path, error))?;
    }
    Ok(good)
}

/// The segment `path` starts at `first` where leaf `next` should follow. Leaves
/// that are missing were the end of the segment `before`, or one that is gone:
/// the files look the same, so the last sound one is named.
fn gap(path: &Path, before: Option<&Path>, first: u64, next: u64) -> StoreError {
    match before {
        Some(before) if first > next => StoreError::corrupt(
            before,
            format!("leaf {next} at its end, or a segment that starts there"),
            format!("a next segment that starts at leaf {first}"),
        ),
        _ => StoreError::corrupt(
            path,
            format!("a segment that starts at leaf {next}"),
            format!("one that starts at {first}"),
        ),
    }
}

/// Writes the records `again`, which end at `good`, where they are read already,
/// cuts off what is behind them, and waits for the disk. After a failed
/// `fdatasync` the system may take them for written: it has to get them anew.
fn settle(path: &Path, start: u64, again: &[u8], good: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.seek(SeekFrom::Start(start))?;
    files::may("write", path)?;
    file.write_all(again)?;
    file.set_len(good)?;
    files::may("sync", path)?;
    file.sync_all()
}

/// Whether any record of a batch later than that of leaf `next` is in `bytes`.
fn continues_later(bytes: &[u8], next: u64) -> bool {
    let last_place = bytes.len().saturating_sub(RECORD_HEADER);
    (1..=last_place).any(|at| {
        let Some(rest) = bytes.get(at..) else { return false };
        // The cheap test first: the checksum is computed for very few places.
        let batch = rest.get(16..24).and_then(|b| b.try_into().ok()).map(u64::from_le_bytes);
        batch.is_some_and(|batch| batch > next && batch - next < 1 << 32)
            && read_record(rest).is_some_and(|(index, batch, ..)| index >= batch)
    })
}

fn rewrite_header(path: &Path, first: u64) -> Result<(), StoreError> {
    files::write_whole(path, &[MAGIC, first.to_le_bytes()].concat())?;
    files::sync_directory(&files::parent(path))
}

fn create_segment(directory: &Path, first: u64) -> Result<(PathBuf, u64), StoreError> {
    let path = directory.join(format!("{first:020}.wal"));
    rewrite_header(&path, first)?;
    Ok((path, SEGMENT_HEADER))
}

/// The segments in order, each with its first index by name.
fn segments(directory: &Path) -> Result<Vec<(u64, PathBuf)>, StoreError> {
    let io = |error| StoreError::io("listing", directory, error);
    let mut segments = Vec::new();
    for entry in fs::read_dir(directory).map_err(io)? {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.ends_with(".wal.tmp") {
            continue;
        }
        let first = name.strip_suffix(".wal").and_then(|digits| digits.parse().ok());
        let first = first.ok_or_else(|| {
            StoreError::corrupt(&path, "a segment named <first index>.wal", "another file")
        })?;
        segments.push((first, path));
    }
    segments.sort();
    Ok(segments)
}

fn read_all(path: &Path) -> Result<Vec<u8>, StoreError> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| BufReader::new(file).read_to_end(&mut bytes))
        .map_err(|error| StoreError::io("reading", path, error))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(directory: &Path) -> Result<(Vec<Vec<u8>>, Wal), StoreError> {
        open_covered(directory, 0)
    }

    fn open_covered(directory: &Path, covered: u64) -> Result<(Vec<Vec<u8>>, Wal), StoreError> {
        let mut leaves = Vec::new();
        let wal = Wal::open(directory, 1 << 20, covered, |_, leaf| {
            leaves.push(leaf.to_vec());
            Ok(())
        })?;
        Ok((leaves, wal))
    }

    /// Three batches: "a" "b", then "c", then "d" "e".
    fn written(directory: &Path) -> PathBuf {
        let (_, mut wal) = leaves(directory).unwrap();
        for batch in [&[&b"a"[..], b"b"][..], &[b"c"], &[b"d", b"e"]] {
            wal.commit(batch.iter().copied()).unwrap();
        }
        wal.path.clone()
    }

    #[test]
    fn leaves_come_back_in_order() {
        let directory = tempfile::tempdir().unwrap();
        written(directory.path());
        let (read, wal) = leaves(directory.path()).unwrap();
        assert_eq!(read.concat(), b"abcde");
        assert_eq!(wal.next(), 5);
    }

    #[test]
    fn a_tail_torn_anywhere_is_cut_and_writing_goes_on() {
        let whole = {
            let directory = tempfile::tempdir().unwrap();
            fs::read(written(directory.path())).unwrap()
        };
        for length in 0..whole.len() {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join(format!("{:020}.wal", 0));
            fs::write(&path, &whole[..length]).unwrap();
            let (before, mut wal) = leaves(directory.path()).unwrap();
            assert!(b"abcde".starts_with(&before.concat()), "cut at {length}");
            wal.commit([&b"x"[..]]).unwrap();
            let (after, _) = leaves(directory.path()).unwrap();
            assert_eq!(after.concat(), [before.concat(), b"x".to_vec()].concat());
        }
    }

    #[test]
    fn a_flipped_bit_before_the_last_batch_is_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path());
        let whole = fs::read(&path).unwrap();
        let last_batch = whole.len() - 2 * (RECORD_HEADER + 1);
        for at in 0..whole.len() {
            for bit in [1, 0x80] {
                let mut bytes = whole.clone();
                bytes[at] ^= bit;
                fs::write(&path, &bytes).unwrap();
                let result = leaves(directory.path()).map(|(leaves, _)| leaves.concat());
                match result {
                    Err(StoreError::Corrupt { .. }) => assert!(at < last_batch, "byte {at}"),
                    Ok(read) => {
                        assert!(at >= last_batch, "byte {at} went unseen");
                        assert!(b"abcd".starts_with(&read[..]), "byte {at}: {read:?}");
                    }
                    Err(error) => panic!("byte {at}: {error}"),
                }
            }
        }
    }

    #[test]
    fn under_the_head_a_flipped_bit_and_a_cut_are_damage_and_nothing_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path());
        let whole = fs::read(&path).unwrap();
        let damaged = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            let error = open_covered(directory.path(), 5).err();
            assert_eq!(fs::read(&path).unwrap(), bytes, "evidence of the damage was changed");
            matches!(error, Some(StoreError::Corrupt { path: named, .. }) if named == path)
        };
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            assert!(damaged(&bytes), "byte {at}");
        }
        // A cut between two records shows when the leaves are counted (`Log::open`).
        let between = |length: usize| (length - 16).is_multiple_of(RECORD_HEADER + 1);
        for length in (0..whole.len()).filter(|length| *length < 16 || !between(*length)) {
            assert!(damaged(&whole[..length]), "cut at {length}");
        }
    }

    #[test]
    fn zeros_after_a_power_cut_are_a_torn_tail() {
        let directory = tempfile::tempdir().unwrap();
        let path = written(directory.path());
        let mut bytes = fs::read(&path).unwrap();
        bytes.extend([0; 4096]);
        fs::write(&path, bytes).unwrap();
        assert_eq!(leaves(directory.path()).unwrap().0.concat(), b"abcde");
    }

    #[test]
    fn segments_follow_each_other_and_none_may_be_missing() {
        let directory = tempfile::tempdir().unwrap();
        let mut wal = Wal::open(directory.path(), 64, 0, |_, _| Ok(())).unwrap();
        for at in 0..20u8 {
            wal.commit([&[at][..]]).unwrap();
        }
        let files = segments(directory.path()).unwrap();
        assert!(files.len() > 5);
        assert_eq!(leaves(directory.path()).unwrap().0.len(), 20);
        let named = || match leaves(directory.path()).err() {
            Some(StoreError::Corrupt { path, .. }) => path,
            other => panic!("{other:?}"),
        };
        // Cut between two records, a segment can be told from the next one alone.
        let whole = fs::read(&files[2].1).unwrap();
        fs::write(&files[2].1, &whole[..whole.len() - RECORD_HEADER - 1]).unwrap();
        assert_eq!(named(), files[2].1);
        fs::remove_file(&files[2].1).unwrap();
        assert_eq!(named(), files[1].1);
        fs::remove_file(&files[0].1).unwrap();
        assert_eq!(named(), files[1].1);
    }
}
