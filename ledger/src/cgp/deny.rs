//! Why a call is denied: one closed list of codes, and the explanation.

use serde::{Deserialize, Serialize};

/// Why a call was denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DenyCode {
    /// The call names no grant, or none that the gateway knows.
    GrantUnknown,
    /// The grant is for another task, tenant, sandbox or key.
    GrantForeign,
    /// The grant's time has not begun.
    GrantNotYetValid,
    /// The grant's time is over.
    GrantExpired,
    /// The grant was revoked.
    GrantRevoked,
    /// The boundary lacks properties that the grant or the tool's risk requires.
    BoundaryInsufficient,
    /// The tool's risk is above the grant's ceiling.
    RiskCeiling,
    /// The grant does not name the tool, or the gateway does not have it.
    ToolNotGranted,
    /// The tool's definition is not the one that was pinned.
    ToolDrift,
    /// The arguments are not an object within the format's limits.
    ArgsInvalid,
    /// The arguments are outside the grant's constraints.
    DecisionLimit,
    /// The call would reach data that it may not.
    DataReach,
    /// The organisation's rules forbid the call.
    PolicyForbid,
    /// The sandbox has seen data that may not go where the call goes.
    FlowLabel,
    /// The same call still runs, or nobody knows whether it did.
    DuplicateSuppressed,
    /// The sandbox repeats itself: this tool rests for a while.
    LoopQuarantine,
    /// The sandbox repeats itself for too long: its grant waits for the operator.
    LoopStop,
    /// A budget does not cover the call.
    BudgetExhausted,
    /// The calls come too fast.
    RateLimited,
    /// Too many calls run at once.
    Concurrency,
    /// The tool server fails too often and is left alone for a while.
    BreakerOpen,
    /// People must approve the call and have not done so yet.
    ApprovalPending,
    /// Somebody who was asked said no.
    ApprovalDenied,
    /// Nobody answered in time, or what was approved is no longer the same.
    ApprovalExpired,
}

impl DenyCode {
    /// Every code, in the order of the gates.
    pub const ALL: [Self; 24] = [
        Self::GrantUnknown,
        Self::GrantForeign,
        Self::GrantNotYetValid,
        Self::GrantExpired,
        Self::GrantRevoked,
        Self::BoundaryInsufficient,
        Self::RiskCeiling,
        Self::ToolNotGranted,
        Self::ToolDrift,
        Self::ArgsInvalid,
        Self::DecisionLimit,
        Self::DataReach,
        Self::PolicyForbid,
        Self::FlowLabel,
        Self::DuplicateSuppressed,
        Self::LoopQuarantine,
        Self::LoopStop,
        Self::BudgetExhausted,
        Self::RateLimited,
        Self::Concurrency,
        Self::BreakerOpen,
        Self::ApprovalPending,
        Self::ApprovalDenied,
        Self::ApprovalExpired,
    ];

    /// The code as records and replies write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::GrantUnknown => "grant_unknown",
            Self::GrantForeign => "grant_foreign",
            Self::GrantNotYetValid => "grant_not_yet_valid",
            Self::GrantExpired => "grant_expired",
            Self::GrantRevoked => "grant_revoked",
            Self::BoundaryInsufficient => "boundary_insufficient",
            Self::RiskCeiling => "risk_ceiling",
            Self::ToolNotGranted => "tool_not_granted",
            Self::ToolDrift => "tool_drift",
            Self::ArgsInvalid => "args_invalid",
            Self::DecisionLimit => "decision_limit",
            Self::DataReach => "data_reach",
            Self::PolicyForbid => "policy_forbid",
            Self::FlowLabel => "flow_label",
            Self::DuplicateSuppressed => "duplicate_suppressed",
            Self::LoopQuarantine => "loop_quarantine",
            Self::LoopStop => "loop_stop",
            Self::BudgetExhausted => "budget_exhausted",
            Self::RateLimited => "rate_limited",
            Self::Concurrency => "concurrency",
            Self::BreakerOpen => "breaker_open",
            Self::ApprovalPending => "approval_pending",
            Self::ApprovalDenied => "approval_denied",
            Self::ApprovalExpired => "approval_expired",
        }
    }

    /// The code of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|code| code.name() == name)
    }
}

/// A denial as the sandbox is told it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denial {
    /// Why, as a stable code.
    pub code: DenyCode,
    /// What decided, as the decision record names it.
    pub rule: String,
    /// What the rule asks for.
    pub expected: String,
    /// What it met.
    pub actual: String,
    /// What to do about it.
    pub hint: String,
    /// Whether the same call may succeed later.
    pub retryable: bool,
    /// When to try again, if that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_one_in_records_and_replies() {
        for code in DenyCode::ALL {
            assert_eq!(DenyCode::from_name(code.name()), Some(code));
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        }
        assert_eq!(DenyCode::from_name("other"), None);
    }
}
