//! A tool's definition, as far as a call relies on it.

use serde_json::{Map, Value};

use crate::json::{self, JsonError};

/// The members of a tool's definition that are pinned. Annotations and `_meta`
/// are hints that no decision uses.
const PINNED: [&str; 5] = ["name", "title", "description", "inputSchema", "outputSchema"];

/// The pinned members of `definition`, an entry of an MCP `tools/list` result.
pub fn pinned(definition: &Map<String, Value>) -> Map<String, Value> {
    let kept = definition.iter().filter(|(key, _)| PINNED.contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// SHA-256 over the RFC 8785 form of the pinned members.
pub fn definition_digest(definition: &Map<String, Value>) -> Result<[u8; 32], JsonError> {
    Ok(crate::digest(&json::canonical(&Value::Object(pinned(definition)))?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn digest(value: Value) -> [u8; 32] {
        definition_digest(value.as_object().unwrap()).unwrap()
    }

    #[test]
    fn text_counts_and_hints_do_not() {
        let base = digest(json!({"name": "a", "description": "x", "inputSchema": {}}));
        let hinted = json!({"inputSchema": {}, "name": "a", "description": "x",
            "annotations": {"readOnlyHint": true}, "_meta": {"k": 1}});
        assert_eq!(base, digest(hinted));
        assert_ne!(base, digest(json!({"name": "a", "description": "y", "inputSchema": {}})));
        assert_ne!(base, digest(json!({"name": "a", "description": "x", "inputSchema": {"a": 1}})));
    }
}
