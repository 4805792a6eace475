//! A gateway that checks each invocation against the chain and echoes the call.

use casemate_ledger::args::{Commitment, canonical};
use casemate_ledger::cgp::{
    GrantMeta, Hello, HelloReply, LeaseNotice, LineBuffer, Message, PROTOCOL, RpcError, ToolMeta,
    error_code, meta, method,
};
use casemate_ledger::text::from_base64url;
use casemate_ledger::{Invocation, Record};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_rustls::TlsAcceptor;

pub(crate) const DIGEST: [u8; 32] = [6; 32];
const GRANT: GrantMeta = GrantMeta { id: [4; 16], digest: [5; 32] };

/// A call that is never decided: its stream ends when it is cancelled.
pub(crate) const ABANDONED: &str = "abandoned";

/// The stand-in's view of one sandbox.
pub(crate) struct Gateway {
    pub(crate) key: [u8; 32],
    pub(crate) ttl_ms: u64,
    pub(crate) accepted: (u64, [u8; 32]),
    nonce: u8,
    /// Calls that it was asked to lose, which it does once each.
    lost: Vec<String>,
    /// How many of the next hellos are refused, and with which code; 0 hangs up.
    pub(crate) refusals: (u64, i64),
}

/// What follows from a request.
enum Next {
    Answer(Result<Value, RpcError>),
    /// Progress now, the answer when the request is cancelled.
    Hold,
    HangUp,
}

impl Gateway {
    pub(crate) fn new(key: [u8; 32]) -> Self {
        Self {
            key,
            ttl_ms: 60_000,
            accepted: (0, [0; 32]),
            nonce: 1,
            lost: Vec::new(),
            refusals: (0, 0),
        }
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve<S>(&mut self, stream: S, acceptor: TlsAcceptor)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Ok(mut stream) = acceptor.accept(stream).await else { return };
        let mut lines = LineBuffer::default();
        let mut chunk = [0; 4096];
        loop {
            while let Some(line) = lines.next_line().unwrap() {
                let Some(out) = self.line(&line) else { return };
                if stream.write_all(&out).await.is_err() {
                    return;
                }
                let _ = stream.flush().await;
            }
            match stream.read(&mut chunk).await {
                Ok(length @ 1..) => lines.extend(&chunk[..length]),
                _ => return,
            }
        }
    }

    /// What is sent after `line`, or nothing more at all.
    fn line(&mut self, line: &[u8]) -> Option<Vec<u8>> {
        let (id, next) = match Message::parse(line).unwrap() {
            Message::Request { id, method, params } => (id, self.answer(&method, &params)),
            Message::Notification { method, params } if method == method::CANCELLED => {
                let id = params["requestId"].as_u64().unwrap();
                let next = match self.lost.iter().any(|lost| lost == ABANDONED) {
                    true => Next::HangUp,
                    false => Next::Answer(Ok(json!({"content": [], "isError": true}))),
                };
                (id, next)
            }
            other => panic!("{other:?}"),
        };
        // A new lease before each answer: the port takes it on the way.
        self.nonce = self.nonce.wrapping_add(1);
        let lease = serde_json::to_value(self.lease()).unwrap();
        let notice = Message::notification(method::LEASE, lease).encode();
        let out = match next {
            Next::Answer(result) => Message::Response { id, result },
            Next::Hold => Message::notification(
                method::PROGRESS,
                json!({"progressToken": id, "progress": 0.5, "total": 1.0}),
            ),
            Next::HangUp => return None,
        };
        Some([notice, out.encode()].concat())
    }

    fn lease(&self) -> LeaseNotice {
        LeaseNotice { id: [1; 16], nonce: [self.nonce; 16], ttl_ms: self.ttl_ms }
    }

    fn answer(&mut self, method: &str, params: &Value) -> Next {
        Next::Answer(match method {
            method::HELLO if self.refusals.0 > 0 => {
                self.refusals.0 -= 1;
                if self.refusals.1 == 0 {
                    return Next::HangUp;
                }
                Err(RpcError::new(self.refusals.1, "not now"))
            }
            method::HELLO => {
                let hello: Hello = serde_json::from_value(params.clone()).unwrap();
                assert_eq!(hello.protocol.as_str(), PROTOCOL);
                assert!(hello.last_sequence >= self.accepted.0 || self.accepted.0 == 7);
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
            method::TOOLS_CALL => return self.call(params),
            other => panic!("{other}"),
        })
    }

    fn call(&mut self, params: &Value) -> Next {
        let field = |name: &str| from_base64url(params["_meta"][name].as_str().unwrap()).unwrap();
        let signed = Invocation::verify(&field(meta::INVOCATION), &self.key).unwrap();
        let salt: [u8; 32] = field(meta::SALT).try_into().unwrap();
        let args = canonical(params.get("arguments")).unwrap();
        assert_eq!(signed.arguments, Commitment::to_args(&salt, &args));
        if signed.sequence > self.accepted.0 + 1 {
            return Next::Answer(Err(RpcError::new(error_code::CHAIN, "not the next")));
        }
        assert_eq!((signed.sequence, signed.previous), (self.accepted.0 + 1, self.accepted.1));
        // Calls that were sent together carry one nonce.
        assert!(self.nonce.wrapping_sub(signed.lease.nonce[0]) <= 4);
        assert_eq!(signed.tool, params["name"].as_str().unwrap());
        let known = signed.tool == "echo";
        assert_eq!(signed.grant.map(|grant| grant.id), known.then_some(GRANT.id));
        assert_eq!(signed.tool_digest, known.then_some(DIGEST));
        let arguments = &params["arguments"];
        if let Some(code) = arguments["fail"].as_i64() {
            if arguments["decided"] == true {
                self.accepted = (signed.sequence, signed.digest());
            }
            return Next::Answer(Err(RpcError::new(code, "as asked")));
        }
        if let Some(code) = arguments["refuse"].as_i64() {
            self.refusals = (arguments["times"].as_u64().unwrap(), code);
            self.accepted = (signed.sequence, signed.digest());
            return Next::HangUp;
        }
        let lose = arguments["lose"].as_str().unwrap_or_default();
        let again = self.lost.iter().any(|lost| lost == lose);
        assert!(lose != ABANDONED || !again, "a call that nobody waits for was sent again");
        let decided = !matches!(lose, "always" | ABANDONED) && (lose != "call" || again);
        if decided {
            self.accepted = (signed.sequence, signed.digest());
        } else {
            self.lost.push(lose.to_owned());
        }
        match arguments["hold"].as_bool() {
            _ if lose == ABANDONED => Next::Hold,
            _ if lose == "answer" || !decided => Next::HangUp,
            Some(true) => Next::Hold,
            _ => Next::Answer(Ok(json!({"content": [], "structuredContent": arguments}))),
        }
    }
}
