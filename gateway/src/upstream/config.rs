//! What `gateway.toml` says of one upstream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use casemate_attestation::Risk;
use casemate_ledger::{Label, text};
use serde::Deserialize;

use crate::config::{ConfigError, distinct, field, within};

/// Where tools come from.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// The first part of its tools' names: `time` in `time.get_current_time`.
    pub name: String,
    /// An MCP server over stdio: the program, by absolute path, and its arguments.
    pub command: Vec<String>,
    /// Its environment; nothing else is inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// Whether its process is confined. Default `full`.
    #[serde(default)]
    pub confinement: Confinement,
    /// What its process may see and use.
    #[serde(default)]
    pub confine: Confine,
    /// Milliseconds that one call may take. Default 30000, at most 600000.
    #[serde(default = "default_timeout")]
    pub timeout_ms: u64,
    /// Bytes of one result. Default 262144, at most 2097152.
    #[serde(default = "default_result")]
    pub max_result_bytes: u64,
    /// What is known of its tools. A tool that is not listed has high risk.
    #[serde(default, rename = "tool")]
    pub tools: Vec<Tool>,
}

/// Whether a tool server's process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Confinement {
    /// Own user, name spaces, view, limits and system call filter, or no start.
    #[default]
    Full,
    /// The gateway's user with the gateway's view; every outcome says so.
    None,
}

/// What a confined process may see and use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Confine {
    /// Paths that it may read beside the system's programs and libraries.
    pub read: Vec<PathBuf>,
    /// Paths that it may write to. Default none; its own `/tmp` is always there.
    pub write: Vec<PathBuf>,
    /// Whether it keeps the host's network. Default false.
    pub network: bool,
    /// The user that it becomes when the gateway is root. Default one of its own.
    pub uid: Option<u32>,
    /// The most processes and threads. Default 256.
    pub processes: u64,
    /// The most data memory of one process. Default 2048.
    pub memory_mib: u64,
    /// The size of its `/tmp`. Default 64.
    pub tmp_mib: u64,
}

/// What the operator knows of a tool.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tool {
    /// The name that the upstream gives it.
    pub name: String,
    /// The harm that a call could do.
    pub risk: Risk,
    /// The digest (64 hex digits) of the definition that was approved. Without
    /// it the definition that is seen first is pinned in `state_dir/pins.json`.
    #[serde(default)]
    pub definition: Option<String>,
    /// Whether calling it twice is as calling it once. Default no.
    #[serde(default)]
    pub idempotent: bool,
    /// Whether it only reads. Default no.
    #[serde(default)]
    pub read_only: bool,
    /// What one call costs, in millionths of the operator's unit. Default 0.
    #[serde(default)]
    pub cost_micro: u64,
    /// How far its results may travel. Default public.
    #[serde(default)]
    pub label: Label,
    /// Top-level arguments that differ in calls that are the same: ids, times.
    #[serde(default)]
    pub volatile_arguments: Vec<String>,
}

impl Default for Confine {
    fn default() -> Self {
        Self {
            read: Vec::new(),
            write: Vec::new(),
            network: false,
            uid: None,
            processes: 256,
            memory_mib: 2048,
            tmp_mib: 64,
        }
    }
}

/// What every confined process sees.
const SYSTEM: [&str; 5] = ["/usr", "/bin", "/sbin", "/lib", "/lib64"];

impl Upstream {
    /// Makes relative paths start at `base`.
    pub(crate) fn rebase(&mut self, base: &Path) {
        for path in self.confine.read.iter_mut().chain(&mut self.confine.write) {
            *path = base.join(&*path);
        }
    }

    /// Checks what the types do not say. No confined process may see `private`.
    pub(crate) fn check(&self, private: &[&Path]) -> Result<(), ConfigError> {
        let is_name = |name: &str| {
            (1..=64).contains(&name.len())
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'))
        };
        if !is_name(&self.name) {
            return Err(field("upstream.name", "1 to 64 of A-Z a-z 0-9 _ -", &self.name));
        }
        let program = self.command.first().map_or("", String::as_str);
        if !program.starts_with('/') {
            return Err(field("upstream.command", "a program by absolute path", program));
        }
        within("upstream.timeout_ms", self.timeout_ms, 1, 600_000)?;
        within("upstream.max_result_bytes", self.max_result_bytes, 1, 2 << 20)?;
        self.confine.check(private)?;
        for tool in &self.tools {
            tool.definition_digest()?;
        }
        distinct("upstream.tool.name", self.tools.iter().map(|tool| tool.name.as_str()))
    }

    /// The upstream's kind, as outcomes and the policy digest name it.
    pub(crate) fn kind(&self) -> &'static str {
        match self.confinement {
            Confinement::Full => "mcp-stdio",
            Confinement::None => "mcp-stdio-unconfined",
        }
    }
}

impl Confine {
    fn check(&self, private: &[&Path]) -> Result<(), ConfigError> {
        within("upstream.confine.processes", self.processes, 1, 65_536)?;
        within("upstream.confine.memory_mib", self.memory_mib, 16, 1 << 20)?;
        within("upstream.confine.tmp_mib", self.tmp_mib, 1, 1 << 16)?;
        if let Some(uid) = self.uid {
            within("upstream.confine.uid", u64::from(uid), 1, u64::from(u32::MAX) - 2)?;
        }
        let system = SYSTEM.map(PathBuf::from);
        for shown in self.read.iter().chain(&self.write).chain(&system) {
            let real = real(shown);
            if real.parent().is_none()
                || ["/proc", "/dev", "/sys"].iter().any(|p| real.starts_with(p))
            {
                return Err(field(
                    "upstream.confine",
                    "no /, /proc, /dev or /sys",
                    shown.display(),
                ));
            }
            let seen = private.iter().map(|path| self::real(path)).find(|path| {
                path.starts_with(&real) || (real.starts_with(path) && !system.contains(shown))
            });
            if let Some(seen) = seen {
                let actual = format!("{} with {}", shown.display(), seen.display());
                let expected = "paths without the gateway's own files";
                return Err(field("upstream.confine", expected, actual));
            }
        }
        Ok(())
    }
}

impl Tool {
    /// The approved definition's digest.
    pub(crate) fn definition_digest(&self) -> Result<Option<[u8; 32]>, ConfigError> {
        let Some(hex) = &self.definition else { return Ok(None) };
        let digest = text::from_hex(hex).and_then(|bytes| bytes.try_into().ok());
        digest
            .map(Some)
            .ok_or_else(|| field("upstream.tool.definition", "64 lower-case hex digits", hex))
    }
}

/// `path` without links, as far as it exists.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

fn default_timeout() -> u64 {
    30_000
}

fn default_result() -> u64 {
    256 * 1024
}
