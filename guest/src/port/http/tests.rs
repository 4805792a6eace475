//! A client that writes its requests by hand.

use super::*;
use crate::config;
use crate::port::stand_in::Echo;
use casemate_ledger::cgp::{MCP_VERSION, meta};
use serde_json::json;
use std::sync::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

struct Far {
    stream: DuplexStream,
    dropped: Arc<Mutex<u32>>,
    door: Door<Echo>,
}

impl Far {
    fn start() -> Self {
        let echo = Echo::default();
        let limits = config::Port { max_line_bytes: 4096, ..config::Port::default() };
        let (door, dropped) = (Door::new(echo.desk(limits)), echo.over);
        let stream = Self::connect(&door);
        Self { stream, dropped, door }
    }

    fn connect(door: &Door<Echo>) -> DuplexStream {
        let (client, server) = tokio::io::duplex(1 << 20);
        tokio::spawn(door.clone().serve(server));
        client
    }

    async fn send(&mut self, method: &str, headers: &[(&str, &str)], body: &str) {
        let mut head = format!("{method} /mcp HTTP/1.1\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("content-length: {}\r\n\r\n{body}", body.len());
        self.stream.write_all(head.as_bytes()).await.unwrap();
    }

    /// Status, headers and body of the next response.
    async fn response(&mut self) -> (u16, String, String) {
        let mut text = Vec::new();
        while !text.ends_with(b"\r\n\r\n") {
            text.push(timeout(PATIENCE, self.stream.read_u8()).await.unwrap().unwrap());
        }
        let head = String::from_utf8(text).unwrap().to_lowercase();
        let status = head[9..12].parse().unwrap();
        let length = head.split("content-length: ").nth(1).map(|rest| rest.lines().next().unwrap());
        let mut body = Vec::new();
        if let Some(length) = length {
            body = vec![0; length.parse().unwrap()];
            self.stream.read_exact(&mut body).await.unwrap();
        } else if head.contains("chunked") {
            while !body.ends_with(b"\r\n0\r\n\r\n") {
                body.push(self.stream.read_u8().await.unwrap());
            }
        }
        (status, head, String::from_utf8(body).unwrap())
    }

    async fn post(&mut self, headers: &[(&str, &str)], body: &Value) -> (u16, String, String) {
        let all = [&[HOST, JSON, BOTH][..], headers].concat();
        self.send("POST", &all, &body.to_string()).await;
        self.response().await
    }
}

const HOST: (&str, &str) = ("host", "127.0.0.1:7007");
const JSON: (&str, &str) = ("content-type", "application/json");
const BOTH: (&str, &str) = ("accept", "application/json, text/event-stream");

fn call(tool: &str, fields: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": tool, "arguments": {"x": 1}, "_meta": fields}})
}

fn modern(tool: &str) -> (Value, [(&str, &str); 3]) {
    let body =
        call(tool, json!({(meta::PROTOCOL_VERSION): MCP_VERSION, (meta::CLIENT_CAPABILITIES): {}}));
    let headers =
        [("mcp-protocol-version", MCP_VERSION), ("mcp-method", "tools/call"), ("mcp-name", tool)];
    (body, headers)
}

#[tokio::test]
async fn both_eras_are_answered_on_one_connection() {
    let mut client = Far::start();
    let (body, headers) = modern("echo");
    let (status, head, answer) = client.post(&headers, &body).await;
    assert_eq!(status, 200, "{answer}");
    assert!(head.contains("content-type: application/json"), "{head}");
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["result"]["structuredContent"], json!({"x": 1}));
    assert_eq!(answer["result"]["resultType"], "complete");

    let initialize = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize",
        "params": {"protocolVersion": "2025-06-18"}});
    let (status, head, answer) = client.post(&[], &initialize).await;
    assert_eq!(status, 200, "{answer}");
    let session = head.split("mcp-session-id: ").nth(1).unwrap().lines().next().unwrap().to_owned();
    let session = [("mcp-session-id", session.as_str())];
    let told = json!({"jsonrpc": "2.0", "method": "notifications/initialized"});
    assert_eq!(client.post(&session, &told).await.0, 202);
    let (status, _, answer) = client.post(&session, &call("echo", json!({}))).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!((status, &answer["result"]["resultType"]), (200, &Value::Null));
    let other = [("mcp-session-id", "0")];
    assert_eq!(client.post(&other, &call("echo", json!({}))).await.0, 404);
    client.send("DELETE", &[HOST, session[0]], "").await;
    assert_eq!(client.response().await.0, 204);
    assert_eq!(client.post(&session, &call("echo", json!({}))).await.0, 404);
}

