//! What the gateway decided about one call. Format: docs/formats/decision.md.
//!
//! The record holds the sandbox's signed invocation whole. It is durable
//! before the tool runs; its place in the log is its place in time.

use casemate_attestation::cbor::{CborError, Fields, Map};
use casemate_attestation::{Properties, Risk};
use ciborium::Value;

use crate::cgp::DenyCode;
use crate::label::{Approvals, Label};
use crate::record::Record;
use crate::values;

/// A gateway's decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// The invocation's signed bytes.
    pub invocation: Vec<u8>,
    /// What was decided.
    pub verdict: Verdict,
    /// The ids of what decided: grant clause paths, gate names.
    pub rules: Vec<String>,
    /// Digest of the gateway's configuration of tools and issuers.
    pub policy: [u8; 32],
    /// SHA-256 of the certificate (DER) under which the caller was admitted.
    pub certificate: [u8; 32],
    /// The risk class of the tool in the gateway's catalogue.
    pub risk: Risk,
    /// What this call's risk is, if something about it raised it.
    pub raised: Option<RaisedRisk>,
    /// The label of the tool's results, which the sandbox has from here on.
    pub label: Label,
    /// What the grant asks of the boundary and what the certificate says of it.
    pub boundary: BoundaryCheck,
    /// The budgets that were looked at, each before and with this call.
    pub budgets: Vec<BudgetUse>,
    /// The gateway's clock in milliseconds since 1970.
    pub time_ms: u64,
    /// SHA-256 of the decision that held the call until this one.
    pub supersedes: Option<[u8; 32]>,
    /// SHA-256 of each approval that this decision rests on.
    pub approvals: Vec<[u8; 32]>,
}

/// Allowed, or denied with a code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The call may run.
    Allow,
    /// The call does not run.
    Deny(DenyCode),
    /// The call waits for people; another decision follows, or its time ends.
    Hold(Hold),
}

/// What a held call waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    /// How many people must say yes.
    pub needed: Approvals,
    /// Until when they may, in milliseconds since 1970.
    pub expires_ms: u64,
    /// The gateway's keyed digest of tool and arguments, by which it knows the
    /// call again.
    pub call: [u8; 32],
}

/// A risk above the tool's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaisedRisk {
    /// The risk that the gates used.
    pub effective: Risk,
    /// What raised it, in words of a closed list.
    pub reasons: Vec<String>,
}

/// The boundary part of a decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundaryCheck {
    /// The properties that the grant requires.
    pub required: Properties,
    /// The properties in the caller's certificate.
    pub actual: Properties,
    /// The class of the gateway's own boundary, in the operator's words.
    pub gateway: String,
}

/// One budget as a decision saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BudgetUse {
    /// Which budget: `grant.calls`, `clause.0.calls`, `grant.bytes_in`.
    pub name: String,
    /// The limit.
    pub limit: u64,
    /// What was spent or reserved before this call.
    pub before: u64,
    /// What this call reserves; 0 when it was denied.
    pub reserved: u64,
}

const WHAT: &str = "decision";

impl Verdict {
    /// Whether the call may run.
    pub fn is_allow(self) -> bool {
        self == Self::Allow
    }
}

impl Record for Decision {
    const TYPE: &'static str = "application/casemate.decision+cose";
    const MAX_BYTES: usize = 16 * 1024;

    fn payload(&self) -> Vec<u8> {
        let (verdict, code) = match self.verdict {
            Verdict::Allow => ("allow", None),
            Verdict::Deny(code) => ("deny", Some(code.name())),
            Verdict::Hold(_) => ("hold", None),
        };
        let hold = match self.verdict {
            Verdict::Hold(hold) => Some(hold.to_value()),
            _ => None,
        };
        let approvals: Vec<Value> =
            self.approvals.iter().map(|digest| Value::Bytes(digest.to_vec())).collect();
        let boundary = Map::new()
            .set(1, values::properties(&self.boundary.required))
            .set(2, values::properties(&self.boundary.actual))
            .set(3, self.boundary.gateway.as_str());
        let budgets = self.budgets.iter().map(BudgetUse::to_value).collect();
        Map::new()
            .set(1, 1)
            .bytes(2, &self.invocation)
            .set(3, verdict)
            .optional(4, code)
            .set(5, values::texts(&self.rules))
            .bytes(6, &self.policy)
            .bytes(7, &self.certificate)
            .set(8, self.risk.name())
            .set(9, boundary.into_value())
            .set(10, Value::Array(budgets))
            .optional(11, self.raised.as_ref().map(RaisedRisk::to_value))
            .set(12, self.time_ms)
            .optional(13, (self.label != Label::Public).then(|| self.label.name()))
            .optional(14, hold)
            .optional(15, self.supersedes.map(|digest| Value::Bytes(digest.to_vec())))
            .optional(16, (!approvals.is_empty()).then_some(Value::Array(approvals)))
            .encode()
    }

