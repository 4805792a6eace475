//! What PID 1 says to the host and asks of it, over the mux service `host`.
//! Everything that comes back is untrusted; nothing secret goes out.
//!
//! Protocol: one JSON line a request, on a stream of its own. `launch` is
//! answered by one JSON line, `claim` by a length and bytes, `event` and
//! `exited` by nothing. Format: docs/formats/host-service.md.

use std::time::Duration;

use casemate_mux::{Guest, MuxError, Stream};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

/// The service's name on the mux.
pub const SERVICE: &str = "host";
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_LAUNCH_BYTES: usize = 4096;
const MAX_CLAIM_BYTES: usize = 8192;
/// The longest event line that is sent.
const MAX_EVENT_BYTES: usize = 4096;

/// Why the host did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The stream could not be had.
    #[error(transparent)]
    Mux(#[from] MuxError),
    /// The stream broke.
    #[error("host service, {asked}: {source}")]
    Io {
        /// What was asked.
        asked: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
    /// No answer in time.
    #[error("host service, {asked}: no answer within {seconds} s", seconds = PATIENCE.as_secs())]
    Timeout {
        /// What was asked.
        asked: &'static str,
    },
    /// The answer is longer than it may be.
    #[error("host service, {asked}: expected at most {limit} bytes, got {actual}")]
    TooLong {
        /// What was asked.
        asked: &'static str,
        /// The most bytes allowed.
        limit: usize,
        /// The bytes announced or read.
        actual: usize,
    },
    /// The answer is not what it should be.
    #[error("host service, {asked}: {message}")]
    Answer {
        /// What was asked.
        asked: &'static str,
        /// What is wrong with the answer.
        message: String,
    },
}

/// Launch parameters, as the host gives them. Untrusted: the verifier and the
/// gateway decide what a task may do, and the epoch only orders boots.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Launch {
    /// The task for which the sandbox was started.
    pub sandbox_task: String,
    /// The boot incarnation.
    pub epoch: u64,
    /// The host's clock.
    pub time_unix: u64,
    /// Whether the host offers the software model of the AMD PSP.
    #[serde(default)]
    pub psp: bool,
    /// Whether the host offers model devices of NVIDIA's kind.
    #[serde(default)]
    pub gpu: bool,
}

/// One request to the host service.
#[derive(Debug, Serialize)]
#[serde(tag = "op", rename_all = "lowercase")]
enum Request<'a> {
    Launch,
    Claim { report_data: String },
    Event { name: &'a str, data: serde_json::Value },
    Exited { code: Option<i32>, signal: Option<i32> },
}

/// The host service.
#[derive(Debug, Clone)]
pub struct Host(Guest);

impl Host {
    /// The service on `mux`.
    pub fn new(mux: Guest) -> Self {
        Self(mux)
    }

    /// Asks for the launch parameters and checks their form.
    pub async fn launch(&self) -> Result<Launch, HostError> {
        const ASKED: &str = "launch";
        within(ASKED, async {
            let mut stream = self.send(ASKED, &Request::Launch).await?;
            Launch::parse(&read_line(ASKED, &mut stream).await?)
        })
        .await
    }

    /// Asks for the host's claim over `report_data`. The bytes are evidence.
    pub async fn claim(&self, report_data: &[u8; 64]) -> Result<Vec<u8>, HostError> {
        const ASKED: &str = "claim";
        within(ASKED, async {
            let request = Request::Claim { report_data: hex::encode(report_data) };
            let mut stream = self.send(ASKED, &request).await?;
            read_block(ASKED, &mut stream, MAX_CLAIM_BYTES).await
        })
        .await
    }

    /// Tells the host of progress, for people. A host that does not listen is
    /// no error: nothing depends on it.
    pub async fn event(&self, name: &str, data: serde_json::Value) {
        let data = if data.to_string().len() > MAX_EVENT_BYTES - 256 {
            serde_json::json!({"cut": true})
        } else {
            data
        };
        let _ = self.tell("event", &Request::Event { name, data }).await;
    }

    /// Tells the host how the workload ended.
    pub async fn exited(&self, code: Option<i32>, signal: Option<i32>) {
        let _ = self.tell("exited", &Request::Exited { code, signal }).await;
    }

    /// Sends a request that has no answer and waits until the host has it:
    /// the host closes the stream.
    async fn tell(&self, asked: &'static str, request: &Request<'_>) -> Result<(), HostError> {
        within(asked, async {
            let mut stream = self.send(asked, request).await?;
            let mut end = [0; 1];
            stream.read(&mut end).await.map_err(|source| HostError::Io { asked, source })?;
            Ok(())
        })
        .await
    }

    async fn send(&self, asked: &'static str, request: &Request<'_>) -> Result<Stream, HostError> {
        let mut stream = self.0.open(SERVICE).await?;
        let mut line = serde_json::to_vec(request)
            .map_err(|error| HostError::Answer { asked, message: error.to_string() })?;
        line.push(b'\n');
        let io = |source| HostError::Io { asked, source };
        stream.write_all(&line).await.map_err(io)?;
        stream.flush().await.map_err(io)?;
        Ok(stream)
    }
}

