//! The two protocol eras of MCP: what a request of one means, and how the
//! gateway's result looks in it.

use casemate_ledger::cgp::{MCP_VERSION, Progress, RpcError, error_code, meta};
use serde_json::{Map, Value, json};

/// Revisions with a handshake, newest first.
pub(super) const LEGACY_VERSIONS: [&str; 4] =
    ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];
/// How long a client may keep a list; grants change.
const LIST_TTL_MS: u64 = 30_000;
/// UnsupportedProtocolVersion (MCP 2026-07-28, basic, error codes).
pub(super) const UNSUPPORTED_VERSION: i64 = -32022;

/// The era of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Era {
    /// With the handshake; up to 2025-11-25.
    Legacy,
    /// 2026-07-28: every request says so in `_meta`.
    Modern,
}

/// What a client asks.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Ask {
    /// The answer is known here.
    Known(Value),
    /// The tools.
    List,
    /// A call.
    Call {
        /// The tool.
        tool: String,
        /// Its arguments, an object.
        arguments: Value,
    },
}

/// The era of a request with `params`.
pub(super) fn era(params: &Value) -> Result<Era, RpcError> {
    let field = |name: &str| params.get("_meta").and_then(|fields| fields.get(name));
    match field(meta::PROTOCOL_VERSION) {
        None => Ok(Era::Legacy),
        Some(version) if version == MCP_VERSION => {
            match field(meta::CLIENT_CAPABILITIES).is_some_and(Value::is_object) {
                true => Ok(Era::Modern),
                false => Err(no_meta(meta::CLIENT_CAPABILITIES, "an object")),
            }
        }
        Some(version) => Err(RpcError {
            code: UNSUPPORTED_VERSION,
            message: "unsupported protocol version".to_owned(),
            details: json!({"supported": [MCP_VERSION], "requested": version}),
        }),
    }
}

/// A request of the modern era lacks what its `_meta` must have.
pub(super) fn no_meta(name: &str, expected: &str) -> RpcError {
    let message = format!("params._meta, {name}: expected {expected}");
    RpcError::new(error_code::INVALID_PARAMS, message)
}

/// What the request `method` with `params` asks in its era.
pub(super) fn ask(era: Era, method: &str, params: &Value) -> Result<Ask, RpcError> {
    match (era, method) {
        (Era::Legacy, "initialize") => Ok(Ask::Known(initialize(params))),
        (Era::Legacy, "ping") => Ok(Ask::Known(json!({}))),
        (Era::Modern, "server/discover") => Ok(Ask::Known(discover())),
        (_, "tools/list") => Ok(Ask::List),
        (_, "tools/call") => call(params),
        _ => Err(RpcError::new(error_code::METHOD_NOT_FOUND, format!("no method {}", cut(method)))),
    }
}

/// The gateway's `tools/list` result for a client of `era`.
pub(super) fn list_result(era: Era, result: Value) -> Value {
    let mut result = result_for(era, result);
    if let Some(tools) = result.get_mut("tools").and_then(Value::as_array_mut) {
        tools.iter_mut().for_each(without_our_meta);
    }
    if let (Era::Modern, Some(fields)) = (era, result.as_object_mut()) {
        fields.entry("ttlMs").or_insert_with(|| LIST_TTL_MS.into());
        fields.insert("cacheScope".to_owned(), "private".into());
    }
    result
}

/// The gateway's `tools/call` result for a client of `era`.
pub(super) fn result_for(era: Era, mut result: Value) -> Value {
    if let Some(fields) = result.as_object_mut() {
        match era {
            Era::Modern => {
                fields.entry("resultType").or_insert_with(|| "complete".into());
            }
            Era::Legacy => ["resultType", "ttlMs", "cacheScope"].iter().for_each(|name| {
                fields.remove(*name);
            }),
        }
    }
    result
}

/// The gateway's progress under the client's own token.
pub(super) fn progress(token: &Value, progress: Progress) -> Value {
    let Progress { progress, total, message, .. } = progress;
    let mut params = json!({"progressToken": token, "progress": progress});
    if let Some(fields) = params.as_object_mut() {
        total.map(|total| fields.insert("total".to_owned(), total.into()));
        message.map(|message| fields.insert("message".to_owned(), message.into()));
    }
    params
}

fn initialize(params: &Value) -> Value {
    let asked = params.get("protocolVersion").and_then(Value::as_str).unwrap_or_default();
    let version = LEGACY_VERSIONS.iter().find(|version| **version == asked);
    json!({
        "protocolVersion": version.unwrap_or(&"2025-11-25"),
        "capabilities": {"tools": {}},
        "serverInfo": server_info(),
    })
}

fn discover() -> Value {
    json!({
        "resultType": "complete",
        "supportedVersions": [MCP_VERSION],
        "capabilities": {"tools": {}},
        "ttlMs": LIST_TTL_MS,
        "cacheScope": "private",
        "_meta": {"io.modelcontextprotocol/serverInfo": server_info()},
    })
}

fn server_info() -> Value {
    json!({"name": "casemate", "version": env!("CARGO_PKG_VERSION")})
}

