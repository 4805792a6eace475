//! The probe's machine: 64 KiB, one vCPU in 64-bit mode, and the steps that
//! its code (in `sys`) goes through.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd};

use super::sys::{Memory, ProbeVm, guest_code};
use super::{KvmUnusable, failed};

/// How far the guest came; read by the thread that gives up on it.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicUsize);

impl Progress {
    /// The step that was not reached.
    pub(super) fn next_step(&self) -> &'static str {
        STEPS.get(self.0.load(Ordering::SeqCst)).map_or("the end", |(name, _)| name)
    }
}

/// Runs the guest to its last step, a failure, or `stop`.
pub(super) fn run(progress: &Progress, stop: &AtomicBool) -> Result<(), KvmUnusable> {
    let kvm = Kvm::new().map_err(|e| failed("opening /dev/kvm", e))?;
    let version = kvm.get_api_version();
    if version != 12 {
        return Err(failed("KVM_GET_API_VERSION", format!("expected 12, got {version}")));
    }
    let vm = kvm.create_vm().map_err(|e| failed("KVM_CREATE_VM", e))?;
    vm.set_tss_address(0xfffb_d000).map_err(|e| failed("KVM_SET_TSS_ADDR", e))?;
    vm.create_irq_chip().map_err(|e| failed("KVM_CREATE_IRQCHIP", e))?;
    let machine =
        ProbeVm::new(vm, memory()).map_err(|e| failed("KVM_SET_USER_MEMORY_REGION", e))?;
    let mut vcpu = machine.vm().create_vcpu(0).map_err(|e| failed("KVM_CREATE_VCPU", e))?;
    set_up(&kvm, &vcpu)?;
    let done = follow(&mut vcpu, progress, stop);
    drop(vcpu);
    done
}

/// Answers the guest's port accesses and checks what it shows.
fn follow(vcpu: &mut VcpuFd, progress: &Progress, stop: &AtomicBool) -> Result<(), KvmUnusable> {
    let mut shown = 0;
    while !stop.load(Ordering::SeqCst) {
        let reached = progress.0.load(Ordering::SeqCst);
        let (step, expected) = STEPS.get(reached).copied().unwrap_or(("the end", None));
        let wrong = |actual: String| KvmUnusable::Guest {
            step,
            expected: expected.map_or("success".into(), |value| format!("{value:#x}")),
            actual,
        };
        match vcpu.run() {
            Ok(VcpuExit::IoOut(SHOW, value)) => shown = little_endian(value),
            Ok(VcpuExit::IoIn(INPUT, value)) => value.copy_from_slice(&INPUT_VALUE.to_le_bytes()),
            Ok(VcpuExit::IoOut(STEP, number)) => {
                if usize::try_from(little_endian(number)) != Ok(reached + 1) {
                    return Err(wrong(format!("step {}", little_endian(number))));
                }
                if expected.is_some_and(|expected| expected != shown) {
                    return Err(wrong(format!("{shown:#x}")));
                }
                progress.0.store(reached + 1, Ordering::SeqCst);
                if reached + 1 == STEPS.len() {
                    return Ok(());
                }
            }
            Ok(exit) => return Err(wrong(format!("exit {exit:?}"))),
            Err(error) if error.errno() == EINTR => {}
            Err(error) => return Err(wrong(format!("KVM_RUN: {error}"))),
        }
    }
    Err(KvmUnusable::Hung { step: progress.next_step(), seconds: super::LIMIT.as_secs() })
}

