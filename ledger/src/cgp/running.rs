//! What is said about a request while it runs: progress one way, "no longer
//! wanted" the other. The member names are MCP's (2026-07-28, basic/utilities).

use serde::{Deserialize, Serialize};

/// The longest message in a progress notice, in bytes.
pub const MAX_PROGRESS_MESSAGE_BYTES: usize = 1024;

/// The parameters of `notifications/progress`, gateway to port.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Progress {
    /// The number of the request that goes on.
    pub progress_token: u64,
    /// How far it is; grows from notice to notice.
    pub progress: f64,
    /// How far it has to go, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<f64>,
    /// One sentence for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// The parameters of `notifications/cancelled`, port to gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Cancelled {
    /// The number of the request whose answer nobody waits for.
    pub request_id: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_names_are_those_of_mcp() {
        let notice = Progress { progress_token: 3, progress: 0.5, total: Some(1.0), message: None };
        let expected = json!({"progressToken": 3, "progress": 0.5, "total": 1.0});
        assert_eq!(serde_json::to_value(&notice).unwrap(), expected);
        assert_eq!(serde_json::from_value::<Progress>(expected).unwrap(), notice);
        let cancelled: Cancelled = serde_json::from_value(json!({"requestId": 9})).unwrap();
        assert_eq!(cancelled.request_id, 9);
        assert!(serde_json::from_value::<Cancelled>(json!({"requestId": "9"})).is_err());
    }
}
