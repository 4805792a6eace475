//! The guest's configuration: a file of the image, so it is measured with it.
//! Format: docs/formats/guest-config.md.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::port::ENVIRONMENT_PREFIX;

/// Where the image puts the file.
pub const PATH: &str = "/etc/casemate/guest.toml";
const MAX_BYTES: u64 = 256 * 1024;

/// Why the configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file is not the TOML it should be.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The line and what is wrong there.
        message: String,
    },
    /// A field has a value that it must not have.
    #[error("guest.toml, {field}: expected {expected}, got {actual}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
}

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Who judges the evidence and releases secrets.
    pub verifier: Verifier,
    /// Who carries out tool calls.
    pub gateway: Peer,
    /// The untrusted program.
    pub workload: Workload,
    /// Secrets to fetch, in this order.
    #[serde(default, rename = "secret")]
    pub secrets: Vec<Secret>,
    /// What the workload may ask of the port.
    #[serde(default)]
    pub port: Port,
}

/// One service at the other end of the wire.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The name its certificate must have.
    pub server_name: String,
    /// The certificate authority of its certificate, in PEM. No other is believed.
    pub ca_pem: String,
}

/// The verifier, which is also the issuer of this machine's identity.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Verifier {
    /// The name its TLS certificate must have.
    pub server_name: String,
    /// The certificate authority of its TLS certificate, in PEM.
    pub ca_pem: String,
    /// The authority that signs identity certificates, in PEM.
    pub identity_ca_pem: String,
}

/// The untrusted program and what it may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Workload {
    /// The directory of the image that the program sees as its whole file
    /// system, read-only.
    pub root: PathBuf,
    /// The program and its arguments, as paths below `root`.
    pub argv: Vec<String>,
    /// Its working directory below `root`.
    #[serde(default = "defaults::cwd")]
    pub cwd: PathBuf,
    /// Its user; not 0.
    pub uid: u32,
    /// Its group; not 0.
    pub gid: u32,
    /// Its environment. Never a secret: the image is public.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// The most memory of all its processes together.
    #[serde(default = "defaults::memory_mib")]
    pub memory_mib: u32,
    /// The most processes and threads.
    #[serde(default = "defaults::processes")]
    pub processes: u32,
    /// The most open files a process.
    #[serde(default = "defaults::open_files")]
    pub open_files: u32,
    /// The size of its `/tmp`, in memory.
    #[serde(default = "defaults::tmp_mib")]
    pub tmp_mib: u32,
    /// How much of its output reaches the console.
    #[serde(default = "defaults::output_bytes_per_second")]
    pub output_bytes_per_second: u32,
    /// How long it may run before the machine is stopped; 0 is no limit.
    #[serde(default)]
    pub wall_time_s: u64,
}

/// One secret and who receives it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secret {
    /// Its name at the verifier.
    pub name: String,
    /// Who receives it.
    pub receiver: Receiver,
    /// The number of the workload's file descriptor, where that is the receiver.
    pub fd: Option<i32>,
    /// Whether the machine stops when the verifier refuses it.
    pub required: bool,
}

/// Who receives a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Receiver {
    /// It stays in the memory of PID 1.
    Guest,
    /// The workload reads it from an inherited file descriptor.
    WorkloadFd,
}

/// What the workload may ask of the port.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Port {
    /// The longest line in bytes.
    pub max_line_bytes: usize,
    /// The most connections at one time.
    pub connections: usize,
    /// The most calls at one time.
    pub concurrent_calls: usize,
    /// The most requests a second, over all connections.
    pub requests_per_second: u32,
}

impl Default for Port {
    fn default() -> Self {
        Self {
            max_line_bytes: 1024 * 1024,
            connections: 8,
            concurrent_calls: 16,
            requests_per_second: 200,
        }
    }
}

mod defaults {
    use std::path::PathBuf;

    pub(super) fn cwd() -> PathBuf {
        PathBuf::from("/")
    }
    pub(super) fn memory_mib() -> u32 {
        128
    }
    pub(super) fn processes() -> u32 {
        64
    }
    pub(super) fn open_files() -> u32 {
        256
    }
    pub(super) fn tmp_mib() -> u32 {
        16
    }
    pub(super) fn output_bytes_per_second() -> u32 {
        16 * 1024
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let read = |source| ConfigError::Read { path: path.into(), source };
        let size = std::fs::metadata(path).map_err(read)?.len();
        if size > MAX_BYTES {
            return Err(wrong("file size", "at most 256 KiB", size));
        }
        let text = std::fs::read_to_string(path).map_err(read)?;
        Self::parse(&text).map_err(|error| match error {
            ConfigError::Parse { message, .. } => ConfigError::Parse { path: path.into(), message },
            other => other,
        })
    }

    /// Reads and checks the file's text.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Parse {
            path: PathBuf::from(PATH),
            message: error.to_string(),
        })?;
        config.check()?;
        Ok(config)
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.workload.check()?;
        self.port.check()?;
        check_secrets(&self.secrets)
    }
}

