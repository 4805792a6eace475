//! The guest's virtio-serial port as an asynchronous stream.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

use crate::MuxError;

/// An open virtio-serial port.
///
/// A port is polled, read and written like a pipe, so tokio's pipe halves
/// serve it, one descriptor each; their own `AsyncRead` does not. It takes a
/// short read for an empty pipe, but a port's read returns one buffer at a
/// time, and what lies behind it raises no new edge.
#[derive(Debug)]
pub struct Port {
    reader: pipe::Receiver,
    writer: pipe::Sender,
}

impl Port {
    /// Opens the port that the host named `name`, waiting up to `patience`
    /// for its driver to find it. Needs sysfs at /sys and devtmpfs at /dev.
    pub async fn open(name: &str, patience: Duration) -> Result<Self, MuxError> {
        let deadline = Instant::now() + patience;
        loop {
            if let Some(device) = find(name) {
                return Self::open_device(&device)
                    .map_err(|source| MuxError::Io { action: "open the mux port", source });
            }
            if Instant::now() >= deadline {
                return Err(no_port(name, patience));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn open_device(device: &Path) -> io::Result<Self> {
        let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits().cast_signed();
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(device)?;
        let reader = pipe::Receiver::from_file_unchecked(file.try_clone()?)?;
        Ok(Self { reader, writer: pipe::Sender::from_file_unchecked(file)? })
    }
}

impl AsyncRead for Port {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.reader.poll_read_ready(cx))?;
            match self.reader.try_read(buf.initialize_unfilled()) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|count| buf.advance(count))),
            }
        }
    }
}

impl AsyncWrite for Port {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.writer.poll_write_ready(cx))?;
            match self.writer.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

fn find(name: &str) -> Option<PathBuf> {
    let (device, _) = ports().into_iter().find(|(_, port)| port == name)?;
    let path = Path::new("/dev").join(device);
    path.exists().then_some(path)
}

/// Every port's device name and the name that the host gave it.
fn ports() -> Vec<(String, String)> {
    let Ok(entries) = fs::read_dir("/sys/class/virtio-ports") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| {
            let name = fs::read_to_string(entry.path().join("name")).ok()?;
            Some((entry.file_name().into_string().ok()?, name.trim().to_owned()))
        })
        .collect()
}

fn no_port(name: &str, patience: Duration) -> MuxError {
    let present = ports().into_iter().map(|(_, name)| name).collect::<Vec<_>>();
    MuxError::NoPort {
        name: name.to_owned(),
        seconds: patience.as_secs(),
        present: if present.is_empty() { "none".into() } else { present.join(", ") },
    }
}
