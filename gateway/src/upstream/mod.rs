//! MCP servers over stdio: the one place that knows the MCP library.
//!
//! A server is a child process of the gateway with nothing of its environment.
//! What it sends is bounded while it is read. It is never asked on behalf of
//! two sandboxes by one process: a server that remembers would leak.

mod bounded;
mod sys;

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use casemate_ledger::json;
use rmcp::model::{CallToolRequestParams, CallToolResponse, ProtocolVersion};
use rmcp::service::{
    ClientLifecycleMode, NotificationContext, RunningService, serve_client_with_lifecycle,
};
use rmcp::{ClientHandler, Peer, RoleClient};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::{Map, Value};
use tokio::process::{Child, Command};

use crate::config::Upstream;

/// A running tool server.
pub(crate) struct Running {
    peer: Peer<RoleClient>,
    changed: Arc<AtomicBool>,
    executable: [u8; 32],
    _service: RunningService<RoleClient, Handler>,
    _group: Group,
}

/// A server's process and all that it started in its process group, which end
/// together.
struct Group(Child);

/// Why a tool server does not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The program cannot be read or run.
    #[error("upstream {name}, {program}: {reason}")]
    Program {
        /// The server's name.
        name: String,
        /// Its program.
        program: String,
        /// What the system said.
        reason: String,
    },
    /// The server does not speak MCP, or stopped to.
    #[error("upstream {name}: expected an MCP server, got: {reason}")]
    Protocol {
        /// The server's name.
        name: String,
        /// What the library said.
        reason: String,
    },
    /// The server took too long to start.
    #[error("upstream {name}: expected an answer within {limit_ms} ms")]
    Slow {
        /// The server's name.
        name: String,
        /// The limit.
        limit_ms: u64,
    },
    /// The server wants input from a person; this gateway grants none.
    #[error("upstream {name}: expected a result, got a question")]
    WantsInput {
        /// The server's name.
        name: String,
    },
    /// The result is too long, too deep, or holds what JSON parsers disagree about.
    #[error("upstream {name}, result: {reason}")]
    Result {
        /// The server's name.
        name: String,
        /// Which limit.
        reason: String,
    },
}

/// The time in which a server must have started and listed its tools.
pub(crate) const START_MS: u64 = 30_000;
/// The most tools of one server.
const MAX_TOOLS: usize = 256;
/// The longest definition of one tool, and the slack around a result.
const MAX_DEFINITION_BYTES: usize = 64 * 1024;
/// The largest program that is hashed.
const MAX_PROGRAM_BYTES: u64 = 512 << 20;

impl Running {
    /// Starts the server and agrees on a protocol version with it.
    pub(crate) async fn start(config: &Upstream) -> Result<Self, UpstreamError> {
        let starting = Self::start_slowly(config);
        let limit = Duration::from_millis(START_MS);
        let slow = UpstreamError::Slow { name: config.name.clone(), limit_ms: START_MS };
        tokio::time::timeout(limit, starting).await.unwrap_or(Err(slow))
    }

