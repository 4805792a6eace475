//! Asks witnesses to cosign each head, beside the calls and never in their way.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use casemate_ledger::checkpoint::Checkpoint;
use casemate_ledger::cosignature::WitnessKey;
use casemate_ledger::quorum::WitnessPolicy;
use casemate_ledger::witness::AddCheckpoint;
use casemate_ledger_http::{Answer, Prefix, add_checkpoint};
use tokio::task::JoinSet;

use crate::config::{Config, ConfigError};
use crate::service::Gateway;
use crate::sync::locked;

/// The witnesses of the configuration, and what a quorum of them saw last.
pub(crate) struct Witnesses {
    policy: WitnessPolicy,
    prefixes: Vec<Prefix>,
    seen: Mutex<Option<Seen>>,
    started: u64,
}

/// A head that a quorum cosigned.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The head.
    pub(crate) head: Checkpoint,
    /// Its note with the cosignatures.
    pub(crate) note: String,
    /// When the quorum was full, in seconds since 1970.
    pub(crate) time: u64,
}

/// The most lines of an answer that are looked at: one a key of the witness.
const MAX_ANSWER_LINES: usize = 16;

impl Witnesses {
    /// Reads the policy file, if the configuration has one. Each witness needs
    /// a URL here. `last` is the note that was kept before.
    pub(crate) fn open(
        config: &Config,
        last: Option<String>,
        now: u64,
    ) -> Result<Option<Self>, ConfigError> {
        let Some(path) = &config.witness_policy_file else { return Ok(None) };
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.clone(), source })?;
        let wrong = |actual| ConfigError::Field {
            field: "witness_policy_file",
            expected: "a C2SP tlog-policy with a quorum and a URL for each witness",
            actual,
        };
        let policy = WitnessPolicy::parse(&text).map_err(|error| wrong(error.to_string()))?;
        if !policy.asks_for_witnesses() {
            return Err(wrong("no quorum".to_owned()));
        }
        let prefixes = policy.witnesses().iter().map(|witness| {
            let url = witness.url.as_deref();
            let url = url.ok_or_else(|| wrong(format!("{} without a URL", witness.name)))?;
            Prefix::parse(url).map_err(|error| wrong(error.to_string()))
        });
        let prefixes = prefixes.collect::<Result<_, _>>()?;
        let seen = last.and_then(|note| seen(&policy, note));
        Ok(Some(Self { policy, prefixes, seen: Mutex::new(seen), started: now }))
    }

    /// The last head that a quorum cosigned, if it covers the leaf `index`.
    pub(crate) fn covering(&self, index: u64) -> Option<Seen> {
        locked(&self.seen).clone().filter(|seen| index < seen.head.size)
    }

    /// For how many seconds the log has grown unseen: 0 when its head is cosigned.
    pub(crate) fn lag(&self, head: Option<&Checkpoint>, now: u64) -> u64 {
        let seen = locked(&self.seen);
        match (head, &*seen) {
            (None, _) => 0,
            (Some(head), Some(seen)) if seen.head == *head => 0,
            (_, seen) => now.saturating_sub(seen.as_ref().map_or(self.started, |seen| seen.time)),
        }
    }

    /// Asks every witness about `head`; the note with what they answered.
    async fn ask(
        &self,
        gateway: &Arc<Gateway>,
        head: &Checkpoint,
        note: &str,
        sizes: &mut [u64],
    ) -> String {
        let mut asked = JoinSet::new();
        for (at, prefix) in self.prefixes.iter().enumerate() {
            let old = sizes.get(at).copied().unwrap_or(0);
            let (gateway, prefix) = (Arc::clone(gateway), prefix.clone());
            let (head, note) = (head.clone(), note.to_owned());
            asked.spawn(async move { (at, ask_one(&gateway, &prefix, old, &head, note).await) });
        }
        let mut cosigned = note.to_owned();
        // A quorum is enough: who is late is asked about the next head.
        while self.policy.witnessed(&cosigned).is_none()
            && let Some(answer) = asked.join_next().await
        {
            let Ok((at, line)) = answer else { continue };
            let Some(witness) = self.policy.witnesses().get(at) else { continue };
            let own = line.map(|answer| own_line(&witness.key, note, &answer));
            match own {
                Ok(Some(line)) => {
                    cosigned.push_str(&line);
                    if let Some(size) = sizes.get_mut(at) {
                        *size = head.size;
                    }
                }
                Ok(None) => {
                    tracing::warn!(witness = witness.name, "its cosignature does not verify");
                }
                Err(reason) => tracing::warn!(witness = witness.name, reason, "no cosignature"),
            }
        }
        cosigned
    }
}

