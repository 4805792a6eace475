//! What the verbs that wait share: a runtime and, for the services, a log.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Runs a long-running verb to its end, with a log on standard error.
pub(crate) fn run<T>(service: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let filter = EnvFilter::try_from_env("CASEMATE_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    block_on(service)?
}

/// Waits for SIGTERM or SIGINT.
pub(crate) async fn told_to_stop() -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        interrupted = tokio::signal::ctrl_c() => Ok(interrupted?),
    }
}

/// Waits for one answer.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    Ok(runtime.context("cannot start the runtime")?.block_on(future))
}