impl Workload {
    fn check(&self) -> Result<(), ConfigError> {
        check_path("workload.root", &self.root)?;
        check_path("workload.cwd", &self.cwd)?;
        if self.root == Path::new("/") {
            return Err(wrong("workload.root", "a directory below /", "/"));
        }
        match self.argv.first() {
            Some(program) => check_path("workload.argv[0]", Path::new(program))?,
            None => return Err(wrong("workload.argv", "at least the program", "an empty list")),
        }
        if self.argv.iter().any(|argument| argument.contains('\0')) {
            return Err(wrong("workload.argv", "no NUL in an argument", "one"));
        }
        if self.env.keys().any(|name| name.starts_with(ENVIRONMENT_PREFIX)) {
            return Err(wrong("workload.env", "no name that begins with CASEMATE_", "one"));
        }
        check_range("workload.uid", self.uid, 1, 65_533)?;
        check_range("workload.gid", self.gid, 1, 65_533)?;
        check_range("workload.memory_mib", self.memory_mib, 4, 1 << 20)?;
        check_range("workload.processes", self.processes, 1, 65_536)?;
        check_range("workload.open_files", self.open_files, 8, 65_536)?;
        check_range("workload.tmp_mib", self.tmp_mib, 1, 1 << 16)?;
        check_range("workload.output_bytes_per_second", self.output_bytes_per_second, 0, 1 << 24)
    }
}

impl Port {
    fn check(&self) -> Result<(), ConfigError> {
        check_range("port.max_line_bytes", self.max_line_bytes, 1024, 4 * 1024 * 1024)?;
        check_range("port.connections", self.connections, 1, 64)?;
        check_range("port.concurrent_calls", self.concurrent_calls, 1, 256)?;
        check_range("port.requests_per_second", self.requests_per_second, 1, 100_000)
    }
}

fn check_secrets(secrets: &[Secret]) -> Result<(), ConfigError> {
    let (mut names, mut fds) = (BTreeSet::new(), BTreeSet::new());
    if secrets.len() > 16 {
        return Err(wrong("secret", "at most 16 secrets", secrets.len()));
    }
    for secret in secrets {
        if !is_secret_name(&secret.name) {
            return Err(wrong("secret.name", "1 to 64 of a-z 0-9 . _ -", &secret.name));
        }
        if !names.insert(&secret.name) {
            return Err(wrong("secret.name", "each name once", &secret.name));
        }
        match (secret.receiver, secret.fd) {
            (Receiver::Guest, None) => {}
            (Receiver::WorkloadFd, Some(fd)) if (3..=63).contains(&fd) => {
                if !fds.insert(fd) {
                    return Err(wrong("secret.fd", "each number once", fd));
                }
            }
            (Receiver::Guest, Some(fd)) => {
                return Err(wrong("secret.fd", "none with receiver = \"guest\"", fd));
            }
            (Receiver::WorkloadFd, fd) => {
                let actual = fd.map_or("none".to_owned(), |fd| fd.to_string());
                return Err(wrong("secret.fd", "3 to 63", actual));
            }
        }
    }
    Ok(())
}

/// Whether `name` can stand in a URL path as it is.
fn is_secret_name(name: &str) -> bool {
    let allowed =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.')
}

fn check_path(field: &'static str, path: &Path) -> Result<(), ConfigError> {
    let plain = path.is_absolute()
        && path.components().all(|part| !matches!(part, std::path::Component::ParentDir));
    if plain { Ok(()) } else { Err(wrong(field, "an absolute path without ..", path.display())) }
}

fn check_range<T: PartialOrd + std::fmt::Display>(
    field: &'static str,
    actual: T,
    low: T,
    high: T,
) -> Result<(), ConfigError> {
    if actual >= low && actual <= high {
        return Ok(());
    }
    Err(wrong(field, "a number in the range of docs/formats/guest-config.md", actual))
}

fn wrong(field: &'static str, expected: &'static str, actual: impl ToString) -> ConfigError {
    ConfigError::Field { field, expected, actual: actual.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [verifier]
        server_name = "verifier.test"
        ca_pem = "-"
        identity_ca_pem = "-"
        [gateway]
        server_name = "gateway.test"
        ca_pem = "-"
        [workload]
        root = "/workload"
        argv = ["/bin/agent"]
        uid = 1000
        gid = 1000
        [[secret]]
        name = "api-token"
        receiver = "workload-fd"
        fd = 3
        required = true
    "#;

    #[test]
    fn a_good_file_is_read() {
        let config = Config::parse(GOOD).unwrap();
        assert_eq!(config.workload.memory_mib, 128);
        assert_eq!(config.secrets[0].receiver, Receiver::WorkloadFd);
    }

    #[test]
    fn each_wrong_value_is_named() {
        let cases = [
            ("uid = 1000", "uid = 0", "workload.uid"),
            ("argv = [\"/bin/agent\"]", "argv = []", "workload.argv"),
            ("argv = [\"/bin/agent\"]", "argv = [\"agent\"]", "workload.argv[0]"),
            ("root = \"/workload\"", "root = \"/\"", "workload.root"),
            ("root = \"/workload\"", "root = \"/w/../etc\"", "workload.root"),
            ("gid = 1000", "gid = 1000\nenv = { CASEMATE_MCP_URL = \"x\" }", "workload.env"),
            ("fd = 3", "fd = 2", "secret.fd"),
            ("fd = 3", "", "secret.fd"),
            ("api-token", "API/token", "secret.name"),
            ("fd = 3", "fd = 3\nextra = 1", "extra"),
            ("uid = 1000", "uid = 1000\nmemory_mb = 3", "memory_mb"),
            ("receiver = \"workload-fd\"", "receiver = \"env\"", "receiver"),
        ];
        for (from, to, field) in cases {
            let error = Config::parse(&GOOD.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(field), "{from} -> {to}: {error}");
        }
    }
}
