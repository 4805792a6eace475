//! Port and gateway outside a machine, joined by the streams, formats and
//! checks of the product, so that programs of others can be run against them.
//!
//! What is missing is the machine: the port's identity comes from an authority
//! made here, which the gateway is configured to believe, and says `same-host`
//! with no property. It is a test's fixture; nothing of it ships.

#![expect(clippy::unwrap_used, reason = "a fixture ends its test at the first thing amiss")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use casemate_attestation::cose::KeyId;
use casemate_attestation::identity::IDENTITY_EXTENSION_OID;
use casemate_attestation::{Boundary, IdentityClaims, Risk, UnixTime};
use casemate_gateway::{
    Client, Command, Config, Gateway, Reply, SigningKey, grant_from_toml, sign_grant,
};
use casemate_guest::attest::{AttestError, Attested};
use casemate_guest::certificate::Certificate;
use casemate_guest::gateway::{Dial, GatewayError, Tools, connect};
use casemate_guest::identity::Identity;
use casemate_guest::port::{HTTP_PATH, Port, SOCKET};
use casemate_guest::{config, tls};
use casemate_ledger::text;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ED25519, SanType,
    SubjectPublicKeyInfo,
};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio_rustls::client::TlsStream;

const SERVER: &str = "gateway.test";
const TASK: &str = "counterparties";
const BUNDLE: &[u8] = b"no evidence: same host";
/// SubjectPublicKeyInfo of an Ed25519 key, without the key (RFC 8410).
const ED25519_SPKI: [u8; 12] =
    [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// A running gateway and the authority that it believes.
pub struct House {
    folder: PathBuf,
    gateway: Arc<Gateway>,
    issuer: Issuer<'static, KeyPair>,
    issuer_pem: String,
    stop: watch::Sender<bool>,
    serving: JoinHandle<()>,
}

/// One sandbox's port, with its doors open.
pub struct Sandbox {
    /// The door of lines.
    pub socket: PathBuf,
    /// The door of Streamable HTTP.
    pub url: String,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl House {
    /// A gateway in `folder` with `upstreams` (TOML) and a grant for `tools`.
    pub async fn start(folder: &Path, upstreams: &str, tools: &[&str]) -> Self {
        let key = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        let issuer_pem = certificate.pem();
        std::fs::write(folder.join("identity-ca.pem"), &issuer_pem).unwrap();
        let grants = SigningKey::open(&folder.join("grants.key")).unwrap();
        let text = format!(
            "listen = \"unix:gateway.sock\"\nserver_name = \"{SERVER}\"\ntenant = \"demo\"\n\
             log_origin = \"casemate.internal/demo/log1\"\nstate_dir = \"state\"\n\
             admin_socket = \"admin.sock\"\nidentity_ca_file = \"identity-ca.pem\"\n\
             confine_program = {:?}\n\
             boundary = \"same-host\"\n[[issuer]]\nname = \"ops\"\nkey = \"{}\"\n{upstreams}",
            example("confine"),
            text::hex(grants.public()),
        );
        std::fs::write(folder.join("gateway.toml"), text).unwrap();
        let config = Config::load(&folder.join("gateway.toml")).unwrap();
        let gateway = Gateway::open(config).await.unwrap();
        let (stop, stopped) = watch::channel(false);
        let served = Arc::clone(&gateway);
        let serving = tokio::spawn(async move { served.serve(stopped).await.unwrap() });
        let issuer = Issuer::new(params, key);
        let folder = folder.to_owned();
        let house = Self { folder, gateway, issuer, issuer_pem, stop, serving };
        house.grant(&grants, tools).await;
        house
    }

    /// Adds a grant for `tools`, which the first sandbox that uses it keeps.
    pub async fn grant(&self, key: &SigningKey, tools: &[&str]) {
        let clauses: String =
            tools.iter().map(|tool| format!("[[tool]]\nname = \"{tool}\"\n")).collect();
        let text = format!(
            "task = \"{TASK}\"\ntenant = \"demo\"\nminutes = 60\nrisk_ceiling = \"low\"\n\
             [budgets]\ncalls = 1000000\n{clauses}"
        );
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        let grant = grant_from_toml(&text, "ops", UnixTime(now.as_secs())).unwrap();
        let grant = text::base64url(sign_grant(grant, key).bytes());
        let socket = self.folder.join("admin.sock");
        while Client::call(&socket, &Command::Status).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let added = Client::call(&socket, &Command::GrantAdd { grant }).await.unwrap();
        assert!(matches!(added, Reply::Done(_)), "{added:?}");
    }

    /// A new sandbox with the doors of its port in `folder`.
    pub async fn sandbox(&self, folder: &Path) -> Sandbox {
        let (tools, kept) = self.connect().await;
        let user = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
        let limits = config::Port { requests_per_second: 100_000, ..config::Port::default() };
        let port = Port::bind(folder, user.0, user.1, limits).unwrap();
        let listener = std::net::TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)));
        let listener = listener.unwrap();
        let url = format!("http://{}{HTTP_PATH}", listener.local_addr().unwrap());
        let (give, given) = oneshot::channel();
        give.send(listener).unwrap();
        let served = tokio::spawn(async move { drop(port.serve(tools, Some(given)).await) });
        Sandbox { socket: folder.join(SOCKET), url, tasks: [served, kept] }
    }

    /// A new sandbox without doors: what the port's handler asks.
    pub async fn connect(&self) -> (impl Tools + use<>, JoinHandle<()>) {
        let identity = Arc::new(Identity::generate(1).unwrap());
        let dial = Local {
            socket: self.folder.join("gateway.sock"),
            ca_pem: std::fs::read_to_string(&self.gateway.public().ca_file).unwrap(),
            attested: self.certify(&identity),
        };
        let attested = self.certify(&identity);
        let (tools, keeper) = connect(dial, identity, attested, 64).await.unwrap();
        let kept = tokio::spawn(async move {
            let error = keeper.run().await;
            println!("the port's stream ended: {error}");
        });
        (tools, kept)
    }

    fn certify(&self, identity: &Identity) -> Attested {
        let claims = IdentityClaims {
            epoch: identity.epoch,
            boundary: Boundary::SameHost,
            properties: Default::default(),
            bundle: casemate_ledger::digest(BUNDLE),
            measurement: vec![0; 48],
            task: TASK.to_owned(),
            anchor: "test".to_owned(),
            hardware: "none".to_owned(),
        };
        let key = identity.public_key();
        let sandbox = format!("spiffe://casemate.internal/demo/sb/{}", KeyId::of(key));
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        params.subject_alt_names = vec![SanType::URI(sandbox.try_into().unwrap())];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.custom_extensions =
            vec![CustomExtension::from_oid_content(&IDENTITY_EXTENSION_OID, claims.encode())];
        let spki = SubjectPublicKeyInfo::from_der(&[&ED25519_SPKI[..], key].concat()).unwrap();
        let chain = params.signed_by(&spki, &self.issuer).unwrap().pem() + &self.issuer_pem;
        let now = rustls_pki_types::UnixTime::now();
        let certificate = Certificate::check(&chain, identity, &self.issuer_pem, now).unwrap();
        Attested { certificate, bundle: BUNDLE.to_vec() }
    }

    /// Stops the gateway and waits until it has.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        let _ = self.serving.await;
    }
}

