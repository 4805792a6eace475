//! The organisation's rules, in Cedar: over every grant, `forbid` wins.
//!
//! Rules are read once, checked against the schema here, and named by their
//! `@id`. One with `@shadow("true")` is evaluated and recorded, and decides
//! nothing. An error while evaluating denies. Rules know no clock but the one
//! that the decision records.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use casemate_attestation::Risk;
use casemate_ledger::cgp::{Denial, DenyCode};
use casemate_ledger::{Label, digest};
use cedar_policy::{
    Authorizer, Context, Decision, Effect as RuleEffect, Entities, Entity, EntityId,
    EntityTypeName, EntityUid, PolicyId, PolicySet, Request, Response, RestrictedExpression,
    Schema, ValidationMode, Validator,
};

use super::{Call, Fit, PinnedTool, deny};
use crate::clock::Now;

/// The rules in force.
pub(crate) struct Rules {
    enforced: PolicySet,
    shadow: PolicySet,
    require_permit: bool,
    /// The file, and what else the rules rest on before it: what an auditor is given.
    pub(crate) source: String,
    /// SHA-256 of that.
    pub(crate) digest: [u8; 32],
}

/// Why rules are not used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct RulesError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, with the rule's name.
    pub reason: String,
}

/// What the rules said of one call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The rules that decided, and those in shadow that would have.
    pub(super) rules: Vec<String>,
    denial: Option<Denial>,
}

/// What rules may speak of; docs/formats/rules.md explains each name.
const SCHEMA: &str = r#"
entity Sandbox = {
    tenant: String, task: String, boundary: String, properties: Set<String>, seen: String,
};
entity Tool = {
    upstream: String, risk: String, read_only: Bool, idempotent: Bool, label: String,
};
action call appliesTo {
    principal: [Sandbox],
    resource: [Tool],
    context: {
        risk: String, effect: String, issuer: String, grant: String,
        arguments: String, arguments_bytes: Long,
        time_s: Long, hour_utc: Long, weekday_utc: Long,
    },
};
"#;
const MAX_FILE_BYTES: u64 = 1 << 20;
const MAX_RULES: usize = 500;
const MAX_NAME_BYTES: usize = 128;

impl Rules {
    /// Reads the rules in the file at `path`.
    pub(crate) fn load(path: &Path, require_permit: bool) -> Result<Self, RulesError> {
        let wrong = |reason: String| RulesError { path: path.to_owned(), reason };
        let size = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.len();
        if size > MAX_FILE_BYTES {
            return Err(wrong(format!("expected at most {MAX_FILE_BYTES} bytes, got {size}")));
        }
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        Self::parse(&text, require_permit).map_err(wrong)
    }

    /// Reads rules, refuses what the schema does not know, and what warns.
    pub(crate) fn parse(text: &str, require_permit: bool) -> Result<Self, String> {
        let set = PolicySet::from_str(text).map_err(|error| format!("rules: {error}"))?;
        if set.templates().next().is_some() {
            return Err("rules: expected policies, got a template".to_owned());
        }
        let (mut enforced, mut shadow) = (PolicySet::new(), PolicySet::new());
        let mut names = BTreeSet::new();
        for policy in set.policies() {
            let name = policy.annotation("id").unwrap_or_default();
            let fits = (1..=MAX_NAME_BYTES).contains(&name.len())
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
            if !fits || !names.insert(name.to_owned()) {
                let expected = "a new @id of A-Z a-z 0-9 - _ .";
                return Err(format!("{}: expected {expected}, got {name:?}", policy.id()));
            }
            let target = match policy.annotation("shadow") {
                None => &mut enforced,
                Some("true") => &mut shadow,
                Some(other) => {
                    return Err(format!("{name}, @shadow: expected \"true\", got {other:?}"));
                }
            };
            let named = policy.new_id(PolicyId::new(name));
            target.add(named).map_err(|error| format!("{name}: {error}"))?;
        }
        if names.len() > MAX_RULES {
            return Err(format!("rules: expected at most {MAX_RULES}, got {}", names.len()));
        }
        validate(&enforced)?;
        validate(&shadow)?;
        let source = format!("{require_permit}\n{SCHEMA}\n{text}");
        let digest = digest(source.as_bytes());
        Ok(Self { enforced, shadow, require_permit, source, digest })
    }

    /// What the rules say of `call`.
    pub(super) fn ask(
        &self,
        call: &Call<'_>,
        tool: &PinnedTool,
        fit: &Fit<'_>,
        (risk, seen): (Risk, Label),
        now: Now,
    ) -> Said {
        let question = question(call, tool, fit, (risk, seen), now);
        let Ok((request, entities)) = question else {
            return Said::denied("policy/question", "rules that can be asked", "an error");
        };
        let authorizer = Authorizer::new();
        let answer = authorizer.is_authorized(&request, &self.enforced, &entities);
        let mut said = self.judge(&answer);
        if !self.shadow.is_empty() {
            let answer = authorizer.is_authorized(&request, &self.shadow, &entities);
            for name in answer.diagnostics().reason() {
                said.rules.push(format!("shadow/policy/{name}"));
            }
            for error in answer.diagnostics().errors() {
                tracing::warn!(%error, "a rule in shadow fails");
            }
        }
        said
    }

