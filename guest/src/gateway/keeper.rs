//! Keeps the port's stream to the gateway: makes it again when it breaks, and
//! under a new certificate before the old one ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep, sleep_until};

use super::calls::Calls;
use super::session::Session;
use super::{Dial, Gateway, GatewayError};
use crate::attest::{AttestError, Attested};
use crate::console::say;
use crate::http::HttpError;
use crate::identity::Identity;

/// How long a machine may be without its gateway before it ends.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// The first and the longest pause between two tries.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

/// Carries the port's calls to the gateway for the machine's life.
#[derive(Debug)]
pub struct Keeper<D: Dial> {
    dial: D,
    attested: Attested,
    /// When the certificate is to be renewed, and when it is over.
    renewal: (Instant, Instant),
    calls: Calls,
    /// None while there is no stream.
    session: Option<Session<D::Stream>>,
}

/// Connects and greets the gateway; `places` commands wait at most.
pub async fn connect<D: Dial>(
    dial: D,
    identity: Arc<Identity>,
    attested: Attested,
    places: usize,
) -> Result<(Gateway, Keeper<D>), GatewayError> {
    let (gateway, queues) = Gateway::new(places);
    let mut calls = Calls::new(identity, &attested, queues);
    let stream = dial.connect(&attested).await?;
    let session = Session::greet(stream, &mut calls, &attested).await?;
    let (renewal, session) = (renewal(&attested), Some(session));
    Ok((gateway, Keeper { dial, attested, renewal, calls, session }))
}

impl<D: Dial> Keeper<D> {
    /// Serves the port's requests; it always ends with an error.
    pub async fn run(mut self) -> GatewayError {
        loop {
            if let Err(error) = self.turn().await {
                return error;
            }
        }
    }

    /// One stream's life, and the next one's beginning.
    async fn turn(&mut self) -> Result<(), GatewayError> {
        let Some(mut session) = self.session.take() else { return self.reconnect().await };
        let renewed = attest_in_time(&self.dial, self.renewal);
        let outcome = session.run(&mut self.calls, renewed).await;
        drop(session); // the gateway sees that it is over before the next one begins
        match outcome {
            Ok(attested) => {
                say("identity: renewed");
                self.renewal = renewal(&attested);
                self.attested = attested;
            }
            Err(error) if error.is_passing() => say(&format!("{error}; connecting again")),
            Err(error) => return Err(error),
        }
        self.reconnect().await
    }

    async fn reconnect(&mut self) -> Result<(), GatewayError> {
        let patience = Instant::now() + RECONNECT_PATIENCE;
        let mut pause = PAUSES.0;
        loop {
            match self.try_once().await {
                Err(error) if error.is_passing() && Instant::now() < patience => {
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSES.1);
                }
                outcome => return outcome,
            }
        }
    }

    async fn try_once(&mut self) -> Result<(), GatewayError> {
        // A machine that was paused may wake up with a certificate that is over.
        if Instant::now() >= self.renewal.0 || remaining(&self.attested).is_zero() {
            let wrong = |error| GatewayError::Renewal(Box::new(error));
            self.attested = self.dial.attest().await.map_err(wrong)?;
            self.renewal = renewal(&self.attested);
        }
        let stream = self.dial.connect(&self.attested).await?;
        let session = Session::greet(stream, &mut self.calls, &self.attested).await?;
        self.session = Some(session);
        Ok(())
    }
}

/// A new certificate, tried for from when it is due until the old one is over.
async fn attest_in_time<D: Dial>(
    dial: &D,
    (due, over): (Instant, Instant),
) -> Result<Attested, GatewayError> {
    sleep_until(due).await;
    let mut pause = PAUSES.0;
    loop {
        match dial.attest().await {
            Ok(attested) => return Ok(attested),
            Err(error) if is_refusal(&error) || Instant::now() >= over => {
                return Err(GatewayError::Renewal(Box::new(error)));
            }
            Err(error) => say(&format!("identity, renewal: {error}; trying again")),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
}

fn is_refusal(error: &AttestError) -> bool {
    matches!(error, AttestError::Http(HttpError::Denied { .. }))
}

/// When two thirds of the certificate's time are over, and when all of it is.
fn renewal(attested: &Attested) -> (Instant, Instant) {
    let (now, left) = (Instant::now(), remaining(attested));
    (now + left * 2 / 3, now + left)
}

fn remaining(attested: &Attested) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(attested.certificate.expires).saturating_sub(now)
}
