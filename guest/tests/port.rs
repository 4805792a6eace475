//! An ordinary MCP client, in each protocol era, at the port's socket.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use casemate_agent::{Script, run};
use casemate_guest::config;
use casemate_guest::gateway::Tools;
use casemate_guest::port::{Port, SOCKET};
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
    let serving = tokio::spawn(port.serve(StandIn, None));
    let script = format!(
        "socket = {:?}\nprotocol = {protocol:?}\nstep = [{{ do = \"list\" }},\n\
         {{ do = \"call\", tool = \"clock.now\", arguments = {{ zone = \"UTC\" }}, times = 2 }},\n\
         {{ do = \"call\", tool = \"rm\", times = 5, until_error = true }}]\n",
        directory.path().join(SOCKET),
    );
    let mut out = Vec::new();
    run(&Script::parse(&script).unwrap(), &mut out).await.unwrap();
    serving.abort();
    let lines = String::from_utf8(out).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn clients_of_every_era_list_call_and_are_denied() {
    for protocol in ["legacy", "modern", "auto"] {
        let replies = replies(protocol).await;
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