    fn judge(&self, answer: &Response) -> Said {
        if let Some(error) = answer.diagnostics().errors().next() {
            tracing::warn!(%error, "a rule fails; the call is denied");
            return Said::denied("policy/error", "rules that evaluate", "an error");
        }
        let reasons: Vec<String> =
            answer.diagnostics().reason().map(|name| format!("policy/{name}")).collect();
        let forbidden = answer.diagnostics().reason().any(|name| {
            self.enforced.policy(name).is_some_and(|rule| rule.effect() == RuleEffect::Forbid)
        });
        match (forbidden, answer.decision()) {
            (true, _) => {
                let rule = reasons.first().map_or("policy", String::as_str);
                let mut said = Said::denied(rule, "a call that no rule forbids", "a forbidden one");
                said.rules = reasons;
                said
            }
            (false, Decision::Allow) => Said { rules: reasons, denial: None },
            (false, Decision::Deny) if self.require_permit => {
                Said::denied("policy/permit", "a rule that permits the call", "none")
            }
            (false, Decision::Deny) => Said::default(),
        }
    }
}

impl Said {
    fn denied(rule: &str, expected: &str, actual: &str) -> Self {
        let denial = deny(DenyCode::PolicyForbid, rule, expected, actual)
            .hint("the organisation's rules do not allow this; do something else");
        Self { rules: Vec::new(), denial: Some(denial) }
    }

    /// The denial, if there is one.
    pub(super) fn verdict(&mut self) -> Result<(), Denial> {
        self.denial.take().map_or(Ok(()), Err)
    }
}

impl std::fmt::Debug for Rules {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "Rules({})", casemate_ledger::text::hex(&self.digest))
    }
}

fn validate(set: &PolicySet) -> Result<(), String> {
    let (schema, _) =
        Schema::from_cedarschema_str(SCHEMA).map_err(|error| format!("schema: {error}"))?;
    let result = Validator::new(schema).validate(set, ValidationMode::Strict);
    let errors = result.validation_errors().map(ToString::to_string);
    let warnings = result.validation_warnings().map(ToString::to_string);
    match errors.chain(warnings).next() {
        Some(complaint) => Err(complaint),
        None => Ok(()),
    }
}

type Question = (Request, Entities);

fn question(
    call: &Call<'_>,
    tool: &PinnedTool,
    fit: &Fit<'_>,
    (risk, seen): (Risk, Label),
    now: Now,
) -> Result<Question, Box<dyn std::error::Error>> {
    let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
    let flag = RestrictedExpression::new_bool;
    let number =
        |number: u64| RestrictedExpression::new_long(i64::try_from(number).unwrap_or(i64::MAX));
    let claims = &call.caller.claims;
    let properties = claims.properties.iter().map(|property| text(property.name()));
    let sandbox = [
        ("tenant", text(&call.caller.tenant)),
        ("task", text(&claims.task)),
        ("boundary", text(claims.boundary.name())),
        ("properties", RestrictedExpression::new_set(properties)),
        ("seen", text(seen.name())),
    ];
    let of_tool = [
        ("upstream", text(&tool.upstream)),
        ("risk", text(tool.risk.name())),
        ("read_only", flag(tool.read_only)),
        ("idempotent", flag(tool.idempotent)),
        ("label", text(tool.label.name())),
    ];
    let seconds = now.unix().0;
    let arguments = casemate_ledger::json::canonical(call.arguments)?;
    let context = [
        ("risk", text(risk.name())),
        ("effect", text(fit.clause.effect.name())),
        ("issuer", text(&fit.held.grant.issuer)),
        ("grant", text(&casemate_ledger::text::hex(&fit.held.grant.id))),
        ("arguments", text(&String::from_utf8(arguments)?)),
        ("arguments_bytes", number(call.arguments_length)),
        ("time_s", number(seconds)),
        ("hour_utc", number(seconds / 3600 % 24)),
        // 1 January 1970 was a Thursday; Monday is 1.
        ("weekday_utc", number((seconds / 86_400 + 3) % 7 + 1)),
    ];
    let uid = |kind: &str, name: &str| -> Result<EntityUid, Box<dyn std::error::Error>> {
        let kind = EntityTypeName::from_str(kind)?;
        Ok(EntityUid::from_type_name_and_id(kind, EntityId::new(name)))
    };
    let named = |pairs: &[(&str, RestrictedExpression)]| {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    };
    let (principal, resource) = (uid("Sandbox", &call.caller.sandbox)?, uid("Tool", call.tool)?);
    let entities = [
        Entity::new(principal.clone(), named(&sandbox), Default::default())?,
        Entity::new(resource.clone(), named(&of_tool), Default::default())?,
    ];
    let pairs: std::collections::HashMap<String, RestrictedExpression> = named(&context);
    let context = Context::from_pairs(pairs)?;
    let request = Request::new(principal, uid("Action", "call")?, resource, context, None)?;
    Ok((request, Entities::from_entities(entities, None)?))
}

mod again;

pub use again::RulesAgain;

#[cfg(test)]
mod tests;
