//! The grants under which a call is decided: the one that it names and those
//! that this one is a part of.

use serde_json::Value;

use super::usage::Usage;
use super::{Auditor, Checked, fail, failed};
use crate::budget::prefix;
use crate::record::Authentic;
use crate::{Clause, Decision, Grant, Invocation, MAX_GRANTS_ABOVE};

/// A grant in the log.
pub(super) struct Known {
    pub(super) grant: Authentic<Grant>,
    digest: [u8; 32],
    /// The grants that it is a part of, nearest first. Each was in the log
    /// before, so that no line comes back to itself.
    pub(super) above: Vec<[u8; 16]>,
    /// What calls used of it.
    pub(super) usage: Usage,
}

/// The clause of one grant in a call's line that the decision names.
pub(super) struct Fit<'a> {
    /// The grant's place in the line: 0 is the one that the call names.
    pub(super) level: usize,
    pub(super) known: &'a Known,
    pub(super) at: usize,
    pub(super) clause: &'a Clause,
}

impl Fit<'_> {
    /// The clause, as decisions name it.
    pub(super) fn rule(&self) -> String {
        format!("{}grant/tools/{}", prefix(self.level), self.at)
    }

    /// The clauses for the same tool that come before this one.
    pub(super) fn earlier(&self) -> impl Iterator<Item = &Clause> {
        self.known
            .grant
            .clauses(&self.clause.tool)
            .map_while(|(at, clause)| (at < self.at).then_some(clause))
    }
}

impl Auditor<'_> {
    /// Takes a grant that its issuer signed. A part of another grant counts
    /// only when that one is in the log before, and is not narrower.
    pub(super) fn take(&mut self, grant: Authentic<Grant>) {
        let above = match grant.parent {
            None => Vec::new(),
            Some(_) => {
                let above = self.above(&grant);
                let Some(above) = self.note("grant.parent", above) else { return };
                above
            }
        };
        let known = Known { digest: grant.digest(), above, usage: Usage::default(), grant };
        self.grants.entry(known.grant.id).or_insert(known);
    }

    fn above(&self, grant: &Grant) -> Checked<Vec<[u8; 16]>> {
        let Some(parent) = grant.parent else { return Ok(Vec::new()) };
        let known = self.grants.get(&parent.id).filter(|known| known.digest == parent.digest);
        let known = known.ok_or_else(|| fail("a part of a grant that is not in the log before"))?;
        if known.above.len() >= MAX_GRANTS_ABOVE {
            return Err(fail(format!("a part with more than {MAX_GRANTS_ABOVE} grants above")));
        }
        if self.is_revoked(&parent.id) {
            return Err(fail("a part of a grant that was revoked"));
        }
        grant.attenuates(&known.grant).map_err(failed)?;
        Ok([parent.id].into_iter().chain(known.above.iter().copied()).collect())
    }

    /// The ids of the grant `id` and of those above it.
    pub(super) fn line_ids(&self, id: &[u8; 16]) -> Vec<[u8; 16]> {
        let above = self.grants.get(id).map(|known| known.above.as_slice()).unwrap_or_default();
        [*id].into_iter().chain(above.iter().copied()).collect()
    }

    /// The grant that `call` names and those above it, nearest first.
    pub(super) fn line(&self, call: &Invocation) -> Checked<Vec<&Known>> {
        let named = call.grant.ok_or_else(|| fail("a call that names no grant"))?;
        let found = self.grants.get(&named.id).filter(|known| known.digest == named.digest);
        let found = found.ok_or_else(|| fail("a grant that is not in the log before"))?;
        let above = found.above.iter().filter_map(|id| self.grants.get(id));
        Ok(std::iter::once(found).chain(above).collect())
    }
}

/// The clauses that `decision` names as its rules, one of each grant in `line`.
pub(super) fn fits<'a>(decision: &Decision, line: &[&'a Known]) -> Checked<Vec<Fit<'a>>> {
    let one = |(level, known): (usize, &&'a Known)| {
        let prefix = prefix(level) + "grant/tools/";
        let mut rules = decision.rules.iter().filter_map(|rule| rule.strip_prefix(&prefix));
        let at = rules.next().and_then(|at| at.parse::<usize>().ok());
        let found = at.and_then(|at| known.grant.tools.get(at).map(|clause| (at, clause)));
        let (at, clause) = found.ok_or_else(|| fail("allowed by no clause of its grant"))?;
        Ok(Fit { level, known, at, clause })
    };
    line.iter().enumerate().map(one).collect()
}

/// The first clause of each grant in `line` that `call` fits; none where one has
/// no such clause. Without the arguments only a clause that takes any is known
/// to fit.
pub(super) fn fitting<'a>(
    call: &Invocation,
    line: &[&'a Known],
    arguments: &Checked<Value>,
) -> Checked<Option<Vec<Fit<'a>>>> {
    let one = |(level, known): (usize, &&'a Known)| {
        for (at, clause) in known.grant.clauses(&call.tool) {
            let fits = match arguments {
                _ if clause.arguments.is_empty() => true,
                Ok(arguments) => clause.arguments.iter().all(|one| one.holds(arguments)),
                Err(found) => return Err(found.clone()),
            };
            if fits {
                return Ok(Some(Fit { level, known, at, clause }));
            }
        }
        Ok(None)
    };
    line.iter().enumerate().map(one).collect()
}
