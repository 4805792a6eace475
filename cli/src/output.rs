//! What a verb says: put together first, written once.
//!
//! `println!` panics where standard output is a pipe that nobody reads any more, or
//! a full disk; an answer must not depend on that.

use std::io::{ErrorKind, Write as _};

use anyhow::Context as _;
use serde_json::{Value, json};

use crate::Answer;
use crate::table::plain;

/// What goes to standard output, and the answer that goes with it.
pub(crate) struct Said {
    /// Lines, each with its end.
    pub(crate) text: String,
    /// The answer.
    pub(crate) answer: Answer,
}

impl Said {
    /// One object, as `--json` asks for it.
    pub(crate) fn json(object: &Value, answer: Answer) -> Self {
        Self { text: format!("{object}\n"), answer }
    }

    /// The object about what could not even be read.
    pub(crate) fn input(reason: &str) -> Self {
        let answer = Answer::Unknown;
        let (name, code) = (answer.name(), "input");
        let object = json!({"version": 1, "answer": name, "code": code, "reason": reason});
        Self::json(&object, answer)
    }

    /// Writes it. Whoever stopped reading has seen enough; any other failure means
    /// that the answer did not arrive.
    pub(crate) fn write(self) -> anyhow::Result<Answer> {
        let mut out = std::io::stdout().lock();
        match out.write_all(self.text.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(self.answer),
            written => {
                written.context("cannot write to standard output")?;
                Ok(self.answer)
            }
        }
    }
}

/// A line for whoever watches. Where nobody can, there is nobody to tell.
pub(crate) fn complain(text: &str) {
    drop(writeln!(std::io::stderr().lock(), "casemate: {}", plain(text)));
}

/// An error with its causes, each of them once: some say their cause themselves.
pub(crate) fn reason(error: &anyhow::Error) -> String {
    let mut out = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if out.ends_with(&cause) {
            continue;
        }
        if !out.is_empty() {
            out.push_str(": ");
        }
        out.push_str(&cause);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let error = anyhow::anyhow!("no such file");
        let error = error.context("cannot read a: no such file").context("b");
        assert_eq!(reason(&error), "b: cannot read a: no such file");
    }
}
