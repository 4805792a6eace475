//! A regular expression that a whole text must match, in linear time.

use regex_lite::{Regex, RegexBuilder};

/// An anchored regular expression, compiled when its grant is read.
#[derive(Debug, Clone)]
pub struct Pattern {
    text: String,
    regex: Regex,
}

/// Why text is not a [`Pattern`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pattern: expected a regular expression of at most {MAX_PATTERN_BYTES} bytes: {0}")]
pub struct PatternError(String);

/// The longest pattern.
pub const MAX_PATTERN_BYTES: usize = 256;
/// The largest compiled program: small repetition counts of small things.
const MAX_PROGRAM_BYTES: usize = 64 * 1024;

impl Pattern {
    /// Compiles `text`, which may be neither long nor large.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.len() > MAX_PATTERN_BYTES {
            return Err(PatternError(format!("got {} bytes", text.len())));
        }
        let compile = |text: &str| {
            let built = RegexBuilder::new(text).size_limit(MAX_PROGRAM_BYTES).build();
            built.map_err(|error| PatternError(error.to_string()))
        };
        // Alone first: text like `a)|(b` must not be made whole by our anchors.
        compile(text)?;
        let regex = compile(&format!(r"\A(?:{text})\z"))?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Whether all of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(text)
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl Eq for Pattern {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_text_matches_or_nothing_does() {
        let pattern = Pattern::new("[a-z]{2}-[0-9]+|none").unwrap();
        for (text, expected) in [
            ("ab-12", true),
            ("none", true),
            ("xab-12", false),
            ("ab-12\n", false),
            ("ab-12\nab-12", false),
            ("nonee", false),
        ] {
            assert_eq!(pattern.matches(text), expected, "{text:?}");
        }
        assert!(!Pattern::new("(?m)^a$").unwrap().matches("a\nb"));
    }

    #[test]
    fn bad_and_huge_patterns_are_refused() {
        for text in ["(", "a)|(b", "a{1000}{1000}", "(?x)a #", &"a".repeat(257)] {
            assert!(Pattern::new(text).is_err(), "{text}");
        }
    }
}
