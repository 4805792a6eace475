//! The guest's console: kept on disk up to a limit, its last lines in memory.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// What a guest wrote to its console. It is hostile text: control characters
/// other than newline never leave this module.
#[derive(Debug, Clone, Default)]
pub(crate) struct Console(Arc<Mutex<Tail>>);

#[derive(Debug, Default)]
struct Tail {
    lines: VecDeque<String>,
    line: String,
}

impl Console {
    /// Reads `from` to its end: into `file` up to `limit` bytes, beyond that
    /// into nothing, so that the guest is never blocked and the disk never filled.
    pub(crate) async fn copy(self, mut from: impl AsyncRead + Unpin, file: PathBuf, limit: u64) {
        let mut file = File::create(file).await.ok();
        let mut left = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut block = vec![0; 4096];
        while let Ok(count @ 1..) = from.read(&mut block).await {
            let bytes = block.get(..count).unwrap_or_default();
            self.push(bytes);
            let kept = bytes.get(..left.min(count)).unwrap_or_default();
            left -= kept.len();
            if let Some(open) = &mut file
                && (kept.is_empty() || open.write_all(kept).await.is_err())
            {
                let _ = open.flush().await;
                file = None; // the limit, or a full disk: the machine goes on
            }
        }
        if let Some(open) = &mut file {
            let _ = open.flush().await;
        }
    }

    /// The last lines, oldest first, at most `count`.
    pub(crate) fn tail(&self, count: usize) -> Vec<String> {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let unfinished = Some(&tail.line).filter(|line| !line.trim().is_empty());
        let lines: Vec<_> = tail.lines.iter().chain(unfinished).cloned().collect();
        lines.get(lines.len().saturating_sub(count)..).unwrap_or_default().to_vec()
    }

    fn push(&self, bytes: &[u8]) {
        let mut tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for &byte in bytes {
            match byte {
                b'\n' => tail.end_line(),
                b' '..=b'~' if tail.line.len() < MAX_LINE => tail.line.push(char::from(byte)),
                _ => {}
            }
        }
    }
}

impl Tail {
    fn end_line(&mut self) {
        let line = std::mem::take(&mut self.line);
        if line.trim().is_empty() {
            return;
        }
        if self.lines.len() == MAX_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

const MAX_LINES: usize = 64;
const MAX_LINE: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn disk_and_memory_are_bounded_and_text_is_clean() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("console.log");
        let console = Console::default();
        let mut text = "line\n".repeat(10_000).into_bytes();
        text.extend_from_slice(b"\x1b[2Jlast\x07 words");
        console.clone().copy(&text[..], file.clone(), 1000).await;
        assert_eq!(std::fs::metadata(&file).unwrap().len(), 1000);
        assert_eq!(console.tail(2), ["line", "[2Jlast words"]);
        assert_eq!(console.tail(1000).len(), MAX_LINES + 1);
    }
}
