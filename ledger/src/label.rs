//! The small closed lists of words that grants and decisions use.

use serde::{Deserialize, Serialize};

/// How far data may travel, lowest first. A sandbox has the highest label of
/// all results that it was given, for as long as its task lasts.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Label {
    /// Anybody may have it.
    #[default]
    Public,
    /// It stays in the organisation.
    Internal,
    /// It stays with few.
    Confidential,
    /// It is under law or contract: health, payment, secrets.
    Restricted,
}

/// What a call does to the world, by the words of whoever grants it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// It changes nothing.
    Read,
    /// It changes something of ours.
    Write,
    /// It reaches somebody else. Nothing said means this.
    #[default]
    External,
}

/// How many people must approve a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Approvals {
    /// Nobody.
    None,
    /// One person.
    One,
    /// Two different persons.
    Two,
}

/// A time over which amounts are summed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Window {
    /// The last hour.
    Hour,
    /// The last 24 hours.
    Day,
    /// As long as the grant.
    Task,
}

impl Label {
    /// Every label, lowest first.
    pub const ALL: [Self; 4] = [Self::Public, Self::Internal, Self::Confidential, Self::Restricted];

    /// The label's name in formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Internal => "internal",
            Self::Confidential => "confidential",
            Self::Restricted => "restricted",
        }
    }

    /// The label of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|label| label.name() == name)
    }
}

impl Effect {
    /// The effect's name in formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::External => "external",
        }
    }

    /// The effect of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Read, Self::Write, Self::External].into_iter().find(|effect| effect.name() == name)
    }
}

impl Approvals {
    /// The number of people.
    pub fn count(self) -> usize {
        match self {
            Self::None => 0,
            Self::One => 1,
            Self::Two => 2,
        }
    }

    /// The word in formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::One => "one",
            Self::Two => "two",
        }
    }

    /// The number that the word means.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::None, Self::One, Self::Two].into_iter().find(|level| level.name() == name)
    }
}

impl Window {
    /// The window's length; none for one that lasts as long as the grant.
    pub fn milliseconds(self) -> Option<u64> {
        match self {
            Self::Hour => Some(3_600_000),
            Self::Day => Some(86_400_000),
            Self::Task => None,
        }
    }

    /// The window's name in formats.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hour => "hour",
            Self::Day => "day",
            Self::Task => "task",
        }
    }

    /// The window of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Hour, Self::Day, Self::Task].into_iter().find(|window| window.name() == name)
    }
}
