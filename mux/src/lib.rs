//! Named streams over the one wire between a machine and its host.
//!
//! The wire is any ordered byte stream; in a machine it is the virtio-serial
//! port [`PORT_NAME`]. On it runs yamux; the guest opens every stream and names
//! a service in the first line, the host says `ok` or `err <reason>`, and from
//! then on the stream carries the service's bytes. Format: docs/formats/mux.md.
//!
//! Each side takes the other for hostile: lines, streams, opening rate and the
//! bytes held for a slow reader are bounded, and so is every wait.
//!
//! ```no_run
//! # async fn walk(wire: tokio::net::UnixStream) -> Result<(), casemate_mux::MuxError> {
//! // In the guest:
//! let port = casemate_mux::Port::open(casemate_mux::PORT_NAME, std::time::Duration::from_secs(10)).await?;
//! let guest = casemate_mux::Guest::start(port);
//! let stream = guest.open("verifier").await?;
//! // On the host:
//! let mut host = casemate_mux::Host::start(wire, ["verifier"]);
//! while let Some(incoming) = host.accept().await {
//!     let stream = incoming.accept().await?;
//! }
//! # Ok(()) }
//! ```

mod guest;
mod host;
mod line;
mod port;
mod stream;
mod wire;

use std::time::Duration;

pub use guest::Guest;
pub use host::{Host, Incoming};
pub use port::Port;
pub use stream::Stream;

/// The virtio-serial port that carries the mux.
pub const PORT_NAME: &str = "casemate.mux";
/// The most streams that are open at once; one more waits (guest) or is refused (host).
pub const MAX_STREAMS: usize = 64;
/// The longest first line in either direction, its newline included.
pub const MAX_LINE: usize = 256;
/// The longest wait for the other side's first line.
pub const LINE_TIMEOUT: Duration = Duration::from_secs(30);
/// The most bytes in one write to the wire. Larger writes stall some virtio
/// devices on kernels from 6.12.4x on (split socket buffers), so none is made.
pub const MAX_WRITE: usize = 32 * 1024;

/// Why a stream could not be had.
#[derive(Debug, thiserror::Error)]
pub enum MuxError {
    /// The wire is gone; every stream on it is, too.
    #[error("the connection between guest and host is closed")]
    Closed,
    /// The service name cannot be a first line.
    #[error(
        "service name: expected 1 to 63 of a-z, 0-9, '-', '.', starting with a letter, got {actual:?}"
    )]
    Name {
        /// What was given, shortened.
        actual: String,
    },
    /// The host answered `err`.
    #[error("the host refused service {service}: {reason}")]
    Refused {
        /// The service that was asked for.
        service: String,
        /// What the host said. Untrusted text, printable ASCII only.
        reason: String,
    },
    /// The first line is not one of this protocol.
    #[error("first line: expected {expected}, got {actual:?}")]
    Line {
        /// What the line had to be.
        expected: &'static str,
        /// What came, shortened.
        actual: String,
    },
    /// The other side took too long.
    #[error("first line: none within {seconds} s", seconds = LINE_TIMEOUT.as_secs())]
    Timeout,
    /// No such port appeared.
    #[error("virtio-serial port {name}: none within {seconds} s; ports present: {present}")]
    NoPort {
        /// The port's name.
        name: String,
        /// How long was waited.
        seconds: u64,
        /// The ports that exist.
        present: String,
    },
    /// The operating system refused.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}
