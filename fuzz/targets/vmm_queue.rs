//! The walk of a virtqueue whose memory a guest wrote.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| casemate_vmm::fuzzing::queue(bytes));
