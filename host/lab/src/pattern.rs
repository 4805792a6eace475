//! Known bytes through a stream, both ways at once.

use std::io::{Read, Write};

use anyhow::{bail, ensure};

/// The pattern has a prime length, so that no buffer size hides a shift.
const PERIOD: usize = 251;

/// Writes `bytes` of the pattern in pieces of `chunk` while it reads and checks as many.
pub(crate) fn both_ways<W: Write + Send>(
    reader: impl Read,
    writer: &mut W,
    bytes: u64,
    chunk: usize,
) -> anyhow::Result<String> {
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| write(writer, bytes, chunk));
        let read = check(reader, bytes);
        let written = writing.join().unwrap_or_else(|_| bail!("the writer failed"));
        read?;
        written?;
        Ok(format!("{bytes} bytes each way in pieces of {chunk}"))
    })
}

fn write(writer: &mut impl Write, bytes: u64, chunk: usize) -> anyhow::Result<()> {
    let pattern: Vec<u8> =
        (0..chunk + PERIOD).map(|n| (n % PERIOD).to_le_bytes()).map(first).collect();
    let mut done = 0;
    while done < bytes {
        let left = usize::try_from(bytes - done)?.min(chunk);
        let phase = usize::try_from(done)? % PERIOD;
        writer.write_all(pattern.get(phase..phase + left).unwrap_or_default())?;
        done += u64::try_from(left)?;
    }
    Ok(())
}

fn check(mut reader: impl Read, bytes: u64) -> anyhow::Result<()> {
    let mut piece = vec![0; 1 << 16];
    let mut done = 0;
    while done < bytes {
        let length = reader.read(&mut piece)?;
        ensure!(length > 0, "ended after {done} of {bytes} bytes");
        let phase = usize::try_from(done)?;
        let right = piece
            .iter()
            .take(length)
            .enumerate()
            .all(|(at, byte)| *byte == first(((phase + at) % PERIOD).to_le_bytes()));
        ensure!(right, "wrong bytes after {done}");
        done += u64::try_from(length)?;
    }
    Ok(())
}

/// Sends everything back.
pub(crate) fn echo<S>(mut stream: S) -> anyhow::Result<()>
where
    S: Read + Write,
{
    let mut piece = [0; 4096];
    loop {
        let length = stream.read(&mut piece)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(piece.get(..length).unwrap_or_default())?;
    }
}

fn first([byte, ..]: [u8; 8]) -> u8 {
    byte
}