impl Launch {
    fn parse(line: &[u8]) -> Result<Self, HostError> {
        let wrong = |message: String| HostError::Answer { asked: "launch", message };
        let launch: Self =
            serde_json::from_slice(line).map_err(|error| wrong(error.to_string()))?;
        let task = &launch.sandbox_task;
        let plain = |byte: u8| byte.is_ascii_graphic();
        if !(1..=128).contains(&task.len()) || !task.bytes().all(plain) {
            return Err(wrong(
                "sandbox_task: expected 1 to 128 printable ASCII characters without space".into(),
            ));
        }
        Ok(launch)
    }
}

/// Reads a length (u32, little endian) and that many bytes.
pub async fn read_block(
    asked: &'static str,
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
    limit: usize,
) -> Result<Vec<u8>, HostError> {
    let io = |source| HostError::Io { asked, source };
    let actual = usize::try_from(stream.read_u32_le().await.map_err(io)?).unwrap_or(usize::MAX);
    if actual > limit {
        return Err(HostError::TooLong { asked, limit, actual });
    }
    let mut bytes = vec![0; actual];
    stream.read_exact(&mut bytes).await.map_err(io)?;
    Ok(bytes)
}

/// `work`, but no longer than the patience with the host.
pub async fn within<T>(
    asked: &'static str,
    work: impl Future<Output = Result<T, HostError>>,
) -> Result<T, HostError> {
    timeout(PATIENCE, work).await.unwrap_or(Err(HostError::Timeout { asked }))
}

async fn read_line(
    asked: &'static str,
    stream: &mut (impl tokio::io::AsyncRead + Unpin),
) -> Result<Vec<u8>, HostError> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await.map_err(|source| HostError::Io { asked, source })?;
        if byte == b'\n' {
            return Ok(line);
        }
        line.push(byte);
        if line.len() > MAX_LAUNCH_BYTES {
            let (limit, actual) = (MAX_LAUNCH_BYTES, line.len());
            return Err(HostError::TooLong { asked, limit, actual });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launch_parameters_are_checked() {
        let good = r#"{"sandbox_task":"demo","epoch":3,"time_unix":1,"psp":true}"#;
        assert_eq!(Launch::parse(good.as_bytes()).unwrap().epoch, 3);
        let cases = [
            (good.replace("demo", ""), "sandbox_task"),
            (good.replace("demo", "a b"), "sandbox_task"),
            (good.replace("epoch", "epoc"), "epoc"),
            (good.replace("3", "-3"), "-3"),
            (good.replace('}', ""), "EOF"),
        ];
        for (line, named) in cases {
            let error = Launch::parse(line.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(named), "{line}: {error}");
        }
    }

    #[tokio::test]
    async fn blocks_and_lines_are_bounded() {
        let huge = u32::MAX.to_le_bytes();
        let error = read_block("claim", &mut &huge[..], 100).await.unwrap_err();
        assert!(matches!(error, HostError::TooLong { limit: 100, .. }), "{error}");
        let endless = vec![b'x'; 10_000];
        let error = read_line("launch", &mut &endless[..]).await.unwrap_err();
        assert!(matches!(error, HostError::TooLong { .. }), "{error}");
        let short = [5, 0, 0, 0, 1];
        assert!(read_block("claim", &mut &short[..], 100).await.is_err());
    }

    #[tokio::test]
    async fn requests_are_answered_over_the_mux() {
        let (guest_end, host_end) = tokio::io::duplex(64 * 1024);
        let host = Host::new(Guest::start(guest_end));
        let mut service = casemate_mux::Host::start(host_end, [SERVICE]);
        let serving = tokio::spawn(async move {
            let mut stream = service.accept().await.unwrap().accept().await.unwrap();
            let line = read_line("test", &mut stream).await.unwrap();
            assert_eq!(line, br#"{"op":"launch"}"#);
            let answer = b"{\"sandbox_task\":\"t\",\"epoch\":1,\"time_unix\":2}\n";
            stream.write_all(answer).await.unwrap();
            stream.flush().await.unwrap();
            let mut stream = service.accept().await.unwrap().accept().await.unwrap();
            let line = String::from_utf8(read_line("test", &mut stream).await.unwrap()).unwrap();
            assert_eq!(
                line,
                format!("{{\"op\":\"claim\",\"report_data\":\"{}\"}}", "07".repeat(64))
            );
            stream.write_all(&[2, 0, 0, 0, 8, 9]).await.unwrap();
            stream.flush().await.unwrap();
        });
        assert_eq!(host.launch().await.unwrap().sandbox_task, "t");
        assert_eq!(host.claim(&[7; 64]).await.unwrap(), [8, 9]);
        serving.await.unwrap();
    }
}
