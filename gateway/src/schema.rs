//! Whether a value is what a tool's definition says (JSON Schema 2020-12, which
//! MCP 2026-07-28 asks for, and its older drafts as far as they agree).
//!
//! Definitions come from tool servers, so a check has a budget of steps and not
//! of time: it comes out the same everywhere. The keywords below are checked.
//! Others (`pattern`, `format`, `not`, `if`, …) are left to the tool. That is
//! sound: what is refused here, the whole schema refuses too.

use serde_json::{Map, Value};

/// Where a value is not what its schema says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{at}: expected {expected}, got {actual}")]
pub(crate) struct Mismatch {
    /// A JSON pointer into the value; `/` for the whole.
    pub(crate) at: String,
    pub(crate) expected: String,
    pub(crate) actual: String,
}

/// How many subschemas are looked at for one value.
const STEPS: u32 = 20_000;
/// How deep references and values may go together.
const MAX_DEPTH: u32 = 128;
/// The types that values have, beside `integer`.
const KINDS: [&str; 6] = ["null", "boolean", "number", "string", "array", "object"];
/// The longest text of what was expected.
const MAX_WORDS: usize = 200;

/// Checks `value` against `schema`.
pub(crate) fn check(schema: &Value, value: &Value) -> Result<(), Mismatch> {
    let old =
        schema.get("$schema").and_then(Value::as_str).is_some_and(|id| id.contains("/draft-"));
    Check { root: schema, old, steps: STEPS }.value(schema, value, "", 0)
}

struct Check<'a> {
    root: &'a Value,
    /// Whether what stands beside a reference does not count: before 2019-09.
    old: bool,
    steps: u32,
}

type Checked = Result<(), Mismatch>;

impl<'a> Check<'a> {
    fn value(&mut self, schema: &Value, value: &Value, at: &str, depth: u32) -> Checked {
        self.steps = self.steps.saturating_sub(cost(schema, value, at));
        if self.steps == 0 || depth > MAX_DEPTH {
            return wrong(at, "a value that is checked in few steps", "one of more");
        }
        let Value::Object(schema) = schema else {
            return match schema {
                Value::Bool(false) => wrong(at, "nothing", kind(value)),
                _ => Ok(()),
            };
        };
        if let Some(target) = self.referred(schema) {
            self.value(target, value, at, depth + 1)?;
            if self.old {
                return Ok(());
            }
        }
        typed(schema, value, at)?;
        listed(schema, value, at)?;
        match value {
            Value::Number(_) => number(schema, value, at)?,
            Value::String(text) => sized(schema, text.chars().count(), "Length", "characters", at)?,
            Value::Array(items) => self.array(schema, items, at, depth)?,
            Value::Object(members) => self.object(schema, members, at, depth)?,
            _ => {}
        }
        self.combined(schema, value, at, depth)
    }

