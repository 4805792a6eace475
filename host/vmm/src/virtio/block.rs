//! A read-only disk (virtio 1.2, 5.2). What lies on it is protected by the
//! guest's own verity tree, not by us.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::queue::{Broken, Chain};
use super::{Device, Event, F_EVENT_IDX, Rings};
use crate::bytes::{narrow, u32_at, u64_at, wide};
use crate::memory::Memory;

/// An image file, opened before the jail closed.
pub(crate) struct Block {
    file: File,
    sectors: u64,
    space: Vec<u8>,
}

const SECTOR: u64 = 512;
/// Read from the file at once.
const PIECE: usize = 64 << 10;
const F_READ_ONLY: u64 = 1 << 5;
const READ: u32 = 0;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;
/// Length of an identity (virtio 1.2, 5.2.6).
const ID: &[u8; 20] = b"casemate-disk\0\0\0\0\0\0\0";

impl Block {
    pub(crate) fn new(file: File) -> std::io::Result<Self> {
        let sectors = file.metadata()?.len() / SECTOR;
        Ok(Self { file, sectors, space: Vec::new() })
    }

    /// Answers one request; says how many bytes were written into it.
    fn answer(&mut self, chain: &mut Chain, memory: &Memory) -> Result<u64, Broken> {
        let mut head = [0; 16];
        chain.read(memory, &mut head)?;
        let kind = u32_at(&head, 0).unwrap_or(u32::MAX);
        let sector = u64_at(&head, 8).unwrap_or(u64::MAX);
        // The last writable byte is the status; what is before it is data.
        let Some(data) = chain.writable().checked_sub(1) else {
            return Err(Broken::Protocol { field: "block request without a status", actual: 0 });
        };
        let (status, written) = match kind {
            READ => self.read(sector, data, chain, memory)?,
            GET_ID => (OK, wide(chain.write(memory, prefix(ID, data))?)),
            FLUSH => (OK, 0),
            _ => (UNSUPPORTED, 0),
        };
        chain.skip_writable(data.saturating_sub(written));
        chain.write(memory, &[status])?;
        Ok(written + 1)
    }

    fn read(
        &mut self,
        sector: u64,
        length: u64,
        chain: &mut Chain,
        memory: &Memory,
    ) -> Result<(u8, u64), Broken> {
        let start = sector.checked_mul(SECTOR);
        let end = start.and_then(|start| start.checked_add(length));
        let (Some(start), Some(end)) = (start, end) else { return Ok((IO_ERROR, 0)) };
        if end > self.sectors * SECTOR || !length.is_multiple_of(SECTOR) {
            return Ok((IO_ERROR, 0));
        }
        self.space.resize(PIECE, 0);
        let mut at = start;
        while at < end {
            let piece = narrow(end - at).min(PIECE);
            let space = self.space.get_mut(..piece).unwrap_or_default();
            if self.file.read_exact_at(space, at).is_err() {
                return Ok((IO_ERROR, at - start));
            }
            chain.write(memory, space)?;
            at += wide(piece);
        }
        Ok((OK, length))
    }
}

fn prefix(bytes: &[u8], length: u64) -> &[u8] {
    bytes.get(..narrow(length)).unwrap_or(bytes)
}

impl Device for Block {
    fn id(&self) -> u16 {
        2
    }

    fn class(&self) -> [u8; 3] {
        [0x01, 0x80, 0]
    }

    fn features(&self) -> u64 {
        F_READ_ONLY | F_EVENT_IDX
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![128]
    }

    fn config(&self) -> Vec<u8> {
        self.sectors.to_le_bytes().to_vec()
    }

    fn process(&mut self, _: Event, rings: &mut Rings<'_>) -> Result<(), Broken> {
        while let Some(mut chain) = rings.pop(0)? {
            let written = self.answer(&mut chain, rings.memory())?;
            rings.push(0, &chain, u32::try_from(written).unwrap_or(u32::MAX))?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::Driver;

    fn disk() -> Block {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..2048u64).map(crate::bytes::low_u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        Block::new(file).unwrap()
    }

    fn request(
        driver: &mut Driver,
        disk: &mut Block,
        kind: u32,
        sector: u64,
        data: u32,
    ) -> Vec<u8> {
        let mut head = kind.to_le_bytes().to_vec();
        head.extend([0; 4]);
        head.extend(sector.to_le_bytes());
        driver.offer(0, &[&head[..10], &head[10..]], &[data, 1]);
        disk.process(Event::Queue(0), &mut driver.rings()).unwrap();
        driver.used(0).pop().unwrap()
    }

    #[test]
    fn sectors_are_read_and_bounds_are_kept() {
        let (mut driver, mut disk) = (Driver::new(1), disk());
        let read = request(&mut driver, &mut disk, READ, 1, 1024);
        assert_eq!((read.len(), read[1024]), (1025, OK));
        assert!(
            read[..1024].iter().zip(512u64..).all(|(byte, n)| *byte == crate::bytes::low_u8(n))
        );
        for (kind, sector, data, status) in [
            (READ, 4, 512, IO_ERROR),
            (READ, 3, 1024, IO_ERROR),
            (READ, u64::MAX, 512, IO_ERROR),
            (READ, 0, 100, IO_ERROR),
            (1, 0, 512, UNSUPPORTED),
        ] {
            let answer = request(&mut driver, &mut disk, kind, sector, data);
            assert_eq!(answer.last(), Some(&status), "{kind} {sector} {data}");
        }
        assert_eq!(&request(&mut driver, &mut disk, GET_ID, 0, 20)[..13], b"casemate-disk");
    }

    #[test]
    fn a_request_without_a_status_breaks_the_queue() {
        let (mut driver, mut disk) = (Driver::new(1), disk());
        driver.offer(0, &[&[0; 16]], &[]);
        assert!(disk.process(Event::Queue(0), &mut driver.rings()).is_err());
    }
}
