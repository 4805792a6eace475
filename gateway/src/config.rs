//! The gateway's one configuration file, `gateway.toml`.
//!
//! Every field is documented here and in docs/formats/gateway-config.md. An
//! unknown field is an error, relative paths start at the file's directory, and
//! no field turns a check off.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use casemate_attestation::{Boundary, Properties, Property, Risk};
use casemate_ledger::checkpoint::VerifierKey;
use casemate_ledger::text;
use serde::{Deserialize, Serialize};

use crate::decide::LoopLimits;
use crate::spans::CollectorUrl;
pub use crate::upstream::config::{Confine, Confinement, RemoteConfig, Tool, Upstream};

/// What `gateway.toml` says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where ports reach the gateway: `127.0.0.1:7443` (loopback only) or `unix:/path`. TLS on both.
    pub listen: Listen,
    /// The DNS name in the gateway's certificate, the name that ports expect.
    pub server_name: String,
    /// The tenant whose sandboxes may call.
    pub tenant: String,
    /// The log's name: `<deployment domain>/<tenant>/log<N>`. It cannot change later.
    pub log_origin: String,
    /// The directory of keys, log and stored bundles; made at first start, mode 0700.
    pub state_dir: PathBuf,
    /// The unix socket of the operator, mode 0600.
    pub admin_socket: PathBuf,
    /// The unix socket of hosts, mode 0600: they keep their machines only while it answers.
    #[serde(default)]
    pub host_socket: Option<PathBuf>,
    /// The certificate (PEM) of the verifier's identity CA.
    pub identity_ca_file: PathBuf,
    /// The boundary class of the gateway itself, written into every decision.
    pub boundary: Boundary,
    /// Key ids (32 hex digits) of identities that may not call, one a line; read at each start.
    #[serde(default)]
    pub revoked_identities_file: Option<PathBuf>,
    /// Milliseconds that a lease lives; its nonce changes after half of that. Default 10000, 200 to 600000.
    #[serde(default = "default_lease")]
    pub lease_ms: u64,
    /// Milliseconds between checkpoints of a growing log. Default 1000, 10 to 60000.
    #[serde(default = "default_checkpoint")]
    pub checkpoint_ms: u64,
    /// Connections open at once; more wait in the kernel's queue. Default 256.
    #[serde(default = "default_connections")]
    pub connections: usize,
    /// What each risk class asks of a sandbox's boundary, beside what grants ask.
    #[serde(default)]
    pub boundary_floor: BoundaryFloor,
    /// How much repetition is too much.
    #[serde(default)]
    pub loops: LoopLimits,
    /// The program that confines tool servers: a `casemate` program. Default the running one.
    #[serde(default = "default_confine_program")]
    pub confine_program: PathBuf,
    /// A C2SP tlog-policy: witnesses with their URLs, and how many must cosign each head.
    #[serde(default)]
    pub witness_policy_file: Option<PathBuf>,
    /// Where spans of calls go: a collector's URL for OTLP traces, on this host.
    #[serde(default)]
    pub traces: Option<CollectorUrl>,
    /// Where Prometheus reads the gateway's numbers: a loopback address; `GET /metrics`.
    #[serde(default)]
    pub metrics: Option<SocketAddr>,
    /// The organisation's rules over all grants.
    #[serde(default)]
    pub rules: Option<RulesConfig>,
    /// Who may sign grants.
    #[serde(rename = "issuer")]
    pub issuers: Vec<Issuer>,
    /// Who may approve calls that wait.
    #[serde(default, rename = "approver")]
    pub approvers: Vec<Approver>,
    /// The tool servers.
    #[serde(default, rename = "upstream")]
    pub upstreams: Vec<Upstream>,
}

/// What a risk class asks of a boundary.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BoundaryFloor {
    /// For low risk; nothing by default.
    pub low: Properties,
    /// For medium risk; `own_kernel` by default.
    pub medium: Properties,
    /// For high risk; `own_kernel` and `mediated` by default.
    pub high: Properties,
}

