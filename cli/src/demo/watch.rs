//! Follows a machine by what `casemate run --json` prints.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::Value;

use super::stage::Stage;

/// A machine that `casemate run` owns, as one of the stage's children.
pub(crate) struct Machine {
    /// The child's name on the stage.
    pub(crate) name: String,
    output: PathBuf,
}

impl Machine {
    /// The machine of the child `name`.
    pub(crate) fn of(stage: &Stage, name: &str) -> Self {
        Self { name: name.to_owned(), output: stage.path(&format!("{name}.log")) }
    }

    /// Waits for the event `name` and returns its facts. Another ending of the
    /// machine's story than the one waited for is an error that tells it.
    pub(crate) fn wait(&self, stage: &mut Stage, name: &str) -> anyhow::Result<Value> {
        let found = stage.wait(&format!("machine, {name}"), LIMIT, || {
            self.event(name).map(Ok).or_else(|| self.event("stopped").map(Err))
        })?;
        match found {
            Ok(facts) => Ok(facts),
            Err(facts) => bail!("the machine stopped before {name}: {facts}"),
        }
    }

    /// The facts of the first event `name`, if it happened.
    pub(crate) fn event(&self, name: &str) -> Option<Value> {
        let text = fs::read_to_string(&self.output).ok()?;
        let mut events = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let mut event = events.find(|event| event.get("event") == Some(&Value::from(name)))?;
        Some(event.get_mut("facts").map(Value::take).unwrap_or_default())
    }
}

/// What stands under `key` of an event's facts.
pub(crate) fn part<'a>(facts: &'a Value, key: &str) -> anyhow::Result<&'a Value> {
    facts.get(key).with_context(|| format!("no {key} in {facts}"))
}

/// The text under `key` of an event's facts.
pub(crate) fn fact<'a>(facts: &'a Value, key: &str) -> anyhow::Result<&'a str> {
    facts.get(key).and_then(Value::as_str).with_context(|| format!("no {key} in {facts}"))
}

// An emulated machine on two busy cores takes its time.
const LIMIT: Duration = Duration::from_secs(180);
