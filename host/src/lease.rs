//! The dead man's lease: a machine runs while its gateway answers for it, and as
//! far as the gateway's operator lets it. Format: docs/formats/host-lease.md.
//!
//! Only the length of silence counts, on the monotonic clock: whether the gateway
//! was killed, hangs, or is cut off, and what the calendar says, is all the same.

use std::collections::VecDeque;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout};

use crate::machine::{Exit, Paused};

/// How long a machine runs without an answer, and how long it stands then.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) length: Duration,
    pub(crate) grace: Duration,
}

/// Whom the gateway is asked about.
#[derive(Debug, Clone)]
pub(crate) struct Who {
    pub(crate) host: String,
    pub(crate) machine: String,
    pub(crate) task: String,
}

/// What is to become of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It runs; nothing new is needed for this long.
    Runs(Duration),
    /// Its CPUs stand. With a duration, its gateway lives and keeps it so.
    Stands(Paused, Duration),
    /// It ends.
    Ends(Exit),
}

/// A machine's lease. It is asked for until this is dropped.
#[derive(Debug)]
pub(crate) struct Lease {
    terms: Terms,
    words: watch::Receiver<Word>,
    asking: JoinHandle<()>,
}

/// What the gateway said last, and until when the machine may go by it.
#[derive(Debug, Clone, Copy)]
struct Word {
    stop: Option<Stop>,
    until: Instant,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Stop {
    /// The gateway takes no calls; nothing for us to do.
    Freeze,
    Pause,
    Destroy,
}

#[derive(Serialize)]
struct Question<'a> {
    host: &'a str,
    machine: &'a str,
    task: &'a str,
    sandboxes: &'a [String],
    beat: u64,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    beat: u64,
    stop: Option<Stop>,
    sandboxes: Vec<String>,
}

const MAX_LINE: u64 = 64 * 1024;
/// The most sandboxes that are remembered, and what a question may hold.
const MAX_SANDBOXES: usize = 16;
/// Questions are asked this often within a lease.
const QUESTIONS: u32 = 3;

impl Lease {
    /// Asks the gateway on `socket` for a machine that starts now.
    pub(crate) fn start(socket: PathBuf, terms: Terms, who: Who) -> Self {
        let word = Word { stop: None, until: Instant::now() + terms.length };
        let (said, words) = watch::channel(word);
        let asking = tokio::spawn(async move { ask(&socket, terms, &who, &said).await });
        Self { terms, words, asking }
    }

    /// How long the machine stands when its gateway is silent.
    pub(crate) fn grace(&self) -> Duration {
        self.terms.grace
    }

    /// Waits until the gateway says something, or has said nothing for too long.
    pub(crate) async fn next(&mut self) -> Fate {
        let turn = self.words.borrow().turn(self.terms, Instant::now());
        tokio::select! {
            changed = self.words.changed() => if changed.is_err() {
                // Nobody asks any more: time goes on all the same.
                sleep_until(turn).await;
            },
            () = sleep_until(turn) => {}
        }
        self.words.borrow_and_update().fate(self.terms, Instant::now())
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.asking.abort();
    }
}

impl Word {
    /// When the fate changes without another word.
    fn turn(self, terms: Terms, now: Instant) -> Instant {
        if now < self.until { self.until } else { self.until + terms.grace }
    }

    fn fate(self, terms: Terms, now: Instant) -> Fate {
        let left = self.until.saturating_duration_since(now);
        match self.stop {
            Some(Stop::Destroy) => Fate::Ends(Exit::Destroyed),
            _ if now >= self.until + terms.grace => {
                let silent = terms.length + terms.grace;
                Fate::Ends(Exit::LeaseOver { seconds: silent.as_secs() })
            }
            _ if left.is_zero() => Fate::Stands(Paused::Lease, left),
            Some(Stop::Pause) => Fate::Stands(Paused::Stop, left),
            Some(Stop::Freeze) | None => Fate::Runs(left),
        }
    }
}

/// Asks for ever; a conversation that breaks is begun anew.
async fn ask(socket: &PathBuf, terms: Terms, who: &Who, said: &watch::Sender<Word>) {
    let pause = (terms.length / 10).clamp(Duration::from_millis(20), Duration::from_secs(1));
    let mut sandboxes = Vec::new();
    let mut silent = false;
    loop {
        let before = said.borrow().until;
        let error = match converse(socket, terms, who, &mut sandboxes, said).await {
            Ok(never) => match never {},
            Err(error) => error,
        };
        // Once for each silence.
        silent &= said.borrow().until == before;
        if !silent {
            tracing::warn!(machine = who.machine, %error, "the gateway does not answer for it");
        }
        silent = true;
        sleep(pause).await;
    }
}

/// Questions that wait for their answers, with when they were sent.
type Open = VecDeque<(u64, Instant)>;

/// One stream to the gateway. Ends when it does, or when it is silent for a lease.
async fn converse(
    socket: &PathBuf,
    terms: Terms,
    who: &Who,
    sandboxes: &mut Vec<String>,
    said: &watch::Sender<Word>,
) -> io::Result<std::convert::Infallible> {
    let stream = timeout(terms.length, UnixStream::connect(socket)).await??;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut ticks = interval(terms.length / QUESTIONS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut line, mut open, mut beat) = (Vec::new(), Open::new(), 0);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let now = Instant::now();
                if open.front().is_some_and(|(_, sent)| now >= *sent + terms.length) {
                    return Err(io::ErrorKind::TimedOut.into());
                }
                beat += 1;
                open.push_back((beat, now));
                let question = question(who, sandboxes, beat)?;
                timeout(terms.length, writer.write_all(&question)).await??;
            }
            read = read_line(&mut reader, &mut line) => {
                read?;
                let answer: Answer = serde_json::from_slice(&std::mem::take(&mut line))?;
                let sent = take(&mut open, answer.beat);
                said.send_modify(|word| {
                    word.stop = answer.stop;
                    let until = sent.map_or(word.until, |sent| sent + terms.length);
                    word.until = word.until.max(until);
                });
                *sandboxes = answer.sandboxes;
                sandboxes.truncate(MAX_SANDBOXES);
            }
        }
    }
}

fn question(who: &Who, sandboxes: &[String], beat: u64) -> io::Result<Vec<u8>> {
    let Who { host, machine, task } = who;
    let mut line = serde_json::to_vec(&Question { host, machine, task, sandboxes, beat })?;
    line.push(b'\n');
    Ok(line)
}

/// When the question `beat` was sent, if it still waits; those before it are over too.
fn take(open: &mut Open, beat: u64) -> Option<Instant> {
    let mut found = None;
    while let Some((number, sent)) = open.front().copied().filter(|(number, _)| *number <= beat) {
        open.pop_front();
        found = (number == beat).then_some(sent);
    }
    found
}

/// Fills `line`. What was read stays there when this is dropped.
async fn read_line(reader: &mut BufReader<OwnedReadHalf>, line: &mut Vec<u8>) -> io::Result<()> {
    let left = MAX_LINE.saturating_sub(u64::try_from(line.len()).unwrap_or(u64::MAX));
    reader.take(left).read_until(b'\n', line).await?;
    if line.ends_with(b"\n") {
        return Ok(());
    }
    Err(io::ErrorKind::UnexpectedEof.into())
}

#[cfg(test)]
#[path = "lease_tests.rs"]
mod tests;
