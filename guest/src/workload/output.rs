//! The workload's output on its way to the console: lines, cut and throttled.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Instant;

use tokio::io::{AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::mpsc;

use crate::console::{Admission, Throttle, workload_line};

/// The longest line that is kept; what follows until the next newline is dropped.
const MAX_LINE_BYTES: usize = 4096;

/// A pipe whose reading end is asynchronous.
pub(super) struct Pipe {
    /// The end that PID 1 reads.
    pub(super) reader: pipe::Receiver,
    /// The end that the workload writes.
    pub(super) writer: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let (writer, reader) = pipe::pipe()?;
        Ok(Self { reader, writer: writer.into_blocking_fd()? })
    }
}

/// Prints both streams until they end.
pub(super) async fn forward(readers: [pipe::Receiver; 2], bytes_per_second: u32) {
    let (lines, mut incoming) = mpsc::channel::<String>(16);
    for reader in readers {
        tokio::spawn(read_lines(reader, lines.clone()));
    }
    drop(lines);
    let start = Instant::now();
    let mut throttle = Throttle::new(u64::from(bytes_per_second));
    while let Some(line) = incoming.recv().await {
        match throttle.admit(start.elapsed().as_secs(), line.len()) {
            Admission::HeldBack => {}
            Admission::Pass { held_back_before } => {
                if held_back_before > 0 {
                    workload_line(&format!("({held_back_before} lines held back: too fast)"));
                }
                workload_line(&line);
            }
        }
    }
}

async fn read_lines(reader: pipe::Receiver, lines: mpsc::Sender<String>) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    while let Ok(byte) = reader.read_u8().await {
        if byte == b'\n' {
            if lines.send(String::from_utf8_lossy(&line).into_owned()).await.is_err() {
                return;
            }
            line.clear();
        } else if line.len() < MAX_LINE_BYTES {
            line.push(byte);
        }
    }
    if !line.is_empty() {
        let _ = lines.send(String::from_utf8_lossy(&line).into_owned()).await;
    }
}
