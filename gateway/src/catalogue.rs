//! The tools of all upstreams, each pinned to one definition.
//!
//! A definition is pinned by the operator's digest in the configuration, or
//! else by `pins.json` in the state directory, which remembers what was seen
//! first. A tool whose upstream offers another definition stops: the text that
//! a model reads is part of what was approved.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use casemate_attestation::Risk;
use casemate_ledger::{Label, MAX_TOOL_BYTES, json, text, tool};
use serde_json::{Map, Value};

use crate::config::{Config, ConfigError, Upstream};
use crate::decide::PinnedTool;
use crate::native::Native;
use crate::secrets::Secrets;
use crate::sync::locked;
use crate::upstream::{Means, Running, UpstreamError};

/// Every tool by its exposed name.
pub(crate) struct Catalogue {
    tools: Mutex<BTreeMap<String, Tool>>,
    /// Why an upstream, by its place, serves nothing yet.
    resting: Mutex<BTreeMap<usize, String>>,
}

/// One tool.
#[derive(Debug, Clone)]
pub(crate) struct Tool {
    /// The place of its upstream in the configuration.
    pub(crate) upstream: usize,
    /// The name that the upstream gives it.
    pub(crate) name: String,
    /// The pinned members of its definition, under the upstream's name.
    pub(crate) definition: Map<String, Value>,
    /// What decisions need.
    pub(crate) pinned: PinnedTool,
}

