//! Records, leaves, checkpoints, calls and arguments: what others send the ledger.
#![no_main]

use casemate_ledger::{cgp, checkpoint, json, leaf, tile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(value) = json::parse(bytes, 1 << 20) {
        // Canonical text reads back to itself.
        let text = json::canonical(&value).unwrap();
        let again = json::parse(&text, 4 << 20).unwrap();
        assert_eq!(json::canonical(&again).unwrap(), text);
    }
    if let Ok(leaf) = leaf::Leaf::decode(bytes) {
        assert_eq!(leaf.encode(), bytes);
    }
    let _ = cgp::Message::parse(bytes);
    let _ = tile::unbundle(bytes);
    if let Ok(text) = core::str::from_utf8(bytes) {
        if let Ok(key) = checkpoint::VerifierKey::new("log.example/x", [7; 32]) {
            let _ = checkpoint::Checkpoint::verify(text, &key);
        }
        let _ = checkpoint::VerifierKey::parse(text);
    }
});
