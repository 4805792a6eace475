//! Challenge, evidence, identity: one connection to the verifier, from its
//! handshake to the last secret.

use std::time::Duration;

use casemate_attestation::{Binding, binding::EXPORTER_LABEL, release::RELEASE_EXPORTER_LABEL};
use casemate_ledger::text::{b64, b64_array};
use casemate_mux::{Guest, MuxError};
use rustls::pki_types::UnixTime;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep};

use crate::certificate::{Certificate, CertificateError};
use crate::config;
use crate::console::say;
use crate::evidence::{EvidenceError, Sources};
use crate::http::{Http, HttpError};
use crate::identity::Identity;
use crate::tls::{self, TlsError};

/// The verifier's name on the mux.
const SERVICE: &str = "verifier";
/// How long a machine that starts waits for a verifier that answers that it cannot
/// for now, and its first and longest pause.
const PATIENCE: Duration = Duration::from_secs(30);
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));
/// What it calls a challenge that ran out (docs/formats/verifier-api.md).
const NONCE_EXPIRED: &str = "nonce-expired";

/// Why this machine has no identity.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The wire gave no stream.
    #[error(transparent)]
    Mux(#[from] MuxError),
    /// No TLS connection.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The session has no exporter.
    #[error("TLS exporter: {0}")]
    Exporter(rustls::Error),
    /// The verifier did not answer, or refused.
    #[error("verifier{0}")]
    Http(#[from] HttpError),
    /// There is no evidence.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The certificate is not ours.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The bundle is not the one that the certificate names.
    #[error("attestation bundle: expected SHA-256 {expected} as in the certificate, got {actual}")]
    Bundle {
        /// The digest in the certificate.
        expected: String,
        /// The digest of the bundle.
        actual: String,
    },
    /// The whole of it took too long.
    #[error("attestation: not done within {seconds} s")]
    Timeout {
        /// How long was waited.
        seconds: u64,
    },
}

impl AttestError {
    /// Whether the verifier said no, which asking again does not change. That a
    /// challenge ran out is changed by a new one: a machine may have been paused
    /// between challenge and answer.
    pub(crate) fn is_refusal(&self) -> bool {
        match self {
            Self::Http(HttpError::Denied { denial, .. }) if denial.code == NONCE_EXPIRED => false,
            Self::Http(error) => error.is_refusal(),
            _ => false,
        }
    }

    /// Whether the verifier answered, and may say something else if it is asked again.
    fn is_passing(&self) -> bool {
        matches!(self, Self::Http(HttpError::Denied { .. })) && !self.is_refusal()
    }
}

/// One connection to the verifier.
#[derive(Debug)]
pub struct Session {
    pub(crate) http: Http,
    /// What the evidence binds itself to.
    channel: [u8; 32],
    /// What a release proof binds itself to.
    pub(crate) release_channel: [u8; 32],
}

/// What an affirmed machine holds.
#[derive(Debug)]
pub struct Attested {
    /// The identity certificate.
    pub certificate: Certificate,
    /// The attestation bundle, which proves the certificate's claims again.
    pub bundle: Vec<u8>,
}

#[derive(Serialize)]
struct ChallengeRequest {}

#[derive(Deserialize)]
struct ChallengeAnswer {
    #[serde(with = "b64")]
    nonce: Vec<u8>,
}

#[derive(Serialize)]
struct AttestRequest<'a> {
    #[serde(with = "b64")]
    nonce: Vec<u8>,
    #[serde(with = "b64")]
    evidence: Vec<u8>,
    #[serde(with = "b64_array")]
    identity_key: [u8; 32],
    #[serde(with = "b64_array")]
    sealing_key: [u8; 32],
    epoch: u64,
    task: &'a str,
}

/// What the guest uses of the answer; the rest is for other readers.
#[derive(Deserialize)]
struct AttestAnswer {
    certificate_chain: String,
    #[serde(with = "b64")]
    bundle: Vec<u8>,
}

impl Session {
    /// Connects to the verifier over the wire.
    pub async fn connect(mux: &Guest, verifier: &config::Verifier) -> Result<Self, AttestError> {
        let stream = mux.open(SERVICE).await?;
        let peer = tls::Peer { name: &verifier.server_name, ca_pem: &verifier.ca_pem };
        let stream = tls::connect(peer, None, stream).await?;
        let exporter = |label| tls::exporter(&stream, label).map_err(AttestError::Exporter);
        let (channel, release_channel) =
            (exporter(EXPORTER_LABEL)?, exporter(RELEASE_EXPORTER_LABEL)?);
        let http = Http::start(stream, &verifier.server_name).await?;
        Ok(Self { http, channel, release_channel })
    }

    /// As [`Self::attest`], for as long as the verifier cannot for now: machines
    /// that start together ask it all at once.
    pub async fn attest_when_served(
        &mut self,
        identity: &Identity,
        sources: &mut Sources,
        task: &str,
        issuer_pem: &str,
    ) -> Result<Attested, AttestError> {
        let begun = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            match self.attest(identity, sources, task, issuer_pem).await {
                Err(error) if error.is_passing() && begun.elapsed() < PATIENCE => {
                    say(&format!("attestation: {error}; trying again"));
                }
                ended => return ended,
            }
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Answers a challenge with evidence and checks the identity it is given.
    pub async fn attest(
        &mut self,
        identity: &Identity,
        sources: &mut Sources,
        task: &str,
        issuer_pem: &str,
    ) -> Result<Attested, AttestError> {
        let challenge: ChallengeAnswer =
            self.http.post("/v1/challenge", &ChallengeRequest {}).await?;
        let mut binding = Binding {
            nonce: challenge.nonce,
            identity_key: *identity.public_key(),
            sealing_key: *identity.sealing_key(),
            channel: self.channel,
            epoch: identity.epoch,
            devices: None,
        };
        let evidence = sources.collect(&mut binding).await?;
        let request = AttestRequest {
            nonce: binding.nonce,
            evidence: evidence.encode(),
            identity_key: binding.identity_key,
            sealing_key: binding.sealing_key,
            epoch: binding.epoch,
            task,
        };
        let answer: AttestAnswer = self.http.post("/v1/attest", &request).await?;
        Attested::check(answer, identity, issuer_pem)
    }
}

impl Attested {
    fn check(
        answer: AttestAnswer,
        identity: &Identity,
        issuer_pem: &str,
    ) -> Result<Self, AttestError> {
        // The machine's clock is the host's word. It can make this check fail
        // or accept an expired certificate, which the gateway then refuses.
        let now = UnixTime::now();
        let AttestAnswer { certificate_chain, bundle } = answer;
        let certificate = Certificate::check(&certificate_chain, identity, issuer_pem, now)?;
        let actual = casemate_ledger::digest(&bundle);
        if actual != certificate.claims.bundle {
            let expected = hex::encode(certificate.claims.bundle);
            return Err(AttestError::Bundle { expected, actual: hex::encode(actual) });
        }
        Ok(Self { certificate, bundle })
    }
}
