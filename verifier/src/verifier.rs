//! Everything that a request is answered from.

use std::path::PathBuf;
use std::sync::Arc;

use casemate_attestation::{Binding, Endorsements, Evidence, UnixTime, crypto};
use tokio::sync::Semaphore;

use crate::Error;
use crate::admitted::{Admitted, Cache, revoked};
use crate::body::BodyMemory;
use crate::challenge::Challenger;
use crate::clock::Clock;
use crate::config::Config;
use crate::denial::{Code, Denial};
use crate::identity::IdentityCa;
use crate::judge::{Judge, Judged};
use crate::keys::KeyDir;
use crate::store::{Sandbox, Store};
use crate::tls::Tls;
use crate::token::TokenIssuer;
use crate::vault::Vault;

/// The state of one verifier.
#[derive(Debug)]
pub struct Verifier {
    config: Config,
    clock: Clock,
    challenger: Challenger,
    identities: IdentityCa,
    tokens: TokenIssuer,
    vault: Vault,
    store: Store,
    bodies: BodyMemory,
    judge: Arc<Judge>,
    judging: Arc<Semaphore>,
    admitted: Cache,
}

/// The files that others must be given before they can use this verifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublicFiles {
    /// The certificate that guests pin for TLS.
    pub tls_ca: PathBuf,
    /// The certificate under which gateways accept identities.
    pub identity_ca: PathBuf,
}

impl Verifier {
    /// Opens keys and store under `config.state_dir`, making what is not there.
    pub async fn open(config: Config, clock: Clock) -> Result<Self, Error> {
        let keys = KeyDir::open(&config.state_dir)?;
        let nonce_key = keys.symmetric("nonce.key")?;
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let secrets_key = keys.symmetric("secrets.key")?;
        Ok(Self {
            challenger: Challenger::new(&nonce_key, config.lifetimes.nonce_seconds)
                .map_err(|_| Error::Backend)?,
            identities: IdentityCa::open(&keys, &config, clock.now())?,
            tokens: TokenIssuer::open(&keys, &config)?,
            vault: Vault::new(&secrets_key).map_err(|_| Error::Backend)?,
            store: Store::open(&keys.path("verifier.db")).await?,
            bodies: BodyMemory::new(config.limits.body_memory_mib),
            judge: Arc::new(Judge::load(&config)?),
            judging: Arc::new(Semaphore::new(processors)),
            admitted: Cache::default(),
            config,
            clock,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The time by the service's clock.
    pub fn now(&self) -> UnixTime {
        self.clock.now()
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn challenger(&self) -> &Challenger {
        &self.challenger
    }

    /// The CA of the identities.
    pub fn identities(&self) -> &IdentityCa {
        &self.identities
    }

    pub(crate) fn tokens(&self) -> &TokenIssuer {
        &self.tokens
    }

    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Judges evidence beside the tasks that serve connections, as many at once
    /// as there are processors.
    pub(crate) async fn judge(
        &self,
        evidence: Evidence,
        endorsements: Endorsements,
        binding: Binding,
        now: UnixTime,
    ) -> Result<Judged, Denial> {
        self.judging(move |judge| judge.judge(&evidence, &endorsements, &binding, now)).await
    }

    /// The sandbox `id` as it was last admitted, if it stands.
    pub(crate) async fn admitted(&self, id: &str) -> Result<Arc<Admitted>, Denial> {
        let sandbox = self.store.sandbox(id).await?.ok_or_else(|| {
            let expected = "a sandbox that this verifier admitted";
            Denial::new(Code::NotAttested, "sandbox", expected, id)
        })?;
        if sandbox.revoked_at.is_some() {
            return Err(revoked(id));
        }
        match self.admitted.get(id, &sandbox.bundle) {
            Some(admitted) => Ok(admitted),
            None => self.admit_again(sandbox).await,
        }
    }

    /// Keeps `admitted` for the requests to come.
    pub(crate) fn keep(&self, admitted: Arc<Admitted>) {
        self.admitted.put(admitted);
    }

    /// Makes the working copy of `sandbox` from its stored bundle.
    async fn admit_again(&self, sandbox: Sandbox) -> Result<Arc<Admitted>, Denial> {
        let bundle = self.store.bundle(&sandbox.bundle).await?;
        let bundle = bundle.filter(|bytes| crypto::sha256(bytes) == sandbox.bundle);
        let bundle = bundle.ok_or_else(|| Denial::internal("a bundle is gone or changed"))?;
        let (judged, binding) = self.judging(move |judge| judge.judge_again(&bundle)).await?;
        if self.identities.sandbox_id(&binding.identity_key) != sandbox.id {
            return Err(Denial::internal("a bundle of another identity"));
        }
        let admitted = Arc::new(Admitted {
            sandbox: sandbox.id,
            identity_key: binding.identity_key,
            sealing_key: binding.sealing_key,
            task: sandbox.task,
            bundle: sandbox.bundle,
            appraisal: Arc::new(judged.appraisal),
        });
        self.keep(admitted.clone());
        Ok(admitted)
    }

    async fn judging<T: Send + 'static>(
        &self,
        act: impl FnOnce(&Judge) -> Result<T, Denial> + Send + 'static,
    ) -> Result<T, Denial> {
        let turn = self.judging.clone().acquire_owned().await.map_err(Denial::internal)?;
        let judge = self.judge.clone();
        let judged = tokio::task::spawn_blocking(move || {
            // Ends with the work, not with the request that may have gone away.
            let _turn = turn;
            act(&judge)
        });
        judged.await.map_err(Denial::internal)?
    }

    pub(crate) fn bodies(&self) -> &BodyMemory {
        &self.bodies
    }
}

/// Makes the keys of `config` that are not there yet, and says which files
/// images and gateways need.
pub fn init(config: &Config) -> Result<PublicFiles, Error> {
    let now = Clock::system().now();
    let keys = KeyDir::open(&config.state_dir)?;
    let tls = Tls::open(&keys, &config.server_name, now)?;
    let identities = IdentityCa::open(&keys, config, now)?;
    Ok(PublicFiles { tls_ca: tls.ca_file, identity_ca: identities.certificate().1.to_owned() })
}
