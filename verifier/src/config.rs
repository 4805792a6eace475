//! The verifier's one configuration file, `verifier.toml`.
//!
//! Every field is documented here and in docs/formats/verifier-config.md. An
//! unknown field is an error, relative paths start at the file's directory, and
//! no field turns a check off.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use casemate_attestation::Risk;
use serde::Deserialize;

/// What `verifier.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where guests reach the service: `host:port` of TCP, or `unix:/path`. TLS on both.
    pub listen: Listen,
    /// The DNS name in the service's certificate, the name that guests expect.
    pub server_name: String,
    /// The trust domain of the identities, lower case: `demo.casemate.internal`.
    pub trust_domain: String,
    /// The tenant whose sandboxes this service vouches for.
    pub tenant: String,
    /// The relying party that attestation results (EAR) are made for, their `aud`.
    pub audience: String,
    /// The directory of keys and database; made at first start, mode 0700.
    pub state_dir: PathBuf,
    /// The unix socket of the operator, mode 0600.
    pub admin_socket: PathBuf,
    /// The appraisal policy (docs/formats/policy.md).
    pub policy_file: PathBuf,
    /// The reference values of the images that may run (docs/formats/policy.md).
    pub reference_value_files: Vec<PathBuf>,
    /// The roots and host keys that evidence may end in (docs/formats/trust-anchors.md).
    pub trust_anchors_file: PathBuf,
    /// The tasks that a sandbox may be admitted for. A task not named here is refused.
    #[serde(rename = "task")]
    pub tasks: Vec<Task>,
    /// How long things live.
    #[serde(default)]
    pub lifetimes: Lifetimes,
    /// How much a peer may ask for.
    #[serde(default)]
    pub limits: Limits,
}

/// One task, and what a sandbox that is admitted for it may be given.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Task {
    /// The task's name, as the guest asks for it.
    pub name: String,
    /// The harm that the task could do. A sandbox is admitted for the task only if
    /// its boundary carries this risk.
    pub risk: Risk,
    /// The names of the secrets that may be released to it; none when left out.
    #[serde(default)]
    pub secrets: Vec<String>,
}

/// How long things live.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Lifetimes {
    /// Seconds from a challenge until its nonce is too old. Default 120.
    pub nonce_seconds: u64,
    /// Seconds from attestation until new leases need a new attestation. Default 300.
    pub result_seconds: u64,
    /// Seconds that an identity certificate is valid. Default 900.
    pub certificate_seconds: u64,
    /// Days that machines may still bring older endorsements after a newer one
    /// was first seen. Default 7, at most 365; 0 is none.
    pub endorsement_grace_days: u64,
}

/// How much a peer may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connections open at once; more wait in the kernel's queue. Default 256.
    pub connections: usize,
    /// Bytes of evidence in one attestation. Default 1048576, at most 4194304.
    pub evidence_bytes: usize,
    /// MiB of request bodies held in memory at once, over all connections. Default 64.
    pub body_memory_mib: usize,
    /// Milliseconds for the TLS handshake. Default 5000.
    pub handshake_timeout_ms: u64,
    /// Milliseconds for one request's body, and for the work on it. Default 10000.
    pub request_timeout_ms: u64,
    /// Milliseconds that a connection may be idle or send its next request's head. Default 30000.
    pub idle_timeout_ms: u64,
    /// Milliseconds that a connection may live. Default 600000.
    pub connection_timeout_ms: u64,
}

/// A listening address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A unix socket, mode 0600.
    Unix(PathBuf),
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not the TOML that this version knows.
    #[error("{path}: {source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and field.
        source: Box<toml::de::Error>,
    },
    /// A field has a value that cannot be.
    #[error("{field}: expected {expected}, got {actual}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
}