/// Why the catalogue cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum CatalogueError {
    /// An upstream does not serve.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// A digest in the configuration does not read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Two upstreams have a tool of one name.
    #[error("tool {name}: expected one upstream to have it, got {one} and {two}")]
    Name {
        /// The tool's name.
        name: String,
        /// An upstream.
        one: String,
        /// The other.
        two: String,
    },
    /// The file of pins cannot be read or written.
    #[error("{}: {reason}", path.display())]
    Pins {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

type Pins = BTreeMap<String, String>;

impl Catalogue {
    /// Starts each upstream once, all at the same time, lists its tools, and
    /// pins them. One that is down rests with the tools that were pinned before;
    /// a program of this host that was never seen to work is a mistake.
    pub(crate) async fn open(
        config: &Config,
        secrets: &Secrets,
        natives: &BTreeMap<usize, Native>,
        pins: &Path,
    ) -> Result<Self, CatalogueError> {
        let means = &Means { helper: &config.confine_program, secrets };
        let mut known = read_pins(pins)?;
        let before = known.clone();
        let (mut tools, mut resting) = (BTreeMap::new(), BTreeMap::new());
        let each = config.upstreams.iter().enumerate().map(|(at, upstream)| async move {
            match natives.get(&at) {
                Some(native) => Ok(native.definitions()),
                None => Running::start(upstream, means, at).await?.tools(upstream).await,
            }
        });
        let all = futures_util::future::join_all(each).await;
        for ((at, upstream), listed) in config.upstreams.iter().enumerate().zip(all) {
            let definitions = match listed {
                Ok(definitions) => definitions,
                Err(error) => {
                    let pinned = entries_at_rest(at, upstream, &before)?;
                    let may_rest = upstream.remote.is_some() || !pinned.is_empty();
                    if !may_rest || matches!(error, UpstreamError::Program { .. }) {
                        return Err(error.into());
                    }
                    tracing::warn!(%error, tools = pinned.len(), "an upstream is down and rests");
                    for (name, tool) in pinned {
                        if belongs_elsewhere(config, at, &tool.name) {
                            continue;
                        }
                        insert(config, &mut tools, name, tool)?;
                    }
                    resting.insert(at, error.to_string());
                    continue;
                }
            };
            for definition in definitions {
                let own = definition.get("name").and_then(Value::as_str).unwrap_or_default();
                if belongs_elsewhere(config, at, own) {
                    tracing::warn!(tool = own, by = upstream.name, "another's name is left out");
                    continue;
                }
                if let Some((name, tool)) = entry(at, upstream, definition, &mut known)? {
                    insert(config, &mut tools, name, tool)?;
                }
            }
        }
        if known != before {
            write_pins(pins, &known)?;
        }
        Ok(Self { tools: Mutex::new(tools), resting: Mutex::new(resting) })
    }

    /// The upstreams that rest, and why.
    pub(crate) fn resting(&self) -> BTreeMap<usize, String> {
        locked(&self.resting).clone()
    }

    /// An upstream that rested offers tools again: those that were pinned serve,
    /// if they are the same. What was never seen is pinned at a start only, as
    /// the policy that decisions name covers it. Returns what drifted.
    pub(crate) fn wake(
        &self,
        upstream: usize,
        offered: &[Map<String, Value>],
    ) -> Vec<(String, Option<[u8; 32]>)> {
        let mut woken = 0_usize;
        // One hold of the lock: no call meets a tool that is awake and unchecked.
        let mut tools = locked(&self.tools);
        for tool in tools.values_mut().filter(|tool| tool.upstream == upstream) {
            // The pinned definition alone: what else goes by its name is drift.
            let digest = tool.pinned.digest;
            let own = |found: &&Map<String, Value>| tool::definition_digest(found) == Ok(digest);
            if let Some(found) = offered.iter().find(own) {
                tool.definition = tool::pinned(found);
            }
            tool.pinned.resting = false;
            woken += 1;
        }
        let drifted = drifted(&mut tools, upstream, offered);
        drop(tools);
        let mut resting = locked(&self.resting);
        match woken {
            0 => {
                let reason = "it answers; its tools are pinned at the gateway's next start";
                resting.insert(upstream, reason.to_owned());
            }
            _ => drop(resting.remove(&upstream)),
        }
        drifted
    }

    /// The tool called `name`.
    pub(crate) fn tool(&self, name: &str) -> Option<Tool> {
        locked(&self.tools).get(name).cloned()
    }

    /// Every tool, by name.
    pub(crate) fn all(&self) -> BTreeMap<String, Tool> {
        locked(&self.tools).clone()
    }

    /// Compares what an upstream offers now with what was pinned, and stops
    /// the tools that differ. Returns their names and the digests found.
    pub(crate) fn compare(
        &self,
        upstream: usize,
        offered: &[Map<String, Value>],
    ) -> Vec<(String, Option<[u8; 32]>)> {
        drifted(&mut locked(&self.tools), upstream, offered)
    }
}

/// Stops the tools of `upstream` that are not offered as they were pinned.
fn drifted(
    tools: &mut BTreeMap<String, Tool>,
    upstream: usize,
    offered: &[Map<String, Value>],
) -> Vec<(String, Option<[u8; 32]>)> {
    // A name with two definitions has none.
    let mut found: BTreeMap<&str, Option<[u8; 32]>> = BTreeMap::new();
    for definition in offered {
        let Some(name) = definition.get("name").and_then(Value::as_str) else { continue };
        let digest = tool::definition_digest(definition).ok();
        found
            .entry(name)
            .and_modify(|before| *before = before.filter(|before| Some(*before) == digest))
            .or_insert(digest);
    }
    let mut drifted = Vec::new();
    for (name, tool) in tools.iter_mut().filter(|(_, tool)| tool.upstream == upstream) {
        let now = found.get(tool.name.as_str()).copied().flatten();
        if now != Some(tool.pinned.digest) && !tool.pinned.drifted {
            tool.pinned.drifted = true;
            drifted.push((name.clone(), now));
        }
    }
    drifted
}

/// Whether the configuration gives the name of the tool `own` of the upstream in
/// place `at` to another one: by its prefix, or because it has an entry for it.
fn belongs_elsewhere(config: &Config, at: usize, own: &str) -> bool {
    let lists = |upstream: &Upstream| upstream.tools.iter().any(|tool| tool.name == own);
    let Some(upstream) = config.upstreams.get(at).filter(|upstream| upstream.bare_names) else {
        return false;
    };
    let others = config.upstreams.iter().enumerate().filter(|(place, _)| *place != at);
    let mut others = others.map(|(_, other)| other);
    others.any(|other| match other.bare_names {
        true => lists(other) && !lists(upstream),
        false => own.starts_with(&exposed(other, "")),
    })
}

/// One name is one tool: an upstream does not stand in for another's. Two that
/// the operator approved are a mistake of the configuration; what servers offer
/// beside that stops no gateway.
fn insert(
    config: &Config,
    tools: &mut BTreeMap<String, Tool>,
    name: String,
    tool: Tool,
) -> Result<(), CatalogueError> {
    match tools.get_mut(&name) {
        Some(other) if other.upstream == tool.upstream => {
            // Nobody knows which one a call would get: neither is called.
            other.pinned.drifted |= other.pinned.digest != tool.pinned.digest;
            tracing::warn!(tool = name, "offered twice");
        }
        Some(other) => {
            let is_listed = |at: usize| {
                let upstream = config.upstreams.get(at);
                upstream.is_some_and(|one| one.tools.iter().any(|t| exposed(one, &t.name) == name))
            };
            if is_listed(other.upstream) && is_listed(tool.upstream) {
                let (one, two) = (other.pinned.upstream.clone(), tool.pinned.upstream);
                return Err(CatalogueError::Name { name, one, two });
            }
            other.pinned.drifted = true;
            tracing::warn!(tool = name, by = tool.pinned.upstream, "offered by two upstreams");
        }
        None => drop(tools.insert(name, tool)),
    }
    Ok(())
}

fn entry(
    at: usize,
    upstream: &Upstream,
    definition: Map<String, Value>,
    pins: &mut Pins,
) -> Result<Option<(String, Tool)>, CatalogueError> {
    let own = definition.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = exposed(upstream, &own);
    let fits = name.len() <= MAX_TOOL_BYTES
        && !own.is_empty()
        && own.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if !fits {
        tracing::warn!(upstream = upstream.name, "a tool's name does not fit and is left out");
        return Ok(None);
    }
    let found = tool::definition_digest(&definition).map_err(|error| UpstreamError::Result {
        name: upstream.name.clone(),
        reason: error.to_string(),
    })?;
    let operator = upstream.tools.iter().find(|tool| tool.name == own);
    let approved = match operator.map(|tool| tool.definition_digest()).transpose()?.flatten() {
        Some(digest) => text::hex(&digest),
        None => pins.entry(name.clone()).or_insert_with(|| text::hex(&found)).clone(),
    };
    let drifted = approved != text::hex(&found);
    if drifted {
        tracing::warn!(tool = name, found = text::hex(&found), "definition is not the pinned one");
    }
    let pinned = PinnedTool { drifted, ..pinned_tool(upstream, &own, found) };
    let definition = tool::pinned(&definition);
    Ok(Some((name, Tool { upstream: at, name: own, definition, pinned })))
}

/// The name by which sandboxes know the tool `own`.
fn exposed(upstream: &Upstream, own: &str) -> String {
    match upstream.bare_names {
        true => own.to_owned(),
        false => format!("{}.{own}", upstream.name),
    }
}

/// The tools of an upstream that is down, as they were pinned.
fn entries_at_rest(
    at: usize,
    upstream: &Upstream,
    pins: &Pins,
) -> Result<BTreeMap<String, Tool>, CatalogueError> {
    let mut digests = BTreeMap::new();
    let prefix = exposed(upstream, "");
    for (name, digest) in pins {
        let digest = text::from_hex(digest).and_then(|digest| digest.try_into().ok());
        // A bare name does not say whose it is: the configuration does.
        let own = name.strip_prefix(&prefix).filter(|own| {
            !upstream.bare_names || upstream.tools.iter().any(|tool| tool.name == *own)
        });
        if let (Some(own), Some(digest)) = (own, digest) {
            digests.insert(own.to_owned(), digest);
        }
    }
    for tool in &upstream.tools {
        digests.extend(tool.definition_digest()?.map(|digest| (tool.name.clone(), digest)));
    }
    let at_rest = digests.into_iter().map(|(own, digest)| {
        let pinned = PinnedTool { resting: true, ..pinned_tool(upstream, &own, digest) };
        let name = exposed(upstream, &own);
        (name, Tool { upstream: at, name: own, definition: Map::new(), pinned })
    });
    Ok(at_rest.collect())
}

/// What decisions need of the tool `own` with a definition of this digest.
fn pinned_tool(upstream: &Upstream, own: &str, digest: [u8; 32]) -> PinnedTool {
    let operator = upstream.tools.iter().find(|tool| tool.name == own);
    PinnedTool {
        digest,
        upstream: upstream.name.clone(),
        risk: operator.map_or(Risk::High, |tool| tool.risk),
        idempotent: operator.is_some_and(|tool| tool.idempotent),
        read_only: operator.is_some_and(|tool| tool.read_only),
        cost_micro: operator.map_or(0, |tool| tool.cost_micro),
        label: operator.map_or_else(Label::default, |tool| tool.label),
        volatile: operator.map(|tool| tool.volatile_arguments.clone()).unwrap_or_default(),
        drifted: false,
        resting: false,
        max_result_bytes: upstream.max_result_bytes,
        timeout_ms: upstream.timeout_ms,
    }
}

fn read_pins(path: &Path) -> Result<Pins, CatalogueError> {
    let wrong = |reason: String| CatalogueError::Pins { path: path.to_owned(), reason };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Pins::new()),
        Err(error) => return Err(wrong(error.to_string())),
    };
    let value = json::parse(&bytes, 16 << 20).map_err(|error| wrong(error.to_string()))?;
    serde_json::from_value(value).map_err(|error| wrong(error.to_string()))
}

fn write_pins(path: &Path, pins: &Pins) -> Result<(), CatalogueError> {
    let wrong = |reason: String| CatalogueError::Pins { path: path.to_owned(), reason };
    let text = serde_json::to_string_pretty(pins).map_err(|error| wrong(error.to_string()))?;
    let part = path.with_extension("part");
    std::fs::write(&part, text + "\n")
        .and_then(|()| std::fs::rename(&part, path))
        .map_err(|error| wrong(error.to_string()))
}
