//! Everything that a request is answered from.

use std::path::PathBuf;

use casemate_attestation::UnixTime;

use crate::Error;
use crate::body::BodyMemory;
use crate::challenge::Challenger;
use crate::clock::Clock;
use crate::config::Config;
use crate::identity::IdentityCa;
use crate::keys::KeyDir;
use crate::store::Store;
use crate::tls::Tls;
use crate::vault::Vault;

/// The state of one verifier.
#[derive(Debug)]
pub struct Verifier {
    config: Config,
    clock: Clock,
    challenger: Challenger,
    identities: IdentityCa,
    vault: Vault,
    store: Store,
    bodies: BodyMemory,
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
        let secrets_key = keys.symmetric("secrets.key")?;
        Ok(Self {
            challenger: Challenger::new(&nonce_key, config.lifetimes.nonce_seconds)
                .map_err(|_| Error::Backend)?,
            identities: IdentityCa::open(&keys, &config, clock.now())?,
            vault: Vault::new(&secrets_key).map_err(|_| Error::Backend)?,
            store: Store::open(&keys.path("verifier.db")).await?,
            bodies: BodyMemory::new(config.limits.body_memory_mib),
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

    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
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