/// Page tables, GDT, IDT and code, where `set_up` points the CPU.
fn memory() -> Box<Memory> {
    let mut memory = Box::new(Memory([0; 64 * 1024]));
    let mut put = |at: u64, bytes: &[u8]| {
        let at = usize::try_from(at).unwrap_or_default();
        for (to, from) in memory.0.iter_mut().skip(at).zip(bytes) {
            *to = *from;
        }
    };
    // Intel SDM volume 3, 4.5.4: present, writable; the third level maps the first 2 MiB.
    put(PML4, &(PDPT | 0x3).to_le_bytes());
    put(PDPT, &(PAGE_DIRECTORY | 0x3).to_le_bytes());
    put(PAGE_DIRECTORY, &0x83_u64.to_le_bytes());
    put(GDT + 0x8, &0x00af_9b00_0000_ffff_u64.to_le_bytes());
    put(GDT + 0x10, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    // 64-bit interrupt gates (6.14.1): vector 6, invalid opcode; vector 0x40, the timer.
    put(IDT + 6 * 16, &gate(CODE + 0x20));
    put(IDT + 0x40 * 16, &gate(CODE + 0x40));
    put(CODE, guest_code());
    memory
}

fn gate(handler: u64) -> [u8; 8] {
    // Handlers lie below 64 KiB, so the upper parts of the offset are zero.
    (handler | 0x8 << 16 | 0x8e00 << 32).to_le_bytes()
}

/// CPUID with our mark, and the state in which a 64-bit kernel starts.
fn set_up(kvm: &Kvm, vcpu: &VcpuFd) -> Result<(), KvmUnusable> {
    let mut cpuid: CpuId = kvm
        .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
        .map_err(|e| failed("KVM_GET_SUPPORTED_CPUID", e))?;
    for entry in cpuid.as_mut_slice().iter_mut().filter(|entry| entry.function == 0x4000_0000) {
        entry.ebx = MARK;
    }
    vcpu.set_cpuid2(&cpuid).map_err(|e| failed("KVM_SET_CPUID2", e))?;
    let mut sregs = vcpu.get_sregs().map_err(|e| failed("KVM_GET_SREGS", e))?;
    long_mode(&mut sregs);
    vcpu.set_sregs(&sregs).map_err(|e| failed("KVM_SET_SREGS", e))?;
    let regs = kvm_regs { rip: CODE, rsp: STACK, rflags: 2, ..kvm_regs::default() };
    vcpu.set_regs(&regs).map_err(|e| failed("KVM_SET_REGS", e))
}

fn long_mode(sregs: &mut kvm_sregs) {
    let data = kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector: 0x10,
        type_: 3,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..kvm_segment::default()
    };
    sregs.cs = kvm_segment { selector: 0x8, type_: 11, db: 0, l: 1, ..data };
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 0x17);
    (sregs.idt.base, sregs.idt.limit) = (IDT, 0xfff);
    sregs.cr0 = 0x8000_0033; // PG, NE, ET, MP, PE
    sregs.cr3 = PML4;
    sregs.cr4 = 0x620; // PAE, OSFXSR, OSXMMEXCPT
    sregs.efer = 0x500; // LME, LMA
}

fn little_endian(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |sum, &byte| (sum << 8) | u32::from(byte))
}

/// Each step of the guest's code, and what it shows on port 0x14 if anything.
const STEPS: [(&str, Option<u32>); 7] = [
    ("64-bit code under paging", None),
    ("CPUID as set for the VM", Some(MARK)),
    ("writing and reading an MSR", Some(0x1234_5678)),
    ("port input", Some(INPUT_VALUE)),
    ("a BMI2 instruction in kernel mode", Some(32)),
    ("an exception and its return", None),
    ("a timer interrupt that ends a halt", None),
];
const MARK: u32 = u32::from_le_bytes(*b"Case");
const INPUT_VALUE: u32 = 0x00c0_ffee;
const STEP: u16 = 0x10;
const SHOW: u16 = 0x14;
const INPUT: u16 = 0x18;
const EINTR: i32 = 4;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PAGE_DIRECTORY: u64 = 0x3000;
const GDT: u64 = 0x4000;
const IDT: u64 = 0x5000;
const STACK: u64 = 0x7ff8;
const CODE: u64 = 0x8000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_fits_its_tables() {
        let code = guest_code();
        assert!(code.len() > 0x60 && code.len() < 0x1000, "{}", code.len());
        // `mov al, 6` and `mov al, 7` stand where the gates point.
        assert_eq!(code[0x20..0x22], [0xb0, 6]);
        assert_eq!(code[0x40..0x42], [0xb0, 7]);
    }

    #[test]
    fn the_probe_ends_in_time_whatever_kvm_is() {
        let started = std::time::Instant::now();
        let answer = super::super::probe();
        println!("{answer:?} after {:?}", started.elapsed());
        assert!(started.elapsed() < std::time::Duration::from_secs(20));
    }
}
