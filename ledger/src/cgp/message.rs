//! One JSON-RPC message a line, read strictly.

use serde_json::{Map, Value, json};

use super::MAX_LINE_BYTES;
use crate::json::{self, JsonError};

/// One message. Requests are numbered by their sender.
#[derive(Debug, Clone, PartialEq)]
pub enum Message {
    /// A request that wants an answer.
    Request {
        /// The number that the answer repeats.
        id: u64,
        /// What is asked.
        method: String,
        /// With what; an object.
        params: Value,
    },
    /// A message that wants none.
    Notification {
        /// What is told.
        method: String,
        /// With what; an object.
        params: Value,
    },
    /// An answer.
    Response {
        /// The number of the request.
        id: u64,
        /// The result or the error.
        result: Result<Value, RpcError>,
    },
}

/// A JSON-RPC error.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct RpcError {
    /// The code; see [`super::error_code`].
    pub code: i64,
    /// One sentence for people.
    pub message: String,
    /// More, by field; null when there is none.
    pub details: Value,
}

/// Why a line is not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The line is not strict JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member of the message is not as it must be.
    #[error("message, {field}: expected {expected}")]
    Field {
        /// The member.
        field: &'static str,
        /// What it had to be.
        expected: &'static str,
    },
}

impl RpcError {
    /// An error without details.
    pub fn new(code: i64, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Value::Null }
    }
}

impl Message {
    /// A request.
    pub fn request(id: u64, method: &str, params: Value) -> Self {
        Self::Request { id, method: method.to_owned(), params }
    }

    /// A notification.
    pub fn notification(method: &str, params: Value) -> Self {
        Self::Notification { method: method.to_owned(), params }
    }

    /// The message as a line, its newline included.
    pub fn encode(&self) -> Vec<u8> {
        let value = match self {
            Self::Request { id, method, params } => {
                json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
            }
            Self::Notification { method, params } => {
                json!({"jsonrpc": "2.0", "method": method, "params": params})
            }
            Self::Response { id, result: Ok(result) } => {
                json!({"jsonrpc": "2.0", "id": id, "result": result})
            }
            Self::Response { id, result: Err(error) } => {
                let details = match &error.details {
                    Value::Null => json!({"code": error.code, "message": error.message}),
                    details => {
                        json!({"code": error.code, "message": error.message, "data": details})
                    }
                };
                json!({"jsonrpc": "2.0", "id": id, "error": details})
            }
        };
        let mut line = value.to_string().into_bytes();
        line.push(b'\n');
        line
    }

    /// Reads one line without its newline. Unknown members are refused.
    pub fn parse(line: &[u8]) -> Result<Self, MessageError> {
        let Value::Object(mut members) = json::parse(line, MAX_LINE_BYTES)? else {
            return Err(wrong("message", "an object"));
        };
        if members.remove("jsonrpc") != Some(Value::from("2.0")) {
            return Err(wrong("jsonrpc", "\"2.0\""));
        }
        let id = match members.remove("id") {
            None => None,
            Some(id) => Some(id.as_u64().ok_or(wrong("id", "an unsigned integer"))?),
        };
        let message = match (id, members.remove("method")) {
            (id, Some(method)) => Self::call(id, method, members.remove("params"))?,
            (Some(id), None) => Self::answer(id, &mut members)?,
            (None, None) => return Err(wrong("method", "a method or an id")),
        };
        if members.is_empty() { Ok(message) } else { Err(wrong("message", "no other members")) }
    }

    fn call(id: Option<u64>, method: Value, params: Option<Value>) -> Result<Self, MessageError> {
        let Value::String(method) = method else { return Err(wrong("method", "a string")) };
        let params = params.unwrap_or_else(|| json!({}));
        if !params.is_object() {
            return Err(wrong("params", "an object"));
        }
        Ok(match id {
            Some(id) => Self::Request { id, method, params },
            None => Self::Notification { method, params },
        })
    }

