//! A gateway in this process, a verifier's CA, and ports that speak CGP over
//! real TLS.

#![allow(dead_code, clippy::allow_attributes, reason = "each test file uses its own part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail the test"
)]
#![allow(unreachable_pub, reason = "a module of each test file")]

pub mod audited;
pub mod people;
pub mod scene;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_attestation::cose::KeyId;
use casemate_attestation::identity::IDENTITY_EXTENSION_OID;
use casemate_attestation::{Boundary, IdentityClaims, Property, Risk, UnixTime};
use casemate_gateway::{Config, ConfigError, Error, Gateway, SigningKey, sign_grant};
use casemate_ledger::args::{self, Commitment};
use casemate_ledger::cgp::{
    self, Hello, HelloReply, LeaseNotice, LineBuffer, Message, Progress, RpcError, ToolMeta, meta,
    method,
};
use casemate_ledger::{
    BoundaryStatement, Budgets, Clause, Grant, GrantRef, Invocation, Lease, Record, TimeSource,
    text,
};
use casemate_ledger_store::StoreError;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

pub const BUNDLE: &[u8] = b"an attestation bundle";

/// The verifier's identity CA.
pub struct Authority {
    pub pem: String,
    pub der: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "identities");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().to_vec());
        let issuer = Issuer::from_ca_cert_der(certificate.der(), key).unwrap();
        Self { pem, der, issuer }
    }

    /// The same key and claims with another certificate.
    pub fn renewed(&self, old: Credential) -> Credential {
        let pair = KeyPair::try_from(&old.key.0[..]).unwrap();
        let claims = old.claims.clone();
        let new = self.identity_of(&pair, claims, |params| params.serial_number = Some(2.into()));
        Credential { bundle: old.bundle, ..new }
    }

    /// A new key with its certificate.
    pub fn identity(&self, claims: IdentityClaims) -> Credential {
        self.identity_with(claims, |_| ())
    }

    pub fn identity_with(
        &self,
        claims: IdentityClaims,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Credential {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        self.identity_of(&pair, claims, change)
    }

    pub fn identity_of(
        &self,
        pair: &KeyPair,
        claims: IdentityClaims,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Credential {
        let seed = aws_lc_rs_key(pair);
        let public: [u8; 32] = seed.public();
        let mut params = CertificateParams::default();
        let sandbox = format!("spiffe://casemate.internal/demo/sb/{}", KeyId::of(&public));
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(sandbox.clone().try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&IDENTITY_EXTENSION_OID, claims.encode())];
        change(&mut params);
        let certificate = params.signed_by(pair, &self.issuer).unwrap();
        let bundle = BUNDLE.to_vec();
        Credential { certificate: certificate.der().clone(), key: seed, sandbox, claims, bundle }
    }
}

pub struct Credential {
    pub certificate: CertificateDer<'static>,
    pub key: Key,
    pub sandbox: String,
    pub claims: IdentityClaims,
    pub bundle: Vec<u8>,
}

impl Credential {
    /// Keeps it, and the authority that vouches for it, for another process.
    pub fn save(&self, house: &House) {
        let write = |name: &str, bytes: &[u8]| {
            std::fs::write(house.directory.join(name), bytes).unwrap();
        };
        write("kept.certificate", self.certificate.as_ref());
        write("kept.key", &self.key.0);
        write("kept.sandbox", self.sandbox.as_bytes());
        write("kept.ca", house.authority.pem.as_bytes());
    }

    /// What was kept; the house's gateways believe its authority from here on.
    pub fn load(house: &House) -> Self {
        let read = |name: &str| std::fs::read(house.directory.join(name)).unwrap();
        std::fs::write(house.directory.join("identity-ca.pem"), read("kept.ca")).unwrap();
        Self {
            certificate: CertificateDer::from(read("kept.certificate")),
            key: Key(read("kept.key")),
            sandbox: String::from_utf8(read("kept.sandbox")).unwrap(),
            claims: claims(),
            bundle: BUNDLE.to_vec(),
        }
    }
}

/// An identity key as PKCS#8, which both TLS and the signer take.
#[derive(Clone)]
pub struct Key(Vec<u8>);

fn aws_lc_rs_key(pair: &KeyPair) -> Key {
    Key(pair.serialize_der())
}

impl Key {
    fn pair(&self) -> aws_lc_rs::signature::Ed25519KeyPair {
        aws_lc_rs::signature::Ed25519KeyPair::from_pkcs8_maybe_unchecked(&self.0).unwrap()
    }