    async fn start_slowly(config: &Upstream) -> Result<Self, UpstreamError> {
        let executable = program_digest(config).await?;
        let mut group = Group(spawn(config)?);
        let (Some(input), Some(output)) = (group.0.stdin.take(), group.0.stdout.take()) else {
            return Err(program_error(config, "no pipes"));
        };
        let line_limit = usize::try_from(config.max_result_bytes).unwrap_or(usize::MAX);
        let limit = line_limit.saturating_mul(2).max(MAX_TOOLS * MAX_DEFINITION_BYTES / 4);
        let output = bounded::BoundedLines::new(output, limit);
        let changed = Arc::new(AtomicBool::new(false));
        let lifecycle = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::V_2026_07_28],
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        };
        let handler = Handler(Arc::clone(&changed));
        let service = serve_client_with_lifecycle(handler, (output, input), lifecycle)
            .await
            .map_err(|error| protocol(config, error))?;
        Ok(Self {
            peer: service.peer().clone(),
            changed,
            executable,
            _service: service,
            _group: group,
        })
    }

    /// SHA-256 of the program that runs.
    pub(crate) fn executable(&self) -> [u8; 32] {
        self.executable
    }

    /// Whether the connection is over.
    pub(crate) fn is_over(&self) -> bool {
        self.peer.is_transport_closed()
    }

    /// Whether the server said, since the last question, that its tools changed.
    pub(crate) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// The definitions of the server's tools, each within limits.
    pub(crate) async fn tools(
        &self,
        config: &Upstream,
    ) -> Result<Vec<Map<String, Value>>, UpstreamError> {
        let limit = Duration::from_millis(START_MS);
        let slow = |_| UpstreamError::Slow { name: config.name.clone(), limit_ms: START_MS };
        let tools = tokio::time::timeout(limit, self.peer.list_all_tools()).await.map_err(slow)?;
        let tools = tools.map_err(|error| protocol(config, error))?;
        if tools.len() > MAX_TOOLS {
            return Err(result(config, format!("expected at most {MAX_TOOLS} tools")));
        }
        tools.iter().map(|tool| strict(config, tool, MAX_DEFINITION_BYTES)).collect()
    }

    /// Calls a tool and returns its result without `_meta`, at most `limit` bytes.
    pub(crate) async fn call(
        &self,
        config: &Upstream,
        tool: &str,
        arguments: Map<String, Value>,
        limit: usize,
    ) -> Result<Map<String, Value>, UpstreamError> {
        let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments);
        match self.peer.call_tool_once(params).await {
            Ok(CallToolResponse::Complete(mut answer)) => {
                answer.meta = None;
                let mut answer = strict(config, &answer, limit)?;
                answer.insert("resultType".to_owned(), "complete".into());
                Ok(answer)
            }
            Ok(_) => Err(UpstreamError::WantsInput { name: config.name.clone() }),
            Err(error) => Err(protocol(config, error)),
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The leader is not reaped before this, so that the number is still its own.
        let leader = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        if let Some(leader) = leader {
            // An error says that none is left.
            let _ = kill_process_group(leader, Signal::KILL);
        }
    }
}

/// Answers what a server asks its client: nothing is granted. Sampling is not
/// a method here, elicitation is declined, there are no roots.
struct Handler(Arc<AtomicBool>);

impl ClientHandler for Handler {
    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.0.store(true, Ordering::Release);
    }
}

/// `value` as an object that survives the strict reader at the other end.
fn strict(
    config: &Upstream,
    value: &impl serde::Serialize,
    limit: usize,
) -> Result<Map<String, Value>, UpstreamError> {
    let value = serde_json::to_value(value).map_err(|error| result(config, error.to_string()))?;
    let bytes = json::canonical(&value).map_err(|error| result(config, error.to_string()))?;
    if bytes.len() > limit {
        let reason = format!("expected at most {limit} bytes, got {}", bytes.len());
        return Err(result(config, reason));
    }
    // Four levels more than it will have inside a reply.
    let nested = [b"[[[[", bytes.as_slice(), b"]]]]"].concat();
    json::parse(&nested, usize::MAX).map_err(|error| result(config, error.to_string()))?;
    match json::parse(&bytes, usize::MAX) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(result(config, "expected an object".to_owned())),
    }
}

fn spawn(config: &Upstream) -> Result<Child, UpstreamError> {
    let mut words = config.command.iter();
    let mut command = Command::new(words.next().map_or("", String::as_str));
    command
        .args(words)
        .env_clear()
        .envs(&config.env)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true);
    sys::confine(&mut command);
    command.spawn().map_err(|error| program_error(config, error))
}

async fn program_digest(config: &Upstream) -> Result<[u8; 32], UpstreamError> {
    let program = config.command.first().map_or("", String::as_str);
    let length = tokio::fs::metadata(program).await.map_err(|e| program_error(config, e))?.len();
    if length > MAX_PROGRAM_BYTES {
        return Err(program_error(config, "expected a program of at most 512 MiB"));
    }
    let bytes = tokio::fs::read(program).await.map_err(|e| program_error(config, e))?;
    Ok(casemate_ledger::digest(&bytes))
}

fn program_error(config: &Upstream, reason: impl ToString) -> UpstreamError {
    UpstreamError::Program {
        name: config.name.clone(),
        program: config.command.join(" "),
        reason: reason.to_string(),
    }
}

fn protocol(config: &Upstream, reason: impl ToString) -> UpstreamError {
    UpstreamError::Protocol { name: config.name.clone(), reason: reason.to_string() }
}

fn result(config: &Upstream, reason: String) -> UpstreamError {
    UpstreamError::Result { name: config.name.clone(), reason }
}
