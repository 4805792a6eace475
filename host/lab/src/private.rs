//! A guest that keeps pages to itself. Linux asks for that in a confidential guest only, so
//! this guest is a kernel of our own: a bzImage with a few instructions.

use std::time::{Duration, Instant};

use anyhow::ensure;

use crate::machine::{Machine, PATIENCE, spec};

/// Attribute of the hypercall: to private (Linux, hypercalls.rst, KVM_HC_MAP_GPA_RANGE).
const PRIVATE: u64 = 1 << 4;
const SHARED: u64 = 0;

/// Address, pages, attribute, and what the guest must hear: `B` for success, `A` for an error.
const STEPS: [(u64, u64, u64, char); 7] = [
    (0x40_0000, 16, PRIVATE, 'B'),
    (0x40_4000, 4, SHARED, 'B'),
    (0x40_0000, 1, PRIVATE, 'B'),
    (0xf000_0000, 1, PRIVATE, 'A'), // no RAM there
    (0x40_0000, 1 << 50, SHARED, 'A'),
    (0x40_0000, 1, 1 << 6, 'A'),  // no such attribute
    (0x40_0800, 1, PRIVATE, 'A'), // no page begins there: KVM refuses it itself
];
/// What stays private.
const KIB: u64 = 48;

/// Conversions are carried out or refused, and the monitor's account of them is right.
pub(crate) fn private(_: bool) -> anyhow::Result<String> {
    std::fs::write("/run/private.kernel", kernel(&code()))?;
    let mut terms = spec("private", 1);
    (terms.kernel, terms.initrd) = ("/run/private.kernel".into(), None);
    let mut machine = Machine::start("private", &terms)?;
    let (started, mut said) = (Instant::now(), String::new());
    while !said.contains('\n') && started.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(20));
        said = std::fs::read_to_string("/run/private.console").unwrap_or_default();
    }
    let expected: String = STEPS.iter().map(|step| step.3).collect();
    ensure!(said.trim() == expected, "the guest heard {said:?}, expected {expected}");
    let status = machine.ask(r#"{"op":"status"}"#)?;
    ensure!(status.get("private_kib") == Some(&KIB.into()), "{status}");
    machine.ask(r#"{"op":"destroy"}"#)?;
    machine.end()?;
    Ok(format!("{} conversions, {KIB} KiB out of devices' reach", STEPS.len()))
}

/// Asks for every step, shows each answer on the serial port, and stops.
fn code() -> Vec<u8> {
    let mut code = Vec::new();
    for (address, pages, attribute, _) in STEPS {
        code.extend([0xb8, 12, 0, 0, 0]); // mov eax, KVM_HC_MAP_GPA_RANGE
        for (register, value) in [(0xbb, address), (0xb9, pages), (0xba, attribute)] {
            code.extend([0x48, register]); // mov rbx, rcx, rdx
            code.extend(value.to_le_bytes());
        }
        code.extend([0x0f, 0x01, 0xd9]); // vmmcall
        code.extend([0x48, 0x85, 0xc0, 0x0f, 0x94, 0xc0]); // test rax, rax; setz al
        code.extend([0x04, b'A', 0x66, 0xba, 0xf8, 0x03, 0xee]); // add al, 'A'; out 0x3f8, al
    }
    code.extend([0xb0, b'\n', 0xee, 0xfa, 0xf4, 0xeb, 0xfd]); // out '\n'; cli; hlt again and again
    code
}

/// A bzImage (Linux, boot.rst) of one setup sector, whose 64-bit entry is `code`.
fn kernel(code: &[u8]) -> Vec<u8> {
    const PAYLOAD: usize = 1024;
    const ENTRY: usize = PAYLOAD + 0x200;
    let mut image = vec![0; ENTRY];
    let mut put = |at: usize, bytes: &[u8]| {
        for (to, from) in image.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    put(0x1f1, &[1]); // setup_sects
    put(0x201, &[0x66]); // the header's length
    put(0x202, b"HdrS");
    put(0x206, &0x20c_u16.to_le_bytes()); // version
    put(0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(0x236, &[1]); // xloadflags: 64-bit entry
    put(0x258, &0x20_0000_u64.to_le_bytes()); // pref_address
    put(0x260, &0x1_0000_u32.to_le_bytes()); // init_size
    image.extend(code);
    image
}
