//! Is one grant a part of another? Checked field by field, each by its order.
//!
//! The gateway asks when a grant is added, and asks every grant in a call's
//! line again at each use: what is asked here is early advice, not the gate.

use crate::{Clause, Grant};

/// Why a grant is not a part of its parent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("grant, {field}: expected {expected} as in the parent, got {actual}")]
pub struct AttenuationError {
    /// The field.
    pub field: String,
    /// What the parent has.
    pub expected: String,
    /// What the grant has.
    pub actual: String,
}

impl Grant {
    /// Checks that nothing in this grant is wider than in `parent`.
    pub fn attenuates(&self, parent: &Self) -> Result<(), AttenuationError> {
        check("tenant", self.tenant == parent.tenant, &parent.tenant, &self.tenant)?;
        check(
            "not_before",
            self.not_before >= parent.not_before,
            format!("{} or later", parent.not_before),
            self.not_before,
        )?;
        check(
            "expires",
            self.expires <= parent.expires,
            format!("{} or earlier", parent.expires),
            self.expires,
        )?;
        check(
            "risk_ceiling",
            self.risk_ceiling <= parent.risk_ceiling,
            format!("at most {}", parent.risk_ceiling),
            self.risk_ceiling,
        )?;
        let missing = self.require.missing(&parent.require);
        check("require", missing.iter().next().is_none(), &parent.require, &self.require)?;
        let (own, above) = (&self.budgets, &parent.budgets);
        let budgets = [
            ("budgets.calls", Some(own.calls), Some(above.calls)),
            ("budgets.bytes_out", own.bytes_out, above.bytes_out),
            ("budgets.bytes_in", own.bytes_in, above.bytes_in),
            ("budgets.cost_micro", own.cost_micro, above.cost_micro),
            ("budgets.wall_ms", own.wall_ms, above.wall_ms),
            ("budgets.distinct_tools", own.distinct_tools, above.distinct_tools),
        ];
        budgets.into_iter().try_for_each(|(field, own, above)| no_more(field, own, above))?;
        self.owner_stays(parent)?;
        (0..).zip(&self.tools).try_for_each(|(at, clause)| clause.attenuates(at, parent))
    }

    /// Nobody else may become the one who cannot approve.
    fn owner_stays(&self, parent: &Self) -> Result<(), AttenuationError> {
        let name = |owner: &Option<String>| owner.clone().unwrap_or_else(|| "nobody".to_owned());
        let same = parent.owner.is_none() || self.owner == parent.owner;
        check("owner", same, name(&parent.owner), name(&self.owner))
    }
}

impl Clause {
    /// Checks that a clause of `parent` for the same tool is as wide or wider.
    fn attenuates(&self, at: usize, parent: &Grant) -> Result<(), AttenuationError> {
        let mut first = None;
        for (_, above) in parent.clauses(&self.tool) {
            match self.within(at, above) {
                Ok(()) => return Ok(()),
                Err(error) => {
                    first.get_or_insert(error);
                }
            }
        }
        Err(first.unwrap_or_else(|| AttenuationError {
            field: format!("tools/{at}/tool"),
            expected: "a tool".to_owned(),
            actual: self.tool.clone(),
        }))
    }

    fn within(&self, at: usize, above: &Self) -> Result<(), AttenuationError> {
        let field = |name: &str| format!("tools/{at}/{name}");
        if let Some(lost) = above.arguments.iter().find(|one| !self.arguments.contains(one)) {
            check(&field("arguments"), false, lost.describe(), "no such constraint")?;
        }
        let limits = [
            ("max_calls", self.max_calls, above.max_calls),
            ("max_result_bytes", self.max_result_bytes, above.max_result_bytes),
            ("timeout_ms", self.timeout_ms, above.timeout_ms),
            ("concurrency", self.concurrency, above.concurrency),
            ("max_bytes_out", self.max_bytes_out, above.max_bytes_out),
            ("rate.per_minute", self.rate.map(|r| r.per_minute), above.rate.map(|r| r.per_minute)),
            ("rate.burst", self.rate.map(|r| r.burst), above.rate.map(|r| r.burst)),
            ("until", self.until.map(|t| t.0), above.until.map(|t| t.0)),
        ];
        for (name, own, above) in limits {
            no_more(&field(name), own, above)?;
        }
        let missing = self.require.missing(&above.require);
        let whole = missing.iter().next().is_none();
        check(&field("require"), whole, &above.require, &self.require)?;
        let (own, most) = (self.effect.name(), above.effect.name());
        check(&field("effect"), self.effect <= above.effect, format!("at most {most}"), own)?;
        let label = |label: Option<crate::Label>| label.map_or("any", crate::Label::name);
        let lower = match (self.max_in_label, above.max_in_label) {
            (_, None) => true,
            (own, Some(most)) => own.is_some_and(|own| own <= most),
        };
        let expected = label(above.max_in_label);
        check(&field("max_in_label"), lower, expected, label(self.max_in_label))?;
        let (own, least) = (self.approvals.name(), above.approvals.name());
        let asks = self.approvals >= above.approvals;
        check(&field("approvals"), asks, format!("at least {least}"), own)?;
        let kept = above.thresholds.iter().all(|one| self.thresholds.contains(one));
        check(&field("thresholds"), kept, "every threshold", "fewer or others")?;
        let kept = above.sums.iter().all(|one| self.sums.contains(one));
        check(&field("sums"), kept, "every sum", "fewer or others")
    }
}