    pub fn public(&self) -> [u8; 32] {
        use aws_lc_rs::signature::KeyPair as _;
        self.pair().public_key().as_ref().try_into().unwrap()
    }

    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.pair().sign(message).as_ref().try_into().unwrap()
    }
}

pub fn claims() -> IdentityClaims {
    IdentityClaims {
        epoch: 1,
        boundary: Boundary::MicroVm,
        properties: [Property::OwnKernel, Property::Mediated].into_iter().collect(),
        bundle: casemate_ledger::digest(BUNDLE),
        measurement: vec![3; 48],
        task: "report".to_owned(),
        anchor: "local-model".to_owned(),
        hardware: "model".to_owned(),
    }
}

/// A gateway's files, with the fixture as its tool server.
pub struct House {
    pub directory: PathBuf,
    pub authority: Authority,
    pub issuer: SigningKey,
    pub upstreams: String,
    /// The limits of controls; wide, so that a test of something else meets none.
    pub controls: String,
    /// Long, so that no test of something else has to read its lease in time.
    pub lease_ms: u64,
    /// More lines of the configuration.
    pub settings: String,
    _temporary: Option<tempfile::TempDir>,
}

impl House {
    pub fn new() -> Self {
        let temporary = tempfile::tempdir().unwrap();
        let house = Self::at(temporary.path());
        Self { _temporary: Some(temporary), ..house }
    }

    pub fn at(directory: &Path) -> Self {
        let directory = directory.to_owned();
        // What the confined fixture may write to.
        let shared = ["drift", "marks"].map(|name| directory.join(name));
        for file in &shared {
            let options = std::fs::OpenOptions::new().create(true).append(true).open(file).unwrap();
            options.set_permissions(PermissionsExt::from_mode(0o666)).unwrap();
        }
        let upstreams = format!(
            r#"
            [[upstream]]
            name = "fx"
            command = ["{}"]
            env = {{ FIXTURE_DRIFT = {:?} }}
            confine = {{ write = {shared:?} }}
            timeout_ms = 120000
            max_result_bytes = 65536
            {}
            "#,
            fixture().display(),
            directory.join("drift"),
            [
                "echo",
                "slow",
                "steps",
                "big",
                "number",
                "descriptors",
                "environment",
                "fail",
                "crash",
                "mark",
                "shift",
                "spawn",
                "probe",
                "flaky",
                "typed",
                "refuse"
            ]
            .map(|name| format!(
                "[[upstream.tool]]\nname = \"{name}\"\nrisk = \"low\"\nidempotent = true\n"
            ))
            .concat()
        );
        let authority = Authority::new();
        std::fs::write(directory.join("identity-ca.pem"), &authority.pem).unwrap();
        let issuer = SigningKey::open(&directory.join("issuer.key")).unwrap();
        let controls =
            "[loops]\nidentical = [1000, 1010, 1020]\ncycle = [100, 110, 120]\n".to_owned();
        let settings = String::new();
        let lease_ms = 600_000;
        let _temporary = None;
        Self { directory, authority, issuer, upstreams, controls, lease_ms, settings, _temporary }
    }

    pub fn config(&self) -> Config {
        self.try_config().unwrap()
    }

    pub fn try_config(&self) -> Result<Config, ConfigError> {
        let text = format!(
            r#"
            listen = "unix:gateway.sock"
            server_name = "gateway.test"
            tenant = "demo"
            log_origin = "casemate.internal/demo/log1"
            state_dir = "state"
            admin_socket = "admin.sock"
            identity_ca_file = "identity-ca.pem"
            boundary = "same-host"
            lease_ms = {}
            confine_program = {:?}
            {}
            [[issuer]]
            name = "ops"
            key = "{}"
            {}
            {}
            "#,
            self.lease_ms,
            example("confine"),
            self.settings,
            text::hex(self.issuer.public()),
            self.controls,
            self.upstreams
        );
        let path = self.directory.join("gateway.toml");
        std::fs::write(&path, text).unwrap();
        Config::load(&path)
    }

    pub async fn gateway(&self) -> Arc<Gateway> {
        // The gateway of before may still be letting go of the log.
        for _ in 0..100 {
            match Gateway::open(self.config()).await {
                Err(Error::Log(StoreError::Locked { .. })) => {
                    tokio::time::sleep(Duration::from_millis(30)).await;
                }
                opened => return opened.unwrap(),
            }
        }
        panic!("the log stays locked");
    }