    /// What a reference within the same definition refers to. Others are not followed.
    fn referred(&self, schema: &Map<String, Value>) -> Option<&'a Value> {
        let root: &'a Value = self.root;
        root.pointer(schema.get("$ref")?.as_str()?.strip_prefix('#')?)
    }

    fn array(
        &mut self,
        schema: &Map<String, Value>,
        items: &[Value],
        at: &str,
        depth: u32,
    ) -> Checked {
        sized(schema, items.len(), "Items", "items", at)?;
        // Before 2020-12 `items` had the part of `prefixItems` when it was a list.
        let first =
            schema.get("prefixItems").or_else(|| schema.get("items")).and_then(Value::as_array);
        let first = first.map_or(&[][..], Vec::as_slice);
        for (number, (schema, item)) in first.iter().zip(items).enumerate() {
            self.value(schema, item, &format!("{at}/{number}"), depth + 1)?;
        }
        let Some(rest) = schema.get("items").filter(|rest| !rest.is_array()) else { return Ok(()) };
        for (number, item) in items.iter().enumerate().skip(first.len()) {
            self.value(rest, item, &format!("{at}/{number}"), depth + 1)?;
        }
        Ok(())
    }

    fn object(
        &mut self,
        schema: &Map<String, Value>,
        members: &Map<String, Value>,
        at: &str,
        depth: u32,
    ) -> Checked {
        sized(schema, members.len(), "Properties", "members", at)?;
        let required = schema.get("required").and_then(Value::as_array);
        let mut required = required.into_iter().flatten().filter_map(Value::as_str);
        if let Some(missing) = required.find(|name| !members.contains_key(*name)) {
            return wrong(at, &format!("a member {missing:?}"), "none");
        }
        let known = schema.get("properties").and_then(Value::as_object);
        let others = schema.get("additionalProperties");
        // Which names a pattern takes is not known here.
        let others = others.filter(|_| !schema.contains_key("patternProperties"));
        for (name, member) in members {
            let own = known.and_then(|known| known.get(name));
            let Some(schema) = own.or(others) else { continue };
            let at = format!("{at}/{}", name.replace('~', "~0").replace('/', "~1"));
            if own.is_none() && *schema == Value::Bool(false) {
                return wrong(&at, "no such member", "one");
            }
            self.value(schema, member, &at, depth + 1)?;
        }
        Ok(())
    }

    /// `allOf`, `anyOf` and `oneOf`; of the last that one fits, not that others do not.
    fn combined(
        &mut self,
        schema: &Map<String, Value>,
        value: &Value,
        at: &str,
        depth: u32,
    ) -> Checked {
        let parts = |name| schema.get(name).and_then(Value::as_array);
        for part in parts("allOf").into_iter().flatten() {
            self.value(part, value, at, depth + 1)?;
        }
        for parts in [parts("anyOf"), parts("oneOf")].into_iter().flatten() {
            let mut last = Ok(());
            for part in parts {
                last = self.value(part, value, at, depth + 1);
                if last.is_ok() {
                    break;
                }
            }
            last?;
        }
        Ok(())
    }
}

/// One step for the subschema and one for each value and name that it lists,
/// for each KiB of a text and of the place's own name, and for each 64 members,
/// which are looked up even where nothing is said of them.
fn cost(schema: &Value, value: &Value, at: &str) -> u32 {
    let lists = ["enum", "required", "type"].map(|name| schema.get(name)?.as_array().map(Vec::len));
    let listed: usize = lists.into_iter().flatten().sum();
    let text = value.as_str().map_or(0, |text| text.len() / 1024);
    let members = value.as_object().map_or(0, |members| members.len() / 64);
    let sum = [listed, text, members, at.len() / 1024].into_iter().fold(1, usize::saturating_add);
    u32::try_from(sum).unwrap_or(u32::MAX)
}

fn typed(schema: &Map<String, Value>, value: &Value, at: &str) -> Checked {
    let fits = |name: &str| match name {
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        name => name == kind(value) || !KINDS.contains(&name),
    };
    match schema.get("type") {
        Some(Value::String(name)) if !fits(name) => wrong(at, name, kind(value)),
        Some(Value::Array(names)) if !names.iter().filter_map(Value::as_str).any(fits) => {
            wrong(at, &Value::Array(names.clone()).to_string(), kind(value))
        }
        _ => Ok(()),
    }
}

fn listed(schema: &Map<String, Value>, value: &Value, at: &str) -> Checked {
    let words = |value: &Value| value.to_string().chars().take(MAX_WORDS).collect::<String>();
    match schema.get("enum") {
        Some(list @ Value::Array(values)) if !values.iter().any(|one| same(one, value)) => {
            return wrong(at, &format!("one of {}", words(list)), "another value");
        }
        _ => {}
    }
    match schema.get("const") {
        Some(one) if !same(one, value) => wrong(at, &words(one), "another value"),
        _ => Ok(()),
    }
}

/// Equal as JSON Schema sees it: 1 is 1.0.
fn same(one: &Value, other: &Value) -> bool {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => {
            one == other || (one.as_f64() == other.as_f64() && one.is_f64() != other.is_f64())
        }
        (Value::Array(one), Value::Array(other)) => {
            one.len() == other.len() && one.iter().zip(other).all(|(one, other)| same(one, other))
        }
        (Value::Object(one), Value::Object(other)) => {
            let known = |(name, value)| other.get(name).is_some_and(|other| same(value, other));
            one.len() == other.len() && one.iter().all(known)
        }
        _ => one == other,
    }
}

