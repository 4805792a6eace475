//! A client on one end of a pipe, a stand-in for the gateway behind the port.

use super::*;
use crate::config;
use crate::port::stand_in::Echo;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, BufReader, DuplexStream};

struct Far(BufReader<DuplexStream>);

impl Far {
    fn start(limits: config::Port) -> Self {
        let (client, server) = tokio::io::duplex(1 << 20);
        tokio::spawn(serve(Echo::default().desk(limits), server));
        Self(BufReader::new(client))
    }

    async fn send(&mut self, line: &str) {
        self.0.write_all(line.as_bytes()).await.unwrap();
        self.0.write_all(b"\n").await.unwrap();
    }

    async fn answer(&mut self) -> Option<Value> {
        let mut line = String::new();
        let read = timeout(Duration::from_secs(5), self.0.read_line(&mut line)).await;
        let length = read.expect("an answer in time").unwrap();
        (length > 0).then(|| serde_json::from_str(&line).unwrap())
    }

    async fn ask(&mut self, line: &str) -> Value {
        self.send(line).await;
        self.answer().await.unwrap()
    }
}

fn call(id: u32, tool: &str) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": tool}})
        .to_string()
}

#[tokio::test]
async fn a_call_goes_through_in_both_eras() {
    let mut client = Far::start(config::Port::default());
    let legacy = client.ask(&call(1, "echo")).await;
    assert_eq!(legacy["result"], json!({"content": [], "structuredContent": {}}));
    let modern = json!({"jsonrpc": "2.0", "id": "a", "method": "tools/call", "params": {
        "name": "echo", "arguments": {"x": 1},
        "_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {}}}});
    let modern = client.ask(&modern.to_string()).await;
    assert_eq!((&modern["id"], &modern["result"]["resultType"]), (&json!("a"), &json!("complete")));
    let killed = client.ask(&call(2, "killed")).await;
    assert_eq!(killed["error"]["code"], error_code::LEASE);
}

#[tokio::test]
async fn what_is_not_a_request_is_named_and_survived() {
    let mut client = Far::start(config::Port::default());
    let deep = format!(r#"{{"a":{}}}"#, "[".repeat(100) + &"]".repeat(100));
    let cases = [
        ("{", -32700, "syntax"),
        (r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"ping"}"#, -32700, "distinct keys"),
        (deep.as_str(), -32700, "levels"),
        ("[]", -32600, "message"),
        (r#"{"id":1,"method":"ping"}"#, -32600, "jsonrpc"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#, -32600, "id"),
        (r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#, -32600, "id"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":[]}"#, -32600, "params"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"nothing"}"#, -32601, "nothing"),
    ];
    for (line, code, named) in cases {
        let answer = client.ask(line).await;
        assert_eq!(answer["error"]["code"], code, "{line}: {answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(named), "{answer}");
    }
    assert_eq!(client.ask(&call(1, "echo")).await["id"], 1);
}

#[tokio::test]
async fn an_endless_line_ends_the_connection() {
    let limits = config::Port { max_line_bytes: 1024, ..config::Port::default() };
    let mut client = Far::start(limits);
    client.send(&"x".repeat(2000)).await;
    let answer = client.answer().await.unwrap();
    assert!(answer["error"]["message"].as_str().unwrap().contains("at most 1024"), "{answer}");
    assert_eq!(client.answer().await, None);
}

#[tokio::test]
async fn a_flood_is_answered_with_its_limit() {
    let limits = config::Port { requests_per_second: 5, ..config::Port::default() };
    let mut client = Far::start(limits);
    let mut refused = 0;
    for id in 0..50 {
        let answer = client.ask(&call(id, "echo")).await;
        refused += u32::from(answer["error"]["code"] == error_code::OVERLOAD);
    }
    assert!(refused >= 40, "{refused}");
}

#[tokio::test]
async fn calls_at_one_time_are_counted_and_cancelled() {
    let limits = config::Port { concurrent_calls: 2, ..config::Port::default() };
    let mut client = Far::start(limits);
    client.send(&call(1, "slow")).await;
    client.send(&call(2, "slow")).await;
    let third = client.ask(&call(3, "echo")).await;
    assert!(third["error"]["message"].as_str().unwrap().contains("at most 2"), "{third}");
    let cancel = r#"{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1}}"#;
    client.send(cancel).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(client.ask(&call(1, "echo")).await["id"], 1);
}

#[tokio::test]
async fn an_id_is_open_once() {
    let mut client = Far::start(config::Port::default());
    client.send(&call(1, "slow")).await;
    let again = client.ask(&call(1, "echo")).await;
    assert!(again["error"]["message"].as_str().unwrap().contains("not in use"), "{again}");
}

#[tokio::test]
async fn progress_comes_under_the_clients_token_before_the_answer() {
    let mut client = Far::start(config::Port::default());
    for token in [json!("mine"), json!(4)] {
        let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
            "name": "echo", "_meta": {"progressToken": token}}});
        let notice = client.ask(&call.to_string()).await;
        assert_eq!(notice["method"], "notifications/progress");
        assert_eq!(notice["params"], json!({"progressToken": token, "progress": 0.5}));
        assert_eq!(client.answer().await.unwrap()["id"], 1);
    }
    let call = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {
        "name": "echo", "_meta": {"progressToken": 1.5}}});
    assert_eq!(client.ask(&call.to_string()).await["error"]["code"], error_code::INVALID_PARAMS);
}