/// Where the organisation's rules are.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RulesConfig {
    /// The rules in Cedar, read at start.
    pub file: PathBuf,
    /// Whether a call needs a rule that permits it. Default no: the grant is enough.
    #[serde(default)]
    pub require_permit: bool,
}

/// Somebody who may sign grants.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Issuer {
    /// The name in the grants.
    pub name: String,
    /// The Ed25519 public key, 64 hex digits.
    pub key: String,
}

/// Somebody who may approve calls that wait.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approver {
    /// The name in the approvals.
    pub name: String,
    /// The person; two keys of one person are one person.
    pub person: String,
    /// The Ed25519 public key, 64 hex digits.
    pub key: String,
}

/// A listening address.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum Listen {
    /// A TCP address of the loopback interface.
    Tcp(SocketAddr),
    /// A unix socket, mode 0600.
    Unix(PathBuf),
}

/// Why a configuration is not used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not the TOML that this version knows.
    #[error("{}: {source}", path.display())]
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
        let mut config: Self = toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })?;
        let base = path.parent().unwrap_or(Path::new("")).to_owned();
        config.rebase(&base);
        config.check()?;
        Ok(config)
    }

    /// Makes relative paths start at `base`.
    fn rebase(&mut self, base: &Path) {
        let paths = [&mut self.state_dir, &mut self.admin_socket, &mut self.identity_ca_file];
        let listen = match &mut self.listen {
            Listen::Unix(path) => Some(path),
            Listen::Tcp(_) => None,
        };
        let rules = self.rules.as_mut().map(|rules| &mut rules.file);
        let optional = self.revoked_identities_file.as_mut().into_iter().chain(rules);
        let optional = optional.chain(self.witness_policy_file.as_mut());
        let optional = optional.chain(self.host_socket.as_mut());
        for path in paths.into_iter().chain(listen).chain(optional) {
            *path = base.join(&*path);
        }
        self.upstreams.iter_mut().for_each(|upstream| upstream.rebase(base));
    }

    /// Checks what the types do not say.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        if let Listen::Tcp(address) = self.listen
            && !address.ip().is_loopback()
        {
            return Err(field("listen", "a loopback address or unix:/path", address));
        }
        if let Some(address) = self.metrics.filter(|address| !address.ip().is_loopback()) {
            return Err(field("metrics", "a loopback address", address));
        }
        within("lease_ms", self.lease_ms, 200, 600_000)?;
        within("checkpoint_ms", self.checkpoint_ms, 10, 60_000)?;
        if !self.loops.check() {
            let expected = "counts that rise within the documented limits";
            return Err(field("loops", expected, format!("{:?}", self.loops)));
        }
        within("connections", u64::try_from(self.connections).unwrap_or(0), 1, 65_536)?;
        if VerifierKey::new(&self.log_origin, [0; 32]).is_err() {
            return Err(field(
                "log_origin",
                "a name without spaces and plus signs",
                &self.log_origin,
            ));
        }
        if self.tenant.is_empty() || self.tenant.contains('/') {
            return Err(field("tenant", "a name without slashes", &self.tenant));
        }
        if self.issuers.is_empty() {
            return Err(field("issuer", "at least one", "none"));
        }
        self.issuers.iter().try_for_each(|issuer| issuer.public_key().map(drop))?;
        self.approvers.iter().try_for_each(|approver| approver.public_key().map(drop))?;
        distinct("approver.name", self.approvers.iter().map(|approver| approver.name.as_str()))?;
        distinct("approver.key", self.approvers.iter().map(|approver| approver.key.as_str()))?;
        let names = self.upstreams.iter().map(|upstream| upstream.name.as_str());
        distinct("upstream.name", names)?;
        let private = [self.state_dir.as_path(), self.admin_socket.as_path()];
        let private: Vec<&Path> = private.into_iter().chain(self.host_socket.as_deref()).collect();
        self.upstreams.iter().try_for_each(|upstream| upstream.check(&private))
    }
}

