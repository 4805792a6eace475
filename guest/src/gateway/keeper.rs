//! Keeps the port's stream to the gateway: makes it again when it breaks, and
//! under a new certificate before the old one ends.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_ledger::cgp::RpcError;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};

use super::calls::Calls;
use super::session::Session;
use super::{Dial, Gateway, GatewayError};
use crate::attest::{AttestError, Attested};
use crate::console::say;
use crate::identity::Identity;

/// How long a machine may be without its gateway before it ends.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(60);
/// What one try takes of that at most.
const MOST_OF_A_TRY: Duration = Duration::from_secs(10);
/// What a new certificate takes at most; the old one may still do meanwhile.
const ATTEST_PATIENCE: Duration = Duration::from_secs(60);
/// After so many streams that the gateway ended at hello, the next try is made
/// under a new certificate.
const TRIES_OF_ONE_CERTIFICATE: u32 = 3;
/// A stream that lasts this long was a good one.
const STEADY: Duration = Duration::from_secs(10);
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
    /// Before the next stream: longer, the more of them end soon.
    pause: Duration,
}

/// Connects and greets the gateway; `places` commands wait at most.
pub async fn connect<D: Dial>(
    dial: D,
    identity: Arc<Identity>,
    attested: Attested,
    places: usize,
) -> Result<(Gateway, Keeper<D>), GatewayError> {
    let (gateway, queues) = Gateway::new(places);
    let calls = Calls::new(identity, &attested, queues);
    let renewal = renewal(&attested);
    let mut keeper = Keeper { dial, attested, renewal, calls, session: None, pause: PAUSES.0 };
    keeper.reconnect().await?;
    Ok((gateway, keeper))
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
        let began = Instant::now();
        let outcome = session.run(&mut self.calls, renewed).await;
        drop(session); // the gateway sees that it is over before the next one begins
        let steady = began.elapsed() >= STEADY;
        match outcome {
            Ok(attested) => {
                say("identity: renewed");
                self.renewal = renewal(&attested);
                self.attested = attested;
            }
            Err(error) if error.is_passing() => say(&format!("{error}; connecting again")),
            Err(error) => return Err(error),
        }
        // A gateway that greets and hangs up, or a clock by which every new
        // certificate is due at once, must not make this a loop without rest.
        self.pause = if steady { PAUSES.0 } else { (self.pause * 2).min(PAUSES.1) };
        if !steady {
            sleep(self.pause).await;
        }
        self.reconnect().await
    }

    /// A new stream. How long a stopped sandbox waits for it is its host's to
    /// decide, who can end the machine; anything else has its time.
    async fn reconnect(&mut self) -> Result<(), GatewayError> {
        let mut patience = RECONNECT_PATIENCE;
        let (mut pause, mut ended, mut fresh) = (PAUSES.0, 0, false);
        loop {
            let began = Instant::now();
            // The clock of a machine that was paused is late, and so its renewal.
            let doubted = !fresh && ended >= TRIES_OF_ONE_CERTIFICATE;
            let tried = match self.refresh(doubted).await {
                Ok(new) => {
                    fresh |= new;
                    self.try_once().await
                }
                Err(error) => Err(error),
            };
            let Err(error) = tried else { return Ok(()) };
            let stop = error.as_stop();
            if stop.is_some() {
                patience = RECONNECT_PATIENCE;
            } else if !error.is_passing() || patience.is_zero() {
                return Err(error);
            }
            ended += u32::from(error.may_be_the_certificate());
            self.rest(pause, stop).await;
            pause = (pause * 2).min(PAUSES.1);
            // Of a machine that stood meanwhile the clock may have gone on.
            patience = patience.saturating_sub(began.elapsed().min(MOST_OF_A_TRY));
        }
    }

    /// Waits. Who calls while the sandbox is stopped is told so.
    async fn rest(&mut self, pause: Duration, stop: Option<&RpcError>) {
        let end = Instant::now() + pause;
        if let Some(stop) = stop {
            self.calls.refuse(stop);
            while let Ok(Some(command)) = timeout_at(end, self.calls.queue.recv()).await {
                let _ = command.reply.send(Err(stop.clone()));
            }
            while self.calls.given_up.try_recv().is_ok() {}
        }
        sleep_until(end).await;
    }

    async fn try_once(&mut self) -> Result<(), GatewayError> {
        let stream = self.dial.connect(&self.attested).await?;
        let session = Session::greet(stream, &mut self.calls, &self.attested).await?;
        self.session = Some(session);
        Ok(())
    }

    /// Makes sure of a certificate to go on with; gives whether it is a new one.
    /// One that is only due is renewed beside the next stream, while calls go on.
    async fn refresh(&mut self, doubted: bool) -> Result<bool, GatewayError> {
        // A machine that was paused may wake up with a certificate that is over.
        let over = remaining(&self.attested).is_zero();
        if !over && !doubted {
            return Ok(false);
        }
        let most = if over { ATTEST_PATIENCE } else { MOST_OF_A_TRY };
        match attest(&self.dial, most).await {
            Ok(attested) => {
                self.renewal = renewal(&attested);
                self.attested = attested;
                Ok(true)
            }
            Err(error) if over || error.is_refusal() => Err(GatewayError::Renewal(Box::new(error))),
            Err(error) => {
                say(&format!("identity, renewal: {error}; the old one goes on"));
                Ok(false)
            }
        }
    }
}

async fn attest<D: Dial>(dial: &D, most: Duration) -> Result<Attested, AttestError> {
    let late = |_| AttestError::Timeout { seconds: most.as_secs() };
    timeout(most, dial.attest()).await.map_err(late)?
}

/// A new certificate, tried for from when it is due until the old one is over.
async fn attest_in_time<D: Dial>(
    dial: &D,
    (due, over): (Instant, Instant),
) -> Result<Attested, GatewayError> {
    sleep_until(due).await;
    let mut pause = PAUSES.0;
    loop {
        match attest(dial, ATTEST_PATIENCE).await {
            Ok(attested) => return Ok(attested),
            Err(error) if error.is_refusal() || Instant::now() >= over => {
                return Err(GatewayError::Renewal(Box::new(error)));
            }
            Err(error) => say(&format!("identity, renewal: {error}; trying again")),
        }
        sleep(pause).await;
        pause = (pause * 2).min(PAUSES.1);
    }
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
