//! One task a machine: it watches everything that can end it, and ends it.

use std::pin::pin;
use std::process::ExitStatus;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::process::Child;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use crate::backend::{Link, Over, said};
use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::control;
use crate::lease::{Fate, Lease};
use crate::machine::{Exit, Paused, Shared, State};
use crate::service::Context;
use crate::vmm::{LEASE, RENEW_EVERY};

/// A machine's process and everything tied to it.
pub(crate) struct Supervisor {
    pub(crate) child: Child,
    pub(crate) link: Link,
    pub(crate) wire: UnixStream,
    pub(crate) console: Console,
    pub(crate) stderr: Console,
    pub(crate) cgroup: Option<Cgroup>,
    pub(crate) boot: Duration,
    pub(crate) wall: Duration,
    /// The gateway's word for this machine, where one answers for machines.
    pub(crate) lease: Option<Lease>,
    pub(crate) context: Arc<Context>,
}

/// What ended the watch; the process may still run.
enum End {
    Process(Option<ExitStatus>),
    Decided(Exit),
}

impl Supervisor {
    /// Watches to the end, leaves nothing running, and says why.
    pub(crate) async fn run(mut self) {
        let shared = Arc::clone(&self.context.shared);
        let mut streams = JoinSet::new();
        let end = self.watch(&shared, &mut streams).await;
        // Whatever the reason: the process dies first, then what served it.
        let _ = self.child.start_kill();
        let status = self.child.wait().await.ok();
        drop(self.cgroup.take());
        streams.abort_all();
        let exit = match end {
            End::Decided(exit) => exit,
            End::Process(ended) => self.explain(ended.or(status), &shared).await,
        };
        tracing::info!(machine = %hex::encode(shared.id), %exit, "machine over");
        shared.status.send_modify(|status| {
            status.state = State::Stopped;
            status.exit = Some(exit);
        });
        control::finish(&shared);
        shared.over.send_replace(true);
    }

    async fn watch(&mut self, shared: &Arc<Shared>, streams: &mut JoinSet<()>) -> End {
        let wire = match UnixStream::pair() {
            // The wire moves into the mux; a dead one takes its place.
            Ok((dead, _)) => std::mem::replace(&mut self.wire, dead),
            Err(error) => return End::Decided(failed(&error.to_string())),
        };
        let mut mux = casemate_mux::Host::start(wire, self.context.offered());
        let started = Instant::from_std(shared.started);
        let (mut boot_left, mut booted) = (pin!(sleep_until(started + self.boot)), false);
        let mut wall_left = pin!(sleep_until(started + self.wall));
        let mut renewal = interval(RENEW_EVERY);
        renewal.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut lease = self.lease.take();
        let patience = lease.as_ref().map_or(OBEY, Lease::grace).min(OBEY);
        let mut stands = None;
        loop {
            tokio::select! {
                biased;
                () = shared.kill.notified() => return End::Decided(Exit::Killed),
                status = self.child.wait() => return End::Process(status.ok()),
                () = &mut wall_left => {
                    return End::Decided(Exit::WallTime { seconds: self.wall.as_secs() });
                }
                () = &mut boot_left, if !booted && stands.is_none() => return End::Decided(self.never_booted()),
                _ = renewal.tick(), if lease.is_none() => {
                    if unless_killed(&shared.kill, self.link.renew(LEASE)).await.is_none() {
                        return End::Decided(Exit::Killed);
                    }
                }
                fate = next_fate(&mut lease) => {
                    match unless_killed(&shared.kill, self.obey(fate, shared, patience)).await {
                        None => return End::Decided(Exit::Killed),
                        Some(Err(exit)) => return End::Decided(exit),
                        Some(Ok(paused)) => {
                            // A guest that stands is not late.
                            if let (Some(since), None) = (stands, paused) {
                                let later = boot_left.deadline() + Instant::elapsed(&since);
                                boot_left.as_mut().reset(later);
                            }
                            stands = paused.and(stands.or_else(|| Some(Instant::now())));
                        }
                    }
                }
                Some(_) = streams.join_next() => {}
                incoming = mux.accept() => {
                    let Some(incoming) = incoming else { return self.wire_ended(shared).await };
                    if !booted {
                        booted = true;
                        spoke(shared);
                    }
                    streams.spawn(Arc::clone(&self.context).serve(incoming));
                }
            }
        }
    }

