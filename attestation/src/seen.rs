//! What endorsements were seen before, so that older ones are noticed.
//!
//! An attacker who stands between a verifier and a vendor can serve the
//! previous collateral or revocation list for as long as it has not expired.
//! A verifier that remembers refuses it. [`Seen`] is a value: the caller stores
//! it, and gets the next one from [`Seen::advance`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Reason, VerifyError};
use crate::snp::CrlState;
use crate::tdx::CollateralFacts;
use crate::time::UnixTime;
use crate::verify::Claims;
use crate::wire::hex;
use crate::x509::CrlNumber;

/// The newest endorsements seen so far, by issuer and subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Counters and times that must not go back, each under a name.
    newest: BTreeMap<String, CrlNumber>,
}

impl Seen {
    /// Each counter and time under its name, for a caller that keeps them in
    /// rows of its own and compares them there.
    pub fn marks(&self) -> impl Iterator<Item = (&str, CrlNumber)> {
        self.newest.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// What is seen once `claims` are, or a refusal if they rest on an
    /// endorsement older than one seen before. Call it after the appraisal has
    /// affirmed: what is refused anyway should not move the floor.
    pub fn advance(&self, claims: &Claims) -> Result<Self, VerifyError> {
        let mut next = self.clone();
        if let Some(tdx) = claims.tdx() {
            next.tdx(&tdx.anchor.label, &tdx.collateral)?;
        }
        if let Some((snp, crl)) = claims.snp().and_then(|snp| Some((snp, snp.crl?))) {
            next.snp(&snp.anchor.label, &crl)?;
        }
        Ok(next)
    }

    fn tdx(&mut self, anchor: &str, facts: &CollateralFacts) -> Result<(), VerifyError> {
        let family = hex(&facts.fmspc);
        // Apart: the lower of the two would hide that the other went back.
        let (info, qe) = (facts.tcb_info_number.into(), facts.qe_identity_number.into());
        self.number(format!("{anchor}/tdx/{family}/tcb-info-number"), info)?;
        self.number(format!("{anchor}/tdx/{family}/qe-identity-number"), qe)?;
        self.time(format!("{anchor}/tdx/root-crl"), facts.root_crl)?;
        self.time(format!("{anchor}/tdx/pck-crl/{}", facts.pck_ca), facts.pck_crl)
    }

    fn snp(&mut self, anchor: &str, crl: &CrlState) -> Result<(), VerifyError> {
        if let Some(number) = crl.number {
            self.raise(format!("{anchor}/snp/crl-number"), number)?;
        }
        self.time(format!("{anchor}/snp/crl"), crl.this_update)
    }

    fn time(&mut self, name: String, time: UnixTime) -> Result<(), VerifyError> {
        self.number(name, time.0)
    }

    fn number(&mut self, name: String, value: u64) -> Result<(), VerifyError> {
        self.raise(name, value.into())
    }

    fn raise(&mut self, name: String, value: CrlNumber) -> Result<(), VerifyError> {
        let newest = self.newest.get(&name).copied().unwrap_or_default();
        if value < newest {
            let expected = format!("at least {newest}, which was seen before");
            return Err(VerifyError::new(Reason::CollateralRollback, name, expected, value));
        }
        self.newest.insert(name, value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn nothing_goes_back() {
        let mut seen = Seen::default();
        seen.tdx("intel", &facts(17, 100)).unwrap();
        seen.tdx("intel", &facts(17, 100)).unwrap();
        seen.tdx("intel", &facts(18, 200)).unwrap();
        for older in [facts(17, 200), facts(18, 199)] {
            let error = seen.clone().tdx("intel", &older).unwrap_err();
            assert_eq!(error.reason, Reason::CollateralRollback, "{error}");
        }
        // Another root, and another family, have their own history.
        seen.clone().tdx("model", &facts(1, 1)).unwrap();
        seen.clone().tdx("intel", &CollateralFacts { fmspc: [2; 6], ..facts(1, 200) }).unwrap();
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
        seen.tdx("intel", &both(17, 20)).unwrap();
        seen.tdx("intel", &both(18, 20)).unwrap();
        for older in [both(18, 18), both(17, 20), both(17, 21)] {
            let error = seen.clone().tdx("intel", &older).unwrap_err();
            assert_eq!(error.reason, Reason::CollateralRollback, "{error}");
        }
    }

    #[test]
    fn the_numbers_and_times_of_amd_s_lists_do_not_go_back() {
        let state = |number: Option<CrlNumber>, time| CrlState {
            number,
            this_update: UnixTime(time),
            next_update: None,
        };
        let large = "0x010000000000000000".parse().ok();
        let mut seen = Seen::default();
        seen.snp("AMD", &state(Some(7.into()), 100)).unwrap();
        seen.snp("AMD", &state(large, 200)).unwrap();
        for older in [state(Some(u64::MAX.into()), 200), state(large, 199), state(None, 199)] {
            let error = seen.clone().snp("AMD", &older).unwrap_err();
            assert_eq!(error.reason, Reason::CollateralRollback, "{error}");
        }
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), seen, "{text}");
    }

    #[test]
    fn the_value_is_stored_as_text() {
        let mut seen = Seen::default();
        seen.tdx("intel", &facts(17, 100)).unwrap();
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), seen);
    }
}
