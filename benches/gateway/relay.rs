//! The least that a relay can be: an rmcp server whose calls go to an rmcp
//! client. `relay stdio PROGRAM` or `relay http PROGRAM`, which says its port.

use std::error::Error;
use std::process::Stdio;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, ListToolsResult, PaginatedRequestParams,
    ServerCapabilities, ServerConfig,
};
use rmcp::service::{RequestContext, RoleClient, RoleServer, RunningService};
use rmcp::transport::streamable_http_server::session::local::LocalSessionManager;
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use rmcp::{ErrorData, serve_client, serve_server};

#[derive(Clone)]
struct Relay(Arc<RunningService<RoleClient, ()>>);

impl ServerHandler for Relay {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        request: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        self.0.list_tools(request).await.map_err(internal)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        self.0.call_tool_once(request).await.map_err(internal)
    }
}

fn internal(error: impl std::fmt::Display) -> ErrorData {
    ErrorData::internal_error(error.to_string(), None)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, door, program] = arguments.as_slice() else { return Err("relay DOOR PROGRAM".into()) };
    let mut child = tokio::process::Command::new(program)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()?;
    let pipes = child.stdout.take().zip(child.stdin.take()).ok_or("no pipes")?;
    let relay = Relay(Arc::new(serve_client((), pipes).await?));
    match door.as_str() {
        "http" => serve_http(relay).await,
        _ => {
            serve_server(relay, rmcp::transport::stdio()).await?.waiting().await?;
            Ok(())
        }
    }
}

async fn serve_http(relay: Relay) -> Result<(), Box<dyn Error>> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?.port());
    let mut config = StreamableHttpServerConfig::default();
    config.json_response = true;
    let sessions: Arc<LocalSessionManager> = Arc::default();
    let mcp = StreamableHttpService::new(move || Ok(relay.clone()), sessions, config);
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let mcp = mcp.clone();
        tokio::spawn(async move {
            let service = hyper::service::service_fn(move |request| {
                let mcp = mcp.clone();
                async move { Ok::<_, std::convert::Infallible>(mcp.handle(request).await) }
            });
            let serving = hyper::server::conn::http1::Builder::new();
            let _ = serving.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
