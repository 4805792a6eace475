//! The head of the log: a C2SP checkpoint in a C2SP signed note (Ed25519).
//!
//! Format: docs/formats/checkpoint.md.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate_attestation::crypto;

use crate::merkle::Hash;

/// The size and root of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The log's name: `<deployment domain>/<tenant>/log<N>`.
    pub origin: String,
    /// The number of leaves.
    pub size: u64,
    /// The root of those leaves.
    pub root: Hash,
}

/// A log's public key with its name: what C2SP calls a vkey.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierKey {
    name: String,
    key: [u8; 32],
}

/// Why a note is not a checkpoint of the expected log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckpointError {
    /// The note or key is not in its format.
    #[error("{what}: expected {expected}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// What it had to be.
        expected: &'static str,
    },
    /// The checkpoint is that of another log.
    #[error("checkpoint, origin: expected {expected}, got {actual}")]
    Origin {
        /// The key's name.
        expected: String,
        /// The origin line.
        actual: String,
    },
    /// No signature by the key verifies.
    #[error("checkpoint: expected a signature by {name}, got none that verifies")]
    Signature {
        /// The key's name.
        name: String,
    },
}

/// A signature line of a note: the name, then key id and signature.
pub type Signature<'a> = (&'a str, Vec<u8>);

/// The longest note that is read.
pub const MAX_NOTE_BYTES: usize = 16 * 1024;
const ED25519: u8 = 1;

impl Checkpoint {
    /// The note's text, which is what is signed.
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, STANDARD.encode(self.root))
    }

    /// The checkpoint as a note signed by `key`, whose name is the origin;
    /// `sign` is the private key's act.
    pub fn sign(&self, key: &VerifierKey, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> String {
        let body = self.body();
        let blob = [&key.id()[..], &sign(body.as_bytes())].concat();
        format!("{body}\n\u{2014} {} {}\n", key.name, STANDARD.encode(blob))
    }

    /// Reads a note and checks that `key` signed it. Other signatures, such as
    /// those of witnesses, may be there.
    pub fn verify(note: &str, key: &VerifierKey) -> Result<Self, CheckpointError> {
        let (checkpoint, signatures) = Self::read(note)?;
        if checkpoint.origin != key.name {
            return Err(CheckpointError::Origin {
                expected: key.name.clone(),
                actual: checkpoint.origin,
            });
        }
        let body = checkpoint.body();
        if signatures.iter().any(|(name, blob)| key.signed(name, blob, body.as_bytes())) {
            Ok(checkpoint)
        } else {
            Err(CheckpointError::Signature { name: key.name.clone() })
        }
    }

    /// Reads a note without believing it: what it says and who says so.
    pub fn read(note: &str) -> Result<(Self, Vec<Signature<'_>>), CheckpointError> {
        let malformed = |expected| CheckpointError::Malformed { what: "checkpoint", expected };
        if note.len() > MAX_NOTE_BYTES || note.chars().any(|c| c < ' ' && c != '\n') {
            return Err(malformed("at most 16384 bytes without control characters"));
        }
        let (text, signatures) =
            note.rsplit_once("\n\n").ok_or(malformed("a body, an empty line and signatures"))?;
        let checkpoint = Self::parse_body(&format!("{text}\n"))?;
        let signatures = signatures.strip_suffix('\n').ok_or(malformed("a newline at its end"))?;
        let lines = signatures.split('\n').map(signature_line).collect::<Option<_>>();
        let lines = lines.ok_or(malformed("signature lines of an em dash, a name and base64"))?;
        Ok((checkpoint, lines))
    }

    fn parse_body(body: &str) -> Result<Self, CheckpointError> {
        let malformed = |expected| CheckpointError::Malformed { what: "checkpoint", expected };
        let lines: Vec<&str> = body.split('\n').collect();
        let [origin, size_text, root_text, ""] = lines.as_slice() else {
            return Err(malformed("exactly the lines origin, size and root"));
        };
        let size: u64 = size_text.parse().map_err(|_| malformed("a decimal size"))?;
        let root = STANDARD
            .decode(root_text)
            .ok()
            .and_then(|root| root.try_into().ok())
            .ok_or(malformed("a root of 32 bytes in base64"))?;
        let checkpoint = Self { origin: (*origin).to_owned(), size, root };
        // One spelling only: no leading zeros, no plus sign, no empty origin.
        if origin.is_empty() || checkpoint.body() != body {
            return Err(malformed("the one spelling of its numbers"));
        }
        Ok(checkpoint)
    }
}

