//! A gateway that checks each invocation against the chain and echoes the call.

use casemate_ledger::args::{Commitment, canonical};
use casemate_ledger::cgp::{
    GrantMeta, Hello, HelloReply, LeaseNotice, LineBuffer, Message, PROTOCOL, RpcError, ToolMeta,
    meta, method,
};
use casemate_ledger::text::from_base64url;
use casemate_ledger::{Invocation, Record};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

pub(crate) const DIGEST: [u8; 32] = [6; 32];
const GRANT: GrantMeta = GrantMeta { id: [4; 16], digest: [5; 32] };

/// The stand-in's view of one sandbox.
pub(crate) struct Gateway {
    pub(crate) key: [u8; 32],
    pub(crate) ttl_ms: u64,
    pub(crate) accepted: (u64, [u8; 32]),
    nonce: u8,
}

impl Gateway {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self { key, ttl_ms: 60_000, accepted: (0, [0; 32]), nonce: 1 }
    }

    /// Serves one connection to its end and gives the last accepted number.
    pub(crate) async fn serve<S>(mut self, stream: S, acceptor: TlsAcceptor) -> u64
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Ok(mut stream) = acceptor.accept(stream).await else { return 0 };
        let mut lines = LineBuffer::default();
        let mut chunk = [0; 4096];
        loop {
            while let Some(line) = lines.next_line().unwrap() {
                let Message::Request { id, method, params } = Message::parse(&line).unwrap() else {
                    panic!("expected a request")
                };
                let result = self.answer(&method, &params);
                // A new lease before each answer: the port takes it on the way.
                self.nonce += 1;
                let lease = serde_json::to_value(self.lease()).unwrap();
                let notice = Message::notification(method::LEASE, lease).encode();
                let answer = Message::Response { id, result }.encode();
                if stream.write_all(&[notice, answer].concat()).await.is_err() {
                    return self.accepted.0;
                }
                let _ = stream.flush().await;
            }
            match stream.read(&mut chunk).await {
                Ok(length @ 1..) => lines.extend(&chunk[..length]),
                _ => return self.accepted.0,
            }
        }
    }

    fn lease(&self) -> LeaseNotice {
        LeaseNotice { id: [1; 16], nonce: [self.nonce; 16], ttl_ms: self.ttl_ms }
    }

    fn answer(&mut self, method: &str, params: &Value) -> Result<Value, RpcError> {
        match method {
            method::HELLO => {
                let hello: Hello = serde_json::from_value(params.clone()).unwrap();
                assert_eq!((hello.protocol.as_str(), hello.last_sequence), (PROTOCOL, 0));
                assert_eq!(hello.bundle, crate::verifier::BUNDLE);
                Ok(serde_json::to_value(HelloReply {
                    protocol: PROTOCOL.to_owned(),
                    accepted_sequence: self.accepted.0,
                    accepted_hash: self.accepted.1,
                    lease: self.lease(),
                    gateway_time_ms: 1,
                    policy: [0; 32],
                    log: "log.test".to_owned(),
                })
                .unwrap())
            }
            method::TOOLS_LIST => {
                let tool = serde_json::to_value(ToolMeta { digest: DIGEST, grant: GRANT }).unwrap();
                Ok(json!({"tools": [{"name": "echo", "inputSchema": {"type": "object"},
                    "_meta": {(meta::TOOL): tool}}]}))
            }
            method::TOOLS_CALL => self.call(params),
            other => panic!("{other}"),
        }
    }

    fn call(&mut self, params: &Value) -> Result<Value, RpcError> {
        let field = |name: &str| from_base64url(params["_meta"][name].as_str().unwrap()).unwrap();
        let signed = Invocation::verify(&field(meta::INVOCATION), &self.key).unwrap();
        let salt: [u8; 32] = field(meta::SALT).try_into().unwrap();
        let args = canonical(params.get("arguments")).unwrap();
        assert_eq!(signed.arguments, Commitment::to_args(&salt, &args));
        assert_eq!((signed.sequence, signed.previous), (self.accepted.0 + 1, self.accepted.1));
        assert_eq!(signed.lease.nonce, [self.nonce; 16]);
        assert_eq!(signed.tool, params["name"].as_str().unwrap());
        let known = signed.tool == "echo";
        assert_eq!(signed.grant.map(|grant| grant.id), known.then_some(GRANT.id));
        assert_eq!(signed.tool_digest, known.then_some(DIGEST));
        match params["arguments"]["fail"].as_i64() {
            Some(code) => Err(RpcError::new(code, "as asked")),
            None => {
                self.accepted = (signed.sequence, signed.digest());
                Ok(json!({"content": [], "structuredContent": params["arguments"]}))
            }
        }
    }
}
