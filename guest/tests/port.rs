//! An ordinary MCP client, in each protocol era, at the port's socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use casemate_agent::{Script, run};
use casemate_guest::config;
use casemate_guest::gateway::Tools;
use casemate_guest::port::{HTTP_PATH, Port, SOCKET, stdio};
use casemate_ledger::cgp::{Progress, RpcError};
use serde_json::{Value, json};
use tokio::sync::mpsc::Sender;

/// Answers as the gateway does: modern results, a denial for one tool.
#[derive(Clone)]
struct StandIn;

impl Tools for StandIn {
    async fn list(&self) -> Result<Value, RpcError> {
        Ok(json!({"resultType": "complete", "tools": [
            {"name": "clock.now", "description": "x", "inputSchema": {"type": "object"}}]}))
    }

    async fn call(
        &self,
        tool: String,
        arguments: Value,
        _progress: Option<Sender<Progress>>,
    ) -> Result<Value, RpcError> {
        let denied = json!({"casemate": {"code": "tool_not_granted", "hint": "ask"}});
        Ok(match tool.as_str() {
            "clock.now" => json!({"content": [], "structuredContent": arguments}),
            _ => json!({"isError": true, "content": [{"type": "text", "text": "denied"}],
                "structuredContent": denied, "_meta": {"dev.casemate/receipt": {"decision": 1}}}),
        })
    }
}

async fn replies(protocol: &str) -> Vec<Value> {
    let directory = tempfile::tempdir().unwrap();
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    let port = Port::bind(directory.path(), uid, gid, config::Port::default()).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}{HTTP_PATH}", listener.local_addr().unwrap());
    let (give, loopback) = tokio::sync::oneshot::channel();
    give.send(listener).unwrap();
    let serving = tokio::spawn(port.serve(StandIn, Some(loopback)));
    // What the workload's view has in its place.
    let program = directory.path().join("bin").join(stdio::PROGRAM);
    std::fs::create_dir(program.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_casemate-guest"), &program).unwrap();
    let socket = directory.path().join(SOCKET);
    let calls = "{ do = \"list\" },\n\
        { do = \"call\", tool = \"clock.now\", arguments = { zone = \"UTC\" }, times = 2 },\n\
        { do = \"call\", tool = \"rm\", times = 5, until_error = true }";
    let script = format!(
        "socket = {socket:?}\nprotocol = {protocol:?}\nstep = [{calls},\n\
         {{ do = \"connect\", to = {{ url = {url:?} }} }}, {calls},\n\
         {{ do = \"connect\", to = {{ command = [{program:?}, {socket:?}] }} }}, {calls}]\n",
    );
    let mut out = Vec::new();
    run(&Script::parse(&script).unwrap(), &mut out).await.unwrap();
    serving.abort();
    let lines = String::from_utf8(out).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn clients_of_every_era_list_call_and_are_denied_at_every_door() {
    for protocol in ["legacy", "modern", "auto"] {
        let replies = replies(protocol).await;
        let doors: Vec<&[Value]> =
            replies.split(|reply| reply.get("connected").is_some()).collect();
        assert_eq!(doors.len(), 3, "{protocol}: {replies:?}");
        for replies in doors {
            assert_eq!(replies.len(), 4, "{protocol}: {replies:?}");
            assert_eq!(replies[0]["tools"], json!(["clock.now"]), "{protocol}");
            for reply in &replies[1..3] {
                assert_eq!(reply["result"]["structuredContent"]["zone"], "UTC", "{protocol}");
            }
            let denied = &replies[3]["result"];
            assert_eq!(denied["isError"], true, "{protocol}");
            assert_eq!(denied["structuredContent"]["casemate"]["code"], "tool_not_granted");
            assert_eq!(denied["_meta"]["dev.casemate/receipt"]["decision"], 1);
        }
    }
}