#[tokio::test]
async fn what_is_refused_has_its_status() {
    let mut client = Far::start();
    let (body, headers) = modern("echo");
    let (status, _, answer) = client.post(&headers[..2], &body).await;
    assert_eq!(status, 400);
    assert!(answer.contains("-32020") && answer.contains("mcp-name"), "{answer}");
    let unknown = json!({"jsonrpc": "2.0", "id": 1, "method": "prompts/list",
        "params": {"_meta": {(meta::PROTOCOL_VERSION): MCP_VERSION, (meta::CLIENT_CAPABILITIES): {}}}});
    let headers = [("mcp-protocol-version", MCP_VERSION), ("mcp-method", "prompts/list")];
    let (status, _, answer) = client.post(&headers, &unknown).await;
    assert!(status == 404 && answer.contains("-32601"), "{status} {answer}");
    let old = json!({"jsonrpc": "2.0", "id": 1, "method": "prompts/list"});
    assert_eq!(client.post(&[], &old).await.0, 200);
    assert_eq!(client.post(&[], &json!([1])).await.0, 400);
    let answer = json!({"jsonrpc": "2.0", "id": 1, "result": {}});
    assert_eq!(client.post(&[], &answer).await.0, 202);
    for (method, headers, status) in [
        ("GET", &[HOST, BOTH][..], 405),
        ("DELETE", &[HOST][..], 405),
        ("POST", &[("host", "evil.test"), JSON][..], 403),
        ("POST", &[HOST, JSON, ("origin", "http://evil.test")][..], 403),
        ("POST", &[HOST, ("content-type", "text/plain")][..], 415),
    ] {
        client.send(method, headers, "").await;
        assert_eq!(client.response().await.0, status, "{method} {headers:?}");
    }
    client.send("POST", &[HOST, JSON], &"x".repeat(5000)).await;
    assert_eq!(client.response().await.0, 413);
}

#[tokio::test]
async fn progress_turns_the_answer_into_events() {
    let mut client = Far::start();
    let body = call("echo", json!({"progressToken": "p"}));
    let (status, head, events) = client.post(&[], &body).await;
    assert!(status == 200 && head.contains("text/event-stream"), "{head}");
    let events: Vec<Value> = events
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect();
    assert_eq!(events[0]["params"], json!({"progressToken": "p", "progress": 0.5}));
    assert_eq!((events.len(), &events[1]["id"]), (2, &json!(1)));
    // A client that takes no events is given the answer alone.
    client.send("POST", &[HOST, JSON, ("accept", "application/json")], &body.to_string()).await;
    let (_, head, answer) = client.response().await;
    assert!(head.contains("content-type: application/json") && answer.contains("result"));
}

#[tokio::test]
async fn leaving_cancels_and_so_does_saying_so() {
    let gone = |dropped: Arc<Mutex<u32>>, wanted| async move {
        for _ in 0..200 {
            if *dropped.lock().unwrap() == wanted {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("expected the call to be dropped");
    };
    // A closed connection, before and after the first event.
    for fields in [json!({}), json!({"progressToken": 1})] {
        let mut client = Far::start();
        let body = call("slow", fields).to_string();
        client.send("POST", &[HOST, JSON, BOTH], &body).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
        let dropped = Arc::clone(&client.dropped);
        assert_eq!(*dropped.lock().unwrap(), 0);
        drop(client);
        gone(dropped, 1).await;
    }
    // A cancellation within a session of the legacy era, on another connection.
    let mut client = Far::start();
    let initialize = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}});
    let (_, head, _) = client.post(&[], &initialize).await;
    let session = head.split("mcp-session-id: ").nth(1).unwrap().lines().next().unwrap().to_owned();
    let session = ("mcp-session-id", session.as_str());
    let body = call("slow", json!({})).to_string();
    client.send("POST", &[HOST, JSON, BOTH, session], &body).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stream = Far::connect(&client.door);
    let (dropped, door) = (Arc::clone(&client.dropped), client.door.clone());
    let mut other = Far { stream, dropped, door };
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled",
        "params": {"requestId": 1}});
    assert_eq!(other.post(&[session], &cancel).await.0, 202);
    gone(Arc::clone(&client.dropped), 1).await;
    assert_eq!(client.response().await.0, 204);
}