    fn answer(id: u64, members: &mut Map<String, Value>) -> Result<Self, MessageError> {
        let result = match (members.remove("result"), members.remove("error")) {
            (Some(result), None) => Ok(result),
            (None, Some(Value::Object(mut error))) => Err(RpcError {
                code: error
                    .get("code")
                    .and_then(Value::as_i64)
                    .ok_or(wrong("error.code", "an integer"))?,
                message: error
                    .get("message")
                    .and_then(Value::as_str)
                    .ok_or(wrong("error.message", "a string"))?
                    .to_owned(),
                details: error.remove("data").unwrap_or(Value::Null),
            }),
            _ => return Err(wrong("result", "either a result or an error object")),
        };
        Ok(Self::Response { id, result })
    }
}

fn wrong(field: &'static str, expected: &'static str) -> MessageError {
    MessageError::Field { field, expected }
}

/// Cuts a stream into lines of bounded length.
#[derive(Debug, Default)]
pub struct LineBuffer {
    bytes: Vec<u8>,
    // Bytes before this place are known to hold no newline.
    searched: usize,
}

/// A line went on beyond [`MAX_LINE_BYTES`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("line: expected at most {MAX_LINE_BYTES} bytes, got more")]
pub struct LineTooLong;

impl LineBuffer {
    /// Adds bytes as they were received.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Takes the next whole line, without its newline. The caller calls this
    /// until it gives nothing before it adds more.
    pub fn next_line(&mut self) -> Result<Option<Vec<u8>>, LineTooLong> {
        let unsearched = self.bytes.get(self.searched..).unwrap_or_default();
        let found = unsearched.iter().position(|byte| *byte == b'\n');
        match found.map(|at| self.searched + at) {
            Some(end) if end < MAX_LINE_BYTES => {
                let mut line: Vec<u8> = self.bytes.drain(..=end).collect();
                line.pop();
                self.searched = 0;
                Ok(Some(line))
            }
            None if self.bytes.len() < MAX_LINE_BYTES => {
                self.searched = self.bytes.len();
                Ok(None)
            }
            _ => Err(LineTooLong),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_read_back() {
        let details = RpcError { code: 7105, message: "replay".into(), details: json!({"a": 1}) };
        let messages = [
            Message::request(1, "tools/call", json!({"name": "x"})),
            Message::notification("casemate/lease", json!({})),
            Message::Response { id: 2, result: Ok(json!({"ok": true})) },
            Message::Response { id: 2, result: Err(RpcError::new(-32601, "no")) },
            Message::Response { id: 2, result: Err(details) },
        ];
        for message in messages {
            let line = message.encode();
            assert_eq!(Message::parse(line.strip_suffix(b"\n").unwrap()), Ok(message));
        }
    }

    #[test]
    fn anything_else_names_its_member() {
        for (line, field) in [
            ("[]", "message"),
            (r#"{"id":1,"method":"x"}"#, "jsonrpc"),
            (r#"{"jsonrpc":"2.0","id":-1,"method":"x"}"#, "id"),
            (r#"{"jsonrpc":"2.0","id":1}"#, "result"),
            (r#"{"jsonrpc":"2.0"}"#, "method"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","params":[]}"#, "params"),
            (r#"{"jsonrpc":"2.0","id":1,"method":"x","extra":0}"#, "message"),
            (r#"{"jsonrpc":"2.0","id":1,"error":{"message":"x"}}"#, "error.code"),
        ] {
            match Message::parse(line.as_bytes()) {
                Err(MessageError::Field { field: actual, .. }) => {
                    assert_eq!(actual, field, "{line}")
                }
                other => panic!("{line}: {other:?}"),
            }
        }
        let twice = br#"{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}"#;
        assert_eq!(Message::parse(twice), Err(MessageError::Json(JsonError::DuplicateKey)));
    }

    #[test]
    fn lines_are_cut_and_bounded() {
        let mut buffer = LineBuffer::default();
        buffer.extend(b"one\ntw");
        assert_eq!(buffer.next_line(), Ok(Some(b"one".to_vec())));
        assert_eq!(buffer.next_line(), Ok(None));
        buffer.extend(b"o\n\n");
        assert_eq!(buffer.next_line(), Ok(Some(b"two".to_vec())));
        assert_eq!(buffer.next_line(), Ok(Some(vec![])));
        buffer.extend(&vec![b'x'; MAX_LINE_BYTES]);
        assert_eq!(buffer.next_line(), Err(LineTooLong));
    }
}
