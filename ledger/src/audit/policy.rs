//! What the gateway decided by beside the grants: its tools and their limits,
//! and the organisation's rules.

use std::collections::BTreeSet;

use serde_json::Value;

use super::line::{Fit, fits, fitting};
use super::replay::{Case, asked, effective};
use super::{Auditor, Checked, fail, failed, not_checkable, unknown};
use crate::cgp::DenyCode;
use crate::policy::{self, Policy, Tool};
use crate::record::Authentic;
use crate::{Decision, Grant, Identity, Invocation, Label, Verdict};
use casemate_attestation::Risk;

/// Evaluates the organisation's rules, which this crate does not.
pub trait Rules {
    /// What `rules` (docs/formats/gateway-policy.md) say; an error when this program
    /// cannot tell.
    fn ask(&self, rules: &[u8], question: &Question<'_>) -> Result<Ruled, String>;
}

/// A call, as rules are asked about it.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// Who calls, by certificate.
    pub caller: &'a Identity,
    /// The call.
    pub call: &'a Invocation,
    /// Its arguments.
    pub arguments: &'a Value,
    /// The grant that it names.
    pub grant: &'a Authentic<Grant>,
    /// The place of the clause in the grant.
    pub clause: usize,
    /// The tool.
    pub tool: &'a Tool,
    /// The call's risk.
    pub risk: Risk,
    /// The highest label of the results that the sandbox was given.
    pub seen: Label,
    /// When it was decided, in milliseconds since 1970.
    pub time_ms: u64,
}

/// What rules say of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruled {
    /// Whether they let it pass.
    pub allowed: bool,
    /// The rules that decide, as decisions name them.
    pub rules: Vec<String>,
}

/// Decisions name as many rules at most, beside the one that denies.
const MAX_NAMED: usize = 48;
const NO_FILE: &str = "the gateway's policy is not beside the log";

impl Auditor<'_> {
    /// Reads the policy of a decision, once for each.
    pub(super) fn learn_policy(&mut self, decision: &Decision) {
        let digest = decision.policy;
        if self.policies.contains_key(&digest) {
            return;
        }
        let read = match self.material.policy(&digest) {
            None => not_checkable(NO_FILE),
            Some(bytes) => Policy::read(&bytes, &digest).map_err(failed),
        };
        let policy = self.note("policy.file", read);
        self.policies.insert(digest, policy);
    }

    /// The policy of a decision, if it is beside the log.
    pub(super) fn policy_of(&self, decision: &Decision) -> Checked<&Policy> {
        let found = self.policies.get(&decision.policy).and_then(Option::as_ref);
        found.ok_or_else(|| unknown(NO_FILE))
    }

    /// The decision rests on the policy that the gateway started with last.
    pub(super) fn by_started(&self, decision: &Decision) -> Checked {
        match self.started {
            None => Err(fail("the log has no start of the gateway before it")),
            Some(started) if started != decision.policy => {
                Err(fail("another policy than the gateway started with"))
            }
            Some(_) => Ok(()),
        }
    }

    /// The decision rests on the policy that the gateway started with, and has
    /// tool, risk, label and floor from there.
    pub(super) fn by_policy(&self, case: Case<'_>) -> Checked {
        let Case { decision, call, arguments, .. } = case;
        self.by_started(decision)?;
        let policy = self.policy_of(decision)?;
        let tool = policy.tools.get(&call.tool).ok_or_else(|| fail("a tool it does not have"))?;
        let is_allow = decision.verdict.is_allow();
        let facts = [
            ("definition", Some(tool.definition.0) == call.tool_digest),
            ("risk", tool.risk == decision.risk),
            ("label", tool.label == decision.label || !is_allow),
        ];
        if let Some((fact, _)) = facts.iter().find(|(_, same)| !same) {
            return Err(fail(format!("another {fact} of the tool than the policy has")));
        }
        let line = self.line(call)?;
        let fits = match is_allow {
            true => fits(decision, &line)?,
            false => fitting(call, &line, arguments)?.ok_or_else(|| fail("no clause fits"))?,
        };
        let mut required = asked(&fits);
        policy.floor.of(effective(decision)).iter().for_each(|one| required.insert(one));
        let same = required == decision.boundary.required;
        same.then_some(()).ok_or_else(|| fail("another floor of the boundary than the policy has"))
    }

    /// The organisation's rules say of the call what the decision says they do.
    pub(super) fn by_rules(&self, case: Case<'_>) -> Checked {
        let Case { decision, call, arguments, .. } = case;
        let policy = self.policy_of(decision)?;
        let is_rule = |rule: &&String| rule.starts_with("policy/") || rule.starts_with("shadow/");
        let named: BTreeSet<&String> = decision.rules.iter().filter(is_rule).collect();
        let Some(digest) = policy.rules else {
            let none = named.is_empty() && !is_forbidden(decision);
            return none.then_some(()).ok_or_else(|| fail("by rules, where there are none"));
        };
        let tool = policy.tools.get(&call.tool).ok_or_else(|| fail("a tool it does not have"))?;
        let line = self.line(call)?;
        let fits = match decision.verdict {
            Verdict::Allow => fits(decision, &line)?,
            _ => fitting(call, &line, arguments)?.ok_or_else(|| fail("no clause fits"))?,
        };
        let fit = fits.first().ok_or_else(|| fail("a call that names no grant"))?;
        let ruled = self.rule(&digest.0, tool, fit, case)?;
        if ruled.allowed == is_forbidden(decision) {
            return Err(fail("the rules say something else of the call"));
        }
        let rules: BTreeSet<&String> = ruled.rules.iter().collect();
        let same = match rules.len() > MAX_NAMED {
            true => named.len() >= MAX_NAMED && named.is_subset(&rules),
            false => rules == named,
        };
        same.then_some(()).ok_or_else(|| fail("other rules decide than the decision names"))
    }

    fn rule(
        &self,
        digest: &[u8; 32],
        tool: &Tool,
        fit: &Fit<'_>,
        case: Case<'_>,
    ) -> Checked<Ruled> {
        let Case { decision, call, caller, arguments } = case;
        let engine = self.rules.ok_or_else(|| unknown("rules are not evaluated here"))?;
        let text = self.material.policy(digest);
        let text =
            text.ok_or_else(|| unknown("the organisation's rules are not beside the log"))?;
        policy::check(&text, digest).map_err(failed)?;
        let question = Question {
            caller,
            call,
            arguments: arguments.as_ref().map_err(Clone::clone)?,
            grant: &fit.known.grant,
            clause: fit.at,
            tool,
            risk: effective(decision),
            seen: self.seen(&call.sandbox),
            time_ms: decision.time_ms,
        };
        engine.ask(&text, &question).map_err(|why| unknown(&why))
    }
}

/// Whether the rules are why the call was denied.
fn is_forbidden(decision: &Decision) -> bool {
    decision.verdict == Verdict::Deny(DenyCode::PolicyForbid)
}
