//! What the guest may ask of the host over the wire: two relays, the host's
//! own service, and the software models of PSP and GPUs where they are offered.
//! Format: docs/formats/host-service.md. The guest is hostile here.

use std::sync::{Arc, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_attestation::UnixTime;
use casemate_attestation::gpu::DeviceKind;
use casemate_attestation::host_claim::HostClaim;
use casemate_model::PspModel;
use casemate_model::gpu::GpuMachine;
use casemate_mux::{Incoming, Stream};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::config::Services;
use crate::key::HostKey;
use crate::machine::{Event, Shared, State, WorkloadExit};
use crate::relay::relay;

/// What a machine's services need to know.
pub(crate) struct Context {
    pub(crate) host: String,
    pub(crate) key: Arc<HostKey>,
    pub(crate) services: Services,
    pub(crate) psp: Option<Psp>,
    pub(crate) gpu: Option<Arc<GpuMachine>>,
    pub(crate) shared: Arc<Shared>,
}

/// The software model of the PSP, and what it measured of this machine.
pub(crate) struct Psp {
    pub(crate) model: Arc<PspModel>,
    pub(crate) measurement: [u8; 48],
}

/// One request to the service `host`.
#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Request {
    Launch {},
    Claim { report_data: String },
    Event { name: String, data: Value },
    Exited { code: Option<i32>, signal: Option<i32> },
}

