//! The warden: the process's first thread. It holds the leash, answers the
//! control socket, and ends the machine.
//!
//! It depends on nothing that the guest can occupy: devices and CPUs have
//! threads of their own, and a CPU that does not come out of the guest is taken
//! out by signal.

use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::EventFd;

use crate::control::Control;
use crate::exit::Exit;
use crate::gate::Gate;
use crate::leash::{Leash, Verdict};
use crate::memory::Memory;
use crate::poll::Poll;
use crate::status::{Built, VmStatus};
use crate::sys;

/// What the warden rules over.
pub(crate) struct Warden {
    started: Instant,
    gate: Arc<Gate>,
    leash: Leash,
    vcpus: Vec<JoinHandle<()>>,
    poll: Rc<Poll>,
    control: Option<Control>,
    ended: EventFd,
    state: State,
    /// What the state becomes again when an expired lease is renewed.
    before: State,
    /// What to answer to `built`, and the memory whose private part a status tells.
    pub(crate) made: Option<(Built, Memory)>,
}

/// What was asked for; the gate says what holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Made, never run.
    Created,
    /// Running, or about to.
    Running,
    /// Paused by request.
    Paused,
    /// Paused because the lease ran out.
    Expired,
}

/// One request on the control socket, already parsed. Empty braces, so that serde refuses
/// unknown keys there too.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub(crate) enum Request {
    /// How is it?
    Status {},
    /// What was made?
    Built {},
    /// Lets a created or paused machine run.
    Run {},
    /// Stops the CPUs; the answer comes when they stand.
    Pause {},
    /// Extends the lease by this many seconds from now.
    Renew {
        /// New length of the lease.
        seconds: u64,
    },
    /// Ends the machine.
    Destroy {},
}

/// CPUs are kicked this often until all of them stand.
const KICK_EVERY: Duration = Duration::from_millis(2);
/// And this often at most, which is 10 seconds.
const KICKS_MAX: u32 = 5000;
/// Numbers in the poll set: the machine ended; from here on the control socket's.
const ENDED: u64 = 0;
pub(crate) const CONTROL: u64 = 1;

impl Warden {
    /// Takes over a machine whose CPU threads wait at the gate.
    pub(crate) fn new(
        gate: Arc<Gate>,
        leash: Leash,
        vcpus: Vec<JoinHandle<()>>,
        poll: Rc<Poll>,
        control: Option<Control>,
        ended: EventFd,
    ) -> std::io::Result<Self> {
        poll.add(sys::borrow(&ended), ENDED)?;
        // The first reading looks for the vDSO, with a call that the jail does not allow.
        cpu_time();
        let started = Instant::now();
        Ok(Self {
            started,
            gate,
            leash,
            vcpus,
            poll,
            control,
            ended,
            state: State::Created,
            before: State::Created,
            made: None,
        })
    }

    /// Rules until the machine has ended and its CPUs have stopped; says why.
    pub(crate) fn rule(&mut self) -> Exit {
        if self.control.is_none() {
            self.set(State::Running);
        }
        loop {
            self.obey_leash();
            if let Some(exit) = self.gate.exit() {
                self.stop_cpus();
                return exit;
            }
            self.wait();
        }
    }

    /// Tells everyone who listens why the machine ended.
    pub(crate) fn announce(&mut self, exit: &Exit) {
        if let Some(control) = &mut self.control {
            control.announce(exit);
        }
    }

    fn wait(&mut self) {
        let timeout = self.leash.next_look(self.started.elapsed());
        let timeout_ms =
            timeout.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX) + 1);
        let numbers = match self.poll.wait(timeout_ms) {
            Ok(numbers) => numbers,
            Err(error) => {
                let detail = format!("waiting for control: {error}");
                return self.gate.end(Exit::Monitor { detail });
            }
        };
        for number in numbers {
            if number == ENDED {
                let _ = self.ended.read();
            } else {
                self.serve(number);
            }
        }
    }

    fn serve(&mut self, number: u64) {
        let Some(mut control) = self.control.take() else { return };
        let poll = Rc::clone(&self.poll);
        control.ready(number, &poll, &mut |request| self.answer(&request));
        self.control = Some(control);
    }

    fn answer(&mut self, request: &Request) -> VmStatus {
        let refused = match request {
            Request::Status {} | Request::Built {} => None,
            Request::Run {} => self.run(),
            Request::Pause {} => self.pause(),
            Request::Renew { seconds } => self.renew(*seconds),
            Request::Destroy {} => {
                self.gate.end(Exit::Destroyed);
                None
            }
        };
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let now = self.started.elapsed();
        VmStatus {
            ok: refused.is_none(),
            error: refused.map(str::to_owned),
            state: self.state_word().to_owned(),
            uptime_ms: ms(now),
            lease_left_ms: self.leash.lease_left(now).map(ms),
            cpu_ms: ms(cpu_time()),
            private_kib: self.made.as_ref().map_or(0, |(_, memory)| memory.private_bytes() >> 10),
            built: match (request, &self.made) {
                (Request::Built {}, Some((built, _))) => Some(built.clone()),
                _ => None,
            },
        }
    }

    fn run(&mut self) -> Option<&'static str> {
        if self.state == State::Expired {
            return Some("the lease has run out: renew it first");
        }
        self.set(State::Running);
        None
    }

    fn pause(&mut self) -> Option<&'static str> {
        match self.state {
            State::Running => self.set(State::Paused),
            // A renewal alone does not undo what was asked.
            State::Expired => self.before = State::Paused,
            State::Created | State::Paused => {}
        }
        None
    }

    fn renew(&mut self, seconds: u64) -> Option<&'static str> {
        if !self.leash.renew(self.started.elapsed(), Duration::from_secs(seconds)) {
            return Some("this machine has no lease");
        }
        if self.state == State::Expired {
            self.set(self.before);
        }
        None
    }

    fn state_word(&self) -> &'static str {
        if self.gate.exit().is_some() {
            return "ended";
        }
        match self.state {
            State::Created => "created",
            State::Running => "running",
            State::Paused => "paused",
            State::Expired => "lease-expired",
        }
    }

    fn obey_leash(&mut self) {
        match self.leash.verdict(self.started.elapsed(), cpu_time()) {
            Verdict::Run => {}
            Verdict::Pause if self.state == State::Expired => {}
            Verdict::Pause => {
                self.before = self.state;
                self.set(State::Expired);
            }
            Verdict::End(exit) => self.gate.end(exit),
        }
    }

    fn set(&mut self, state: State) {
        self.state = state;
        if state == State::Running {
            return self.gate.open();
        }
        self.gate.close();
        let all = self.vcpus.len();
        let standing =
            self.kick_until(|warden| warden.gate.outside() == all || warden.gate.exit().is_some());
        if !standing {
            let detail = "a CPU did not come out of the guest".into();
            self.gate.end(Exit::Monitor { detail });
        }
    }

    /// After the end: CPUs leave the guest for good. One that does not is ended with the process.
    fn stop_cpus(&mut self) {
        self.kick_until(|warden| warden.vcpus.iter().all(JoinHandle::is_finished));
    }

    fn kick_until(&self, done: impl Fn(&Self) -> bool) -> bool {
        for _ in 0..KICKS_MAX {
            if done(self) {
                return true;
            }
            self.vcpus.iter().for_each(sys::kick);
            std::thread::sleep(KICK_EVERY);
        }
        done(self)
    }
}

/// Processor time of the whole process, guest included.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or(0))
}
