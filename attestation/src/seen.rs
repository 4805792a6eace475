//! What endorsements were seen before, so that older ones are noticed.
//!
//! An attacker who stands between a verifier and a vendor can serve the
//! previous collateral or revocation list for as long as it has not expired.
//! A verifier that remembers refuses it, once the newer one has been known for
//! a grace: the machines of an honest fleet do not refresh all at once, and one
//! that is first must not lock the others out. [`Seen`] is a value: the caller
//! stores it, and gets the next one from [`Seen::advance`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::crypto::sha256;
use crate::error::{Reason, VerifyError};
use crate::snp::CrlState;
use crate::tdx::CollateralFacts;
use crate::time::UnixTime;
use crate::verify::Claims;
use crate::wire::hex;
use crate::x509::{Certificate, CrlNumber};

/// Days that a fleet has to refresh its endorsements, unless an operator says
/// otherwise.
pub const GRACE_DAYS: u64 = 7;
/// The most newer values of one name that wait for the end of their grace.
pub const MAX_WAITING: usize = 64;

/// How new one endorsement is: a counter or time that must not go back, under a
/// name that has the SHA-256 of the root's certificate in it. A missing list is
/// 0, so that none is older than any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// Root, kind and subject.
    pub name: String,
    /// The counter or time.
    pub value: CrlNumber,
}

/// The newest endorsements seen so far, by issuer and subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Values under each name, upwards in value and in time.
    newest: BTreeMap<String, Vec<Known>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    value: CrlNumber,
    /// When it was first seen, seconds since 1970.
    since: u64,
}

impl Seen {
    /// What is seen once `claims` are, or a refusal if they rest on an
    /// endorsement older than one that has been known for `grace_days`. Call it
    /// after the appraisal has affirmed: what is refused anyway should not move
    /// the floor.
    pub fn advance(
        &self,
        claims: &Claims,
        now: UnixTime,
        grace_days: u64,
    ) -> Result<Self, VerifyError> {
        let mut next = self.clone();
        marks(claims).iter().try_for_each(|mark| next.raise(mark, now, grace_days))?;
        Ok(next)
    }

    fn raise(&mut self, mark: &Mark, now: UnixTime, grace_days: u64) -> Result<(), VerifyError> {
        let known = self.newest.get(&mark.name).map(Vec::as_slice).unwrap_or_default();
        let counts = counts_until(now, grace_days).0;
        let floor = known.iter().rev().find(|known| known.since <= counts).copied();
        if let Some(floor) = floor.filter(|floor| mark.value < floor.value) {
            return Err(rolled_back(mark, floor.value, UnixTime(floor.since)));
        }
        let waiting = known.iter().filter(|known| known.since > counts).count();
        let newer = known.last().map_or_else(CrlNumber::default, |known| known.value) < mark.value;
        if newer && waiting < MAX_WAITING {
            let known = self.newest.entry(mark.name.clone()).or_default();
            known.retain(|known| known.since > counts || Some(*known) == floor);
            known.push(Known { value: mark.value, since: now.0 });
        }
        Ok(())
    }
}

/// Values that were first seen by then count at `now`. Without a grace all do,
/// also if the clock went back meanwhile.
pub fn counts_until(now: UnixTime, grace_days: u64) -> UnixTime {
    match grace_days {
        0 => UnixTime(u64::MAX),
        days => UnixTime(now.0.saturating_sub(days.saturating_mul(86_400))),
    }
}

/// The refusal of `mark` because `newer` has been known since `since`.
pub fn rolled_back(mark: &Mark, newer: CrlNumber, since: UnixTime) -> VerifyError {
    let expected = format!("at least {newer}, which is known since {since}");
    let none = mark.value == CrlNumber::default();
    let actual = if none { "none".to_owned() } else { mark.value.to_string() };
    VerifyError::new(Reason::CollateralRollback, mark.name.clone(), expected, actual)
}

/// What `claims` rest on and how new it is, for a caller that keeps marks in
/// rows of its own and compares them there.
pub fn marks(claims: &Claims) -> Vec<Mark> {
    let mut out = Vec::new();
    if let Some(tdx) = claims.tdx() {
        out.extend(of_tdx(&tdx.root, &tdx.collateral));
    }
    if let Some(snp) = claims.snp() {
        out.extend(of_snp(&snp.root, snp.crl.as_ref()));
    }
    out
}

fn of_tdx(root: &[u8; 32], facts: &CollateralFacts) -> [Mark; 4] {
    let (root, family) = (hex(root), hex(&facts.fmspc));
    let mark =
        |rest: String, value: u64| Mark { name: format!("{root}/tdx/{rest}"), value: value.into() };
    [
        // Apart: the lower of the two would hide that the other went back.
        mark(format!("{family}/tcb-info-number"), facts.tcb_info_number.into()),
        mark(format!("{family}/qe-identity-number"), facts.qe_identity_number.into()),
        mark("root-crl".to_owned(), facts.root_crl.0),
        mark(format!("pck-crl/{}", facts.pck_ca), facts.pck_crl.0),
    ]
}

fn of_snp(root: &[u8; 32], crl: Option<&CrlState>) -> Vec<Mark> {
    let root = hex(root);
    let made = crl.map_or(0, |crl| crl.this_update.0);
    let number = crl.and_then(|crl| crl.number);
    let number = number.map(|value| Mark { name: format!("{root}/snp/crl-number"), value });
    let made = Mark { name: format!("{root}/snp/crl"), value: made.into() };
    number.into_iter().chain([made]).collect()
}