/// Why a request has no answer. The guest sees the stream end; the log sees this.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error(transparent)]
    Mux(#[from] casemate_mux::MuxError),
    #[error("the stream broke: {0}")]
    Io(#[from] std::io::Error),
    #[error("request: expected {expected}, got {actual}")]
    Request { expected: &'static str, actual: String },
    #[error(transparent)]
    Model(#[from] casemate_model::ModelError),
    #[error("no request within {} s", PATIENCE.as_secs())]
    Timeout,
}

impl Context {
    /// The services that this machine is offered.
    pub(crate) fn offered(&self) -> Vec<&'static str> {
        let offers = [
            ("host", true),
            ("verifier", self.services.verifier.is_some()),
            ("gateway", self.services.gateway.is_some()),
            ("psp", self.psp.is_some()),
            ("gpu", self.gpu.is_some()),
        ];
        offers.into_iter().filter(|(_, offered)| *offered).map(|(name, _)| name).collect()
    }

    /// Serves one stream to its end.
    pub(crate) async fn serve(self: Arc<Self>, incoming: Incoming) {
        let service = incoming.service().to_owned();
        let served = match (service.as_str(), &self.services) {
            ("verifier", Services { verifier: Some(address), .. })
            | ("gateway", Services { gateway: Some(address), .. }) => {
                relay(incoming, address).await;
                Ok(())
            }
            ("host", _) => self.answer(incoming).await,
            ("psp", _) => match &self.psp {
                Some(psp) => report(psp, incoming).await,
                None => incoming.refuse("not offered").await.map_err(Into::into),
            },
            ("gpu", _) => match &self.gpu {
                Some(machine) => devices(machine, incoming).await,
                None => incoming.refuse("not offered").await.map_err(Into::into),
            },
            _ => incoming.refuse("not offered").await.map_err(Into::into),
        };
        if let Err(error) = served {
            tracing::warn!(%service, %error, "request from the guest");
        }
    }

    async fn answer(&self, incoming: Incoming) -> Result<(), ServiceError> {
        let mut stream = incoming.accept().await?;
        let line = timeout(PATIENCE, read_line(&mut stream)).await;
        let line = line.map_err(|_| ServiceError::Timeout)??;
        let request = serde_json::from_slice(&line)
            .map_err(|error| refuse("one known request", error.to_string()))?;
        let answer = match request {
            Request::Launch {} => self.launch_parameters(),
            Request::Claim { report_data } => self.claim(&report_data)?,
            Request::Event { name, data } => {
                self.note(Event { name: printable(&name), data });
                Vec::new()
            }
            Request::Exited { code, signal } => {
                let mut workload =
                    self.shared.workload.lock().unwrap_or_else(PoisonError::into_inner);
                *workload = Some(WorkloadExit { code, signal });
                Vec::new()
            }
        };
        send(stream, &answer).await
    }

    fn launch_parameters(&self) -> Vec<u8> {
        let status = self.shared.status.borrow();
        let parameters = json!({
            "sandbox_task": status.task,
            "epoch": status.epoch,
            "time_unix": now().0,
            "psp": self.psp.is_some(),
            "gpu": self.gpu.is_some(),
        });
        format!("{parameters}\n").into_bytes()
    }

    /// The host's word, signed: a length and COSE bytes.
    fn claim(&self, report_data: &str) -> Result<Vec<u8>, ServiceError> {
        let report_data = hex::decode(report_data).ok().and_then(|bytes| bytes.try_into().ok());
        let report_data = report_data
            .ok_or_else(|| refuse("report_data of 128 hex digits", "something else".into()))?;
        let status = self.shared.status.borrow().clone();
        if status.state != State::Running {
            return Err(refuse("a running machine", format!("{:?}", status.state)));
        }
        let claim = HostClaim {
            host: self.host.clone(),
            machine: self.shared.id,
            boundary: status.boundary,
            properties: status.properties,
            backend: status.backend,
            launch: self.shared.digests.clone(),
            report_data,
            issued_at: now(),
        };
        Ok(block(&claim.sign(self.key.public(), |message| self.key.sign(message))))
    }

    fn note(&self, event: Event) {
        tracing::debug!(name = event.name, data = %event.data, "guest");
        self.shared.status.send_modify(|status| status.note(event));
    }
}

/// The model's report over the guest's report data and what was launched.
async fn report(psp: &Psp, incoming: Incoming) -> Result<(), ServiceError> {
    let mut stream = incoming.accept().await?;
    let mut report_data = [0; 64];
    let read = timeout(PATIENCE, stream.read_exact(&mut report_data)).await;
    read.map_err(|_| ServiceError::Timeout)??;
    let report = psp.model.report(&report_data, &psp.measurement)?;
    send(stream, &[block(&report), block(&psp.model.cert_table())].concat()).await
}

/// The model devices' evidence: one nonce for GPUs, one for switches.
async fn devices(machine: &GpuMachine, incoming: Incoming) -> Result<(), ServiceError> {
    let mut stream = incoming.accept().await?;
    let (mut gpu, mut switch) = ([0; 32], [0; 32]);
    let read = async {
        stream.read_exact(&mut gpu).await?;
        stream.read_exact(&mut switch).await
    };
    timeout(PATIENCE, read).await.map_err(|_| ServiceError::Timeout)??;
    let nonce = |kind| if kind == DeviceKind::Gpu { gpu } else { switch };
    let evidence = machine.evidence(nonce, now())?;
    send(stream, &block(&evidence.encode())).await
}

async fn send(mut stream: Stream, answer: &[u8]) -> Result<(), ServiceError> {
    let send = async {
        stream.write_all(answer).await?;
        stream.shutdown().await
    };
    timeout(PATIENCE, send).await.map_err(|_| ServiceError::Timeout)?.map_err(Into::into)
}

/// One line without its newline, at most [`MAX_REQUEST`] bytes.
async fn read_line(stream: &mut Stream) -> Result<Vec<u8>, ServiceError> {
    let mut line = Vec::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(line),
            _ if line.len() >= MAX_REQUEST => {
                return Err(refuse("a line of at most 4096 bytes", "a longer one".into()));
            }
            byte => line.push(byte),
        }
    }
}

/// A length (u32, little-endian) and `bytes`.
fn block(bytes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    [&length.to_le_bytes(), bytes].concat()
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| (' '..='~').contains(c)).take(64).collect()
}

fn refuse(expected: &'static str, actual: String) -> ServiceError {
    ServiceError::Request { expected, actual }
}

/// Seconds since 1970 by the host's clock.
pub(crate) fn now() -> UnixTime {
    UnixTime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |passed| passed.as_secs()))
}

const PATIENCE: Duration = Duration::from_secs(30);
const MAX_REQUEST: usize = 4096;
