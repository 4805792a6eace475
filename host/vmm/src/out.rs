//! Where console bytes go: written, or dropped, but never waited for.
//!
//! Standard output is a pipe in the product. An owner that lives and does not read must not
//! hold up a CPU or the devices, and with them the lease.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A file that several devices write to.
#[derive(Clone)]
pub(crate) struct Out(Arc<Mutex<File>>);

/// What a pipe takes at once when it has room (PIPE_BUF): no write of this length waits.
const PIECE: usize = 4096;

impl Out {
    pub(crate) fn new(file: File) -> Self {
        Self(Arc::new(Mutex::new(file)))
    }
}

impl Write for Out {
    /// Takes every byte. What the file has no room for is lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // One writer at a time: room that was seen is still there.
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let piece = bytes.get(..PIECE).unwrap_or(bytes);
        if has_room(&file)? {
            // A short write of a pipe, or a full disk: the rest is lost too.
            let _ = file.write(piece)?;
        }
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn has_room(file: &File) -> io::Result<bool> {
    const AT_ONCE: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut files = [PollFd::new(file, PollFlags::OUT)];
    poll(&mut files, Some(&AT_ONCE))?;
    let [file] = files;
    Ok(file.revents().contains(PollFlags::OUT))
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_pipe_that_nobody_reads_holds_nobody_up() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut out = Out::new(File::from(std::os::fd::OwnedFd::from(writer)));
        let (line, started) = ([b'x'; 1000], Instant::now());
        for _ in 0..1000 {
            out.write_all(&line).unwrap();
        }
        assert!(started.elapsed() < Duration::from_secs(10));
        drop(out);
        let mut kept = Vec::new();
        std::io::BufReader::new(reader).read_to_end(&mut kept).unwrap();
        // Linux gives a pipe 64 KiB; what came first is there.
        assert!((32 << 10..=1 << 20).contains(&kept.len()), "{}", kept.len());
    }

    #[test]
    fn a_file_keeps_every_byte() {
        let mut file = tempfile::tempfile().unwrap();
        let mut out = Out::new(file.try_clone().unwrap());
        let text: Vec<u8> = (0..=255).cycle().take(3 * PIECE + 7).collect();
        out.write_all(&text).unwrap();
        let mut kept = Vec::new();
        io::Seek::rewind(&mut file).unwrap();
        file.read_to_end(&mut kept).unwrap();
        assert_eq!(kept, text);
    }
}
