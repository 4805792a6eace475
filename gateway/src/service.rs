//! The running gateway: starts, recovers, listens, stops.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use casemate_attestation::VerifyError;
use casemate_attestation::cose::KeyId;
use casemate_attestation::x509::{Certificate, PemLimits, der_or_pem};
use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::checkpoint::{CheckpointError, VerifierKey};
use casemate_ledger::{
    Event, EventKind, LeafKind, Outcome, Revocation, RevocationTarget, Status, text,
};
use casemate_ledger_store::{Log, Options, Payloads, StoreError};
use rustls::ServerConfig;
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::catalogue::{Catalogue, CatalogueError};
use crate::clock::Clock;
use crate::config::{Config, ConfigError, Listen};
use crate::decide::{Rules, RulesError};
use crate::journal::{Journal, wait};
use crate::keys::{Fingerprints, KeyError, SigningKey, private_directory};
use crate::native::{Breach, Native};
use crate::secrets::{SecretError, Secrets};
use crate::spans::Spans;
use crate::state::{Persons, Place, State};
use crate::sync::{locked, turned_on};
use crate::tls::{self, TlsError};
use crate::witnesses::{self, Witnesses};
use crate::{admin, artefacts, hosts, metrics, overview, policy, schema, session, wake};

/// A gateway that has recovered and is ready to serve.
pub struct Gateway {
    pub(crate) config: Config,
    pub(crate) secrets: Secrets,
    /// The upstreams that are the gateway's own tools, by their place.
    pub(crate) natives: BTreeMap<usize, Native>,
    pub(crate) clock: Clock,
    pub(crate) journal: Journal,
    pub(crate) fingerprints: Fingerprints,
    pub(crate) rules: Option<Rules>,
    pub(crate) payloads: Payloads,
    pub(crate) state: Mutex<State>,
    pub(crate) catalogue: Catalogue,
    pub(crate) issuers: BTreeMap<String, [u8; 32]>,
    pub(crate) identity_ca: Certificate,
    pub(crate) policy: [u8; 32],
    pub(crate) public: Public,
    pub(crate) witnesses: Option<Witnesses>,
    pub(crate) spans: Option<Arc<Spans>>,
    tls: Arc<ServerConfig>,
}

/// What others need to know of a gateway.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Public {
    /// The log's verifier key (C2SP vkey).
    pub log_vkey: String,
    /// The key that signs records, in hex.
    pub gateway_key: String,
    /// The file with the CA certificate that ports pin.
    pub ca_file: PathBuf,
    /// The DNS name in the gateway's certificate.
    pub server_name: String,
}

