//! The operator stops sandboxes, or lets them go on. Format: docs/formats/stop.md.

use core::fmt;
use core::str::FromStr;

use casemate_attestation::cbor::{CborError, Fields, Map};
use ciborium::Value;

use crate::invocation::MAX_SANDBOX_BYTES;
use crate::record::Record;
use crate::{text, values};

/// Who is stopped from this record on, or is no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// Whom it concerns.
    pub scope: Scope,
    /// How far it goes; nothing when it lifts an earlier one.
    pub level: Option<StopLevel>,
    /// Why, in the operator's words.
    pub reason: String,
    /// Who asked, as the gateway knows them.
    pub by: String,
    /// SHA-256 of the approvals on which a lift rests.
    pub approvals: Vec<[u8; 32]>,
    /// The gateway's clock in milliseconds since 1970.
    pub time_ms: u64,
}

/// Whom a stop concerns.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scope {
    /// One sandbox, by its URI.
    Sandbox(String),
    /// Every sandbox of a task.
    Task(String),
    /// Every sandbox of a tenant.
    Tenant(String),
    /// Everybody.
    All,
}

/// How far a stop goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopLevel {
    /// The gateway takes no calls.
    Freeze,
    /// Machines are to be paused too.
    Pause,
    /// Machines are to be destroyed too.
    Destroy,
}

/// Why text is not a [`Scope`] or a [`StopLevel`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, got {actual:?}")]
pub struct StopError {
    /// The field.
    pub field: &'static str,
    /// What it must be.
    pub expected: &'static str,
    /// What it is.
    pub actual: String,
}

impl Scope {
    /// Whether lifting a stop of this scope takes two persons.
    pub fn is_wide(&self) -> bool {
        matches!(self, Self::Tenant(_) | Self::All)
    }

    /// What people see and sign to lift the stop of this scope whose record
    /// has the digest `stop`.
    pub fn lift_display(&self, stop: &[u8; 32]) -> String {
        let shown = serde_json::json!({"lift": self.to_string(), "stop": text::hex(stop)});
        let bytes = crate::json::canonical(&shown).unwrap_or_default();
        String::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(uri) => write!(out, "sandbox:{uri}"),
            Self::Task(task) => write!(out, "task:{task}"),
            Self::Tenant(tenant) => write!(out, "tenant:{tenant}"),
            Self::All => out.write_str("all"),
        }
    }
}

impl FromStr for Scope {
    type Err = StopError;

    fn from_str(text: &str) -> Result<Self, StopError> {
        let fits = |name: &&str| (1..=MAX_SANDBOX_BYTES).contains(&name.len());
        match text.split_once(':').map(|(kind, name)| (kind, Some(name).filter(fits))) {
            None if text == "all" => Ok(Self::All),
            Some(("sandbox", Some(uri))) => Ok(Self::Sandbox(uri.to_owned())),
            Some(("task", Some(task))) => Ok(Self::Task(task.to_owned())),
            Some(("tenant", Some(tenant))) => Ok(Self::Tenant(tenant.to_owned())),
            _ => Err(StopError {
                field: "scope",
                expected: "all, tenant:NAME, task:NAME or sandbox:URI",
                actual: text.to_owned(),
            }),
        }
    }
}

impl StopLevel {
    /// The level's name in formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::Freeze => "freeze",
            Self::Pause => "pause",
            Self::Destroy => "destroy",
        }
    }
}

impl FromStr for StopLevel {
    type Err = StopError;

    fn from_str(text: &str) -> Result<Self, StopError> {
        let known = [Self::Freeze, Self::Pause, Self::Destroy];
        known.into_iter().find(|level| level.name() == text).ok_or_else(|| StopError {
            field: "level",
            expected: "freeze, pause or destroy",
            actual: text.to_owned(),
        })
    }
}

impl Record for Stop {
    const TYPE: &'static str = "application/casemate.stop+cose";
    const MAX_BYTES: usize = 4096;

    fn payload(&self) -> Vec<u8> {
        let approvals: Vec<Value> =
            self.approvals.iter().map(|digest| Value::Bytes(digest.to_vec())).collect();
        Map::new()
            .set(1, 1)
            .set(2, self.scope.to_string())
            .optional(3, self.level.map(StopLevel::name))
            .set(4, self.reason.as_str())
            .set(5, self.by.as_str())
            .optional(6, (!approvals.is_empty()).then_some(Value::Array(approvals)))
            .set(7, self.time_ms)
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode("stop", payload, Self::MAX_BYTES)?;
        fields.version(1, 1)?;
        let scope = fields.text(2)?.parse();
        let stop = Self {
            scope: scope.map_err(|_| fields.wrong(2, "all, tenant:, task: or sandbox:"))?,
            level: values::optional_name(&mut fields, 3, "freeze, pause or destroy", |name| {
                name.parse().ok()
            })?,
            reason: values::bounded_text(&mut fields, 4, 1024)?,
            by: values::bounded_text(&mut fields, 5, 256)?,
            approvals: values::read_digests(&mut fields, 6)?,
            time_ms: fields.uint(7)?,
        };
        fields.end()?;
        Ok(stop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::survives;

    #[test]
    fn stops_and_lifts_survive() {
        let texts = ["all", "tenant:demo", "task:report:1", "sandbox:spiffe://x/demo/sb/00"];
        let levels =
            [None, Some(StopLevel::Freeze), Some(StopLevel::Pause), Some(StopLevel::Destroy)];
        for (text, level) in texts.into_iter().zip(levels) {
            let scope: Scope = text.parse().unwrap();
            assert_eq!(scope.to_string(), text);
            survives(Stop {
                scope,
                level,
                reason: "test".to_owned(),
                by: "uid:0".to_owned(),
                approvals: if level.is_none() { vec![[1; 32], [2; 32]] } else { vec![] },
                time_ms: 7,
            });
        }
        for bad in ["", "everything", "task:", "host:x", "All"] {
            assert!(bad.parse::<Scope>().is_err(), "{bad}");
        }
    }
}
