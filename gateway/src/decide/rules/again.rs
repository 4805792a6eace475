//! The organisation's rules asked again, by an auditor, of a call in the log.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use casemate_ledger::audit::{self, Question, Ruled};
use casemate_ledger::digest;

use super::{Rules, SCHEMA};
use crate::clock::Now;
use crate::decide::{Call, Fit, Held};
use crate::policy::pinned;
use crate::sync::locked;

/// Evaluates rules for an audit. Those that were read are kept.
#[derive(Debug, Default)]
pub struct RulesAgain(Mutex<BTreeMap<[u8; 32], Arc<Rules>>>);

impl RulesAgain {
    fn read(&self, source: &[u8]) -> Result<Arc<Rules>, String> {
        let mut known = locked(&self.0);
        let key = digest(source);
        if let Some(rules) = known.get(&key) {
            return Ok(Arc::clone(rules));
        }
        let text = std::str::from_utf8(source).map_err(|error| format!("rules: {error}"))?;
        let (permit, rest) = match text.split_once('\n') {
            Some(("true", rest)) => (true, rest),
            Some(("false", rest)) => (false, rest),
            _ => return Err("rules: expected true or false in the first line".to_owned()),
        };
        let own = rest.strip_prefix(SCHEMA).and_then(|rest| rest.strip_prefix('\n'));
        let own = own.ok_or("rules of another schema than this program's")?;
        let rules = Arc::new(Rules::parse(own, permit)?);
        known.insert(key, Arc::clone(&rules));
        Ok(rules)
    }
}

impl audit::Rules for RulesAgain {
    fn ask(&self, rules: &[u8], question: &Question<'_>) -> Result<Ruled, String> {
        let rules = self.read(rules)?;
        let held = Held::new(question.grant.clone(), 0);
        let clause = held.grant.tools.get(question.clause).ok_or("a clause of the grant")?;
        let tool = pinned(question.tool);
        let call = Call {
            caller: question.caller,
            grant: question.call.grant,
            tool: &question.call.tool,
            tool_digest: question.call.tool_digest,
            pinned: Some(&tool),
            arguments: question.arguments,
            arguments_length: question.call.arguments.length,
            fingerprint: [0; 32],
            exact: [0; 32],
        };
        let fit = Fit { level: 0, held: &held, at: question.clause, clause };
        let now = Now { unix_ms: question.time_ms, monotonic_us: 0 };
        let mut said = rules.ask(&call, &tool, &fit, (question.risk, question.seen), now);
        let denial = said.verdict().err();
        let mut named = said.rules;
        named.extend(
            denial
                .iter()
                .map(|denial| denial.rule.clone())
                .filter(|rule| !named.contains(rule))
                .collect::<Vec<_>>(),
        );
        Ok(Ruled { allowed: denial.is_none(), rules: named })
    }
}