impl Config {
    /// Reads and checks the file at `path`.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let base = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, base).map_err(|error| match error {
            ConfigError::Parse { source, .. } => {
                ConfigError::Parse { path: path.to_owned(), source }
            }
            other => other,
        })
    }

    /// Reads and checks `text`, whose relative paths start at `base`.
    pub fn parse(text: &str, base: &Path) -> Result<Self, ConfigError> {
        let mut config: Self = toml::from_str(text).map_err(|source| ConfigError::Parse {
            path: PathBuf::from("verifier.toml"),
            source: Box::new(source),
        })?;
        config.resolve(base);
        config.check()?;
        Ok(config)
    }

    fn resolve(&mut self, base: &Path) {
        let paths = [
            &mut self.state_dir,
            &mut self.admin_socket,
            &mut self.policy_file,
            &mut self.trust_anchors_file,
        ];
        for path in paths.into_iter().chain(&mut self.reference_value_files) {
            *path = base.join(&*path);
        }
        if let Listen::Unix(path) = &mut self.listen {
            *path = base.join(&*path);
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        const NAME: &str = "1 to 63 of a-z, 0-9, '.', '_' and '-', not only dots";
        name("trust_domain", NAME, &self.trust_domain)?;
        name("tenant", NAME, &self.tenant)?;
        name("server_name", NAME, &self.server_name)?;
        text("audience", &self.audience)?;
        if self.tasks.is_empty() {
            return Err(refuse("task", "at least one [[task]]", "none"));
        }
        for task in &self.tasks {
            name("task.name", NAME, &task.name)?;
            for secret in &task.secrets {
                name("task.secrets", NAME, secret)?;
            }
        }
        self.lifetimes.check()?;
        self.limits.check()
    }

    /// The task called `name`, if it is permitted.
    pub fn task(&self, name: &str) -> Option<&Task> {
        self.tasks.iter().find(|task| task.name == name)
    }
}

impl Lifetimes {
    fn check(&self) -> Result<(), ConfigError> {
        within("lifetimes.nonce_seconds", "1 to 600", self.nonce_seconds, 1..=600)?;
        within("lifetimes.result_seconds", "1 to 3600", self.result_seconds, 1..=3600)?;
        within("lifetimes.certificate_seconds", "1 to 3600", self.certificate_seconds, 1..=3600)?;
        let days = self.endorsement_grace_days;
        within("lifetimes.endorsement_grace_days", "0 to 365", days, 0..=365)
    }
}

impl Limits {
    fn check(&self) -> Result<(), ConfigError> {
        let max = casemate_attestation::evidence::MAX_EVIDENCE_BYTES;
        within("limits.connections", "1 to 65536", self.connections, 1..=65536)?;
        within("limits.evidence_bytes", "4096 to 4194304", self.evidence_bytes, 4096..=max)?;
        within("limits.body_memory_mib", "8 to 65536", self.body_memory_mib, 8..=65536)?;
        for (field, value) in [
            ("limits.handshake_timeout_ms", self.handshake_timeout_ms),
            ("limits.request_timeout_ms", self.request_timeout_ms),
            ("limits.idle_timeout_ms", self.idle_timeout_ms),
            ("limits.connection_timeout_ms", self.connection_timeout_ms),
        ] {
            within(field, "1 to 3600000", value, 1..=3_600_000)?;
        }
        Ok(())
    }
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            nonce_seconds: 120,
            result_seconds: 300,
            certificate_seconds: 900,
            endorsement_grace_days: casemate_attestation::seen::GRACE_DAYS,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 256,
            evidence_bytes: 1024 * 1024,
            body_memory_mib: 64,
            handshake_timeout_ms: 5_000,
            request_timeout_ms: 10_000,
            idle_timeout_ms: 30_000,
            connection_timeout_ms: 600_000,
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = ConfigError;
    fn try_from(text: String) -> Result<Self, ConfigError> {
        match text.strip_prefix("unix:") {
            Some("") => Err(refuse("listen", "host:port or unix:PATH", text)),
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => match text.parse() {
                Ok(address) => Ok(Self::Tcp(address)),
                Err(_) => Err(refuse("listen", "IP:port or unix:PATH", text)),
            },
        }
    }
}

