//! The tool server that the conformance suite asks for: tools of fixed names
//! with fixed answers. Those that would ask the client for something are not
//! here, as the gateway passes no such request on.

use std::sync::Arc;
use std::time::Duration;

use casemate_counterparties::SUITE_TOOLS;
use rmcp::handler::server::ServerHandler;
use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, JsonObject, ListToolsResult,
    PaginatedRequestParams, ProgressNotificationParam, ServerCapabilities, ServerConfig, Tool,
};
use rmcp::service::{RequestContext, RoleServer};
use rmcp::{ErrorData, serve_server};
use serde_json::{Value, json};

/// One pixel, and a sound of no samples.
const PNG: &str = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
const WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";

struct Suite;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    serve_server(Suite, rmcp::transport::stdio()).await?.waiting().await?;
    Ok(())
}

impl ServerHandler for Suite {
    fn get_info(&self) -> ServerConfig {
        ServerConfig::new(ServerCapabilities::builder().enable_tools().build())
    }

    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        Ok(ListToolsResult::with_all_items(SUITE_TOOLS.iter().copied().map(tool).collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        let name = &*request.name;
        if name == "test_tool_with_progress" {
            steps(&context).await;
        }
        let content =
            content(name).ok_or_else(|| ErrorData::invalid_params("no such tool", None))?;
        let result = json!({"content": content, "isError": name == "test_error_handling"});
        let result: CallToolResult = serde_json::from_value(result)
            .map_err(|error| ErrorData::internal_error(error.to_string(), None))?;
        Ok(result.into())
    }
}

fn content(name: &str) -> Option<Value> {
    let text = |text: &str| json!({"type": "text", "text": text});
    let image = json!({"type": "image", "data": PNG, "mimeType": "image/png"});
    let resource = |uri: &str, kind: &str, text: &str| json!({"type": "resource", "resource": {"uri": uri, "mimeType": kind, "text": text}});
    Some(match name {
        "test_simple_text" => json!([text("This is a simple text response for testing.")]),
        "test_image_content" => json!([image]),
        "test_audio_content" => json!([{"type": "audio", "data": WAV, "mimeType": "audio/wav"}]),
        "test_embedded_resource" => {
            let words = "This is an embedded resource content.";
            json!([resource("test://embedded-resource", "text/plain", words)])
        }
        "test_multiple_content_types" => {
            let data = r#"{"test":"data","value":123}"#;
            let data = resource("test://mixed-content-resource", "application/json", data);
            json!([text("Multiple content types test:"), image, data])
        }
        "test_error_handling" => {
            json!([text("This tool intentionally returns an error for testing")])
        }
        "test_tool_with_progress" => json!([text("done")]),
        "json_schema_2020_12_tool" => json!([text("fits")]),
        _ => return None,
    })
}

/// Nothing, half and all of it, as the suite waits for.
async fn steps(context: &RequestContext<RoleServer>) {
    let Some(token) = context.meta.get_progress_token() else { return };
    for done in [0.0, 50.0, 100.0] {
        let notice = ProgressNotificationParam::new(token.clone(), done).with_total(100.0);
        let _ = context.peer.notify_progress(notice).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn tool(name: &'static str) -> Tool {
    let schema = match name {
        "json_schema_2020_12_tool" => schema_2020_12(),
        _ => json!({"type": "object"}),
    };
    let schema: JsonObject = schema.as_object().cloned().unwrap_or_default();
    Tool::new(name, "For the conformance suite.", Arc::new(schema))
}

/// One of each keyword that has to come through unchanged.
fn schema_2020_12() -> Value {
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {"address": {
            "$anchor": "addressDef",
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
        }},
        "properties": {
            "name": {"type": "string"},
            "address": {"$ref": "#/$defs/address"},
            "contactMethod": {"type": "string", "enum": ["phone", "email"]},
            "phone": {"type": "string"},
            "email": {"type": "string"},
        },
        "allOf": [{"anyOf": [{"required": ["phone"]}, {"required": ["email"]}]}],
        "if": {"properties": {"contactMethod": {"const": "phone"}}, "required": ["contactMethod"]},
        "then": {"required": ["phone"]},
        "else": {"required": ["email"]},
        "additionalProperties": false,
    })
}
