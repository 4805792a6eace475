//! MCP servers over stdio: the one place that knows the MCP library.
//!
//! A server is a child process of the gateway with nothing of its environment.
//! What it sends is bounded while it is read. It is never asked on behalf of
//! two sandboxes by one process: a server that remembers would leak.

mod bounded;
mod call;
pub(crate) mod config;
mod remote;
mod stdio;
mod sys;

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use casemate_ledger::json;
use rmcp::handler::client::progress::ProgressDispatcher;
use rmcp::model::{
    CallToolRequestParams, CallToolResult, PaginatedRequestParams, ProgressNotificationParam,
    ProtocolVersion, ServerResult,
};
use rmcp::service::{
    ClientLifecycleMode, NotificationContext, RunningService, serve_client_with_lifecycle,
};
use rmcp::{ClientHandler, Peer, RoleClient, ServiceError};
use serde_json::{Map, Value};

use rmcp::transport::StreamableHttpClientTransport;
use rmcp::transport::common::client_side_sse::NeverRetry;
use rmcp::transport::streamable_http_client::StreamableHttpClientTransportConfig;

use self::config::{RemoteConfig, Upstream};
use self::stdio::Group;
use crate::inflight::Reporter;
use crate::secrets::Secrets;
use crate::sync::locked;

/// A running tool server.
pub(crate) struct Running {
    peer: Peer<RoleClient>,
    told: Told,
    executable: Option<[u8; 32]>,
    /// When its tools were listed last.
    listed: Mutex<Option<Instant>>,
    _service: RunningService<RoleClient, Told>,
    _group: Option<Group>,
}

/// What a server needs of its gateway to start.
pub(crate) struct Means<'a> {
    /// The program that confines it.
    pub(crate) helper: &'a Path,
    /// The credentials of the configuration.
    pub(crate) secrets: &'a Secrets,
}