/// Whether `name` may be part of a SPIFFE ID and of a path: the SPIFFE path
/// alphabet in lower case, 63 characters, no `.` or `..` segment.
pub(crate) fn is_name(name: &str) -> bool {
    let known = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
    (1..=63).contains(&name.len())
        && name.bytes().all(known)
        && !name.bytes().all(|byte| byte == b'.')
}

fn name(field: &'static str, expected: &'static str, actual: &str) -> Result<(), ConfigError> {
    if is_name(actual) { Ok(()) } else { Err(refuse(field, expected, actual)) }
}

fn text(field: &'static str, actual: &str) -> Result<(), ConfigError> {
    match actual.len() {
        1..=255 => Ok(()),
        _ => Err(refuse(field, "1 to 255 bytes", actual)),
    }
}

fn within<T: PartialOrd + std::fmt::Display>(
    field: &'static str,
    expected: &'static str,
    actual: T,
    range: std::ops::RangeInclusive<T>,
) -> Result<(), ConfigError> {
    if range.contains(&actual) { Ok(()) } else { Err(refuse(field, expected, actual)) }
}

fn refuse(
    field: &'static str,
    expected: &'static str,
    actual: impl std::fmt::Display,
) -> ConfigError {
    ConfigError::Field {
        field,
        expected,
        actual: format!("{actual:?}", actual = actual.to_string()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    const MINIMAL: &str = r#"
        listen = "127.0.0.1:8443"
        server_name = "verifier.demo.internal"
        trust_domain = "demo.internal"
        tenant = "demo"
        audience = "casemate-gateway"
        state_dir = "state"
        admin_socket = "admin.sock"
        policy_file = "policy.toml"
        reference_value_files = ["image/reference.toml"]
        trust_anchors_file = "/etc/trust.toml"
        [[task]]
        name = "demo"
        risk = "low"
        secrets = ["db-password"]
    "#;

    pub(crate) fn minimal() -> Config {
        parse(MINIMAL).unwrap()
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(text, Path::new("/base"))
    }

    #[test]
    fn paths_start_at_the_file() {
        let config = parse(MINIMAL).unwrap();
        assert_eq!(config.state_dir, Path::new("/base/state"));
        assert_eq!(config.trust_anchors_file, Path::new("/etc/trust.toml"));
        assert_eq!(config.task("demo").unwrap().secrets, ["db-password"]);
        assert!(config.task("other").is_none());
    }

    #[test]
    fn the_example_shows_every_default() {
        let config = parse(include_str!("../verifier.example.toml")).unwrap();
        assert_eq!(config.lifetimes, Lifetimes::default());
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn unknown_fields_are_named() {
        let error = parse(&format!("insecure = true\n{MINIMAL}")).unwrap_err().to_string();
        assert!(error.contains("insecure"), "{error}");
        let error = parse(&format!("{MINIMAL}\n[limits]\nbodies = 1")).unwrap_err().to_string();
        assert!(error.contains("bodies"), "{error}");
    }

    #[test]
    fn impossible_values_name_their_field() {
        for (from, to, field) in [
            ("\"demo\"\n        audience", "\"De mo\"\n        audience", "tenant"),
            ("127.0.0.1:8443", "somewhere", "listen"),
            ("127.0.0.1:8443", "unix:", "listen"),
            ("\"db-password\"", "\"../x\"", "task.secrets"),
        ] {
            let error = parse(&MINIMAL.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
        let error =
            parse(&format!("{MINIMAL}\n[lifetimes]\nnonce_seconds = 0")).unwrap_err().to_string();
        assert!(error.contains("lifetimes.nonce_seconds: expected 1 to 600"), "{error}");
    }
}