impl VerifierKey {
    /// The key `key` under `name`, which has neither spaces nor plus signs.
    pub fn new(name: &str, key: [u8; 32]) -> Result<Self, CheckpointError> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// Reads `<name>+<id in hex>+<base64 of 0x01 and the key>`.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let (name, key) = parse_vkey(text, ED25519)?;
        Self::new(name, key)
    }

    /// The log's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public key.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    fn id(&self) -> [u8; 4] {
        key_id(&self.name, ED25519, &self.key)
    }

    fn signed(&self, name: &str, blob: &[u8], body: &[u8]) -> bool {
        name == self.name
            && blob
                .strip_prefix(&self.id()[..])
                .is_some_and(|signature| crypto::ed25519_verify(&self.key, body, signature))
    }
}

impl core::fmt::Display for VerifierKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&vkey(&self.name, ED25519, &self.key))
    }
}

/// A name of a log or a witness.
pub(crate) fn check_name(name: &str) -> Result<(), CheckpointError> {
    let fits = !name.is_empty()
        && name.len() <= 256
        && !name.chars().any(|c| c.is_whitespace() || c.is_control() || c == '+');
    if fits {
        return Ok(());
    }
    Err(CheckpointError::Malformed {
        what: "key name",
        expected: "1 to 256 bytes without spaces, controls and plus signs",
    })
}

/// SHA-256(name || 0x0A || type || key), first four bytes.
pub(crate) fn key_id(name: &str, kind: u8, key: &[u8; 32]) -> [u8; 4] {
    let preimage = [name.as_bytes(), b"\n", &[kind], key].concat();
    let [a, b, c, d, ..] = crypto::sha256(&preimage);
    [a, b, c, d]
}

/// A key of `kind` in C2SP's text form.
pub(crate) fn vkey(name: &str, kind: u8, key: &[u8; 32]) -> String {
    let encoded = STANDARD.encode([&[kind][..], key].concat());
    format!("{name}+{}+{encoded}", crate::text::hex(&key_id(name, kind, key)))
}

/// The name and key of a vkey of `kind`.
pub(crate) fn parse_vkey(text: &str, kind: u8) -> Result<(&str, [u8; 32]), CheckpointError> {
    let malformed =
        CheckpointError::Malformed { what: "vkey", expected: "<name>+<hex id>+<base64 key>" };
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(_), Some(encoded)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(malformed);
    };
    let bytes = STANDARD.decode(encoded).map_err(|_| malformed.clone())?;
    let key = bytes.strip_prefix(&[kind]).and_then(|key| key.try_into().ok());
    let key = key.ok_or(malformed.clone())?;
    // The id is a digest of the rest; a wrong one is a typing error.
    if vkey(name, kind, &key) == text { Ok((name, key)) } else { Err(malformed) }
}

fn signature_line(line: &str) -> Option<Signature<'_>> {
    let (name, blob) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
    let blob = STANDARD.decode(blob).ok()?;
    (!name.is_empty() && blob.len() > 4).then_some((name, blob))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::testing::Key;

    fn signed() -> (String, VerifierKey) {
        let key = Key::from_seed(3);
        let vkey = VerifierKey::new("casemate.internal/demo/log1", key.public()).unwrap();
        let checkpoint = Checkpoint { origin: vkey.name().to_owned(), size: 7, root: [9; 32] };
        (checkpoint.sign(&vkey, |message| key.sign(message)), vkey)
    }

    #[test]
    fn note_and_key_read_back() {
        let (note, vkey) = signed();
        let checkpoint = Checkpoint::verify(&note, &vkey).unwrap();
        assert_eq!((checkpoint.size, checkpoint.root), (7, [9; 32]));
        assert_eq!(VerifierKey::parse(&vkey.to_string()), Ok(vkey.clone()));
        let witnessed = format!("{note}\u{2014} witness AAAAAAAA\n");
        assert!(Checkpoint::verify(&witnessed, &vkey).is_ok());
    }

    #[test]
    fn a_published_vkey_reads() {
        // The example key of C2SP signed-note and Go's note package.
        let text = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        assert_eq!(VerifierKey::parse(text).unwrap().to_string(), text);
        let wrong = text.replace("c74f20a3", "c74f20a4");
        assert!(VerifierKey::parse(&wrong).is_err());
    }

    #[test]
    fn any_other_note_is_refused() {
        let (note, vkey) = signed();
        for at in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                assert!(Checkpoint::verify(&changed, &vkey).is_err(), "byte {at}: {changed}");
            }
        }
        for (from, to) in [("\n7\n", "\n07\n"), ("\n7\n", "\n+7\n"), ("\n\n", "\nextension\n\n")] {
            assert!(Checkpoint::verify(&note.replacen(from, to, 1), &vkey).is_err(), "{to:?}");
        }
        let other = VerifierKey::new("other", *vkey.key()).unwrap();
        assert!(matches!(Checkpoint::verify(&note, &other), Err(CheckpointError::Origin { .. })));
    }
}
