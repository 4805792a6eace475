//! The credentials that the gateway holds, and the search for them in results.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use aho_corasick::AhoCorasick;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use hyper::header::{HeaderName, HeaderValue};
use serde_json::Value;
use zeroize::Zeroizing;

/// Every credential of the configuration, by its file.
pub(crate) struct Secrets {
    values: BTreeMap<PathBuf, Zeroizing<String>>,
    finder: Option<AhoCorasick>,
}

/// Why a credential is not used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct SecretError {
    /// Its file.
    path: PathBuf,
    /// Why.
    reason: String,
}

/// A shorter value would be found by chance.
const MIN_BYTES: usize = 8;
const MAX_BYTES: usize = 16 * 1024;

impl Secrets {
    /// Reads each file: one line, mode 0600 or stricter.
    pub(crate) fn load(files: impl IntoIterator<Item = PathBuf>) -> Result<Self, SecretError> {
        let mut values = BTreeMap::new();
        for path in files.into_iter().collect::<BTreeSet<_>>() {
            let value = read(&path).map_err(|reason| SecretError { path: path.clone(), reason })?;
            values.insert(path, value);
        }
        let forms: Vec<Zeroizing<String>> =
            values.values().flat_map(|value| parts(value)).flat_map(forms).collect();
        let finder = (!forms.is_empty())
            .then(|| AhoCorasick::new(forms.iter().map(|form| form.as_bytes())))
            .transpose()
            .map_err(|error| SecretError { path: PathBuf::new(), reason: error.to_string() })?;
        Ok(Self { values, finder })
    }

    /// The credential in the file at `path`.
    pub(crate) fn value(&self, path: &Path) -> Option<&str> {
        self.values.get(path).map(|value| value.as_str())
    }

    /// A header with the credential in `file`.
    pub(crate) fn header(
        &self,
        name: &str,
        file: &Path,
    ) -> Result<(HeaderName, HeaderValue), String> {
        let value = self.value(file).ok_or_else(|| format!("{}: not read", file.display()))?;
        let wrong = || format!("{name}: expected a header's name and value");
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| wrong())?;
        let mut value = HeaderValue::from_str(value).map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok((name, value))
    }

    /// Whether `text` contains a credential in one of its forms.
    pub(crate) fn occur_in_text(&self, text: &str) -> bool {
        self.finder.as_ref().is_some_and(|finder| finder.is_match(text))
    }

    /// Whether any text in `value` contains a credential in one of its forms.
    pub(crate) fn occur_in(&self, value: &Value) -> bool {
        let Some(finder) = &self.finder else { return false };
        match value {
            Value::String(text) => finder.is_match(text),
            Value::Array(items) => items.iter().any(|item| self.occur_in(item)),
            Value::Object(members) => {
                members.iter().any(|(key, value)| finder.is_match(key) || self.occur_in(value))
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => false,
        }
    }
}

fn read(path: &Path) -> Result<Zeroizing<String>, String> {
    use std::os::unix::fs::PermissionsExt;
    let about = std::fs::metadata(path).map_err(|error| error.to_string())?;
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!("expected mode 0600 or stricter, got {mode:04o}"));
    }
    if about.len() > u64::try_from(MAX_BYTES).unwrap_or(u64::MAX) {
        return Err(format!("expected at most {MAX_BYTES} bytes"));
    }
    let text = std::fs::read_to_string(path).map(Zeroizing::new).map_err(|e| e.to_string())?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    if line.len() < MIN_BYTES || line.chars().any(char::is_control) {
        return Err(format!("expected one line of at least {MIN_BYTES} characters"));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// The value, and what stands after a scheme: `Bearer` and its like.
fn parts(value: &str) -> impl Iterator<Item = &[u8]> {
    let token = value.split_once(' ').map(|(_, token)| token);
    let token = token.filter(|token| token.len() >= MIN_BYTES);
    core::iter::once(value).chain(token).map(str::as_bytes)
}

/// The ways in which a server may repeat a credential.
fn forms(secret: &[u8]) -> Vec<Zeroizing<String>> {
    let mut forms = vec![String::from_utf8_lossy(secret).into_owned()];
    let lower = casemate_ledger::text::hex(secret);
    forms.extend([lower.to_uppercase(), lower]);
    let escaped = |every: bool, hex: fn(u8) -> String| -> String {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        secret
            .iter()
            .map(|b| if plain(*b) && !every { char::from(*b).to_string() } else { hex(*b) })
            .collect()
    };
    for every in [false, true] {
        forms.push(escaped(every, |b| format!("%{b:02X}")));
        forms.push(escaped(every, |b| format!("%{b:02x}")));
    }
    // Base64 of a text that contains the secret, at each of its three places.
    for before in 0..3_usize {
        let padded = [vec![0; before], secret.to_vec()].concat();
        let skip = before.saturating_mul(8).div_ceil(6);
        let whole = padded.len().saturating_mul(8) / 6;
        for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
            let text = engine.encode(&padded);
            forms.push(text.get(skip..whole).unwrap_or_default().to_owned());
        }
    }
    forms.retain(|form| form.len() >= MIN_BYTES);
    forms.into_iter().map(Zeroizing::new).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::os::unix::fs::PermissionsExt;

    const SECRET: &str = "s3cr+t/value \u{e9}";

    fn secrets(text: &str, mode: u32) -> Result<Secrets, SecretError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("secret");
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        Secrets::load([path])
    }

    #[test]
    fn each_form_is_found_wherever_it_stands() {
        use base64::engine::general_purpose::{STANDARD, URL_SAFE};
        let secrets = secrets(&format!("{SECRET}\n"), 0o600).unwrap();
        let hex = casemate_ledger::text::hex(SECRET.as_bytes());
        let mut texts = vec![
            SECRET.to_owned(),
            hex.to_uppercase(),
            hex,
            "s3cr%2Bt%2Fvalue%20%C3%A9".to_owned(),
            "s3cr%2bt%2fvalue%20%c3%a9".to_owned(),
        ];
        for around in ["", "a", "ab", "abc", "user:"] {
            let text = format!("{around}{SECRET}{around}");
            texts.extend([STANDARD.encode(&text), URL_SAFE.encode(&text)]);
        }
        for text in texts {
            let inside = format!("before {text} after");
            for value in [json!(text), json!([{"a": inside}]), json!({"k": {text: 1}})] {
                assert!(secrets.occur_in(&value), "{value}");
            }
        }
        for text in ["", "s3cr+t", "value", "S3CR+T/VALUE"] {
            assert!(!secrets.occur_in(&json!([text, 1, null])), "{text}");
        }
    }

    #[test]
    fn a_file_that_is_open_short_or_long_is_refused() {
        assert!(secrets(SECRET, 0o644).is_err());
        assert!(secrets("short\n", 0o600).is_err());
        assert!(secrets("two lines\nof text\n", 0o600).is_err());
        assert!(secrets(&"x".repeat(20_000), 0o600).is_err());
        assert_eq!(secrets(SECRET, 0o400).unwrap().values.len(), 1);
        assert!(!Secrets::load([]).unwrap().occur_in(&json!("anything")));
    }
}
