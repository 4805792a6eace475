//! The state in which a CPU starts.
//!
//! Source: Linux `Documentation/arch/x86/boot.rst` (64-bit boot protocol), and
//! the KVM API for how it is set. Application CPUs need only CPUID and MSRs:
//! the local APIC in KVM starts them by INIT and SIPI.

use kvm_bindings::{
    CpuId, KVM_MAX_CPUID_ENTRIES, Msrs, kvm_fpu, kvm_msr_entry, kvm_regs, kvm_segment,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use crate::boot::{self, Entry};
use crate::layout;

/// What KVM offers a guest, before it is made that of one CPU.
pub(crate) struct Model {
    cpuid: CpuId,
    vcpus: u8,
    deadline_timer: bool,
}

impl Model {
    /// Asks KVM what it supports.
    pub(crate) fn new(kvm: &Kvm, vcpus: u8) -> Result<Self, kvm_ioctls::Error> {
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        Ok(Self { cpuid, vcpus, deadline_timer: kvm.check_extension(Cap::TscDeadlineTimer) })
    }

    /// Sets everything that all CPUs have, and the entry on the first.
    pub(crate) fn apply(
        &self,
        cpu: &VcpuFd,
        id: u8,
        entry: &Entry,
    ) -> Result<(), kvm_ioctls::Error> {
        cpu.set_cpuid2(&self.cpuid_of(id))?;
        set_msrs(cpu)?;
        cpu.set_fpu(&kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() })?;
        if id == 0 {
            set_entry(cpu, entry)?;
        }
        Ok(())
    }

    /// CPUID with this CPU's own number in it.
    fn cpuid_of(&self, id: u8) -> CpuId {
        let mut cpuid = self.cpuid.clone();
        for leaf in cpuid.as_mut_slice() {
            match leaf.function {
                1 => {
                    leaf.ebx =
                        leaf.ebx & 0xffff | u32::from(id) << 24 | u32::from(self.vcpus) << 16;
                    leaf.ecx |= 1 << 31; // a hypervisor is present
                    set_bit(&mut leaf.ecx, 24, self.deadline_timer);
                    set_bit(&mut leaf.edx, 28, self.vcpus > 1);
                }
                0xb | 0x1f => leaf.edx = u32::from(id),
                0x8000_001e => leaf.eax = u32::from(id),
                _ => {}
            }
        }
        cpuid
    }
}

fn set_bit(word: &mut u32, bit: u32, on: bool) {
    *word = *word & !(1 << bit) | u32::from(on) << bit;
}

/// MSRs with the value that firmware leaves behind.
const MSRS: [(u32, u64); 11] = [
    (0x174, 0), // SYSENTER_CS, _ESP, _EIP
    (0x175, 0),
    (0x176, 0),
    (0xc000_0081, 0), // STAR, CSTAR, KERNEL_GS_BASE, SYSCALL_MASK, LSTAR
    (0xc000_0083, 0),
    (0xc000_0102, 0),
    (0xc000_0084, 0),
    (0xc000_0082, 0),
    (0x10, 0),      // TSC
    (0x1a0, 1),     // MISC_ENABLE: fast strings
    (0x2ff, 0x806), // MTRRdefType: on, write-back; else Linux takes all memory for uncached
];

fn set_msrs(cpu: &VcpuFd) -> Result<(), kvm_ioctls::Error> {
    let entries = MSRS.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let invalid = |_| kvm_ioctls::Error::new(libc::EINVAL);
    let msrs = Msrs::from_entries(&entries).map_err(invalid)?;
    if cpu.set_msrs(&msrs)? == MSRS.len() {
        return Ok(());
    }
    Err(kvm_ioctls::Error::new(libc::EINVAL))
}

/// Long mode with the identity map, at the kernel's 64-bit entry.
fn set_entry(cpu: &VcpuFd, entry: &Entry) -> Result<(), kvm_ioctls::Error> {
    const PROTECTED_PAGING: u64 = 0x8000_0001;
    const PHYSICAL_ADDRESS_EXTENSION: u64 = 0x20;
    const LONG_MODE: u64 = 0x500;
    let mut system = cpu.get_sregs()?;
    (system.gdt.base, system.gdt.limit) = (layout::GDT, boot::gdt_limit());
    (system.idt.base, system.idt.limit) = (0, 0);
    let data = segment(3, 3, true, false);
    system.cs = segment(2, 11, true, true);
    for register in [&mut system.ds, &mut system.es, &mut system.fs, &mut system.gs, &mut system.ss]
    {
        *register = data;
    }
    system.tr = segment(4, 11, false, false);
    system.cr0 |= PROTECTED_PAGING;
    system.cr3 = layout::PAGE_TABLES;
    system.cr4 |= PHYSICAL_ADDRESS_EXTENSION;
    system.efer |= LONG_MODE;
    cpu.set_sregs(&system)?;
    cpu.set_regs(&kvm_regs {
        rflags: 2,
        rip: entry.rip,
        rsp: layout::BOOT_STACK,
        rsi: entry.boot_params,
        ..Default::default()
    })
}

/// A flat segment: index in the table, type, code or data (not system), 64-bit.
fn segment(index: u16, kind: u8, code_or_data: bool, long: bool) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector: index * 8,
        type_: kind,
        present: 1,
        dpl: 0,
        db: u8::from(code_or_data && !long),
        s: u8::from(code_or_data),
        l: u8::from(long),
        g: 1,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_bindings::kvm_cpuid_entry2;

    #[test]
    fn each_cpu_knows_its_number() {
        let leaf = |function| kvm_cpuid_entry2 { function, ebx: 0xffff_1234, ..Default::default() };
        let cpuid = CpuId::from_entries(&[leaf(1), leaf(0xb)]).unwrap();
        let model = Model { cpuid, vcpus: 4, deadline_timer: false };
        let cpuid = model.cpuid_of(3);
        let [first, topology] = cpuid.as_slice() else { panic!("two leaves") };
        assert_eq!(first.ebx, 0x0304_1234);
        assert_eq!((first.ecx >> 31, first.ecx >> 24 & 1, first.edx >> 28 & 1), (1, 0, 1));
        assert_eq!(topology.edx, 3);
    }
}