/// The tools of the example `suite`.
pub const SUITE_TOOLS: &[&str] = &[
    "test_simple_text",
    "test_image_content",
    "test_audio_content",
    "test_embedded_resource",
    "test_multiple_content_types",
    "test_error_handling",
    "test_tool_with_progress",
    "json_schema_2020_12_tool",
];

/// The path of an example, built beside the tests.
pub fn example(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().unwrap().parent().unwrap().join("examples").join(name)
}

/// One confined upstream of a configuration, its tools of the least risk;
/// `confine` is what its process may see and use, in TOML.
pub fn upstream(name: &str, command: &[&str], env: &str, confine: &str, tools: &[&str]) -> String {
    let tools: String = tools
        .iter()
        .map(|tool| {
            format!("[[upstream.tool]]\nname = \"{tool}\"\nrisk = \"{}\"\n", Risk::Low.name())
        })
        .collect();
    format!(
        "[[upstream]]\nname = \"{name}\"\ncommand = {command:?}\nenv = {{ {env} }}\n\
         confine = {{ {confine} }}\n{tools}"
    )
}

/// The way to the gateway on this host.
struct Local {
    socket: PathBuf,
    ca_pem: String,
    attested: Attested,
}

impl Dial for Local {
    type Stream = TlsStream<UnixStream>;

    async fn connect(&self, attested: &Attested) -> Result<Self::Stream, GatewayError> {
        let stream = UnixStream::connect(&self.socket).await?;
        let peer = tls::Peer { name: SERVER, ca_pem: &self.ca_pem };
        Ok(tls::connect(peer, Some(attested.certificate.key.clone()), stream).await?)
    }

    async fn attest(&self) -> Result<Attested, AttestError> {
        let Attested { certificate, bundle } = &self.attested;
        Ok(Attested { certificate: certificate.clone(), bundle: bundle.clone() })
    }
}
