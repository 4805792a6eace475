//! A scripted, ordinary MCP client: it stands in for an agent in the demo and
//! in tests, and knows nothing of what it runs in. Protocol and transports are
//! the public library's, unchanged.
//!
//! Each reply is one JSON line on standard output. A tool that fails is a
//! reply like any other; only a server that is gone or a script that is wrong
//! ends the run.

#![forbid(unsafe_code)]

mod script;

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use rmcp::ServiceError;
use rmcp::model::{CallToolRequestParams, ProtocolVersion};
use rmcp::service::{ClientLifecycleMode, ClientServiceExt, RoleClient, RunningService};
use rmcp::transport::{IntoTransport, StreamableHttpClientTransport};
use serde_json::{Map, Value, json};
use tokio::net::UnixStream;
use tokio::process::Command;

pub use script::{Protocol, Script, Server, Step};

/// Why a script was not carried out to its end.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The server's socket cannot be reached, or its program not started.
    #[error("connect to {server}: {source}")]
    Connect {
        /// The socket or program.
        server: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A variable of the environment is not there.
    #[error("environment, {0}: expected a value, got none")]
    Variable(String),
    /// The MCP handshake failed.
    #[error("start the session: {0}")]
    Start(String),
    /// The session broke.
    #[error("the session broke: {0}")]
    Broken(String),
    /// The output or a descriptor could not be used.
    #[error("{0}")]
    Io(#[from] std::io::Error),
}

type Session = RunningService<RoleClient, ()>;

/// Carries out `script` and writes its replies to `out`.
pub async fn run(script: &Script, out: &mut (impl Write + Send)) -> Result<(), AgentError> {
    let mut session = connect(&Server::Socket(script.socket.clone()), script.protocol).await?;
    for (at, step) in script.steps.iter().enumerate() {
        let mut reply = |value: Value| line(out, at + 1, value);
        match step {
            Step::List => reply(list(&session).await?)?,
            Step::Call { tool, arguments, times, pause_s, until_error } => {
                for turn in 0..*times {
                    let (value, failed) = call(&session, tool, arguments).await?;
                    reply(value)?;
                    if failed && *until_error {
                        break;
                    }
                    if turn + 1 < *times {
                        pause(*pause_s).await;
                    }
                }
            }
            Step::Connect { to } => {
                // It is left the way it came: a server that is gone is no matter.
                let _ = session.cancel().await;
                session = connect(to, script.protocol).await?;
                reply(json!({"connected": to}))?;
            }
            Step::Sleep { seconds } => pause(*seconds).await,
            Step::ReadFd { fd } => {
                let bytes = std::fs::read(format!("/proc/self/fd/{fd}")).map(|bytes| bytes.len());
                reply(match bytes {
                    Ok(bytes) => json!({"read-fd": fd, "bytes": bytes}),
                    Err(error) => json!({"read-fd": fd, "error": error.to_string()}),
                })?;
            }
            Step::Say { text } => reply(json!({"say": text}))?,
        }
    }
    let _ = session.cancel().await;
    Ok(())
}

async fn connect(server: &Server, protocol: Protocol) -> Result<Session, AgentError> {
    let unreachable = |server: &str| {
        let server = server.to_owned();
        move |source| AgentError::Connect { server, source }
    };
    match server {
        Server::Socket(path) => {
            let path = value(path)?;
            let stream = UnixStream::connect(&path).await.map_err(unreachable(&path))?;
            start(protocol, stream).await
        }
        Server::Url(url) => {
            start(protocol, StreamableHttpClientTransport::from_uri(value(url)?)).await
        }
        Server::Command(words) => {
            let words = words.iter().map(|word| value(word)).collect::<Result<Vec<_>, _>>()?;
            let mut words = words.iter();
            let program = words.next().cloned().unwrap_or_default();
            let mut command = Command::new(&program);
            command.args(words).stdin(Stdio::piped()).stdout(Stdio::piped());
            let child = command.spawn().map_err(unreachable(&program))?;
            let (Some(from), Some(to)) = (child.stdout, child.stdin) else {
                return Err(AgentError::Start("the program has no standard streams".to_owned()));
            };
            start(protocol, (from, to)).await
        }
    }
}

async fn start<T, E, A>(protocol: Protocol, transport: T) -> Result<Session, AgentError>
where
    T: IntoTransport<RoleClient, E, A>,
    E: std::error::Error + Send + Sync + 'static,
{
    let modern = vec![ProtocolVersion::V_2026_07_28];
    let lifecycle = match protocol {
        Protocol::Legacy => ClientLifecycleMode::Initialize,
        Protocol::Modern => ClientLifecycleMode::Discover { preferred_versions: modern },
        Protocol::Auto => ClientLifecycleMode::Auto {
            preferred_versions: modern,
            legacy_version: Some(ProtocolVersion::V_2025_11_25),
        },
    };
    let started = ().serve_with_lifecycle(transport, lifecycle).await;
    started.map_err(|error| AgentError::Start(error.to_string()))
}

/// `text`, or what the environment has under the name that it gives.
fn value(text: &str) -> Result<String, AgentError> {
    match text.strip_prefix('$') {
        None => Ok(text.to_owned()),
        Some(name) => std::env::var(name).map_err(|_| AgentError::Variable(name.to_owned())),
    }
}

async fn list(session: &Session) -> Result<Value, AgentError> {
    match session.list_all_tools().await {
        Ok(tools) => {
            Ok(json!({"tools": tools.iter().map(|tool| tool.name.as_ref()).collect::<Vec<_>>()}))
        }
        Err(error) => Ok(json!({"tools": null, "error": failure(error)?})),
    }
}

/// The reply to one call, and whether the call failed.
async fn call(
    session: &Session,
    tool: &str,
    arguments: &Map<String, Value>,
) -> Result<(Value, bool), AgentError> {
    let params = CallToolRequestParams::new(tool.to_owned()).with_arguments(arguments.clone());
    match session.call_tool(params).await {
        Ok(result) => {
            let failed = result.is_error == Some(true);
            Ok((json!({"call": tool, "result": result}), failed))
        }
        Err(error) => Ok((json!({"call": tool, "error": failure(error)?}), true)),
    }
}

/// The server's error as data; a session that is gone is an error of ours.
fn failure(error: ServiceError) -> Result<Value, AgentError> {
    match error {
        ServiceError::McpError(error) => Ok(json!(error)),
        other => Err(AgentError::Broken(other.to_string())),
    }
}

fn line(out: &mut impl Write, step: usize, mut value: Value) -> Result<(), AgentError> {
    if let Some(object) = value.as_object_mut() {
        object.insert("step".into(), step.into());
    }
    writeln!(out, "{value}")?;
    Ok(out.flush()?)
}

async fn pause(seconds: f64) {
    tokio::time::sleep(Duration::try_from_secs_f64(seconds).unwrap_or_default()).await;
}
