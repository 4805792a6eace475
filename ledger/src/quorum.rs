//! Which witnesses must have seen a checkpoint: C2SP tlog-policy.

use std::collections::BTreeMap;

use crate::checkpoint::VerifierKey;
use crate::cosignature::WitnessKey;

/// Logs, witnesses and the rule of how many of them count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessPolicy {
    logs: Vec<VerifierKey>,
    witnesses: Vec<Witness>,
    rule: Rule,
}

/// A witness of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witness {
    /// Its name in the policy.
    pub name: String,
    /// Its key.
    pub key: WitnessKey,
    /// Its submission prefix, where the policy has one.
    pub url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    /// No cosignature is asked for.
    None,
    /// The witness with this number.
    Witness(usize),
    /// At least so many of these.
    Group(usize, Vec<Rule>),
}

/// Why a file is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("witness policy, line {line}: expected {expected}")]
pub struct PolicyError {
    /// The line, from 1; one behind the last when something is missing.
    pub line: usize,
    /// What it had to be.
    pub expected: &'static str,
}

/// The longest policy file that is read.
pub const MAX_POLICY_BYTES: usize = 64 * 1024;
const MAX_ENTRIES: usize = 64;

struct Reader {
    policy: WitnessPolicy,
    names: BTreeMap<String, Rule>,
    used: Vec<String>,
    quorum: Option<Rule>,
}

impl WitnessPolicy {
    /// Reads the text of a policy file.
    pub fn parse(text: &str) -> Result<Self, PolicyError> {
        let control = |c: char| c.is_control() && c != '\t' && c != '\n';
        if text.len() > MAX_POLICY_BYTES || text.chars().any(control) {
            let expected = "at most 65536 bytes without control characters";
            return Err(PolicyError { line: 1, expected });
        }
        let mut reader = Reader {
            policy: Self { logs: Vec::new(), witnesses: Vec::new(), rule: Rule::None },
            names: BTreeMap::new(),
            used: Vec::new(),
            quorum: None,
        };
        for (at, line) in text.split('\n').enumerate() {
            reader.line(line).map_err(|expected| PolicyError { line: at + 1, expected })?;
        }
        let line = text.split('\n').count();
        let missing = PolicyError { line, expected: "a quorum line" };
        reader.policy.rule = reader.quorum.ok_or(missing)?;
        Ok(reader.policy)
    }

    /// The logs that count; none means that the caller knows them.
    pub fn logs(&self) -> &[VerifierKey] {
        &self.logs
    }

    /// The witnesses.
    pub fn witnesses(&self) -> &[Witness] {
        &self.witnesses
    }

    /// Whether any cosignature is asked for.
    pub fn asks_for_witnesses(&self) -> bool {
        self.rule != Rule::None
    }

    /// When the quorum had seen `note`: the earliest time, in seconds since
    /// 1970, at which enough of its cosignatures were made. Nothing without a
    /// quorum; 0 when the policy asks for none.
    pub fn witnessed(&self, note: &str) -> Option<u64> {
        let times: Vec<_> = self.witnesses.iter().map(|one| one.key.cosigned(note)).collect();
        reached(&self.rule, &times)
    }
}

fn reached(rule: &Rule, times: &[Option<u64>]) -> Option<u64> {
    match rule {
        Rule::None => Some(0),
        Rule::Witness(at) => times.get(*at).copied().flatten(),
        Rule::Group(least, members) => {
            let mut seen: Vec<u64> =
                members.iter().filter_map(|member| reached(member, times)).collect();
            seen.sort_unstable();
            seen.get(least.checked_sub(1)?).copied()
        }
    }
}