fn no_more(field: &str, own: Option<u64>, above: Option<u64>) -> Result<(), AttenuationError> {
    let Some(most) = above else { return Ok(()) };
    let actual = own.map_or_else(|| "no limit".to_owned(), |own| own.to_string());
    check(field, own.is_some_and(|own| own <= most), format!("at most {most}"), actual)
}

fn check(
    field: &str,
    holds: bool,
    expected: impl ToString,
    actual: impl ToString,
) -> Result<(), AttenuationError> {
    if holds {
        return Ok(());
    }
    Err(AttenuationError {
        field: field.to_owned(),
        expected: expected.to_string(),
        actual: actual.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::constraint::{Constraint, Rule};
    use crate::grant::tests::grant;
    use crate::{Approvals, Budgets, Decimal, Effect, Label, Rate, Sum, Threshold, Window};
    use casemate_attestation::{Properties, Property, Risk, UnixTime};

    fn sum() -> Sum {
        Sum { pointer: "/amount".to_owned(), window: Window::Day, max: Decimal(9) }
    }

    fn threshold() -> Threshold {
        Threshold { pointer: "/amount".into(), above: Decimal(1), approvals: Approvals::Two }
    }

    fn pay() -> Clause {
        Clause {
            arguments: vec![Constraint::at("/to", Rule::Present)],
            max_calls: Some(3),
            max_result_bytes: Some(100),
            timeout_ms: Some(100),
            rate: Some(Rate { per_minute: 6, burst: 2 }),
            concurrency: Some(2),
            require: [Property::DebugOff].into_iter().collect(),
            max_bytes_out: Some(100),
            effect: Effect::Write,
            max_in_label: Some(Label::Internal),
            until: Some(UnixTime(1_790_000_900)),
            approvals: Approvals::One,
            thresholds: vec![threshold()],
            sums: vec![sum()],
            ..Clause::of("bank.pay")
        }
    }

    fn parent() -> Grant {
        let budgets = Budgets {
            bytes_out: Some(10),
            bytes_in: Some(10),
            cost_micro: Some(10),
            wall_ms: Some(10),
            distinct_tools: Some(10),
            calls: 10,
        };
        Grant { tools: vec![pay()], budgets, owner: Some("alice".to_owned()), ..grant() }
    }

    #[test]
    fn a_part_is_a_part() {
        assert_eq!(parent().attenuates(&parent()), Ok(()));
        let narrow = Clause {
            arguments: vec![
                Constraint::at("/to", Rule::Present),
                Constraint::at("/note", Rule::MaxLen(3)),
            ],
            max_calls: Some(1),
            approvals: Approvals::Two,
            effect: Effect::Read,
            max_in_label: Some(Label::Public),
            ..pay()
        };
        let part = Grant { tools: vec![narrow], risk_ceiling: Risk::Low, ..parent() };
        assert_eq!(part.attenuates(&parent()), Ok(()));
    }

    #[test]
    fn each_wider_field_is_named() {
        let with = |change: fn(&mut Grant)| {
            let mut grant = parent();
            change(&mut grant);
            grant
        };
        type Case = (fn(&mut Grant), &'static str);
        let cases: [Case; 28] = [
            (|g| g.tenant.push('x'), "tenant"),
            (|g| g.not_before.0 -= 1, "not_before"),
            (|g| g.expires.0 += 1, "expires"),
            (|g| g.risk_ceiling = Risk::High, "risk_ceiling"),
            (|g| g.require = Properties::default(), "require"),
            (|g| g.budgets.calls += 1, "budgets.calls"),
            (|g| g.budgets.bytes_out = None, "budgets.bytes_out"),
            (|g| g.budgets.bytes_in = Some(11), "budgets.bytes_in"),
            (|g| g.budgets.cost_micro = None, "budgets.cost_micro"),
            (|g| g.budgets.wall_ms = None, "budgets.wall_ms"),
            (|g| g.budgets.distinct_tools = None, "budgets.distinct_tools"),
            (|g| g.owner = Some("bob".to_owned()), "owner"),
            (|g| g.tools[0].tool = "bank.list".to_owned(), "tools/0/tool"),
            (|g| g.tools[0].arguments.clear(), "tools/0/arguments"),
            (|g| g.tools[0].max_calls = None, "tools/0/max_calls"),
            (|g| g.tools[0].max_result_bytes = None, "tools/0/max_result_bytes"),
            (|g| g.tools[0].timeout_ms = Some(101), "tools/0/timeout_ms"),
            (|g| g.tools[0].concurrency = None, "tools/0/concurrency"),
            (|g| g.tools[0].max_bytes_out = None, "tools/0/max_bytes_out"),
            (|g| g.tools[0].rate = None, "tools/0/rate"),
            (|g| g.tools[0].until = None, "tools/0/until"),
            (|g| g.tools[0].require = Properties::default(), "tools/0/require"),
            (|g| g.tools[0].effect = Effect::External, "tools/0/effect"),
            (|g| g.tools[0].max_in_label = None, "tools/0/max_in_label"),
            (|g| g.tools[0].max_in_label = Some(Label::Restricted), "tools/0/max_in_label"),
            (|g| g.tools[0].approvals = Approvals::None, "tools/0/approvals"),
            (|g| g.tools[0].thresholds[0].above = Decimal(2), "tools/0/thresholds"),
            (|g| g.tools[0].sums.clear(), "tools/0/sums"),
        ];
        for (change, field) in cases {
            let error = with(change).attenuates(&parent()).unwrap_err();
            assert!(error.field.starts_with(field), "{field}: {error}");
        }
    }
}
