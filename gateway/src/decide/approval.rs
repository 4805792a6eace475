//! Calls that wait for people. What is approved is one exact call: sandbox,
//! tool and its definition, arguments, grant and policy; once.

use std::collections::BTreeMap;

use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{Approvals, GrantRef};

use super::{Draft, deny};

/// Calls that wait, by the digest of the decision that holds them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holds(BTreeMap<[u8; 32], Pending>);

/// What an approval is for. If anything here changes, it is for nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Exact {
    pub(crate) sandbox: String,
    pub(crate) grant: GrantRef,
    pub(crate) tool_digest: [u8; 32],
    /// A keyed digest of tool and all arguments.
    pub(crate) call: [u8; 32],
    pub(crate) policy: [u8; 32],
}

/// One call that waits.
#[derive(Debug, Clone)]
pub(crate) struct Pending {
    pub(crate) exact: Exact,
    pub(crate) tool: String,
    pub(crate) needed: Approvals,
    /// The person who may not approve.
    pub(crate) owner: Option<String>,
    pub(crate) expires_ms: u64,
    /// What people are shown; not known after a restart until the call comes again.
    pub(crate) display: Option<String>,
    given: Vec<Given>,
    refused: bool,
}

/// One person's yes.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Given {
    person: String,
    approval: [u8; 32],
    expires_ms: u64,
}

/// How a call stands with the people who may approve it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Standing {
    /// Nobody was asked.
    New,
    /// They were asked; `0` is what they were asked about.
    Waiting([u8; 32]),
    /// They said yes, by these statements.
    Approved([u8; 32], Vec<[u8; 32]>),
    /// One of them said no.
    Refused([u8; 32]),
    /// So many calls wait that no other may.
    Full(Whose),
}

/// Whose calls that wait are too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// The sandbox's own.
    Sandbox,
    /// Those of all.
    All,
}

/// A statement that was checked, by somebody who may make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Statement {
    pub(crate) hold: [u8; 32],
    pub(crate) approve: bool,
    pub(crate) person: String,
    pub(crate) approval: [u8; 32],
    pub(crate) expires_ms: u64,
}

/// The most calls that wait at once.
const MAX_PENDING: usize = 1024;
/// The most of one sandbox: no sandbox takes the places of all, or hides a
/// call among thousands.
const MAX_PENDING_OF_ONE: usize = 16;

impl Pending {
    /// A call that nobody looked at yet.
    pub(crate) fn new(exact: Exact, tool: &str, needed: Approvals, expires_ms: u64) -> Self {
        Self {
            exact,
            tool: tool.to_owned(),
            needed,
            owner: None,
            expires_ms,
            display: None,
            given: Vec::new(),
            refused: false,
        }
    }

    /// How many people said yes.
    pub(crate) fn given(&self) -> usize {
        self.given.len()
    }

    /// The people who said yes, in the order in which they did.
    pub(crate) fn people(&self) -> impl Iterator<Item = &str> {
        self.given.iter().map(|given| given.person.as_str())
    }

    fn standing(&self, id: [u8; 32], now_ms: u64) -> Standing {
        let live = self.given.iter().filter(|given| now_ms < given.expires_ms);
        let live: Vec<[u8; 32]> = live.map(|given| given.approval).collect();
        match () {
            () if self.refused => Standing::Refused(id),
            () if live.len() >= self.needed.count() => Standing::Approved(id, live),
            () => Standing::Waiting(id),
        }
    }
}

impl Holds {
    /// How the call `exact` stands at `now_ms`.
    pub(crate) fn standing(&self, exact: &Exact, now_ms: u64) -> Standing {
        let live = |pending: &&Pending| now_ms < pending.expires_ms;
        let found = self.0.iter().find(|(_, pending)| pending.exact == *exact && live(pending));
        let own = |pending: &&Pending| pending.exact.sandbox == exact.sandbox;
        let count = |of: &dyn Fn(&&Pending) -> bool| {
            self.0.values().filter(live).filter(|pending| of(pending)).count()
        };
        match found {
            Some((id, pending)) => pending.standing(*id, now_ms),
            None if count(&own) >= MAX_PENDING_OF_ONE => Standing::Full(Whose::Sandbox),
            None if count(&|_| true) >= MAX_PENDING => Standing::Full(Whose::All),
            None => Standing::New,
        }
    }

    /// The call `id`, while it may still be approved.
    pub(crate) fn get(&self, id: &[u8; 32], now_ms: u64) -> Option<&Pending> {
        self.0.get(id).filter(|pending| now_ms < pending.expires_ms)
    }