/// Why a tool server does not serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The program cannot be read or run, or the address cannot be used.
    #[error("upstream {name}, {program}: {reason}")]
    Program {
        /// The server's name.
        name: String,
        /// Its program or URL.
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
    /// The server answered with a JSON-RPC error.
    #[error("upstream {name}: it refused with error {code}")]
    Refused {
        /// The server's name.
        name: String,
        /// The error's code.
        code: i32,
        /// What it said: its own words, for the sandbox that asked.
        message: String,
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
/// The most pages of its list.
const MAX_PAGES: usize = 64;
/// The longest definition of one tool, and the slack around a result.
const MAX_DEFINITION_BYTES: usize = 64 * 1024;

impl Running {
    /// Starts the server in place `at` of the configuration and agrees on a
    /// protocol version with it.
    pub(crate) async fn start(
        config: &Upstream,
        means: &Means<'_>,
        at: usize,
    ) -> Result<Self, UpstreamError> {
        let starting = async {
            match &config.remote {
                Some(remote) => Self::start_remote(config, remote, means).await,
                None => Self::start_child(config, means, at).await,
            }
        };
        let limit = Duration::from_millis(START_MS);
        let slow = UpstreamError::Slow { name: config.name.clone(), limit_ms: START_MS };
        tokio::time::timeout(limit, starting).await.unwrap_or(Err(slow))
    }

    async fn start_remote(
        config: &Upstream,
        server: &RemoteConfig,
        means: &Means<'_>,
    ) -> Result<Self, UpstreamError> {
        let limit = answer_limit(config);
        let remote = remote::Remote::new(server, means.secrets, limit);
        let remote = remote.map_err(|reason| UpstreamError::Program {
            name: config.name.clone(),
            program: server.url.clone(),
            reason,
        })?;
        let mut wire = StreamableHttpClientTransportConfig::with_uri(server.url.as_str());
        wire.max_sse_event_size = limit;
        // A call that may have run is not sent again behind the gateway's back.
        wire.reinit_on_expired_session = false;
        wire.retry_config = Arc::new(NeverRetry::default());
        let transport = StreamableHttpClientTransport::with_client(remote, wire);
        let told = Told::default();
        let service = serve_client_with_lifecycle(told.clone(), transport, lifecycle())
            .await
            .map_err(|error| protocol(config, error))?;
        Ok(Self {
            peer: service.peer().clone(),
            told,
            executable: None,
            listed: Mutex::default(),
            _service: service,
            _group: None,
        })
    }

    async fn start_child(
        config: &Upstream,
        means: &Means<'_>,
        at: usize,
    ) -> Result<Self, UpstreamError> {
        let executable = stdio::program_digest(config).await?;
        let (group, output, input) = Group::start(config, means, at)?;
        let output = bounded::BoundedLines::new(output, answer_limit(config));
        let told = Told::default();
        let service = serve_client_with_lifecycle(told.clone(), (output, input), lifecycle())
            .await
            .map_err(|error| protocol(config, format!("{error}; it said: {}", group.said())))?;
        Ok(Self {
            peer: service.peer().clone(),
            told,
            executable: Some(executable),
            listed: Mutex::default(),
            _service: service,
            _group: Some(group),
        })
    }

    /// SHA-256 of the program that runs, if it is a child process.
    pub(crate) fn executable(&self) -> Option<[u8; 32]> {
        self.executable
    }

    /// Whether the connection is over.
    pub(crate) fn is_over(&self) -> bool {
        self.peer.is_transport_closed()
    }

    /// Whether its tools must be looked at before the next call: it said that
    /// they changed, or the last look is too long ago. Not every server can say
    /// so: over HTTP none is heard outside of an answer.
    pub(crate) fn must_look(&self, config: &Upstream) -> bool {
        let longest = Duration::from_millis(config.recheck_ms);
        let old = locked(&self.listed).is_none_or(|listed| listed.elapsed() >= longest);
        self.told.changed.swap(false, Ordering::AcqRel) || old
    }

    /// The definitions of the server's tools, each within limits.
    pub(crate) async fn tools(
        &self,
        config: &Upstream,
    ) -> Result<Vec<Map<String, Value>>, UpstreamError> {
        let limit = Duration::from_millis(START_MS);
        let slow = |_| UpstreamError::Slow { name: config.name.clone(), limit_ms: START_MS };
        let begun = Instant::now();
        let tools = tokio::time::timeout(limit, self.all_tools(config)).await.map_err(slow)??;
        *locked(&self.listed) = Some(begun);
        Ok(tools)
    }

    /// Page by page, so that a list without an end ends here.
    async fn all_tools(&self, config: &Upstream) -> Result<Vec<Map<String, Value>>, UpstreamError> {
        let mut tools = Vec::new();
        let mut cursor = None;
        for _ in 0..MAX_PAGES {
            let asked = PaginatedRequestParams::default().with_cursor(cursor);
            let page = self.peer.list_tools(Some(asked)).await;
            let page = page.map_err(|error| protocol(config, error))?;
            if tools.len() + page.tools.len() > MAX_TOOLS {
                return Err(result(&config.name, format!("expected at most {MAX_TOOLS} tools")));
            }
            for tool in &page.tools {
                tools.push(strict(&config.name, tool, MAX_DEFINITION_BYTES)?);
            }
            cursor = page.next_cursor;
            if cursor.is_none() {
                return Ok(tools);
            }
        }
        Err(result(&config.name, format!("expected at most {MAX_PAGES} pages of tools")))
    }

    /// Calls a tool and returns its result without `_meta`. How far it is goes
    /// to `progress`, without credentials. Dropping the future cancels the call;
    /// a result that comes all the same goes to `late`.
    pub(crate) async fn call(
        &self,
        config: &Upstream,
        asked: Asked<'_>,
        progress: Option<(Reporter, &Secrets)>,
        late: Late,
    ) -> Result<Map<String, Value>, UpstreamError> {
        let limit = asked.limit;
        let params = CallToolRequestParams::new(asked.tool.to_owned());
        let params = params.with_arguments(asked.arguments);
        let name = config.name.clone();
        let late = move |answer| {
            let ServerResult::CallToolResult(answer) = answer else { return };
            late(complete(&name, answer, limit));
        };
        let way = call::Way { peer: &self.peer, is_child: self._group.is_some() };
        match call::call(way, &self.told.progress, params, (progress, Box::new(late))).await {
            Ok(ServerResult::CallToolResult(answer)) => complete(&config.name, answer, limit),
            Ok(ServerResult::InputRequiredResult(_) | ServerResult::CreateTaskResult(_)) => {
                Err(UpstreamError::WantsInput { name: config.name.clone() })
            }
            Ok(_) => Err(protocol(config, "an answer to something else")),
            Err(ServiceError::McpError(error)) => Err(UpstreamError::Refused {
                name: config.name.clone(),
                code: error.code.0,
                message: error.message.into_owned(),
            }),
            Err(error) => Err(protocol(config, error)),
        }
    }
}

/// One request of a tool.
pub(crate) struct Asked<'a> {
    /// The name that the server gives it.
    pub(crate) tool: &'a str,
    /// Its arguments.
    pub(crate) arguments: Map<String, Value>,
    /// The most bytes of its result.
    pub(crate) limit: usize,
}

/// Takes a result that nobody waits for any more.
pub(crate) type Late = Box<dyn FnOnce(Result<Map<String, Value>, UpstreamError>) + Send>;

/// A result as the sandbox may get it.
fn complete(
    name: &str,
    mut answer: CallToolResult,
    limit: usize,
) -> Result<Map<String, Value>, UpstreamError> {
    answer.meta = None;
    let mut answer = strict(name, &answer, limit)?;
    answer.insert("resultType".to_owned(), "complete".into());
    Ok(answer)
}

/// What a server says beside its answers. What it asks its client is refused:
/// sampling is not a method here, elicitation is declined, there are no roots.
#[derive(Clone, Default)]
struct Told {
    changed: Arc<AtomicBool>,
    progress: ProgressDispatcher,
}

impl ClientHandler for Told {
    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.changed.store(true, Ordering::Release);
    }

    async fn on_progress(
        &self,
        notice: ProgressNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.progress.handle_notification(notice).await;
    }
}

