//! The order of boot. Each step is one module; the first that fails ends the machine.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use casemate_mux::{Guest, PORT_NAME, Port};

use crate::config::Config;
use crate::console::say;
use crate::host::Host;
use crate::identity::Identity;
use crate::workload::{Plan, Running};
use crate::{config, kernel, mount, power};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// PID 1's whole life. It ends with the power off.
pub fn run() -> ExitCode {
    power::off_on_panic();
    match prepare().and_then(|config| runtime()?.block_on(work(&config))) {
        Ok(()) => say("done, powering off"),
        Err(error) => say(&format!("stopped: {error}")),
    }
    power::off()
}

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

async fn work(config: &Config) -> Result<(), Failure> {
    let mux = Guest::start(Port::open(PORT_NAME, Duration::from_secs(10)).await?);
    let host = Host::new(mux.clone());
    let launch = host.launch().await?;
    let identity = Identity::generate(launch.epoch)?;
    say(&format!(
        "task {}, epoch {}, key {}",
        launch.sandbox_task,
        launch.epoch,
        hex::encode(identity.public_key())
    ));
    std::fs::create_dir_all(crate::workload::PORT_DIRECTORY)?;
    let plan = Plan::new(&config.workload);
    let mut running = Running::start(plan, config.workload.output_bytes_per_second)?;
    let exit = running.wait().await?;
    say(&format!("the workload ended: {exit:?}"));
    host.exited(exit.code, exit.signal).await;
    Ok(())
}