/// Takes each new head to the witnesses until the task is dropped.
pub(crate) async fn run(gateway: Arc<Gateway>) {
    let Some(witnesses) = &gateway.witnesses else { return std::future::pending().await };
    let mut sizes = vec![0; witnesses.prefixes.len()];
    let mut beat = tokio::time::interval(Duration::from_millis(gateway.config.checkpoint_ms));
    beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        let Some((head, note)) = gateway.journal.head() else { continue };
        if locked(&witnesses.seen).as_ref().is_some_and(|seen| seen.head == head) {
            continue;
        }
        let note = witnesses.ask(&gateway, &head, &note, &mut sizes).await;
        let Some(seen) = seen(&witnesses.policy, note) else { continue };
        if let Err(error) = gateway.journal.keep_witnessed(&seen.note) {
            tracing::warn!(%error, "the cosigned head is not kept");
        }
        *locked(&witnesses.seen) = Some(seen);
    }
}

fn seen(policy: &WitnessPolicy, note: String) -> Option<Seen> {
    let time = policy.witnessed(&note)?;
    let (head, _) = Checkpoint::read(&note).ok()?;
    Some(Seen { head, note, time })
}

/// The one line of a witness's answer by which it vouches for `note`. What else
/// the answer says is nobody's word, and no part of a note that is kept.
fn own_line(key: &WitnessKey, note: &str, answer: &str) -> Option<String> {
    let mut lines = answer.lines().take(MAX_ANSWER_LINES).map(|line| format!("{line}\n"));
    lines.find(|line| key.cosigned(&format!("{note}{line}")).is_some())
}

/// Asks from `old`, and once more from where the witness says that it is.
async fn ask_one(
    gateway: &Gateway,
    prefix: &Prefix,
    old: u64,
    head: &Checkpoint,
    note: String,
) -> Result<String, String> {
    let mut from = old.min(head.size);
    for _ in 0..2 {
        let proof = gateway.journal.consistency(from, head.size).map_err(|e| e.to_string())?;
        let request = AddCheckpoint { old: from, proof, note: note.clone() };
        match add_checkpoint(prefix, &request).await.map_err(|error| error.to_string())? {
            Answer::Cosigned(line) => return Ok(line),
            Answer::Size(size) if size > head.size => {
                return Err(format!("it saw {size} leaves, this log has {}", head.size));
            }
            Answer::Size(size) => from = size,
            Answer::Refused(status, text) => return Err(format!("{status}: {text}")),
        }
    }
    Err("it names another size each time".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SigningKey;

    #[test]
    fn of_a_witness_s_answer_its_own_line_alone_is_kept() {
        let (one, other) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let key = WitnessKey::new("w1", *one.public()).unwrap();
        let head =
            Checkpoint { origin: "casemate.internal/demo/log1".into(), size: 7, root: [1; 32] };
        let note = format!("{}\n\u{2014} log c2lnbmF0dXJl\n", head.body());
        let line = key.cosign(&head, 1_790_000_000, |message| one.sign(message));
        let forged = key.cosign(&head, 1_790_000_000, |message| other.sign(message));
        let noise = "\u{2014} somebody c2lnbmF0dXJl\n".repeat(3);
        for answer in [line.clone(), [&noise, &forged, &line, &noise].map(String::as_str).concat()]
        {
            assert_eq!(own_line(&key, &note, &answer).as_ref(), Some(&line), "{answer}");
        }
        let late = [noise.repeat(9), line].concat();
        for answer in [forged.as_str(), &noise, "", &late] {
            assert_eq!(own_line(&key, &note, answer), None, "{answer}");
        }
    }
}