    pub fn sign(&self, grant: Grant) -> Vec<u8> {
        sign_grant(grant, &self.issuer).bytes().to_vec()
    }

    pub async fn connect(&self, gateway: &Arc<Gateway>, credential: &Credential) -> Wire {
        let (ours, theirs) = tokio::io::duplex(64 * 1024);
        let gateway = Arc::clone(gateway);
        tokio::spawn(async move { gateway.serve_stream(theirs).await });
        Wire::connect(ours, &self.directory.join("state/keys/ca.pem"), credential).await
    }

    /// A port that said hello.
    pub async fn port(&self, gateway: &Arc<Gateway>, credential: Credential) -> Port {
        let wire = self.connect(gateway, &credential).await;
        Port::hello(wire, credential, 0, [0; 32]).await.unwrap()
    }
}

/// The path of the tests' tool server.
pub fn fixture() -> PathBuf {
    example("fixture")
}

/// The path of an example, which cargo builds beside the tests.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}

pub fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs())
}

pub fn grant(tools: &[&str], calls: u64) -> Grant {
    Grant {
        id: casemate_ledger::digest(format!("{tools:?}{calls}").as_bytes())[..16]
            .try_into()
            .unwrap(),
        issuer: "ops".to_owned(),
        tenant: "demo".to_owned(),
        task: "report".to_owned(),
        not_before: now(),
        expires: now().plus_seconds(600),
        risk_ceiling: Risk::Medium,
        require: [Property::OwnKernel].into_iter().collect(),
        tools: tools.iter().map(|name| Clause::of(*name)).collect(),
        budgets: Budgets::of(calls),
        parent: None,
        owner: None,
    }
}

/// Lines over TLS.
pub struct Wire {
    stream: tokio_rustls::client::TlsStream<DuplexStream>,
    buffer: LineBuffer,
}

impl Wire {
    async fn connect(stream: DuplexStream, ca: &Path, credential: &Credential) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(credential.key.0.clone()));
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![credential.certificate.clone()], key)
            .unwrap();
        let name = ServerName::try_from("gateway.test").unwrap();
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.unwrap();
        Self { stream, buffer: LineBuffer::default() }
    }

    pub async fn send(&mut self, message: &Message) {
        self.send_raw(&message.encode()).await;
    }

    pub async fn send_raw(&mut self, bytes: &[u8]) {
        // A gateway that hung up shows when its answer is read.
        let _ = self.stream.write_all(bytes).await;
        let _ = self.stream.flush().await;
    }

    /// The next message, or nothing when the gateway hung up.
    pub async fn receive(&mut self) -> Option<Message> {
        loop {
            if let Some(line) = self.buffer.next_line().unwrap() {
                return Some(Message::parse(&line).unwrap());
            }
            let mut chunk = vec![0; 16 * 1024];
            match self.stream.read(&mut chunk).await {
                Ok(0) | Err(_) => return None,
                Ok(count) => self.buffer.extend(&chunk[..count]),
            }
        }
    }
}

/// A sandbox's port: signs calls in order.
pub struct Port {
    pub wire: Wire,
    pub credential: Credential,
    pub lease: LeaseNotice,
    pub sequence: u64,
    pub previous: [u8; 32],
    pub tools: Vec<(String, ToolMeta)>,
    pub reply: HelloReply,
    /// The progress of calls, once it is asked for.
    pub progress: Option<Vec<Progress>>,
    id: u64,
}

/// A call before it is signed, to be changed by a test.
pub type Change<'a> = &'a dyn Fn(&mut Invocation);

impl Port {
    pub async fn hello(
        mut wire: Wire,
        credential: Credential,
        last_sequence: u64,
        last_hash: [u8; 32],
    ) -> Result<Self, RpcError> {
        let hello = Hello {
            protocol: cgp::PROTOCOL.to_owned(),
            sandbox: credential.sandbox.clone(),
            epoch: credential.claims.epoch,
            last_sequence,
            last_hash,
            bundle: credential.bundle.clone(),
        };
        let params = serde_json::to_value(hello).unwrap();
        wire.send(&Message::request(0, method::HELLO, params)).await;
        let Some(Message::Response { result, .. }) = wire.receive().await else {
            return Err(RpcError::new(0, "the gateway hung up"));
        };
        let reply: HelloReply = serde_json::from_value(result?).unwrap();
        let mut port = Self {
            wire,
            credential,
            lease: reply.lease,
            sequence: reply.accepted_sequence,
            previous: reply.accepted_hash,
            tools: Vec::new(),
            reply,
            progress: None,
            id: 0,
        };
        port.list().await;
        Ok(port)
    }