impl Reader {
    fn line(&mut self, line: &str) -> Result<(), &'static str> {
        let items: Vec<&str> = line.split([' ', '\t']).filter(|item| !item.is_empty()).collect();
        if self.names.len() + self.policy.logs.len() > MAX_ENTRIES {
            return Err("at most 64 logs, witnesses and groups");
        }
        match items.as_slice() {
            [] => Ok(()),
            [first, ..] if first.starts_with('#') => Ok(()),
            ["log", key] | ["log", key, _] => self.log(key),
            ["witness", name, key] => self.witness(name, key, None),
            ["witness", name, key, url] => self.witness(name, key, Some(url)),
            ["group", name, least, members @ ..] => self.group(name, least, members),
            ["quorum", name] => {
                if self.quorum.is_some() {
                    return Err("one quorum line");
                }
                self.quorum = Some(if *name == "none" { Rule::None } else { self.known(name)? });
                Ok(())
            }
            _ => Err("a log, witness, group or quorum line"),
        }
    }

    fn log(&mut self, key: &str) -> Result<(), &'static str> {
        let key = VerifierKey::parse(key).map_err(|_| "a log's vkey")?;
        if self.policy.logs.iter().any(|log| log.key() == key.key()) {
            return Err("each log once");
        }
        self.policy.logs.push(key);
        Ok(())
    }

    fn witness(&mut self, name: &str, key: &str, url: Option<&str>) -> Result<(), &'static str> {
        let key = WitnessKey::parse(key).map_err(|_| "a witness's vkey (type 0x04)")?;
        if self.policy.witnesses.iter().any(|witness| witness.key.key() == key.key()) {
            return Err("each witness once");
        }
        self.define(name, Rule::Witness(self.policy.witnesses.len()))?;
        let (name, url) = (name.to_owned(), url.map(str::to_owned));
        self.policy.witnesses.push(Witness { name, key, url });
        Ok(())
    }

    fn group(&mut self, name: &str, least: &str, members: &[&str]) -> Result<(), &'static str> {
        let mut rules = Vec::new();
        for member in members {
            if self.used.iter().any(|used| used == member) {
                return Err("each name as a member of one group only");
            }
            rules.push(self.known(member)?);
            self.used.push((*member).to_owned());
        }
        let least = match least {
            "any" => 1,
            "all" => members.len(),
            number => number.parse().map_err(|_| "any, all or a number of members")?,
        };
        if least == 0 || least > members.len() {
            return Err("from 1 to as many as there are members");
        }
        self.define(name, Rule::Group(least, rules))
    }

    fn define(&mut self, name: &str, rule: Rule) -> Result<(), &'static str> {
        if name == "none" || self.names.contains_key(name) {
            return Err("a name that is new, and not \"none\"");
        }
        self.names.insert(name.to_owned(), rule);
        Ok(())
    }

    fn known(&self, name: &str) -> Result<Rule, &'static str> {
        self.names.get(name).cloned().ok_or("a name that an earlier line defines")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Checkpoint;
    use crate::record::testing::Key;

    fn witness(seed: u8) -> WitnessKey {
        WitnessKey::new(&format!("w{seed}"), Key::from_seed(seed).public()).unwrap()
    }

    /// A note that the witnesses with these seeds cosigned, each at ten times its seed.
    fn note(seeds: &[u8]) -> String {
        let log = Key::from_seed(100);
        let vkey = VerifierKey::new("log", log.public()).unwrap();
        let head = Checkpoint { origin: "log".to_owned(), size: 1, root: [1; 32] };
        let note = head.sign(&vkey, |message| log.sign(message));
        let lines = seeds.iter().map(|seed| {
            let key = Key::from_seed(*seed);
            witness(*seed).cosign(&head, 10 * u64::from(*seed), |message| key.sign(message))
        });
        note + &lines.collect::<String>()
    }

    fn policy(rest: &str) -> Result<WitnessPolicy, PolicyError> {
        let witnesses: String = (1..=4)
            .map(|seed| format!("witness X{seed} {} http://x/{seed}\n", witness(seed)))
            .collect();
        WitnessPolicy::parse(&format!("# ours\n\n{witnesses}{rest}"))
    }

    #[test]
    fn a_quorum_is_reached_when_its_last_needed_member_signs() {
        let cases: [(&str, &[u8], Option<u64>); 9] = [
            ("quorum none", &[], Some(0)),
            ("quorum X2", &[2], Some(20)),
            ("quorum X2", &[1, 3], None),
            ("group g 2 X1 X2 X3\nquorum g", &[3], None),
            ("group g 2 X1 X2 X3\nquorum g", &[1, 2, 3], Some(20)),
            ("group g any X4 X3\nquorum g", &[3, 4], Some(30)),
            ("group g all X1 X2\nquorum g", &[1, 2], Some(20)),
            ("group g all X1 X2\nquorum g", &[2], None),
            ("group a any X1 X2\ngroup b all a X3\nquorum b", &[2, 3], Some(30)),
        ];
        for (rest, seeds, time) in cases {
            assert_eq!(policy(rest).unwrap().witnessed(&note(seeds)), time, "{rest} {seeds:?}");
        }
        let policy = policy("quorum X1").unwrap();
        assert_eq!(policy.witnesses()[2].url.as_deref(), Some("http://x/3"));
        // A cosignature of another checkpoint does not count.
        let (of_one, of_none) = (note(&[1]), note(&[]));
        let line = of_one.strip_prefix(of_none.as_str()).unwrap();
        let log = Key::from_seed(100);
        let vkey = VerifierKey::new("log", log.public()).unwrap();
        let other = Checkpoint { origin: "log".to_owned(), size: 2, root: [2; 32] };
        let other = other.sign(&vkey, |message| log.sign(message));
        assert_eq!(policy.witnessed(&format!("{other}{line}")), None);
    }

    #[test]
    fn each_mistake_is_refused_with_its_line() {
        let again = format!("witness Y {}\nquorum Y", witness(1));
        for (rest, line) in [
            ("", 7),
            ("quorum nobody", 7),
            ("quorum X1\nquorum X2", 8),
            ("group X1 any X2\nquorum X1", 7),
            ("group none any X2\nquorum none", 7),
            ("group g 3 X1 X2\nquorum g", 7),
            ("group g 0 X1 X2\nquorum g", 7),
            ("group g any\nquorum g", 7),
            ("group g any X1\ngroup h any X1\nquorum h", 8),
            ("witness Y nonsense\nquorum Y", 7),
            ("nonsense", 7),
            (&again, 7),
        ] {
            assert_eq!(policy(rest).unwrap_err().line, line, "{rest:?}");
        }
    }
}
