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

/// The newest endorsements seen so far, by issuer and subject.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    /// Counters and times that must not go back, each under a name.
    newest: BTreeMap<String, u64>,
}

impl Seen {
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
        let number = u64::from(facts.tcb_evaluation_data_number);
        self.raise(format!("{anchor}/tdx/{family}/tcb-evaluation-data-number"), number)?;
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
        self.raise(name, time.0)
    }

    fn raise(&mut self, name: String, value: u64) -> Result<(), VerifyError> {
        let newest = self.newest.get(&name).copied().unwrap_or(0);
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
    fn the_value_is_stored_as_text() {
        let mut seen = Seen::default();
        seen.tdx("intel", &facts(17, 100)).unwrap();
        let text = serde_json::to_string(&seen).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), seen);
    }
}