    pub async fn request(&mut self, method: &str, params: Value) -> Result<Value, RpcError> {
        self.id += 1;
        self.wire.send(&Message::request(self.id, method, params)).await;
        self.answer(self.id).await
    }

    pub async fn answer(&mut self, wanted: u64) -> Result<Value, RpcError> {
        loop {
            match self.wire.receive().await {
                Some(Message::Notification { method, params }) if method == method::LEASE => {
                    self.lease = serde_json::from_value(params).unwrap();
                }
                Some(Message::Notification { method, params }) if method == method::PROGRESS => {
                    let progress = serde_json::from_value(params).unwrap();
                    self.progress.as_mut().expect("progress was asked for").push(progress);
                }
                Some(Message::Response { id, result }) if id == wanted => return result,
                Some(other) => panic!("unexpected {other:?}"),
                None => return Err(RpcError::new(0, "the gateway hung up")),
            }
        }
    }

    pub async fn list(&mut self) -> Vec<String> {
        let result = self.request(method::TOOLS_LIST, cgp::list_params()).await.unwrap();
        let tools = result["tools"].as_array().unwrap();
        self.tools = tools
            .iter()
            .map(|tool| {
                let about = serde_json::from_value(tool["_meta"][meta::TOOL].clone()).unwrap();
                (tool["name"].as_str().unwrap().to_owned(), about)
            })
            .collect();
        self.tools.iter().map(|(name, _)| name.clone()).collect()
    }

    pub async fn call(&mut self, tool: &str, arguments: Value) -> Result<Value, RpcError> {
        self.call_with(tool, arguments, &|_| ()).await
    }

    pub async fn call_with(
        &mut self,
        tool: &str,
        arguments: Value,
        change: Change<'_>,
    ) -> Result<Value, RpcError> {
        let id = self.start(tool, arguments, change).await;
        self.answer(id).await
    }

    /// Sends a call and does not wait for its answer.
    pub async fn start(&mut self, tool: &str, arguments: Value, change: Change<'_>) -> u64 {
        let signed = self.sign(tool, arguments, change);
        self.send(signed).await
    }

    /// Sends a call that was signed.
    pub async fn send(&mut self, (params, digest): (Value, [u8; 32])) -> u64 {
        self.sequence += 1;
        self.previous = digest;
        self.id += 1;
        self.wire.send(&Message::request(self.id, method::TOOLS_CALL, params)).await;
        self.id
    }

    pub fn sign(&self, tool: &str, arguments: Value, change: Change<'_>) -> (Value, [u8; 32]) {
        let about = self.tools.iter().find(|(name, _)| name == tool).map(|(_, about)| about);
        let about = about.or_else(|| self.tools.first().map(|(_, about)| about));
        let salt = [7; 32];
        let claims = &self.credential.claims;
        let canonical = args::canonical(Some(&arguments)).unwrap();
        let mut invocation = Invocation {
            id: [self.sequence.to_be_bytes(), [0; 8]].concat().try_into().unwrap(),
            sandbox: self.credential.sandbox.clone(),
            epoch: claims.epoch,
            sequence: self.sequence + 1,
            previous: self.previous,
            lease: Lease { id: self.lease.id, nonce: self.lease.nonce },
            grant: about.map(|about| GrantRef { id: about.grant.id, digest: about.grant.digest }),
            method: method::TOOLS_CALL.to_owned(),
            tool: tool.to_owned(),
            tool_digest: about.map(|about| about.digest),
            arguments: Commitment::to_args(&salt, &canonical),
            boundary: BoundaryStatement {
                class: claims.boundary,
                bundle: claims.bundle,
                measurement: claims.measurement.clone(),
            },
            time_ms: now().0 * 1000,
            time_source: TimeSource::Host,
        };
        change(&mut invocation);
        let key = &self.credential.key;
        let signed = invocation.sign(&key.public(), |message| key.sign(message));
        let token = self.progress.as_ref().map(|_| self.id + 1);
        (cgp::call_params(tool, arguments, signed.bytes(), &salt, token), signed.digest())
    }
}

/// The denial code in a result, or the status of a call that did not end well.
pub fn code(result: &Value) -> &str {
    let about = &result["structuredContent"]["casemate"];
    about["code"].as_str().or(about["reason"].as_str()).unwrap_or("none")
}

pub fn text_of(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_default()
}

pub fn no_arguments() -> Value {
    json!({})
}