fn call(params: &Value) -> Result<Ask, RpcError> {
    let wrong = |field: &str, expected: &str| {
        let message = format!("params.{field}: expected {expected}");
        RpcError::new(error_code::INVALID_PARAMS, message)
    };
    let tool = params.get("name").and_then(Value::as_str).unwrap_or_default();
    if !(1..=128).contains(&tool.len()) {
        return Err(wrong("name", "1 to 128 bytes"));
    }
    // What answers a question that was never asked (inputResponses, requestState),
    // or asks for a task, which is not declared, is ignored, as MCP has it.
    let arguments = match params.get("arguments") {
        None => Value::Object(Map::new()),
        Some(Value::Object(arguments)) => Value::Object(arguments.clone()),
        Some(_) => return Err(wrong("arguments", "an object")),
    };
    Ok(Ask::Call { tool: tool.to_owned(), arguments })
}

/// Digests and grants are for the signer, not for the workload.
fn without_our_meta(tool: &mut Value) {
    let Some(fields) = tool.as_object_mut() else { return };
    let empty = fields.get_mut("_meta").and_then(Value::as_object_mut).is_some_and(|meta| {
        meta.remove(meta::TOOL);
        meta.is_empty()
    });
    if empty {
        fields.remove("_meta");
    }
}

fn cut(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modern() -> Value {
        json!({"_meta": {
            (meta::PROTOCOL_VERSION): MCP_VERSION,
            (meta::CLIENT_CAPABILITIES): {},
        }})
    }

    #[test]
    fn the_era_is_in_the_request() {
        assert_eq!(era(&json!({})), Ok(Era::Legacy));
        assert_eq!(era(&modern()), Ok(Era::Modern));
        let error = era(&json!({"_meta": {(meta::PROTOCOL_VERSION): "2030-01-01"}})).unwrap_err();
        assert_eq!(error.code, UNSUPPORTED_VERSION);
        assert_eq!(error.details["supported"], json!([MCP_VERSION]));
        for capabilities in [Value::Null, json!([]), json!("all")] {
            let mut params = modern();
            params["_meta"][meta::CLIENT_CAPABILITIES] = capabilities;
            let error = era(&params).unwrap_err();
            assert_eq!(error.code, error_code::INVALID_PARAMS);
            assert!(error.message.contains("clientCapabilities"), "{error}");
        }
    }

    #[test]
    fn methods_belong_to_their_era() {
        let cases = [
            (Era::Legacy, "server/discover"),
            (Era::Modern, "initialize"),
            (Era::Modern, "ping"),
            (Era::Legacy, "resources/list"),
            (Era::Modern, "prompts/list"),
            (Era::Legacy, "logging/setLevel"),
        ];
        for (era, method) in cases {
            let error = ask(era, method, &json!({})).unwrap_err();
            assert_eq!(error.code, error_code::METHOD_NOT_FOUND, "{method}");
        }
    }

    #[test]
    fn the_handshake_answers_a_version_that_has_one() {
        for (asked, answered) in
            [("2025-06-18", "2025-06-18"), ("2026-07-28", "2025-11-25"), ("1", "2025-11-25")]
        {
            assert_eq!(initialize(&json!({"protocolVersion": asked}))["protocolVersion"], answered);
        }
    }

    #[test]
    fn progress_has_the_client_s_token() {
        let notice = Progress { progress_token: 7, progress: 1.0, total: None, message: None };
        assert_eq!(
            progress(&json!("mine"), notice),
            json!({"progressToken": "mine", "progress": 1.0})
        );
    }

    #[test]
    fn bad_calls_are_named() {
        let cases = [
            (json!({}), "params.name"),
            (json!({"name": ""}), "params.name"),
            (json!({"name": "x".repeat(129)}), "params.name"),
            (json!({"name": "t", "arguments": []}), "params.arguments"),
        ];
        for (params, field) in cases {
            let error = ask(Era::Legacy, "tools/call", &params).unwrap_err();
            assert!(error.message.starts_with(field), "{params}: {error}");
        }
    }

    #[test]
    fn results_have_the_shape_of_their_era() {
        let list = json!({"tools": [
            {"name": "a", "_meta": {(meta::TOOL): {"digest": "x"}}},
            {"name": "b", "_meta": {(meta::TOOL): {}, "other": 1}},
        ]});
        let modern = list_result(Era::Modern, list.clone());
        assert_eq!(modern["resultType"], "complete");
        assert_eq!((&modern["ttlMs"], &modern["cacheScope"]), (&json!(30000), &json!("private")));
        assert_eq!(modern["tools"], json!([{"name": "a"}, {"name": "b", "_meta": {"other": 1}}]));
        let legacy = list_result(Era::Legacy, modern);
        assert_eq!(legacy, json!({"tools": [{"name": "a"}, {"name": "b", "_meta": {"other": 1}}]}));
        let result = json!({"content": [], "isError": true, "_meta": {"dev.casemate/receipt": 1}});
        assert_eq!(result_for(Era::Legacy, result.clone()), result);
    }
}
