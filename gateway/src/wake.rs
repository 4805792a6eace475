//! Looks again at upstreams that were down when the gateway started.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;

use crate::service::Gateway;
use crate::upstream::{Means, Running};

/// The first and the longest pause between two looks.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// Looks until none rests any more; it never returns.
pub(crate) async fn run(gateway: Arc<Gateway>) {
    let mut pause = PAUSES.0;
    while !gateway.catalogue.resting().is_empty() {
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
        join_all(gateway.catalogue.resting().into_keys().map(|at| look(&gateway, at))).await;
    }
    std::future::pending().await
}

async fn look(gateway: &Gateway, at: usize) {
    let Some(upstream) = gateway.config.upstreams.get(at) else { return };
    let means = Means { helper: &gateway.config.confine_program, secrets: &gateway.secrets };
    let listed = match Running::start(upstream, &means, at).await {
        Ok(running) => running.tools(upstream).await,
        Err(error) => Err(error),
    };
    match listed {
        Ok(offered) => {
            let drifted = gateway.catalogue.wake(at, &offered);
            tracing::info!(upstream = upstream.name, "an upstream that was down serves");
            drifted.into_iter().for_each(|(name, found)| gateway.note_drift(name, found));
        }
        Err(error) => tracing::warn!(%error, "an upstream is still down"),
    }
}
