//! CGP/1: what a sandbox's port and the gateway say to each other.
//!
//! Format: docs/formats/cgp.md. JSON-RPC 2.0, one message a line, over one
//! TLS 1.3 stream with both ends authenticated. The port opens with `hello`,
//! then sends modern-era MCP requests; each `tools/call` carries its signed
//! invocation in `_meta`.

mod deny;
mod message;
mod running;

pub use deny::{Denial, DenyCode};
pub use message::{LineBuffer, LineTooLong, Message, MessageError, RpcError};
pub use running::{Cancelled, MAX_PROGRESS_MESSAGE_BYTES, Progress};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::text::{b64, b64_array, base64url};

/// The protocol's name and version, in both directions of `hello`.
pub const PROTOCOL: &str = "cgp/1";
/// The MCP revision that requests follow.
pub const MCP_VERSION: &str = "2026-07-28";
/// The longest line in either direction, its newline included.
pub const MAX_LINE_BYTES: usize = 4 * 1024 * 1024;
/// The largest attestation bundle that fits `hello`.
pub const MAX_BUNDLE_BYTES: usize = 3 * 1024 * 1024 - 4096;

/// Method names.
pub mod method {
    /// The first request on a connection.
    pub const HELLO: &str = "casemate/hello";
    /// Gateway to port: the lease's next nonce.
    pub const LEASE: &str = "casemate/lease";
    /// The tools that the sandbox's grants allow.
    pub const TOOLS_LIST: &str = "tools/list";
    /// A signed call.
    pub const TOOLS_CALL: &str = "tools/call";
    /// Gateway to port: a call goes on.
    pub const PROGRESS: &str = "notifications/progress";
    /// Port to gateway: nobody waits for a call any more.
    pub const CANCELLED: &str = "notifications/cancelled";
}

/// Keys in `_meta`.
pub mod meta {
    /// On `tools/call`: the signed invocation, base64url.
    pub const INVOCATION: &str = "dev.casemate/inv";
    /// On `tools/call`: the salt of the arguments' commitment, base64url.
    pub const SALT: &str = "dev.casemate/salt";
    /// On each tool of `tools/list`: a [`super::ToolMeta`].
    pub const TOOL: &str = "dev.casemate/tool";
    /// On each result: a [`super::ReceiptPointer`].
    pub const RECEIPT: &str = "dev.casemate/receipt";
    /// On `tools/call`: the request's own number, when its progress is wanted.
    pub const PROGRESS_TOKEN: &str = "progressToken";
    /// On each request: the MCP revision.
    pub const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
    /// On each request: the client's capabilities.
    pub const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
}

/// JSON-RPC error codes; ours lie outside the reserved range.
pub mod error_code {
    /// The message is not a request of this protocol.
    pub const INVALID_REQUEST: i64 = -32600;
    /// The method does not exist here.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters are not those of the method.
    pub const INVALID_PARAMS: i64 = -32602;
    /// The invocation's envelope is invalid.
    pub const ENVELOPE: i64 = 7101;
    /// Sequence or previous hash do not continue the chain: the sandbox is frozen.
    pub const CHAIN: i64 = 7102;
    /// The lease is over, or the sandbox was stopped.
    pub const LEASE: i64 = 7103;
    /// The invocation was seen before.
    pub const REPLAY: i64 = 7105;
    /// The key, certificate or boundary is not accepted.
    pub const IDENTITY: i64 = 7106;
    /// The gateway cannot write its log and therefore stops.
    pub const LOG: i64 = 7110;
    /// The gateway has too much to do; nothing was decided.
    pub const OVERLOAD: i64 = 7111;
}

/// The parameters of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: String,
    /// The sandbox's URI.
    pub sandbox: String,
    /// Its boot incarnation.
    pub epoch: u64,
    /// The sequence number of the last invocation that the port signed, 0 for none.
    pub last_sequence: u64,
    /// SHA-256 of that invocation's signed bytes, zeros for none.
    #[serde(with = "b64_array")]
    pub last_hash: [u8; 32],
    /// The attestation bundle whose digest the certificate names.
    #[serde(with = "b64")]
    pub bundle: Vec<u8>,
}

/// The result of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HelloReply {
    /// [`PROTOCOL`].
    pub protocol: String,
    /// The last sequence number that the gateway decided on. The port goes on
    /// from here; later envelopes of its own were never decided and are void.
    pub accepted_sequence: u64,
    /// SHA-256 of the invocation with that number. The port MUST know it.
    #[serde(with = "b64_array")]
    pub accepted_hash: [u8; 32],
    /// The lease to call under.
    pub lease: LeaseNotice,
    /// The gateway's clock in milliseconds since 1970.
    pub gateway_time_ms: u64,
    /// The digest of the gateway's tools and issuers.
    #[serde(with = "b64_array")]
    pub policy: [u8; 32],
    /// The origin of the log that keeps the records.
    pub log: String,
}

/// A lease's id, current nonce and remaining time; also the parameters of
/// `casemate/lease`, which the gateway sends before each expiry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseNotice {
    /// The lease's id, the same for the whole connection.
    #[serde(with = "b64_array")]
    pub id: [u8; 16],
    /// The nonce to use from now on.
    #[serde(with = "b64_array")]
    pub nonce: [u8; 16],
    /// For how long.
    pub ttl_ms: u64,
}

/// What `tools/list` says of a tool beside its definition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToolMeta {
    /// The digest of the pinned definition, to be put into the invocation.
    #[serde(with = "b64_array")]
    pub digest: [u8; 32],
    /// The grant that allows the tool, to be put into the invocation.
    pub grant: GrantMeta,
}

/// A grant as `tools/list` names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantMeta {
    /// The grant's id.
    #[serde(with = "b64_array")]
    pub id: [u8; 16],
    /// SHA-256 of the signed grant.
    #[serde(with = "b64_array")]
    pub digest: [u8; 32],
}

/// Where the proof of a call will be found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiptPointer {
    /// The log's origin.
    pub log: String,
    /// SHA-256 of the invocation.
    #[serde(with = "b64_array")]
    pub invocation: [u8; 32],
    /// The decision's leaf index.
    pub decision: u64,
    /// The outcome's leaf index; none for a denied call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<u64>,
    /// The salt of the result's commitment, base64url; none when no result was committed to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result_salt: Option<String>,
}

/// A `tools/list` request's parameters.
pub fn list_params() -> Value {
    json!({"_meta": base_meta()})
}

/// A `tools/call` request's parameters. `progress` is the request's number when
/// its progress is wanted.
pub fn call_params(
    tool: &str,
    arguments: Value,
    invocation: &[u8],
    salt: &[u8; 32],
    progress: Option<u64>,
) -> Value {
    let mut meta = base_meta();
    if let Some(meta) = meta.as_object_mut() {
        if let Some(token) = progress {
            meta.insert(meta::PROGRESS_TOKEN.to_owned(), token.into());
        }
        meta.insert(meta::INVOCATION.to_owned(), base64url(invocation).into());
        meta.insert(meta::SALT.to_owned(), base64url(salt).into());
    }
    json!({"name": tool, "arguments": arguments, "_meta": meta})
}

fn base_meta() -> Value {
    json!({ meta::PROTOCOL_VERSION: MCP_VERSION, meta::CLIENT_CAPABILITIES: {} })
}