    /// Every call that waits; one that a person refused does not.
    pub(crate) fn iter(&self, now_ms: u64) -> impl Iterator<Item = (&[u8; 32], &Pending)> {
        self.0.iter().filter(move |(_, pending)| now_ms < pending.expires_ms && !pending.refused)
    }

    /// Holds a call, and forgets those whose time is over.
    pub(crate) fn insert(&mut self, id: [u8; 32], pending: Pending, now_ms: u64) {
        self.0.retain(|_, pending| now_ms < pending.expires_ms);
        self.0.insert(id, pending);
    }

    /// Notes what people are shown, which a restart forgets.
    pub(crate) fn show(&mut self, id: &[u8; 32], display: String, owner: Option<String>) {
        if let Some(pending) = self.0.get_mut(id) {
            pending.display = Some(display);
            pending.owner = owner;
        }
    }

    /// Whether a person's word would be taken.
    pub(crate) fn check(&self, statement: &Statement, now_ms: u64) -> Result<(), String> {
        let pending = self.get(&statement.hold, now_ms);
        let pending = pending.ok_or("approval, hold: expected a call that waits")?;
        if pending.owner.as_ref() == Some(&statement.person) {
            return Err("approver: expected somebody else than the task's owner".to_owned());
        }
        if pending.given.iter().any(|given| given.person == statement.person) {
            return Err(format!("approver: {} said yes already", statement.person));
        }
        Ok(())
    }

    /// Takes a person's word.
    pub(crate) fn take(&mut self, statement: Statement, now_ms: u64) -> Result<(), String> {
        self.check(&statement, now_ms)?;
        let pending = self.0.get_mut(&statement.hold);
        let pending = pending.ok_or("approval, hold: expected a call that waits")?;
        if statement.approve {
            let Statement { person, approval, expires_ms, .. } = statement;
            pending.given.push(Given { person, approval, expires_ms });
        } else {
            pending.refused = true;
        }
        Ok(())
    }

    /// The call with the approval `approval`, or the one called `id`, was
    /// decided: what was said of it is used up.
    pub(crate) fn finish(&mut self, id: &[u8; 32], approvals: &[[u8; 32]]) {
        let used = |given: &Given| approvals.contains(&given.approval);
        self.0.retain(|held, p| held != id && !p.given.iter().any(used));
    }
}

/// The denial of a call that people have not approved.
pub(super) fn pending(standing: &Standing, needed: Approvals) -> Denial {
    let expected = format!("the approval of {} person(s)", needed.count());
    let id = |id: &[u8; 32]| format!("approval/{}", casemate_ledger::text::hex(id));
    match standing {
        Standing::Refused(hold) => deny(DenyCode::ApprovalDenied, id(hold), expected, "a no")
            .hint("a person refused this call; do something else"),
        Standing::Full(whose) => {
            let (most, of) = match whose {
                Whose::Sandbox => (MAX_PENDING_OF_ONE, " of one sandbox"),
                Whose::All => (MAX_PENDING, ""),
            };
            let expected = format!("at most {most} calls{of} that wait for approval");
            deny(DenyCode::ApprovalPending, "approval", expected, "that many")
                .retry_later(5_000, "nobody was asked; wait until people answered earlier calls")
        }
        Standing::New => {
            wait(deny(DenyCode::ApprovalPending, "approval", expected, "nobody was asked yet"))
        }
        Standing::Waiting(hold) | Standing::Approved(hold, _) => {
            wait(deny(DenyCode::ApprovalPending, id(hold), expected, "no answer yet"))
        }
    }
}

/// The denial of a call whose approval is no longer one.
pub(crate) fn expired(id: &[u8; 32], actual: &str) -> Denial {
    let rule = format!("approval/{}", casemate_ledger::text::hex(id));
    deny(DenyCode::ApprovalExpired, rule, "an answer in time, used once", actual)
        .hint("the same call, made again, asks people again")
}