fn number(schema: &Map<String, Value>, value: &Value, at: &str) -> Checked {
    let Some(number) = value.as_f64() else { return Ok(()) };
    type Fits = fn(f64, f64) -> bool;
    let limits: [(&str, &str, Fits); 4] = [
        ("minimum", "at least", |number, limit| number >= limit),
        ("maximum", "at most", |number, limit| number <= limit),
        ("exclusiveMinimum", "more than", |number, limit| number > limit),
        ("exclusiveMaximum", "less than", |number, limit| number < limit),
    ];
    for (name, words, fits) in limits {
        if let Some(limit) = schema.get(name).and_then(Value::as_f64)
            && !fits(number, limit)
        {
            return wrong(at, &format!("{words} {limit}"), &number.to_string());
        }
    }
    Ok(())
}

/// `minX` and `maxX` for what there are `count` of.
fn sized(schema: &Map<String, Value>, count: usize, what: &str, unit: &str, at: &str) -> Checked {
    let limit = |side: &str| schema.get(&format!("{side}{what}")).and_then(Value::as_u64);
    let count = u64::try_from(count).unwrap_or(u64::MAX);
    let (least, most) = (limit("min"), limit("max"));
    match (least.filter(|least| count < *least), most.filter(|most| count > *most)) {
        (Some(least), _) => wrong(at, &format!("at least {least} {unit}"), &count.to_string()),
        (_, Some(most)) => wrong(at, &format!("at most {most} {unit}"), &count.to_string()),
        _ => Ok(()),
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wrong(at: &str, expected: &str, actual: &str) -> Checked {
    let at: String =
        if at.is_empty() { "/".to_owned() } else { at.chars().take(MAX_WORDS).collect() };
    let expected = expected.chars().take(MAX_WORDS).collect();
    Err(Mismatch { at, expected, actual: actual.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Each keyword with a value that it takes, and one that it refuses at this place.
    #[test]
    fn the_table_of_keywords() {
        let cases = [
            (json!({"type": "object"}), json!({}), json!([]), "/"),
            (json!({"type": "integer"}), json!(2.0), json!(2.5), "/"),
            (json!({"type": ["string", "null"]}), json!(null), json!(1), "/"),
            (json!({"enum": ["a", 1]}), json!(1.0), json!("b"), "/"),
            (json!({"const": {"a": [1]}}), json!({"a": [1.0]}), json!({"a": [2]}), "/"),
            (json!({"minimum": 1, "maximum": 2}), json!(2), json!(2.1), "/"),
            (json!({"exclusiveMinimum": 1}), json!(1.1), json!(1), "/"),
            (json!({"exclusiveMaximum": 1}), json!(0), json!(1), "/"),
            (json!({"minLength": 2, "maxLength": 3}), json!("éé"), json!("é"), "/"),
            (json!({"maxItems": 1}), json!([1]), json!([1, 2]), "/"),
            (json!({"items": {"type": "string"}}), json!(["a"]), json!(["a", 1]), "/1"),
            (
                json!({"prefixItems": [{"type": "null"}], "items": false}),
                json!([null]),
                json!([null, 1]),
                "/1",
            ),
            (json!({"items": [{"type": "null"}]}), json!([null, 1]), json!([1]), "/0"),
            (json!({"required": ["a"]}), json!({"a": 1}), json!({}), "/"),
            (json!({"minProperties": 1}), json!({"a": 1}), json!({}), "/"),
            (
                json!({"properties": {"a/b": {"type": "string"}}}),
                json!({"a/b": "x"}),
                json!({"a/b": 1}),
                "/a~1b",
            ),
            (
                json!({"properties": {"a": true}, "additionalProperties": false}),
                json!({"a": 1}),
                json!({"b": 1}),
                "/b",
            ),
            (
                json!({"additionalProperties": {"type": "null"}}),
                json!({"a": null}),
                json!({"a": 1}),
                "/a",
            ),
            (json!({"allOf": [{"minimum": 1}, {"maximum": 2}]}), json!(1), json!(3), "/"),
            (json!({"anyOf": [{"type": "null"}, {"minimum": 2}]}), json!(2), json!(1), "/"),
            (json!({"oneOf": [{"type": "null"}, {"type": "string"}]}), json!("x"), json!(1), "/"),
            (
                json!({"$defs": {"n": {"type": "null"}}, "properties": {"a": {"$ref": "#/$defs/n"}}}),
                json!({"a": null}),
                json!({"a": 1}),
                "/a",
            ),
            (
                // A tree.
                json!({"properties": {"next": {"$ref": "#"}}, "additionalProperties": false}),
                json!({"next": {"next": {}}}),
                json!({"next": {"other": {}}}),
                "/next/other",
            ),
            (json!({"properties": {"a": false}}), json!({}), json!({"a": 1}), "/a"),
        ];
        for (schema, good, bad, at) in cases {
            assert_eq!(check(&schema, &good), Ok(()), "{schema} {good}");
            let mismatch = check(&schema, &bad).unwrap_err();
            assert_eq!(mismatch.at, at, "{schema} {bad}: {mismatch}");
        }
    }

    #[test]
    fn what_is_not_looked_at_refuses_nothing() {
        for schema in [
            json!({"pattern": "^a$", "format": "date", "not": {"type": "integer"}}),
            json!({"if": {"type": "integer"}, "then": false}),
            json!({"$ref": "https://example.com/schema"}),
            json!({"$ref": "#/nowhere"}),
            json!({"uniqueItems": true, "multipleOf": 2}),
            json!({"type": "any"}),
            json!({"type": 7, "enum": 7, "required": 7, "properties": 7, "items": 7, "allOf": 7}),
            json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
            json!({"$schema": "http://json-schema.org/draft-07/schema#", "$ref": "#/definitions/a",
                "type": "null", "definitions": {"a": {"type": "integer"}}}),
            json!([]),
        ] {
            assert_eq!(check(&schema, &json!(7)), Ok(()), "{schema}");
        }
        let members = json!({"patternProperties": {"^x": {}}, "additionalProperties": false});
        assert_eq!(check(&members, &json!({"x1": 1})), Ok(()));
    }

    #[test]
    fn no_schema_takes_long() {
        // Two ways at each of 40 levels, and a reference to itself.
        let levels = (0..40).map(|level| {
            let next = json!({"$ref": format!("#/$defs/l{}", level + 1)});
            (format!("l{level}"), json!({"anyOf": [next, next]}))
        });
        let mut defs: Map<String, Value> = levels.collect();
        defs.insert("l40".to_owned(), json!({"type": "null"}));
        let wide = json!({"$defs": defs, "$ref": "#/$defs/l0"});
        for schema in [wide, json!({"$ref": "#"}), json!({"allOf": [{"$ref": "#"}, {"$ref": "#"}]})]
        {
            let mismatch = check(&schema, &json!(7)).unwrap_err();
            assert!(mismatch.expected.contains("few steps"), "{mismatch}");
        }
        // A long list is no trouble within the budget, and said beyond it.
        let list = |count: usize| Value::Array(vec![json!(1); count]);
        let schema = json!({"items": {"type": "integer"}});
        assert_eq!(check(&schema, &list(10_000)), Ok(()));
        assert!(check(&schema, &list(30_000)).is_err());
        // Nor are many members or a long name, but for a schema that looks at them often.
        let many: Map<String, Value> = (0..100_000).map(|n| (n.to_string(), json!(1))).collect();
        let long = Map::from_iter([("x".repeat(1 << 20), json!(1))]);
        let copied = json!({"additionalProperties": {}, "allOf": [false]});
        let looked_up = json!({"properties": {"none": false}, "allOf": [false]});
        for (value, way) in [(long, copied), (many, looked_up)] {
            let value = Value::Object(value);
            assert_eq!(check(&json!({"type": "object"}), &value), Ok(()));
            let mismatch = check(&json!({"anyOf": vec![&way; 20_000]}), &value).unwrap_err();
            assert!(mismatch.expected.contains("few steps"), "{mismatch}");
        }
    }
}
