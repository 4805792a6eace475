//! A verifier in a directory of its own, and guests that talk to it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::SystemTime;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_attestation::binding::EXPORTER_LABEL;
use casemate_attestation::release::{RELEASE_EXPORTER_LABEL, SECRET_INFO, secret_aad};
use casemate_attestation::{
    Binding, Boundary, EndorsementKind, Evidence, EvidenceItem, EvidenceKind, HostClaim,
    LaunchDigests, Property, ReleaseProof, Risk, UnixTime,
};
use casemate_model::{PspConfig, PspModel};
use casemate_verifier::{Clock, Command, Config, Reply, Service};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use rustls::crypto::aws_lc_rs::hpke::DH_KEM_X25519_HKDF_SHA256_AES_256;
use rustls::crypto::hpke::{EncapsulatedSecret, Hpke, HpkePrivateKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub(crate) const MEASUREMENT: [u8; 48] = [0x5a; 48];
pub(crate) const LAUNCH: LaunchDigests =
    LaunchDigests { kernel: [1; 32], initrd: [2; 32], cmdline: [3; 32] };

/// RSA keys take seconds to make: one model for all tests.
pub(crate) static PSP: LazyLock<PspModel> =
    LazyLock::new(|| PspModel::generate(PspConfig::milan(UnixTime(seconds() - 86_400))).unwrap());
pub(crate) static HOST: LazyLock<Ed25519KeyPair> =
    LazyLock::new(|| Ed25519KeyPair::generate().unwrap());

/// A running verifier, its clock and its directory.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) service: Service,
    ahead: Arc<AtomicU64>,
}

impl World {
    pub(crate) async fn new() -> Self {
        Self::with(|text| text).await
    }

    /// A verifier whose configuration text went through `edit`.
    pub(crate) async fn with(edit: impl FnOnce(String) -> String) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
        write("policy.toml", "name = \"test\"\n");
        let references = format!(
            "[[image]]\nlabel = \"demo\"\nproperties = [\"mediated\"]\nsnp_measurements = [\"{}\"]\n\
             [[image.launch]]\nkernel = \"{}\"\ninitrd = \"{}\"\ncmdline = \"{}\"\n",
            hex(&MEASUREMENT),
            hex(&LAUNCH.kernel),
            hex(&LAUNCH.initrd),
            hex(&LAUNCH.cmdline),
        );
        write("references.toml", &references);
        let anchors = format!(
            "vendor = []\n[[host]]\nname = \"host-1\"\ned25519 = \"{}\"\n{}",
            hex(HOST.public_key().as_ref()),
            PSP.anchor_toml("test model"),
        );
        write("trust.toml", &anchors);
        write("verifier.toml", &edit(CONFIG.to_owned()));
        let ahead = Arc::new(AtomicU64::new(0));
        let service = start(&dir, &ahead).await;
        Self { dir, service, ahead }
    }

    /// The same verifier after a restart.
    pub(crate) async fn restarted(self) -> Self {
        let Self { dir, service, ahead } = self;
        service.stop().await;
        let service = start(&dir, &ahead).await;
        Self { dir, service, ahead }
    }

    pub(crate) fn now(&self) -> UnixTime {
        UnixTime(seconds() + self.ahead.load(Ordering::Relaxed))
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.ahead.fetch_add(seconds, Ordering::Relaxed);
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.service.address().unwrap()
    }

    /// Asks as the operator does.
    pub(crate) async fn operator(
        &self,
        command: Command,
    ) -> Result<Reply, casemate_verifier::AdminError> {
        let socket = self.path("admin.sock");
        tokio::task::spawn_blocking(move || casemate_verifier::call(&socket, &command))
            .await
            .unwrap()
    }

    pub(crate) async fn put_secret(&self, name: &str, risk: Risk, value: &[u8]) {
        let done = self.operator(Command::put_secret(name, risk, 60, value)).await;
        assert_eq!(done.unwrap(), Reply::Done);
    }

    pub(crate) async fn session(&self) -> Session {
        Session::connect(self).await
    }
}

async fn start(dir: &tempfile::TempDir, ahead: &Arc<AtomicU64>) -> Service {
    let config = Config::load(&dir.path().join("verifier.toml")).unwrap();
    let ahead = ahead.clone();
    let clock = Clock::new(move || UnixTime(seconds() + ahead.load(Ordering::Relaxed)));
    Service::start(config, clock).await.unwrap()
}