impl Default for BoundaryFloor {
    fn default() -> Self {
        Self {
            low: Properties::default(),
            medium: [Property::OwnKernel].into_iter().collect(),
            high: [Property::OwnKernel, Property::Mediated].into_iter().collect(),
        }
    }
}

impl BoundaryFloor {
    /// What `risk` asks.
    pub(crate) fn of(&self, risk: Risk) -> &Properties {
        match risk {
            Risk::Low => &self.low,
            Risk::Medium => &self.medium,
            Risk::High => &self.high,
        }
    }
}

impl Issuer {
    /// The public key.
    pub(crate) fn public_key(&self) -> Result<[u8; 32], ConfigError> {
        public_key("issuer.key", &self.key)
    }
}

impl Approver {
    /// The public key.
    pub(crate) fn public_key(&self) -> Result<[u8; 32], ConfigError> {
        public_key("approver.key", &self.key)
    }
}

fn public_key(name: &'static str, key: &str) -> Result<[u8; 32], ConfigError> {
    text::from_hex(key)
        .and_then(|key| key.try_into().ok())
        .ok_or_else(|| field(name, "64 lower-case hex digits", key))
}

impl TryFrom<String> for Listen {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => Ok(Self::Unix(PathBuf::from(path))),
            None => text
                .parse()
                .map(Self::Tcp)
                .map_err(|_| format!("expected 127.0.0.1:port or unix:/path, got {text:?}")),
        }
    }
}

pub(crate) fn field(
    field: &'static str,
    expected: &'static str,
    actual: impl ToString,
) -> ConfigError {
    ConfigError::Field { field, expected, actual: actual.to_string() }
}

pub(crate) fn within(
    name: &'static str,
    value: u64,
    low: u64,
    high: u64,
) -> Result<(), ConfigError> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err(field(name, "a value within the documented limits", value))
}

pub(crate) fn distinct<'a>(
    name: &'static str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), ConfigError> {
    let mut seen = std::collections::BTreeSet::new();
    for one in names {
        if !seen.insert(one) {
            return Err(field(name, "distinct names", format!("{one} twice")));
        }
    }
    Ok(())
}

fn default_lease() -> u64 {
    10_000
}

fn default_checkpoint() -> u64 {
    1_000
}

fn default_confine_program() -> PathBuf {
    "/proc/self/exe".into()
}

fn default_connections() -> usize {
    256
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../gateway.example.toml");

    fn load(text: &str) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    #[test]
    fn the_example_reads_and_its_paths_are_relative_to_it() {
        let config = load(EXAMPLE).unwrap();
        assert!(config.state_dir.is_absolute());
        assert_eq!(config.upstreams.len(), 1);
    }

    #[test]
    fn each_mistake_is_named() {
        for (from, to, name) in [
            ("127.0.0.1:7443", "0.0.0.0:7443", "listen"),
            ("127.0.0.1:7443", "nonsense", "listen"),
            ("tenant = \"demo\"", "tenant = \"a/b\"", "tenant"),
            ("casemate.internal/demo/log1", "a b", "log_origin"),
            ("/usr/bin/env", "env", "upstream.command"),
            ("name = \"time\"", "name = \"ti me\"", "upstream.name"),
            ("risk = \"low\"", "risk = \"none\"", "risk"),
            ("tenant = ", "tenants = ", "tenant"),
            ("[[issuer]]", "[[issuers]]", "issuer"),
            ("lease_ms = 10000", "lease_ms = 1", "lease_ms"),
            ("lease_ms", "traces = \"http://10.1.1.1:4318/\"\nlease_ms", "traces"),
            ("[[issuer]]", "[loops]\nidentical = [5, 4, 3]\n[[issuer]]", "loops"),
            ("[[issuer]]", "[loops]\nidentical = [5]\n[[issuer]]", "identical"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = load(&EXAMPLE.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(name), "{to}: {error}");
        }
    }
}