    fn from_payload(payload: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, payload, Self::MAX_BYTES)?;
        fields.version(1, 1)?;
        let decision = Self {
            invocation: fields.bytes(2)?,
            verdict: Verdict::read(&mut fields)?,
            rules: values::read_texts(&mut fields, 5, 64)?,
            policy: fields.array(6)?,
            certificate: fields.array(7)?,
            risk: fields.text(8)?.parse().map_err(|_| fields.wrong(8, "a risk class"))?,
            raised: RaisedRisk::read(&mut fields)?,
            label: read_label(&mut fields)?,
            boundary: BoundaryCheck::read(&mut fields)?,
            budgets: fields
                .items(10)?
                .into_iter()
                .map(BudgetUse::from_value)
                .collect::<Result<_, _>>()?,
            time_ms: fields.uint(12)?,
            supersedes: values::optional_array(&mut fields, 15)?,
            approvals: values::read_digests(&mut fields, 16)?,
        };
        fields.end()?;
        Ok(decision)
    }
}

impl Verdict {
    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        let verdict = fields.text(3)?;
        let code = values::optional_text(fields, 4)?;
        match (verdict.as_str(), code) {
            ("allow", None) => Ok(Self::Allow),
            ("deny", Some(code)) => DenyCode::from_name(&code)
                .map(Self::Deny)
                .ok_or_else(|| fields.wrong(4, "a known denial code")),
            ("hold", None) => Hold::read(fields).map(Self::Hold),
            _ => Err(fields.wrong(3, "allow or hold without a code, or deny with one")),
        }
    }
}

fn read_label(fields: &mut Fields) -> Result<Label, CborError> {
    match values::optional_name(fields, 13, "a label", Label::from_name)? {
        Some(Label::Public) => Err(fields.wrong(13, "no key for the label public")),
        label => Ok(label.unwrap_or_default()),
    }
}

impl Hold {
    fn to_value(self) -> Value {
        Map::new()
            .set(1, self.needed.name())
            .set(2, self.expires_ms)
            .bytes(3, &self.call)
            .into_value()
    }

    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        let mut inner = fields.map(14)?;
        let needed = Approvals::from_name(&inner.text(1)?);
        let needed = needed.filter(|needed| *needed != Approvals::None);
        let hold = Self {
            needed: needed.ok_or_else(|| inner.wrong(1, "one or two"))?,
            expires_ms: inner.uint(2)?,
            call: inner.array(3)?,
        };
        inner.end()?;
        Ok(hold)
    }
}

impl RaisedRisk {
    fn to_value(&self) -> Value {
        Map::new().set(1, self.effective.name()).set(2, values::texts(&self.reasons)).into_value()
    }

    fn read(fields: &mut Fields) -> Result<Option<Self>, CborError> {
        let Some(value) = fields.optional(11) else { return Ok(None) };
        let mut inner = Fields::of("raised risk", value)?;
        let raised = Self {
            effective: inner.text(1)?.parse().map_err(|_| inner.wrong(1, "a risk class"))?,
            reasons: values::read_texts(&mut inner, 2, 16)?,
        };
        inner.end()?;
        Ok(Some(raised))
    }
}

impl BoundaryCheck {
    fn read(fields: &mut Fields) -> Result<Self, CborError> {
        let mut inner = fields.map(9)?;
        let check = Self {
            required: values::read_properties(&mut inner, 1)?,
            actual: values::read_properties(&mut inner, 2)?,
            gateway: inner.text(3)?,
        };
        inner.end()?;
        Ok(check)
    }
}

impl BudgetUse {
    fn to_value(&self) -> Value {
        Map::new()
            .set(1, self.name.as_str())
            .set(2, self.limit)
            .set(3, self.before)
            .set(4, self.reserved)
            .into_value()
    }

    fn from_value(value: Value) -> Result<Self, CborError> {
        let mut fields = Fields::of("budget use", value)?;
        let budget = Self {
            name: fields.text(1)?,
            limit: fields.uint(2)?,
            before: fields.uint(3)?,
            reserved: fields.uint(4)?,
        };
        fields.end()?;
        Ok(budget)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::record::testing::survives;

    pub(crate) fn decision() -> Decision {
        Decision {
            invocation: vec![0xd2; 400],
            verdict: Verdict::Allow,
            rules: vec!["grant/tools/0".to_owned()],
            policy: [1; 32],
            certificate: [2; 32],
            risk: Risk::Low,
            raised: None,
            label: Label::Public,
            boundary: BoundaryCheck {
                required: Properties::default(),
                actual: Properties::default(),
                gateway: "same-host".to_owned(),
            },
            budgets: vec![BudgetUse {
                name: "grant.calls".to_owned(),
                limit: 5,
                before: 1,
                reserved: 1,
            }],
            time_ms: 1_790_000_000_123,
            supersedes: None,
            approvals: Vec::new(),
        }
    }

    #[test]
    fn decision_survives() {
        survives(decision());
        let hold = Hold { needed: Approvals::Two, expires_ms: 7, call: [3; 32] };
        survives(Decision { verdict: Verdict::Hold(hold), ..decision() });
        let approvals = vec![[5; 32], [6; 32]];
        survives(Decision { supersedes: Some([4; 32]), approvals, ..decision() });
        let raised = RaisedRisk { effective: Risk::High, reasons: vec!["amount".to_owned()] };
        survives(Decision { raised: Some(raised), label: Label::Restricted, ..decision() });
        survives(Decision { verdict: Verdict::Deny(DenyCode::GrantRevoked), ..decision() });
    }
}