pub(crate) fn seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

const CONFIG: &str = r#"
listen = "127.0.0.1:0"
server_name = "verifier.test.internal"
trust_domain = "test.internal"
tenant = "acme"
audience = "casemate-gateway"
state_dir = "state"
admin_socket = "admin.sock"
policy_file = "policy.toml"
reference_value_files = ["references.toml"]
trust_anchors_file = "trust.toml"

[[task]]
name = "demo"
risk = "medium"
secrets = ["low-secret", "medium-secret", "high-secret", "absent-secret"]

[[task]]
name = "trading"
risk = "high"

[limits]
evidence_bytes = 65536
"#;

/// One TLS connection to the verifier.
pub(crate) struct Session {
    http: SendRequest<Full<Bytes>>,
    pub(crate) attest: [u8; 32],
    pub(crate) release: [u8; 32],
}

impl Session {
    async fn connect(world: &World) -> Self {
        let stream = tls(world).await;
        let export = |label| stream.get_ref().1.export_keying_material([0; 32], label, None);
        let (attest, release) =
            (export(EXPORTER_LABEL).unwrap(), export(RELEASE_EXPORTER_LABEL).unwrap());
        let (http, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self { http, attest, release }
    }

    pub(crate) async fn send(&mut self, method: &str, path: &str, body: Vec<u8>) -> (u16, Value) {
        let request = hyper::Request::builder()
            .method(method)
            .uri(path)
            .header("host", "verifier.test.internal")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        self.http.ready().await.unwrap();
        let response = self.http.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&bytes).unwrap())
    }

    pub(crate) async fn post(&mut self, path: &str, body: &Value) -> (u16, Value) {
        self.send("POST", path, serde_json::to_vec(body).unwrap()).await
    }

    pub(crate) async fn nonce(&mut self) -> Vec<u8> {
        let (status, answer) = self.post("/v1/challenge", &json!({})).await;
        assert_eq!(status, 200, "{answer}");
        URL_SAFE_NO_PAD.decode(answer["nonce"].as_str().unwrap()).unwrap()
    }

    /// Attests `guest` as it should be done.
    pub(crate) async fn attest(&mut self, world: &World, guest: &Guest) -> (u16, Value) {
        let nonce = self.nonce().await;
        let body = guest.attestation(&guest.binding(&nonce, self), world.now());
        self.post("/v1/attest", &body).await
    }

    /// Asks for a secret as it should be done.
    pub(crate) async fn secret(&mut self, guest: &Guest, name: &str) -> (u16, Value) {
        let proof = guest.proof(name, self.release);
        self.post(&format!("/v1/secrets/{name}"), &json!({"proof": encode(&proof)})).await
    }
}

/// A TLS stream to the verifier, its CA pinned.
pub(crate) async fn tls(world: &World) -> TlsStream<TcpStream> {
    let tcp = TcpStream::connect(world.address()).await.unwrap();
    let name = ServerName::try_from("verifier.test.internal").unwrap();
    connector(world).connect(name, tcp).await.unwrap()
}