fn wait(draft: Draft) -> Denial {
    draft.retry_later(5_000, "people were asked; the same call, made again, waits for them")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(call: u8) -> Exact {
        Exact {
            sandbox: "spiffe://casemate.internal/demo/sb/00".to_owned(),
            grant: GrantRef { id: [1; 16], digest: [2; 32] },
            tool_digest: [3; 32],
            call: [call; 32],
            policy: [4; 32],
        }
    }

    const ID: [u8; 32] = [9; 32];

    fn waiting(needed: Approvals) -> Holds {
        let mut holds = Holds::default();
        holds.insert(ID, Pending::new(exact(1), "bank.pay", needed, 1000), 0);
        holds.show(&ID, "{}".to_owned(), Some("alice".to_owned()));
        holds
    }

    fn word(person: &str, approve: bool, expires_ms: u64) -> Statement {
        let approval = casemate_ledger::digest(person.as_bytes());
        Statement { hold: ID, approve, person: person.to_owned(), approval, expires_ms }
    }

    #[test]
    fn one_or_two_persons_decide() {
        let digest = |person: &str| casemate_ledger::digest(person.as_bytes());
        let mut one = waiting(Approvals::One);
        assert_eq!(one.standing(&exact(1), 0), Standing::Waiting(ID));
        one.take(word("bob", true, 500), 0).unwrap();
        assert_eq!(one.standing(&exact(1), 0), Standing::Approved(ID, vec![digest("bob")]));
        let mut two = waiting(Approvals::Two);
        two.take(word("bob", true, 500), 0).unwrap();
        assert_eq!(two.standing(&exact(1), 0), Standing::Waiting(ID));
        assert!(two.take(word("bob", true, 500), 0).unwrap_err().contains("bob"));
        two.take(word("carol", true, 900), 0).unwrap();
        let both = vec![digest("bob"), digest("carol")];
        assert_eq!(two.standing(&exact(1), 0), Standing::Approved(ID, both));
        // One of the two yeses is over.
        assert_eq!(two.standing(&exact(1), 500), Standing::Waiting(ID));
        // One no is enough.
        let mut no = waiting(Approvals::Two);
        no.take(word("bob", true, 500), 0).unwrap();
        no.take(word("carol", false, 500), 0).unwrap();
        assert_eq!(no.standing(&exact(1), 0), Standing::Refused(ID));
        assert_eq!((two.iter(0).count(), no.iter(0).count()), (1, 0));
    }

    #[test]
    fn who_and_when() {
        let mut holds = waiting(Approvals::One);
        assert!(holds.take(word("alice", true, 500), 0).unwrap_err().contains("owner"));
        assert!(holds.take(word("bob", true, 500), 1000).unwrap_err().contains("waits"));
        let other = Statement { hold: [0; 32], ..word("bob", true, 500) };
        assert!(holds.take(other, 0).unwrap_err().contains("waits"));
        // When the time is over, the call asks again.
        assert_eq!(holds.standing(&exact(1), 1000), Standing::New);
    }

    #[test]
    fn another_call_is_not_approved() {
        let mut holds = waiting(Approvals::One);
        holds.take(word("bob", true, 900), 0).unwrap();
        let grant = GrantRef { id: [1; 16], digest: [0; 32] };
        for other in [
            exact(2),
            Exact { sandbox: "other".to_owned(), ..exact(1) },
            Exact { grant, ..exact(1) },
            Exact { tool_digest: [0; 32], ..exact(1) },
            Exact { policy: [0; 32], ..exact(1) },
        ] {
            assert_eq!(holds.standing(&other, 0), Standing::New, "{other:?}");
        }
    }

    #[test]
    fn an_approval_is_used_once() {
        let bob = casemate_ledger::digest(b"bob");
        for (id, approvals) in [(ID, vec![]), ([0; 32], vec![bob])] {
            let mut holds = waiting(Approvals::One);
            holds.take(word("bob", true, 900), 0).unwrap();
            holds.finish(&id, &approvals);
            assert_eq!(holds.standing(&exact(1), 0), Standing::New);
        }
    }

    #[test]
    fn no_more_wait_than_fit() {
        let mut holds = Holds::default();
        let other = Exact { sandbox: "other".to_owned(), ..exact(1) };
        let mut fill = |from: usize, to: usize, own: bool| {
            for number in from..to {
                let call = casemate_ledger::digest(&number.to_be_bytes());
                let sandbox = if own { exact(0).sandbox } else { number.to_string() };
                let exact = Exact { call, sandbox, ..exact(0) };
                holds.insert(call, Pending::new(exact, "t", Approvals::One, 1000), 0);
            }
            (holds.standing(&exact(1), 0), holds.standing(&other, 0))
        };
        let (full, all) = (Standing::Full(Whose::Sandbox), Standing::Full(Whose::All));
        assert_eq!(fill(0, MAX_PENDING_OF_ONE - 1, true), (Standing::New, Standing::New));
        let filled = fill(MAX_PENDING_OF_ONE - 1, MAX_PENDING_OF_ONE, true);
        assert_eq!(filled, (full.clone(), Standing::New));
        assert_eq!(fill(MAX_PENDING_OF_ONE, MAX_PENDING, false), (full.clone(), all.clone()));
        for (standing, words) in [(full, "16 calls of one sandbox"), (all, "1024 calls that")] {
            assert!(pending(&standing, Approvals::One).expected.contains(words));
        }
        assert_eq!(holds.standing(&exact(1), 1000), Standing::New);
        holds.insert(ID, Pending::new(exact(1), "t", Approvals::One, 3000), 2000);
        assert_eq!(holds.iter(2000).count(), 1);
    }
}