/// What marks of `root` start with: labels are not unique and may change.
pub(crate) fn id_of(root: &Certificate) -> [u8; 32] {
    sha256(root.der())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: u64 = 86_400;
    const NOW: UnixTime = UnixTime(100 * DAY);

    fn facts(number: u32, crl: u64) -> CollateralFacts {
        CollateralFacts {
            fmspc: [1; 6],
            tcb_evaluation_data_number: number,
            tcb_info_number: number,
            qe_identity_number: number,
            issued: UnixTime(crl),
            next_update: UnixTime(crl + 10),
            root_crl: UnixTime(crl),
            pck_crl: UnixTime(crl),
            pck_ca: "Platform".to_owned(),
        }
    }

    fn list(number: Option<CrlNumber>, made: u64) -> CrlState {
        CrlState { number, this_update: UnixTime(made), next_update: None }
    }

    /// All of `marks` at `now`, under `grace` days.
    fn see(
        seen: &Seen,
        marks: impl IntoIterator<Item = Mark>,
        now: UnixTime,
        grace: u64,
    ) -> Result<Seen, VerifyError> {
        let mut next = seen.clone();
        marks.into_iter().try_for_each(|mark| next.raise(&mark, now, grace))?;
        Ok(next)
    }

    fn at_once(seen: &Seen, marks: impl IntoIterator<Item = Mark>) -> Result<Seen, VerifyError> {
        see(seen, marks, NOW, 0)
    }

    fn refused(outcome: Result<Seen, VerifyError>) -> String {
        let error = outcome.unwrap_err();
        assert_eq!(error.reason, Reason::CollateralRollback, "{error}");
        error.to_string()
    }

    #[test]
    fn nothing_goes_back() {
        let mut seen = Seen::default();
        for facts in [facts(17, 100), facts(17, 100), facts(18, 200)] {
            seen = at_once(&seen, of_tdx(&[1; 32], &facts)).unwrap();
        }
        for older in [facts(17, 200), facts(18, 199)] {
            refused(at_once(&seen, of_tdx(&[1; 32], &older)));
            // Nor when the clock does.
            refused(see(&seen, of_tdx(&[1; 32], &older), UnixTime(0), 0));
        }
        // Another root, and another family, have their own history.
        at_once(&seen, of_tdx(&[2; 32], &facts(1, 1))).unwrap();
        let other = CollateralFacts { fmspc: [2; 6], ..facts(1, 200) };
        at_once(&seen, of_tdx(&[1; 32], &other)).unwrap();
    }

    #[test]
    fn one_machine_that_is_first_locks_no_other_out() {
        let later = |days: u64| NOW.plus_seconds(days * DAY);
        let seen_at = |seen: &Seen, number, days| {
            see(seen, of_tdx(&[1; 32], &facts(number, 100)), later(days), 7)
        };
        let mut seen = Seen::default();
        // Each day a newer set: each has its own grace, and none prolongs another's.
        for day in 0..7 {
            seen = seen_at(&seen, 20 + u32::try_from(day).unwrap(), day).unwrap();
            seen = seen_at(&seen, 19, day).unwrap();
        }
        let text = refused(seen_at(&seen, 19, 7));
        assert!(text.contains("at least 20") && text.contains("19"), "{text}");
        assert!(text.contains(&NOW.to_string()), "{text}");
        seen = seen_at(&seen, 20, 7).unwrap();
        refused(seen_at(&seen, 20, 8));
        seen = seen_at(&seen, 21, 8).unwrap();
        // What is over no longer takes room.
        seen = seen_at(&seen, 40, 40).unwrap();
        assert!(seen.newest.values().all(|known| known.len() <= 2), "{seen:?}");
        refused(seen_at(&seen, 25, 40));
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut seen = Seen::default();
        for number in 1..=u32::try_from(MAX_WAITING).unwrap() + 10 {
            seen = see(&seen, of_tdx(&[1; 32], &facts(number, 1)), NOW, 7).unwrap();
        }
        assert!(seen.newest.values().all(|known| known.len() <= MAX_WAITING));
        let later = NOW.plus_seconds(7 * DAY);
        refused(see(&seen, of_tdx(&[1; 32], &facts(63, 1)), later, 7));
    }

    #[test]
    fn a_list_that_is_left_out_is_older_than_any() {
        let none = || of_snp(&[1; 32], None);
        let seen = at_once(&Seen::default(), none()).unwrap();
        assert_eq!(seen, Seen::default());
        let known = see(&seen, of_snp(&[1; 32], Some(&list(None, 100))), NOW, 7).unwrap();
        see(&known, none(), NOW, 7).unwrap();
        let text = refused(see(&known, none(), NOW.plus_seconds(7 * DAY), 7));
        assert!(text.contains("none"), "{text}");
    }

    #[test]
    fn the_two_evaluation_numbers_are_remembered_apart() {
        let both = |info: u32, qe: u32| CollateralFacts {
            tcb_evaluation_data_number: info.min(qe),
            tcb_info_number: info,
            qe_identity_number: qe,
            ..facts(0, 100)
        };
        let mut seen = Seen::default();
        for newer in [both(17, 20), both(18, 20)] {
            seen = at_once(&seen, of_tdx(&[1; 32], &newer)).unwrap();
        }
        for older in [both(18, 18), both(17, 20), both(17, 21)] {
            refused(at_once(&seen, of_tdx(&[1; 32], &older)));
        }
    }

    #[test]
    fn the_numbers_and_times_of_amd_s_lists_do_not_go_back() {
        let marks = |number, made| of_snp(&[1; 32], Some(&list(number, made)));
        let large = "0x010000000000000000".parse().ok();
        let seen = at_once(&Seen::default(), marks(Some(7.into()), 100)).unwrap();
        let seen = at_once(&seen, marks(large, 200)).unwrap();
        for older in [marks(Some(u64::MAX.into()), 200), marks(large, 199), marks(None, 199)] {
            refused(at_once(&seen, older));
        }
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), seen, "{text}");
    }
}
