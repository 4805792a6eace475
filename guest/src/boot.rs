//! The order of boot. Each step is one module; the first that fails ends the machine.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use casemate_mux::{Guest, PORT_NAME, Port as Wire};
use serde_json::json;

use crate::attest::{AttestError, Attested, Session};
use crate::config::{self, Config, Receiver};
use crate::console::say;
use crate::evidence::devices::{self, Devices};
use crate::evidence::{Psp, Sources};
use crate::gateway::Machine;
use crate::host::{Host, Launch};
use crate::http::HttpError;
use crate::identity::Identity;
use crate::port::Port;
use crate::release::{Released, SecretBytes};
use crate::workload::{Exit, PORT_DIRECTORY, Plan, Running};
use crate::{gateway, kernel, mount, power};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// PID 1's whole life. It ends with the power off.
pub fn run() -> ExitCode {
    power::off_on_panic();
    match prepare().and_then(|config| runtime()?.block_on(machine(&config))) {
        Ok(()) => say("powering off"),
        Err(error) => say(&format!("stopped: {error}")),
    }
    power::off()
}

/// What needs no wire: file systems, modules, a closed kernel, the configuration.
fn prepare() -> Result<Config, Failure> {
    mount::first()?;
    kernel::load_modules()?;
    mount::configfs()?;
    kernel::close()?;
    Ok(Config::load(Path::new(config::PATH))?)
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

async fn machine(config: &Config) -> Result<(), Failure> {
    let mux = Guest::start(Wire::open(PORT_NAME, Duration::from_secs(10)).await?);
    let host = Host::new(mux.clone());
    let outcome = tokio::select! {
        outcome = work(config, &mux, &host) => outcome,
        () = mux.closed() => Err("the wire to the host is gone".into()),
    };
    match &outcome {
        Ok(exit) => host.exited(exit.code, exit.signal).await,
        Err(error) => host.event("stopped", json!({"reason": error.to_string()})).await,
    }
    outcome.map(drop)
}

/// Identity, evidence, secrets, gateway, port, workload: in this order.
async fn work(config: &Config, mux: &Guest, host: &Host) -> Result<Exit, Failure> {
    let launch = host.launch().await?;
    let identity = Arc::new(Identity::generate(launch.epoch)?);
    let key = hex::encode(identity.public_key());
    step(host, "identity", json!({"task": launch.sandbox_task, "epoch": launch.epoch, "key": key}))
        .await;

    let mut verifier = Session::connect(mux, &config.verifier).await?;
    let attested = attest(config, mux, host, &launch, &identity, &mut verifier).await?;
    let mut plan = Plan::new(&config.workload);
    let kept = secrets(config, host, &identity, &attested, &mut verifier, &mut plan).await?;
    drop(verifier);

    let places = config.port.concurrent_calls;
    let machine = Machine {
        mux: mux.clone(),
        verifier: config.verifier.clone(),
        gateway: config.gateway.clone(),
        identity: Arc::clone(&identity),
        task: launch.sandbox_task.clone(),
        psp: launch.psp,
        gpu: launch.gpu,
    };
    let (tools, keeper) = gateway::connect(machine, identity, attested, places).await?;
    step(host, "gateway", json!({"server": config.gateway.server_name})).await;

    let (uid, gid) = (config.workload.uid, config.workload.gid);
    let port = Port::bind(Path::new(PORT_DIRECTORY), uid, gid, config.port.clone())?;
    let output = config.workload.output_bytes_per_second;
    let (mut running, loopback) = Running::start(plan, output)?;
    step(host, "workload", json!({"program": config.workload.argv.first()})).await;

    let exit = tokio::select! {
        exit = running.wait() => exit?,
        error = keeper.run() => return Err(error.into()),
        error = port.serve(tools, Some(loopback)) => return Err(error.into()),
        () = wall_time(config.workload.wall_time_s) => {
            return Err("the workload's wall time is over".into());
        }
    };
    drop(kept); // what PID 1 held for itself is wiped before the report
    say(&format!("the workload ended: code {:?}, signal {:?}", exit.code, exit.signal));
    Ok(exit)
}

async fn attest(
    config: &Config,
    mux: &Guest,
    host: &Host,
    launch: &Launch,
    identity: &Identity,
    verifier: &mut Session,
) -> Result<Attested, Failure> {
    let psp = launch.psp.then(|| Psp(mux.clone()));
    let devices = Devices::new(devices::BUS.as_ref(), launch.gpu.then(|| mux.clone()));
    let mut sources = Sources::find(host.clone(), psp, devices)?;
    step(host, "evidence", json!({"sources": sources.names()})).await;
    let issuer = &config.verifier.identity_ca_pem;
    let task = &launch.sandbox_task;
    let attested = verifier.attest_when_served(identity, &mut sources, task, issuer).await;
    if let Err(AttestError::Http(HttpError::Denied { denial, .. })) = &attested {
        host.event("attest-refused", json!({"denial": denial})).await;
    }
    let attested = attested?;
    let certificate = &attested.certificate;
    let facts = json!({
        "sandbox": certificate.sandbox,
        "boundary": certificate.claims.boundary.name(),
        "anchor": certificate.claims.anchor,
        "hardware": certificate.claims.hardware,
    });
    step(host, "attested", facts).await;
    Ok(attested)
}

/// Fetches every secret of the configuration. Returns those that stay with PID 1.
async fn secrets(
    config: &Config,
    host: &Host,
    identity: &Identity,
    attested: &Attested,
    verifier: &mut Session,
    plan: &mut Plan,
) -> Result<Vec<SecretBytes>, Failure> {
    let mut kept = Vec::new();
    for secret in &config.secrets {
        let sandbox = &attested.certificate.sandbox;
        match verifier.release(identity, sandbox, secret).await? {
            Released::Refused(denial) => {
                say(&format!("secret {}: {denial}", secret.name));
                host.event("secret-refused", json!({"name": secret.name, "denial": denial})).await;
            }
            Released::Secret { value, lease } => {
                let receiver = match (secret.receiver, secret.fd) {
                    (Receiver::WorkloadFd, Some(fd)) => {
                        plan.inherit(fd, value.expose());
                        "workload-fd"
                    }
                    _ => {
                        kept.push(value);
                        "guest"
                    }
                };
                let facts = json!({"name": secret.name, "lease": lease, "receiver": receiver});
                step(host, "secret-released", facts).await;
            }
        }
    }
    Ok(kept)
}

/// One finished step, told to the console and to the host.
async fn step(host: &Host, name: &str, facts: serde_json::Value) {
    say(&format!("{name} {facts}"));
    host.event(name, facts).await;
}

async fn wall_time(seconds: u64) {
    if seconds == 0 {
        return std::future::pending().await;
    }
    tokio::time::sleep(Duration::from_secs(seconds)).await;
}
