//! A verifier that checks what the guest binds and believes the rest.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use casemate_attestation::release::{SECRET_INFO, secret_aad};
use casemate_attestation::{Binding, Evidence, ReleaseProof};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{Hpke, HpkePublicKey};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;

use crate::pki::{Ca, SANDBOX};

pub(crate) const BUNDLE: &[u8] = b"attestation bundle";
const NONCE: [u8; 32] = [5; 32];

/// What the stand-in does wrong, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Certifies another key than the guest's.
    OtherKey,
    /// Certifies another epoch.
    OtherEpoch,
    /// Sends another bundle than the certificate names.
    OtherBundle,
    /// Seals secrets under another name.
    OtherSecret,
    /// Certifies for some seconds only.
    ShortLife,
    /// Has too much to do after the first certificate.
    Busy,
    /// Certifies once, and refuses then.
    Refuses,
    /// Certifies once, and says nothing then.
    Silent,
    /// Says of the second challenge that it ran out.
    Expired,
    /// Has too much to do for so many challenges.
    BusyAtFirst(u32),
    /// Refuses the first challenge already.
    RefusesAtOnce,
}

pub(crate) struct Verifier {
    pub(crate) issuer: Ca,
    pub(crate) fault: Fault,
    /// The keys of the guest that attested.
    keys: Mutex<Option<([u8; 32], [u8; 32])>>,
    /// How often it did wrong.
    times: AtomicU32,
}

impl Verifier {
    pub(crate) fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            issuer: Ca::new(),
            fault,
            keys: Mutex::new(None),
            times: AtomicU32::new(0),
        })
    }

    /// Serves one connection.
    pub(crate) async fn serve<S>(self: Arc<Self>, stream: S, acceptor: TlsAcceptor)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Ok(stream) = acceptor.accept(stream).await else { return };
        let exporter = |label| stream.get_ref().1.export_keying_material([0; 32], label, None);
        let attest: [u8; 32] = exporter(b"EXPORTER-casemate-attest-v1").unwrap();
        let release: [u8; 32] = exporter(b"EXPORTER-casemate-release-v1").unwrap();
        let service = hyper::service::service_fn(|request: Request<Incoming>| {
            let this = Arc::clone(&self);
            async move {
                let path = request.uri().path().to_owned();
                let body = request.into_body().collect().await?.to_bytes();
                let body = serde_json::from_slice(&body).unwrap();
                if this.fault == Fault::Silent && this.has_certified() {
                    std::future::pending::<()>().await;
                }
                let (status, answer) = this.answer(&path, &body, attest, release);
                let mut response = Response::new(Full::new(Bytes::from(answer.to_string())));
                *response.status_mut() = StatusCode::from_u16(status).unwrap();
                Ok::<_, hyper::Error>(response)
            }
        });
        let connection = hyper::server::conn::http1::Builder::new();
        let _ = connection.serve_connection(TokioIo::new(stream), service).await;
    }

    fn answer(
        &self,
        path: &str,
        body: &Value,
        attest: [u8; 32],
        release: [u8; 32],
    ) -> (u16, Value) {
        let denial = |code: &str| json!({"code": code, "rule": "the stand-in's"});
        match path {
            "/v1/challenge" if self.is_busy() => (503, denial("busy")),
            "/v1/challenge" if self.refuses() => (403, denial("identity-revoked")),
            "/v1/challenge" => (200, json!({"nonce": B64.encode(NONCE), "expires_at": 1})),
            "/v1/attest" if self.expires() => (403, denial("nonce-expired")),
            "/v1/attest" => (200, self.attest(body, attest)),
            "/v1/secrets/high" => (
                403,
                json!({"code": "risk-refused", "status": 403, "rule": "risk", "expected": "tee",
                    "actual": "microvm", "hint": "use a TEE"}),
            ),
            path => (200, self.release(path.strip_prefix("/v1/secrets/").unwrap(), body, release)),
        }
    }

    /// Whether the challenge that is answered runs out: once, after the first certificate.
    fn expires(&self) -> bool {
        self.fault == Fault::Expired
            && self.has_certified()
            && self.times.fetch_add(1, Ordering::Relaxed) == 0
    }

    fn is_busy(&self) -> bool {
        match self.fault {
            Fault::Busy => self.has_certified(),
            Fault::BusyAtFirst(times) => self.times.fetch_add(1, Ordering::Relaxed) < times,
            _ => false,
        }
    }

    fn refuses(&self) -> bool {
        match self.fault {
            Fault::Refuses => self.has_certified(),
            fault => fault == Fault::RefusesAtOnce,
        }
    }

    fn has_certified(&self) -> bool {
        self.keys.lock().unwrap().is_some()
    }

    fn attest(&self, body: &Value, channel: [u8; 32]) -> Value {
        let identity_key: [u8; 32] = bytes(&body["identity_key"]).try_into().unwrap();
        let sealing_key: [u8; 32] = bytes(&body["sealing_key"]).try_into().unwrap();
        let epoch = body["epoch"].as_u64().unwrap();
        let nonce = bytes(&body["nonce"]);
        assert_eq!((nonce.as_slice(), body["task"].as_str()), (&NONCE[..], Some("task")));
        let binding = Binding { nonce, identity_key, sealing_key, channel, epoch, devices: None };
        let evidence = Evidence::decode(&bytes(&body["evidence"])).unwrap();
        // The stand-in for the host answers with the report data itself.
        for item in &evidence.items {
            assert_eq!(item.evidence, binding.report_data());
        }
        *self.keys.lock().unwrap() = Some((identity_key, sealing_key));
        let (key, epoch) = match self.fault {
            Fault::OtherKey => ([1; 32], epoch),
            Fault::OtherEpoch => (identity_key, epoch + 1),
            _ => (identity_key, epoch),
        };
        let life = Duration::from_secs(if self.fault == Fault::ShortLife { 5 } else { 900 });
        let bundle = if self.fault == Fault::OtherBundle { b"another".as_slice() } else { BUNDLE };
        json!({"certificate_chain": self.issuer.identity(&key, epoch, BUNDLE, life), "sandbox": SANDBOX,
            "bundle": B64.encode(bundle), "result": "-", "boundary": "microvm", "anchor": "test",
            "hardware": "model"})
    }

    fn release(&self, name: &str, body: &Value, channel: [u8; 32]) -> Value {
        let (identity_key, sealing_key) = self.keys.lock().unwrap().unwrap();
        let proof = ReleaseProof::verify(&bytes(&body["proof"]), &identity_key).unwrap();
        let expected = ReleaseProof { secret: name.into(), channel, sandbox: SANDBOX.into() };
        assert_eq!(proof, expected);
        let name = if self.fault == Fault::OtherSecret { "other" } else { name };
        let suite: &dyn Hpke = DH_KEM_X25519_HKDF_SHA256_AES_256;
        let to = HpkePublicKey(sealing_key.to_vec());
        let aad = secret_aad(name, SANDBOX);
        let (enc, ciphertext) = suite.seal(SECRET_INFO, &aad, b"the secret", &to).unwrap();
        json!({"lease": "l1", "expires_at": 2,
            "sealed": {"enc": B64.encode(enc.0), "ciphertext": B64.encode(ciphertext)}})
    }
}

fn bytes(value: &Value) -> Vec<u8> {
    B64.decode(value.as_str().unwrap()).unwrap()
}