fn lifecycle() -> ClientLifecycleMode {
    ClientLifecycleMode::Auto {
        preferred_versions: vec![ProtocolVersion::V_2026_07_28],
        legacy_version: Some(ProtocolVersion::V_2025_11_25),
    }
}

/// The most bytes of one message: twice a result, for JSON escapes, or a list
/// of tools.
fn answer_limit(config: &Upstream) -> usize {
    let result = usize::try_from(config.max_result_bytes).unwrap_or(usize::MAX);
    result.saturating_mul(2).max(MAX_TOOLS * MAX_DEFINITION_BYTES / 4)
}

/// `value` as an object that survives the strict reader at the other end.
fn strict(
    name: &str,
    value: &impl serde::Serialize,
    limit: usize,
) -> Result<Map<String, Value>, UpstreamError> {
    let value = serde_json::to_value(value).map_err(|error| result(name, error.to_string()))?;
    let bytes = json::canonical(&value).map_err(|error| result(name, error.to_string()))?;
    if bytes.len() > limit {
        let reason = format!("expected at most {limit} bytes, got {}", bytes.len());
        return Err(result(name, reason));
    }
    // Four levels more than it will have inside a reply.
    let nested = [b"[[[[", bytes.as_slice(), b"]]]]"].concat();
    json::parse(&nested, usize::MAX).map_err(|error| result(name, error.to_string()))?;
    match json::parse(&bytes, usize::MAX) {
        Ok(Value::Object(object)) => Ok(object),
        _ => Err(result(name, "expected an object".to_owned())),
    }
}

fn protocol(config: &Upstream, reason: impl ToString) -> UpstreamError {
    UpstreamError::Protocol { name: config.name.clone(), reason: reason.to_string() }
}

fn result(name: &str, reason: String) -> UpstreamError {
    UpstreamError::Result { name: name.to_owned(), reason }
}
