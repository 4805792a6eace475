//! The vsock device: a guest's packets and rings, and host programs that come and go.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| casemate_vmm::fuzzing::vsock(bytes));
