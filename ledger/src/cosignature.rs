//! A witness's word that a checkpoint continues all it saw before: C2SP
//! tlog-cosignature, `cosignature/v1` by Ed25519 (type 0x04).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use casemate_attestation::crypto;

use crate::checkpoint::{Checkpoint, CheckpointError, check_name, key_id, parse_vkey, vkey};

/// A witness's public key with its name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessKey {
    name: String,
    key: [u8; 32],
}

const COSIGNATURE: u8 = 4;

impl WitnessKey {
    /// The key `key` under `name`, which has neither spaces nor plus signs.
    pub fn new(name: &str, key: [u8; 32]) -> Result<Self, CheckpointError> {
        check_name(name)?;
        Ok(Self { name: name.to_owned(), key })
    }

    /// Reads `<name>+<id in hex>+<base64 of 0x04 and the key>`.
    pub fn parse(text: &str) -> Result<Self, CheckpointError> {
        let (name, key) = parse_vkey(text, COSIGNATURE)?;
        Self::new(name, key)
    }

    /// The witness's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The public key.
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }

    /// The signature line by which the witness vouches for `checkpoint` at
    /// `time`, seconds since 1970; `sign` is the private key's act.
    pub fn cosign(
        &self,
        checkpoint: &Checkpoint,
        time: u64,
        sign: impl FnOnce(&[u8]) -> [u8; 64],
    ) -> String {
        let signature = sign(message(checkpoint, time).as_bytes());
        let id = key_id(&self.name, COSIGNATURE, &self.key);
        let blob = [&id[..], &time.to_be_bytes(), &signature].concat();
        format!("\u{2014} {} {}\n", self.name, STANDARD.encode(blob))
    }

    /// When this witness cosigned `note`, if it did.
    pub fn cosigned(&self, note: &str) -> Option<u64> {
        let (checkpoint, signatures) = Checkpoint::read(note).ok()?;
        let id = key_id(&self.name, COSIGNATURE, &self.key);
        signatures.iter().filter(|(name, _)| *name == self.name).find_map(|(_, blob)| {
            let (time, signature) = blob.strip_prefix(&id)?.split_first_chunk::<8>()?;
            let time = u64::from_be_bytes(*time);
            let text = message(&checkpoint, time);
            // The format's limit of a time.
            let fits = i64::try_from(time).is_ok();
            (fits && crypto::ed25519_verify(&self.key, text.as_bytes(), signature)).then_some(time)
        })
    }
}

impl core::fmt::Display for WitnessKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&vkey(&self.name, COSIGNATURE, &self.key))
    }
}

fn message(checkpoint: &Checkpoint, time: u64) -> String {
    format!("cosignature/v1\ntime {time}\n{}", checkpoint.body())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::VerifierKey;
    use crate::record::testing::Key;

    #[test]
    fn a_cosigned_note_is_still_the_logs_and_says_when() {
        let (log, witness) = (Key::from_seed(1), Key::from_seed(2));
        let vkey = VerifierKey::new("log", log.public()).unwrap();
        let checkpoint = Checkpoint { origin: "log".to_owned(), size: 3, root: [9; 32] };
        let note = checkpoint.sign(&vkey, |message| log.sign(message));
        let key = WitnessKey::new("witness.example/w1", witness.public()).unwrap();
        assert_eq!(WitnessKey::parse(&key.to_string()), Ok(key.clone()));
        assert!(WitnessKey::parse(&vkey.to_string()).is_err(), "a log's key is no witness's");
        assert_eq!(key.cosigned(&note), None);
        let line = key.cosign(&checkpoint, 1_679_315_147, |message| witness.sign(message));
        let note = format!("{note}{line}");
        assert_eq!(Checkpoint::verify(&note, &vkey), Ok(checkpoint.clone()));
        assert_eq!(key.cosigned(&note), Some(1_679_315_147));
        // The log's own key cannot speak as a witness, nor the other way.
        assert_eq!(WitnessKey::new("log", log.public()).unwrap().cosigned(&note), None);
        for at in 0..note.len() {
            let mut bytes = note.clone().into_bytes();
            bytes[at] ^= 1;
            if let Ok(changed) = String::from_utf8(bytes) {
                let both =
                    Checkpoint::verify(&changed, &vkey).is_ok() && key.cosigned(&changed).is_some();
                assert!(!both, "byte {at}: {changed}");
            }
        }
    }
}
