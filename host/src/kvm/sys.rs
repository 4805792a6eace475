#![expect(unsafe_code, reason = "gives a VM memory, and carries the probe's guest code")]
//! The two things about the KVM probe that safe Rust cannot say.

use std::arch::global_asm;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;

/// The probe's guest memory: 64 KiB at guest physical address 0.
#[repr(C, align(4096))]
pub(super) struct Memory(pub(super) [u8; 64 * 1024]);

/// A VM and the memory that it runs in; the memory goes last.
pub(super) struct ProbeVm {
    vm: VmFd,
    _memory: Box<Memory>,
}

impl ProbeVm {
    /// Gives `memory` to `vm`, which must have none yet.
    pub(super) fn new(vm: VmFd, mut memory: Box<Memory>) -> Result<Self, kvm_ioctls::Error> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: 0,
            memory_size: u64::try_from(memory.0.len()).unwrap_or_default(),
            userspace_addr: u64::try_from(memory.0.as_mut_ptr().expose_provenance())
                .unwrap_or_default(),
        };
        // SAFETY: the region is one whole heap allocation, owned by the
        // returned value and not touched from here again. That value is
        // dropped only by the thread that runs the vCPU, after KVM_RUN.
        unsafe { vm.set_user_memory_region(region) }?;
        Ok(Self { vm, _memory: memory })
    }

    pub(super) fn vm(&self) -> &VmFd {
        &self.vm
    }
}

/// The guest's code, position-independent.
pub(super) fn guest_code() -> &'static [u8] {
    let (begin, end) = (&raw const casemate_probe_begin, &raw const casemate_probe_end);
    // SAFETY: both symbols are defined below, in this order, in one section;
    // the bytes between them are constant for the life of the program.
    unsafe { std::slice::from_raw_parts(begin, end.offset_from_unsigned(begin)) }
}

unsafe extern "C" {
    static casemate_probe_begin: u8;
    static casemate_probe_end: u8;
}

// What Linux needs of a CPU, one thing after the other. Each step shows what
// it saw on port 0x14, then its number on port 0x10. The two handlers lie at
// fixed offsets (`super::guest` puts them into the IDT).
global_asm!(
    ".pushsection .rodata.casemate_probe, \"a\"",
    ".balign 64",
    ".global casemate_probe_begin",
    "casemate_probe_begin:",
    "   jmp 10f",
    // Offset 0x20, invalid opcode: goes on after the two bytes of ud2.
    ".balign 32",
    "   mov al, 6",
    "   out 0x10, al",
    "   add qword ptr [rsp], 2",
    "   iretq",
    // Offset 0x40, the timer: the last step.
    ".balign 32",
    "   mov al, 7",
    "   out 0x10, al",
    "9: hlt",
    "   jmp 9b",
    ".balign 32",
    "10:",
    // 1: 64-bit code under paging runs at all.
    "   mov al, 1",
    "   out 0x10, al",
    // 2: CPUID shows what the VM was given, not what the CPU has.
    "   mov eax, 0x40000000",
    "   xor ecx, ecx",
    "   cpuid",
    "   mov eax, ebx",
    "   out 0x14, eax",
    "   mov al, 2",
    "   out 0x10, al",
    // 3: an MSR that every kernel writes (KERNEL_GS_BASE) keeps its value.
    "   mov ecx, 0xc0000102",
    "   mov eax, 0x12345678",
    "   xor edx, edx",
    "   wrmsr",
    "   xor eax, eax",
    "   rdmsr",
    "   out 0x14, eax",
    "   mov al, 3",
    "   out 0x10, al",
    // 4: port input.
    "   in eax, 0x18",
    "   out 0x14, eax",
    "   mov al, 4",
    "   out 0x10, al",
    // 5: BMI2 in kernel mode where CPUID announces it; a kernel unpacks itself with it.
    "   mov eax, 7",
    "   xor ecx, ecx",
    "   cpuid",
    "   mov eax, 32",
    "   test ebx, 0x100",
    "   jz 5f",
    "   mov ecx, 5",
    "   mov edx, 1",
    "   shlx eax, edx, ecx",
    "5: out 0x14, eax",
    "   mov al, 5",
    "   out 0x10, al",
    // 6: an exception reaches its handler, which returns.
    "   ud2",
    // 7: the local APIC's timer (x2APIC, vector 0x40, one shot) ends a halt.
    "   mov ecx, 0x1b",
    "   rdmsr",
    "   or eax, 0xc00",
    "   wrmsr",
    "   xor edx, edx",
    "   mov ecx, 0x80f",
    "   mov eax, 0x1ff",
    "   wrmsr",
    "   mov ecx, 0x83e",
    "   mov eax, 0xb",
    "   wrmsr",
    "   mov ecx, 0x832",
    "   mov eax, 0x40",
    "   wrmsr",
    "   mov ecx, 0x838",
    "   mov eax, 100000",
    "   wrmsr",
    "   sti",
    "8: hlt",
    "   jmp 8b",
    ".global casemate_probe_end",
    "casemate_probe_end:",
    ".popsection",
);
