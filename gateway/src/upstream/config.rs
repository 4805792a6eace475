//! What `gateway.toml` says of one upstream.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use casemate_attestation::Risk;
use casemate_ledger::{Label, text};
use serde::{Deserialize, Serialize};

use crate::config::{ConfigError, distinct, field, within};
use crate::native::files::FilesConfig;
use crate::native::http::HttpConfig;
use crate::native::sql::SqlConfig;
use crate::native::url::Url;
use crate::net::Network;

/// Where tools come from.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// The first part of its tools' names: `time` in `time.get_current_time`.
    pub name: String,
    /// Whether its tools keep their own names, without that first part. Two
    /// entries of one name are an error. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub bare_names: bool,
    /// An MCP server over stdio: the program, by absolute path, and its arguments.
    #[serde(default)]
    pub command: Vec<String>,
    /// Its environment; nothing else is inherited.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// More of its environment: each value stands in a file.
    #[serde(default)]
    pub secret_env: BTreeMap<String, PathBuf>,
    /// Or an MCP server over Streamable HTTP.
    #[serde(default)]
    pub remote: Option<RemoteConfig>,
    /// Or the tool `request` of the gateway itself.
    #[serde(default)]
    pub http: Option<HttpConfig>,
    /// Or its tools `read`, `list` and `write`.
    #[serde(default)]
    pub files: Option<FilesConfig>,
    /// Or its tool `query`.
    #[serde(default)]
    pub sql: Option<SqlConfig>,
    /// Whether its process is confined. Default `full`.
    #[serde(default)]
    pub confinement: Confinement,
    /// What its process may see and use.
    #[serde(default)]
    pub confine: Confine,
    /// Milliseconds that one call may take. Default 30000, at most 600000.
    #[serde(default = "default_timeout")]
    pub timeout_ms: u64,
    /// Milliseconds after which a call has the server's definitions looked at
    /// again. Default 30000, at most 600000.
    #[serde(default = "default_recheck")]
    pub recheck_ms: u64,
    /// Bytes of one result. Default 262144, at most 2097152.
    #[serde(default = "default_result")]
    pub max_result_bytes: u64,
    /// What is known of its tools. A tool that is not listed has high risk.
    #[serde(default, rename = "tool")]
    pub tools: Vec<Tool>,
}

/// An MCP server over Streamable HTTP.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteConfig {
    /// `https://host[:port]/path`.
    pub url: String,
    /// Who may vouch for the server (PEM). Default the system's authorities.
    #[serde(default)]
    pub roots: Option<PathBuf>,
    /// Addresses that may be reached beside public ones.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// Headers that are added after the decision: name and the file with the value.
    #[serde(default)]
    pub headers: BTreeMap<String, PathBuf>,
}

/// Whether a tool server's process is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Confinement {
    /// Own user, name spaces, view, limits and system call filter, or no start.
    #[default]
    Full,
    /// The gateway's user with the gateway's view; every outcome says so.
    None,
}

/// What a confined process may see and use.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
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
#[derive(Debug, Clone, Deserialize, Serialize)]
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
        let confined = self.confine.read.iter_mut().chain(&mut self.confine.write);
        let mut paths: Vec<&mut PathBuf> = confined.chain(self.secret_env.values_mut()).collect();
        if let Some(remote) = &mut self.remote {
            paths.extend(remote.headers.values_mut().chain(&mut remote.roots));
        }
        if let Some(http) = &mut self.http {
            let injected = http.rules.iter_mut().flat_map(|rule| rule.inject.values_mut());
            paths.extend(injected.chain(&mut http.roots));
        }
        if let Some(files) = &mut self.files {
            paths.push(&mut files.root);
        }
        if let Some(sql) = &mut self.sql {
            paths.extend(sql.sqlite.iter_mut().chain(&mut sql.password_file));
        }
        for path in paths {
            *path = base.join(&*path);
        }
    }

    /// The files with credentials.
    pub(crate) fn secret_files(&self) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = self.secret_env.values().cloned().collect();
        if let Some(remote) = &self.remote {
            files.extend(remote.headers.values().cloned());
        }
        if let Some(http) = &self.http {
            files.extend(http.rules.iter().flat_map(|rule| rule.inject.values()).cloned());
        }
        files.extend(self.sql.as_ref().and_then(|sql| sql.password_file.clone()));
        files
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
        self.check_kind(private)?;
        within("upstream.timeout_ms", self.timeout_ms, 1, 600_000)?;
        within("upstream.recheck_ms", self.recheck_ms, 1, 600_000)?;
        within("upstream.max_result_bytes", self.max_result_bytes, 1, 2 << 20)?;
        self.confine.check(private)?;
        for tool in &self.tools {
            tool.definition_digest()?;
        }
        distinct("upstream.tool.name", self.tools.iter().map(|tool| tool.name.as_str()))
    }

    fn check_kind(&self, private: &[&Path]) -> Result<(), ConfigError> {
        let kinds = [
            !self.command.is_empty(),
            self.remote.is_some(),
            self.http.is_some(),
            self.files.is_some(),
            self.sql.is_some(),
        ];
        if kinds.into_iter().filter(|kind| *kind).count() != 1 {
            let expected = "one of command, remote, http, files and sql";
            return Err(field("upstream", expected, &self.name));
        }
        let program = self.command.first().map_or("/", String::as_str);
        if !program.starts_with('/') {
            return Err(field("upstream.command", "a program by absolute path", program));
        }
        if let Some(remote) = &self.remote
            && Url::parse(&remote.url).is_err()
        {
            return Err(field("upstream.remote.url", "https://host/path", &remote.url));
        }
        if let Some(mistake) = self.http.as_ref().and_then(HttpConfig::mistake) {
            return Err(field(
                "upstream.http.rule",
                "a rule of docs/formats/gateway-config.md",
                mistake,
            ));
        }
        let opened = self.files.iter().map(|files| &files.root);
        let mut opened = opened.chain(self.sql.iter().filter_map(|sql| sql.sqlite.as_ref()));
        opened.try_for_each(|path| apart(path, private))
    }

    /// The upstream's kind, as outcomes and the policy digest name it.
    pub(crate) fn kind(&self) -> &'static str {
        if self.remote.is_some() {
            return "mcp-http";
        }
        if self.command.is_empty() {
            return "native";
        }
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
            if !system.contains(shown) {
                apart(shown, private)?;
            } else if let Some(seen) =
                private.iter().find(|path| self::real(path).starts_with(&real))
            {
                let expected = "the gateway's own files outside of it";
                return Err(field("upstream.confine", expected, seen.display()));
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

/// Refuses a path that shows something of the gateway's own.
fn apart(shown: &Path, private: &[&Path]) -> Result<(), ConfigError> {
    let given = real(shown);
    let seen = private.iter().map(|path| real(path));
    let mut seen = seen.filter(|path| path.starts_with(&given) || given.starts_with(path));
    let Some(seen) = seen.next() else { return Ok(()) };
    let actual = format!("{} with {}", shown.display(), seen.display());
    Err(field("upstream", "paths without the gateway's own files", actual))
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

fn default_recheck() -> u64 {
    30_000
}

fn default_timeout() -> u64 {
    30_000
}

fn default_result() -> u64 {
    256 * 1024
}