    /// Does to the machine what its lease says. A machine that cannot be paused
    /// or resumed within `patience` ends: nothing else is looked at meanwhile.
    async fn obey(
        &mut self,
        fate: Fate,
        shared: &Shared,
        patience: Duration,
    ) -> Result<Option<Paused>, Exit> {
        let before = shared.status.borrow().paused;
        let (paused, left) = match fate {
            Fate::Ends(exit) => return Err(exit),
            Fate::Stands(why, left) => (Some(why), left),
            Fate::Runs(left) => (None, left),
        };
        let done = timeout(patience, async {
            match (before, paused) {
                (None, Some(_)) => self.link.pause().await?,
                (Some(_), None) => self.link.resume(left).await?,
                _ => {}
            }
            if !left.is_zero() {
                self.link.renew(left).await;
            }
            Ok(())
        });
        let late = |_| Err(format!("pause or resume: not done within {patience:?}"));
        let done = done.await.unwrap_or_else(late);
        done.map_err(|reason| Exit::BackendFailed { status: "destroyed".into(), said: reason })?;
        if before != paused {
            tracing::info!(machine = %hex::encode(shared.id), ?paused, "its CPUs stand, or run");
            shared.status.send_modify(|status| status.paused = paused);
        }
        Ok(paused)
    }

    /// A guest that powers off takes the wire along; one that lives on without is stopped.
    async fn wire_ended(&mut self, shared: &Shared) -> End {
        match unless_killed(&shared.kill, timeout(POWER_OFF, self.child.wait())).await {
            Some(Ok(status)) => End::Process(status.ok()),
            Some(Err(_)) => End::Decided(Exit::WireLost),
            None => End::Decided(Exit::Killed),
        }
    }

    fn never_booted(&self) -> Exit {
        Exit::NeverBooted {
            seconds: self.boot.as_secs(),
            console: self.console.tail(CONSOLE_LINES),
        }
    }

    /// Why the machine ended, in its backend's words.
    async fn explain(self, status: Option<ExitStatus>, shared: &Shared) -> Exit {
        let over = timeout(Duration::from_secs(2), self.link.over()).await;
        match over.unwrap_or(Over::Other(None)) {
            Over::PoweredOff => {
                let workload = *shared.workload.lock().unwrap_or_else(PoisonError::into_inner);
                Exit::PoweredOff { workload }
            }
            Over::Crashed => Exit::Crashed { console: last_panic(self.console.tail(usize::MAX)) },
            Over::Other(reason) => Exit::BackendFailed {
                status: status.map_or("unknown".into(), |status| status.to_string()),
                said: reason.unwrap_or_else(|| said(&self.stderr)),
            },
        }
    }
}

/// What the lease says next; without one, nothing ever.
async fn next_fate(lease: &mut Option<Lease>) -> Fate {
    match lease {
        Some(lease) => lease.next().await,
        None => std::future::pending().await,
    }
}

/// What `work` comes to, or nothing when the kill came first: a kill does not
/// wait for a monitor that does not answer.
async fn unless_killed<T>(kill: &Notify, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        () = kill.notified() => None,
        done = work => Some(done),
    }
}

fn spoke(shared: &Shared) {
    let after = u64::try_from(shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
    shared.status.send_modify(|status| {
        status.state = State::Running;
        status.booted_ms = Some(after);
    });
}

fn failed(reason: &str) -> Exit {
    Exit::BackendFailed { status: "not watched".into(), said: reason.to_owned() }
}

/// The lines from the kernel's panic on, or the last ones if there is none.
fn last_panic(lines: Vec<String>) -> Vec<String> {
    let panic = lines.iter().position(|line| line.contains("Kernel panic"));
    let from = panic.unwrap_or(lines.len().saturating_sub(CONSOLE_LINES));
    lines.into_iter().skip(from).take(CONSOLE_LINES).collect()
}

const CONSOLE_LINES: usize = 20;
const POWER_OFF: Duration = Duration::from_secs(5);
/// The longest wait for a backend that is to pause or to resume.
const OBEY: Duration = Duration::from_secs(5);

#[cfg(test)]
#[path = "supervise_tests.rs"]
mod lease_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_kill_does_not_wait_for_a_renewal() {
        let kill = Arc::new(Notify::new());
        assert_eq!(unless_killed(&kill, async { 1 }).await, Some(1));
        // Before the renewal began, and while nobody answers it.
        kill.notify_one();
        assert_eq!(unless_killed(&kill, async { 1 }).await, None);
        let soon = Arc::clone(&kill);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            soon.notify_one();
        });
        let never = unless_killed(&kill, std::future::pending::<()>());
        assert_eq!(timeout(Duration::from_secs(2), never).await, Ok(None));
    }
}