pub(crate) fn connector(world: &World) -> TlsConnector {
    let ca = CertificateDer::from_pem_file(world.path("state/tls-ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

/// A sandbox: its keys, and what its hardware and host say of it.
pub(crate) struct Guest {
    pub(crate) identity: Ed25519KeyPair,
    pub(crate) sealing: (Vec<u8>, HpkePrivateKey),
    pub(crate) task: String,
    pub(crate) epoch: u64,
    pub(crate) measurement: [u8; 48],
    pub(crate) host: String,
    pub(crate) host_key: Ed25519KeyPair,
    pub(crate) claim_age: u64,
}

impl Guest {
    pub(crate) fn new() -> Self {
        let (public, private) = DH_KEM_X25519_HKDF_SHA256_AES_256.generate_key_pair().unwrap();
        let pkcs8 = HOST.to_pkcs8().unwrap();
        Self {
            identity: Ed25519KeyPair::generate().unwrap(),
            sealing: (public.0, private),
            task: "demo".to_owned(),
            epoch: 1,
            measurement: MEASUREMENT,
            host: "host-1".to_owned(),
            host_key: Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap(),
            claim_age: 0,
        }
    }

    pub(crate) fn identity_key(&self) -> [u8; 32] {
        public(&self.identity)
    }

    pub(crate) fn sandbox(&self) -> String {
        let id = casemate_attestation::cose::KeyId::of(&self.identity_key());
        format!("spiffe://test.internal/acme/sb/{id}")
    }

    pub(crate) fn binding(&self, nonce: &[u8], session: &Session) -> Binding {
        Binding {
            nonce: nonce.to_vec(),
            identity_key: self.identity_key(),
            sealing_key: self.sealing.0.as_slice().try_into().unwrap(),
            channel: session.attest,
            epoch: self.epoch,
            devices: None,
        }
    }

    /// The evidence that carries `binding`: a report of the model, the host's claim.
    pub(crate) fn evidence(&self, binding: &Binding, now: UnixTime) -> Evidence {
        let report_data = binding.report_data();
        let claim = HostClaim {
            host: self.host.clone(),
            machine: [7; 16],
            boundary: Boundary::MicroVm,
            properties: [Property::OwnKernel, Property::Mediated].into_iter().collect(),
            backend: "test".to_owned(),
            launch: LAUNCH,
            report_data,
            issued_at: UnixTime(now.0 - self.claim_age),
        };
        let claim = claim.sign(&public(&self.host_key), |message| sign(&self.host_key, message));
        let report = PSP.report(&report_data, &self.measurement).unwrap().to_vec();
        let item = |kind, evidence, endorsements| EvidenceItem { kind, evidence, endorsements };
        let table = vec![(EndorsementKind::SnpCertTable, PSP.cert_table())];
        Evidence {
            items: vec![
                item(EvidenceKind::SnpReport, report, table),
                item(EvidenceKind::HostClaim, claim, vec![]),
            ],
        }
    }

    /// The body of an attestation.
    pub(crate) fn attestation(&self, binding: &Binding, now: UnixTime) -> Value {
        json!({
            "nonce": encode(&binding.nonce),
            "evidence": encode(&self.evidence(binding, now).encode()),
            "identity_key": encode(&binding.identity_key),
            "sealing_key": encode(&binding.sealing_key),
            "epoch": binding.epoch,
            "task": self.task,
        })
    }

    pub(crate) fn proof(&self, secret: &str, channel: [u8; 32]) -> Vec<u8> {
        let proof = ReleaseProof { secret: secret.to_owned(), channel, sandbox: self.sandbox() };
        proof.sign(&self.identity_key(), |message| sign(&self.identity, message))
    }

    /// Opens a released secret.
    pub(crate) fn open(&self, name: &str, released: &Value) -> Vec<u8> {
        let part = |part: &str| decode(&released["sealed"][part]);
        let aad = secret_aad(name, &self.sandbox());
        DH_KEM_X25519_HKDF_SHA256_AES_256
            .open(
                &EncapsulatedSecret(part("enc")),
                SECRET_INFO,
                &aad,
                &part("ciphertext"),
                &HpkePrivateKey::from(self.sealing.1.secret_bytes().to_vec()),
            )
            .unwrap()
    }
}

pub(crate) fn public(key: &Ed25519KeyPair) -> [u8; 32] {
    key.public_key().as_ref().try_into().unwrap()
}

pub(crate) fn sign(key: &Ed25519KeyPair, message: &[u8]) -> [u8; 64] {
    key.sign(message).as_ref().try_into().unwrap()
}

pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

pub(crate) fn decode(text: &Value) -> Vec<u8> {
    URL_SAFE_NO_PAD.decode(text.as_str().unwrap()).unwrap()
}

/// Checks that an answer is the denial `code`, explained, and returns it.
pub(crate) fn denied((status, answer): (u16, Value), expected_status: u16, code: &str) -> Value {
    assert_eq!((status, &answer["code"]), (expected_status, &json!(code)), "{answer:#}");
    assert_eq!(answer["status"], json!(status));
    for field in ["rule", "expected", "actual", "hint"] {
        assert!(answer[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {answer:#}");
    }
    answer
}

/// The failed rules of a denial.
pub(crate) fn failed(denial: &Value) -> Vec<&str> {
    let checks = denial["checks"].as_array().unwrap().iter();
    let failed = checks.filter(|check| check["outcome"] == "fail");
    failed.map(|check| check["rule"].as_str().unwrap()).collect()
}
