//! TCG event logs (CCEL) and their replay.
#![no_main]

use casemate_attestation::eventlog::EventLog;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(log) = EventLog::parse(bytes) {
        let _ = log.replay();
    }
});
