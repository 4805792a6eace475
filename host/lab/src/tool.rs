//! A tool server for the demo in the lab: the Model Context Protocol (2025-06-18) over standard
//! input and output, JSON-RPC 2.0, one message a line. It stands in for mcp-server-time, whose
//! Python takes half a minute to start on an emulated machine: same tools, three time zones.

use std::io::{BufRead, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use serde_json::{Value, json};

/// Serves until standard input ends.
pub(crate) fn serve() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line?)?;
        let (Some(id), Some(method)) = (message.get("id"), message.get("method")) else {
            continue; // a notification, or an answer: nothing was asked
        };
        let parameters = message.get("params").cloned().unwrap_or_default();
        let answer = match answer(method.as_str().unwrap_or_default(), &parameters) {
            Some(result) => json!({ "jsonrpc": "2.0", "id": id, "result": result }),
            None => json!({ "jsonrpc": "2.0", "id": id,
                "error": { "code": -32601, "message": "method not found" } }),
        };
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

fn answer(method: &str, parameters: &Value) -> Option<Value> {
    let version = parameters.get("protocolVersion").cloned().unwrap_or_default();
    match method {
        "initialize" => Some(json!({
            "protocolVersion": version,
            "capabilities": { "tools": {} },
            "serverInfo": { "name": "lab-time", "version": env!("CARGO_PKG_VERSION") },
        })),
        "ping" => Some(json!({})),
        "tools/list" => Some(json!({ "tools": [
            tool("get_current_time", &["timezone"]),
            tool("convert_time", &["source_timezone", "time", "target_timezone"]),
        ] })),
        "tools/call" => Some(match call(parameters) {
            Ok(value) => json!({ "content": [{ "type": "text", "text": value.to_string() }] }),
            Err(error) => json!({ "isError": true,
                "content": [{ "type": "text", "text": format!("{error:#}") }] }),
        }),
        _ => None,
    }
}

fn tool(name: &str, arguments: &[&str]) -> Value {
    let properties: serde_json::Map<String, Value> =
        arguments.iter().map(|name| ((*name).to_owned(), json!({ "type": "string" }))).collect();
    json!({
        "name": name,
        "description": "Time in a time zone",
        "inputSchema": { "type": "object", "properties": properties, "required": arguments },
    })
}

fn call(parameters: &Value) -> anyhow::Result<Value> {
    let text = |name: &str| {
        let value = parameters.pointer(&format!("/arguments/{name}")).and_then(Value::as_str);
        value.with_context(|| format!("no {name}"))
    };
    match parameters.get("name").and_then(Value::as_str) {
        Some("get_current_time") => {
            let zone = text("timezone")?;
            let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
            let minutes = i64::try_from(now / 60)? + hours(zone)? * 60;
            Ok(json!({ "timezone": zone, "time": clock(minutes) }))
        }
        Some("convert_time") => {
            let (from, to) = (text("source_timezone")?, text("target_timezone")?);
            let (hour, minute) = text("time")?.split_once(':').context("time is not HH:MM")?;
            let minutes = hour.parse::<i64>()? * 60 + minute.parse::<i64>()?;
            let moved = minutes + (hours(to)? - hours(from)?) * 60;
            Ok(json!({ "source": from, "target": to, "time": clock(moved) }))
        }
        _ => anyhow::bail!("no such tool"),
    }
}

fn clock(minutes: i64) -> String {
    format!("{:02}:{:02}", minutes.div_euclid(60).rem_euclid(24), minutes.rem_euclid(60))
}

/// Hours that a zone is ahead of UTC, in winter.
fn hours(zone: &str) -> anyhow::Result<i64> {
    match zone {
        "UTC" => Ok(0),
        "Europe/Berlin" => Ok(1),
        "Asia/Tokyo" => Ok(9),
        other => anyhow::bail!("unknown time zone {other}"),
    }
}