/// Why a gateway does not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The organisation's rules are wrong.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// A key cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The log cannot be used.
    #[error(transparent)]
    Log(#[from] StoreError),
    /// The log's name is not one.
    #[error(transparent)]
    Origin(#[from] CheckpointError),
    /// The tools cannot be listed.
    #[error(transparent)]
    Catalogue(#[from] CatalogueError),
    /// A credential cannot be read.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// One of the gateway's own tools cannot serve.
    #[error("upstream {name}: {reason}")]
    Native {
        /// The upstream.
        name: String,
        /// Why.
        reason: String,
    },
    /// Spans cannot be sent.
    #[error("traces: {0}")]
    Traces(String),
    /// The identity CA's certificate does not read.
    #[error("identity_ca_file: {0}")]
    IdentityCa(#[from] VerifyError),
    /// A line of the file of revoked identities does not read.
    #[error("{}, line {line}: expected a key id in 32 lower-case hex digits", path.display())]
    RevokedIdentity {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

const KEY_DIRECTORY: &str = "keys";
const LOG_SEGMENT_BYTES: u64 = 64 << 20;
/// How long running calls may take to end when the gateway stops.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Makes the keys of a gateway, if they are not there, and says what others
/// need to know: image and trust files are built from it before the first run.
pub fn init(config: &Config) -> Result<Public, Error> {
    let directory = config.state_dir.join(KEY_DIRECTORY);
    private_directory(&config.state_dir)?;
    private_directory(&directory)?;
    let record_key = SigningKey::open(&directory.join("record.key"))?;
    let log_key = SigningKey::open(&directory.join("log.key"))?;
    tls::make_authority_if_missing(&directory, &config.server_name, Clock::start().now().unix())?;
    Ok(Public {
        log_vkey: VerifierKey::new(&config.log_origin, *log_key.public())?.to_string(),
        gateway_key: text::hex(record_key.public()),
        ca_file: tls::ca_file(&directory),
        server_name: config.server_name.clone(),
    })
}

/// Keeps what this gateway decides by, and returns the policy's digest.
async fn keep_policies(
    state_dir: &Path,
    rules: Option<&[u8]>,
    policy: &[u8],
) -> Result<[u8; 32], Error> {
    let system = |source| Error::System { what: "keeping the policy".to_owned(), source };
    if let Some(rules) = rules {
        artefacts::keep_policy(state_dir, rules).await.map_err(system)?;
    }
    artefacts::keep_policy(state_dir, policy).await.map_err(system)
}

/// Runs a gateway until it is told to stop by SIGTERM or SIGINT.
pub async fn run(config: Config) -> Result<(), Error> {
    let system = |source| Error::System { what: "waiting for signals".to_owned(), source };
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())
        .map_err(system)?;
    let (stop, stopped) = watch::channel(false);
    let gateway = Gateway::open(config).await?;
    let serving = gateway.serve(stopped);
    tokio::pin!(serving);
    loop {
        tokio::select! {
            result = &mut serving => return result,
            _ = terminate.recv() => {},
            _ = tokio::signal::ctrl_c() => {},
        }
        stop.send_replace(true);
    }
}

impl Gateway {
    /// Reads keys and log, lists the tools, and closes what a crash left open.
    pub async fn open(config: Config) -> Result<Arc<Self>, Error> {
        config.check()?;
        let public = init(&config)?;
        let clock = Clock::start();
        let directory = config.state_dir.join(KEY_DIRECTORY);
        let rules = config.rules.as_ref();
        let rules =
            rules.map(|rules| Rules::load(&rules.file, rules.require_permit)).transpose()?;
        let identity_ca = read_ca(&config.identity_ca_file)?;
        let name = &config.server_name;
        let tls = tls::server(&directory, name, identity_ca.der(), clock.now().unix())?;
        let issuers = config
            .issuers
            .iter()
            .map(|issuer| Ok((issuer.name.clone(), issuer.public_key()?)))
            .collect::<Result<BTreeMap<_, _>, ConfigError>>()?;
        let persons = config
            .approvers
            .iter()
            .map(|one| Ok((one.name.clone(), (one.person.clone(), one.public_key()?))))
            .collect::<Result<Persons, ConfigError>>()?;
        let (journal, state) = open_log(&config, &directory, (&issuers, &persons))?;
        let fingerprints = Fingerprints::new(&SigningKey::open(&directory.join("record.key"))?);
        let pins = config.state_dir.join("pins.json");
        let records = config.state_dir.join("payloads");
        let payloads = Payloads::open(&records, &directory.join("payloads"))?;
        let files = config.upstreams.iter().flat_map(|upstream| upstream.secret_files());
        let secrets = Secrets::load(files)?;
        let natives = open_natives(&config, &secrets).await?;
        let catalogue = Catalogue::open(&config, &secrets, &natives, &pins).await?;
        let policy = policy::file(&config, &issuers, &catalogue.all(), rules.as_ref())?;
        let rules_file = rules.as_ref().map(|rules| rules.source.as_bytes());
        let policy = keep_policies(&config.state_dir, rules_file, &policy).await?;
        let witnesses = Witnesses::open(&config, journal.witnessed()?, clock.now().unix().0)?;
        let spans = config.traces.as_ref().map(Spans::open).transpose().map_err(Error::Traces)?;
        let state = Mutex::new(state);
        let gateway = Arc::new(Self {
            config,
            secrets,
            natives,
            clock,
            journal,
            fingerprints,
            rules,
            payloads,
            state,
            catalogue,
            issuers,
            identity_ca,
            policy,
            public,
            witnesses,
            spans,
            tls,
        });
        gateway.recover().await?;
        Ok(gateway)
    }

    /// Why the arguments are not the tool's: not what its definition says or, of
    /// one of the gateway's own tools, not what its configuration gives.
    pub(crate) fn reach(&self, tool: &str, arguments: &serde_json::Value) -> Option<Denial> {
        let tool = self.catalogue.tool(tool)?;
        if let Some(native) = self.natives.get(&tool.upstream) {
            return native.check(&tool.name, arguments).err().map(Breach::denial);
        }
        let schema = tool.definition.get("inputSchema")?;
        let mismatch = schema::check(schema, arguments).err()?;
        Some(Denial {
            code: DenyCode::ArgsInvalid,
            rule: "gate/schema".to_owned(),
            expected: format!("{} at {}", mismatch.expected, mismatch.at),
            actual: mismatch.actual,
            hint: "call with what the tool's inputSchema says".to_owned(),
            retryable: false,
            retry_after_ms: None,
        })
    }

    /// Writes down that the definition of the tool `name` is not the pinned one,
    /// or that it is gone. Where that fails the log takes nothing any more: there
    /// will be no decision either, and no call is sent.
    pub(crate) fn note_drift(&self, name: String, found: Option<[u8; 32]>) {
        tracing::warn!(tool = name, "definition changed; the tool stops");
        let event = Event {
            digest: found,
            note: Some(name),
            ..Event::new(EventKind::ToolDrift, self.clock.now().unix_ms)
        };
        if let Err(error) = self.journal.write(LeafKind::Event, event) {
            tracing::error!(%error, "a drift is not recorded");
        }
    }

    /// What others need to know of this gateway.
    pub fn public(&self) -> &Public {
        &self.public
    }

    /// Serves ports and the operator until `stopped` turns true.
    pub async fn serve(self: &Arc<Self>, mut stopped: watch::Receiver<bool>) -> Result<(), Error> {
        let admin = listen_unix(&self.config.admin_socket)?;
        let hosts = self.config.host_socket.as_deref().map(listen_unix).transpose()?;
        let ports = Ports::listen(&self.config.listen).await?;
        let slots = Arc::new(Semaphore::new(self.config.connections));
        let mut tasks = JoinSet::new();
        tasks.spawn(admin::serve(Arc::clone(self), admin));
        tasks.spawn(hosts::serve(Arc::clone(self), hosts));
        tasks.spawn(witnesses::run(Arc::clone(self)));
        tasks.spawn(wake::run(Arc::clone(self)));
        if let Some(page) = self.metrics_page().await? {
            tasks.spawn(page);
        }
        let own = tasks.len();
        tracing::info!(listen = ?self.config.listen, log = self.config.log_origin, "serving");
        loop {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
            let stream = tokio::select! {
                () = turned_on(&mut stopped) => break,
                stream = ports.accept() => stream,
                _ = tasks.join_next(), if tasks.len() > own => continue,
            };
            match stream {
                Ok(stream) => {
                    let (gateway, tls) = (Arc::clone(self), Arc::clone(&self.tls));
                    tasks.spawn(async move {
                        session::serve(gateway, tls, stream).await;
                        drop(slot);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        for session in locked(&self.state).sessions.values() {
            session.switch.send_replace(true);
        }
        let ended = async { while tasks.len() > own && tasks.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(STOP_GRACE, ended).await;
        if let Some(spans) = self.spans.clone() {
            let _ = tokio::task::spawn_blocking(move || spans.close()).await;
        }
        for socket in [Some(&self.config.admin_socket), self.config.host_socket.as_ref()] {
            let _ = socket.map(|path| remove_socket(path));
        }
        Ok(())
    }

    /// The page with the gateway's numbers, if there is to be one.
    async fn metrics_page(
        self: &Arc<Self>,
    ) -> Result<Option<impl Future<Output = ()> + use<>>, Error> {
        let Some(address) = self.config.metrics else { return Ok(None) };
        let system = |source| Error::System { what: format!("listening on {address}"), source };
        let listener = TcpListener::bind(address).await.map_err(system)?;
        let gateway = Arc::clone(self);
        let text = move || overview::metrics(&gateway);
        Ok(Some(casemate_ledger_http::serve_page(listener, metrics::PATH, metrics::KIND, text)))
    }

    /// Serves one port on a stream that is already there, as [`Self::serve`]
    /// does for each that it accepts.
    pub async fn serve_stream<S>(self: &Arc<Self>, stream: S)
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        session::serve(Arc::clone(self), Arc::clone(&self.tls), stream).await;
    }

    /// Logs the start, the revoked identities of the file, and an honest
    /// `unknown` for every call that was allowed and has no outcome.
    async fn recover(&self) -> Result<(), Error> {
        let now = self.clock.now();
        let mut last = None;
        {
            let mut state = locked(&self.state);
            let start = Event {
                digest: Some(self.policy),
                note: Some(format!("casemate {}", env!("CARGO_PKG_VERSION"))),
                ..Event::new(EventKind::GatewayStart, now.unix_ms)
            };
            last.replace(self.journal.write(LeafKind::Event, start)?.pending());
            let open: Vec<([u8; 32], Place)> =
                state.open.iter().map(|(id, open)| (*id, open.place.clone())).collect();
            for (decision, place) in open {
                let outcome = Outcome {
                    decision,
                    status: Status::Unknown,
                    reason: Some("gateway_restart".to_owned()),
                    result: None,
                    upstream: None,
                    started_ms: 0,
                    ended_ms: now.unix_ms,
                    bytes_out: 0,
                    bytes_in: 0,
                };
                let written = self.journal.write(LeafKind::Outcome, outcome)?;
                state.close(written.index, &written.record);
                let Place { sandbox, tool, .. } = place;
                state.unsure.insert((sandbox, tool), now.unix_ms);
                last.replace(written.pending());
            }
            // A second start within the time does not forget what the first one noted.
            for ((sandbox, tool), ended_ms) in std::mem::take(&mut state.unsure) {
                state.loops.entry(sandbox).or_default().note_unknown(&tool, ended_ms, now);
            }
            for key in self.listed_identities()? {
                if state.revoked_keys.insert(key) {
                    let revocation = Revocation {
                        target: RevocationTarget::Identity(key),
                        reason: "listed in revoked_identities_file".to_owned(),
                        by: "file:revoked_identities_file".to_owned(),
                        time_ms: now.unix_ms,
                    };
                    last.replace(self.journal.write(LeafKind::Revocation, revocation)?.pending());
                }
            }
        }
        if let Some(last) = last {
            wait(last).await?;
        }
        Ok(())
    }

    fn listed_identities(&self) -> Result<Vec<KeyId>, Error> {
        let Some(path) = &self.config.revoked_identities_file else { return Ok(Vec::new()) };
        let listed = fs::read_to_string(path)
            .map_err(|source| Error::System { what: path.display().to_string(), source })?;
        let lines = listed.lines().enumerate();
        lines
            .filter(|(_, line)| !line.trim().is_empty() && !line.starts_with('#'))
            .map(|(at, line)| {
                let id = text::from_hex(line.trim()).and_then(|id| id.try_into().ok());
                id.map(KeyId)
                    .ok_or_else(|| Error::RevokedIdentity { path: path.clone(), line: at + 1 })
            })
            .collect()
    }
}

async fn open_natives(
    config: &Config,
    secrets: &Secrets,
) -> Result<BTreeMap<usize, Native>, Error> {
    let mut natives = BTreeMap::new();
    for (at, upstream) in config.upstreams.iter().enumerate() {
        let opened = Native::open(upstream, secrets).await;
        let opened =
            opened.map_err(|reason| Error::Native { name: upstream.name.clone(), reason })?;
        natives.extend(opened.map(|native| (at, native)));
    }
    Ok(natives)
}

fn open_log(
    config: &Config,
    keys: &Path,
    known: (&BTreeMap<String, [u8; 32]>, &Persons),
) -> Result<(Journal, State), Error> {
    let log_key = SigningKey::open(&keys.join("log.key"))?;
    let options = Options {
        directory: config.state_dir.join("log"),
        key: VerifierKey::new(&config.log_origin, *log_key.public())?,
        sign: Box::new(move |message| log_key.sign(message)),
        checkpoint_interval: Duration::from_millis(config.checkpoint_ms),
        segment_bytes: LOG_SEGMENT_BYTES,
    };
    let mut state = State::default();
    let log = Log::open(options, |index, leaf| state.replay(index, leaf, known))?;
    for tile in log.mended() {
        tracing::warn!(tile = %tile.display(), "damaged on disk; made again from the log");
    }
    let record_key = SigningKey::open(&keys.join("record.key"))?;
    Ok((Journal::new(log, Arc::new(record_key)), state))
}

fn read_ca(path: &Path) -> Result<Certificate, Error> {
    let bytes = fs::read(path)
        .map_err(|source| Error::System { what: path.display().to_string(), source })?;
    let mut certificates = der_or_pem(&bytes, PemLimits::CHAIN)?;
    let ca = certificates.remove(0);
    ca.check_ca()?;
    Ok(ca)
}

fn listen_unix(path: &Path) -> Result<UnixListener, Error> {
    let system = |source| Error::System { what: path.display().to_string(), source };
    // The log's lock says that no other gateway runs on this state.
    remove_socket(path).map_err(system)?;
    let listener = UnixListener::bind(path).map_err(system)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(system)?;
    Ok(listener)
}

/// Removes a socket that is left at `path`. Any other file is somebody's.
fn remove_socket(path: &Path) -> std::io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(file) if file.file_type().is_socket() => fs::remove_file(path),
        Ok(_) => Err(std::io::Error::new(
            std::io::ErrorKind::AlreadyExists,
            "expected a socket or nothing, got another kind of file",
        )),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Where ports come in.
enum Ports {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// A port's stream.
pub(crate) type Stream = Box<dyn Duplex>;

/// Both directions of a stream.
pub(crate) trait Duplex:
    tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send
{
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send> Duplex for S {}

impl Ports {
    async fn listen(listen: &Listen) -> Result<Self, Error> {
        match listen {
            Listen::Unix(path) => listen_unix(path).map(Self::Unix),
            Listen::Tcp(address) => {
                let listener = TcpListener::bind(address).await;
                let system = |source| Error::System { what: format!("listen {address}"), source };
                listener.map(Self::Tcp).map_err(system)
            }
        }
    }

    async fn accept(&self) -> std::io::Result<Stream> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok(Box::new(stream))
            }
            Self::Unix(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_socket_makes_way_for_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("admin.sock");
        drop(listen_unix(&path).unwrap());
        drop(listen_unix(&path).unwrap());
        let other = directory.path().join("notes");
        fs::write(&other, "mine").unwrap();
        assert!(listen_unix(&other).unwrap_err().to_string().contains("expected a socket"));
        assert_eq!(fs::read_to_string(&other).unwrap(), "mine");
    }
}
