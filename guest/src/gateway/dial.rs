//! How a machine reaches its gateway and gets a new identity certificate.

use std::sync::Arc;

use casemate_mux::{Guest, Stream};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::client::TlsStream;

use super::GatewayError;
use crate::attest::{AttestError, Attested, Session};
use crate::config;
use crate::evidence::devices::{self, Devices};
use crate::evidence::{Psp, Sources};
use crate::host::Host;
use crate::identity::Identity;
use crate::tls;

/// The gateway's name on the mux.
const SERVICE: &str = "gateway";

/// The two things that have to be done again while a machine runs.
pub trait Dial: Send + Sync {
    /// An authenticated stream.
    type Stream: AsyncRead + AsyncWrite + Unpin + Send;

    /// A stream to the gateway as the identity of `attested`.
    fn connect(
        &self,
        attested: &Attested,
    ) -> impl Future<Output = Result<Self::Stream, GatewayError>> + Send;

    /// A new certificate for the same key.
    fn attest(&self) -> impl Future<Output = Result<Attested, AttestError>> + Send;
}

/// A machine with its one wire.
#[derive(Debug)]
pub struct Machine {
    /// The wire.
    pub mux: Guest,
    /// Who certifies.
    pub verifier: config::Verifier,
    /// The gateway.
    pub gateway: config::Peer,
    /// The key, the same for the machine's life.
    pub identity: Arc<Identity>,
    /// The task that is asked for.
    pub task: String,
    /// Whether the host offers a model of the PSP.
    pub psp: bool,
    /// Whether the host offers model devices.
    pub gpu: bool,
}

impl Dial for Machine {
    type Stream = TlsStream<Stream>;

    async fn connect(&self, attested: &Attested) -> Result<Self::Stream, GatewayError> {
        let stream = self.mux.open(SERVICE).await?;
        let to = tls::Peer { name: &self.gateway.server_name, ca_pem: &self.gateway.ca_pem };
        Ok(tls::connect(to, Some(attested.certificate.key.clone()), stream).await?)
    }

    async fn attest(&self) -> Result<Attested, AttestError> {
        let psp = self.psp.then(|| Psp(self.mux.clone()));
        let devices = Devices::new(devices::BUS.as_ref(), self.gpu.then(|| self.mux.clone()));
        let mut sources = Sources::find(Host::new(self.mux.clone()), psp, devices)?;
        let mut verifier = Session::connect(&self.mux, &self.verifier).await?;
        let issuer = &self.verifier.identity_ca_pem;
        verifier.attest(&self.identity, &mut sources, &self.task, issuer).await
    }
}
