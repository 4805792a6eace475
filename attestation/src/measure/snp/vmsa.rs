//! The saved state that a virtual CPU starts with (AMD APM volume 2, table
//! B-4), as each virtual machine monitor sets it.

use super::PAGE_BYTES;
use crate::measure::MeasureError;

/// Where the boot processor starts.
pub const BSP_EIP: u32 = 0xffff_fff0;

/// The virtual machine monitor that launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Vmm {
    /// QEMU on KVM.
    Qemu,
    /// Amazon EC2.
    Ec2,
    /// Amazon EC2 before 2026-04, which started CPUs with RDX 0.
    Ec2Rdx0,
    /// Google Compute Engine.
    Gce,
}

/// What all virtual CPUs of a machine have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vcpu {
    /// The virtual machine monitor.
    pub vmm: Vmm,
    /// CPUID signature (leaf 1, EAX); [`cpu_signature`] makes one.
    pub signature: u32,
    /// SEV_FEATURES: bit 0 SNPActive, bit 5 DebugSwap.
    pub features: u64,
}

/// A segment register: selector, attributes, limit, base.
type Segment = (u16, u16, u32, u64);

/// A data segment in real mode.
const REAL_DATA: Segment = (0, 0x93, 0xffff, 0);

/// What differs between the launches that are known.
struct State {
    cs: Segment,
    data: Segment,
    ss: Segment,
    tr_attributes: u16,
    cr0: u64,
    rip: u64,
    rdx: u64,
    pat: u64,
    features: u64,
    mxcsr: u32,
    fcw: u16,
}

impl Vmm {
    /// Every monitor that is known.
    pub const ALL: [Self; 4] = [Self::Qemu, Self::Ec2, Self::Ec2Rdx0, Self::Gce];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Qemu => "qemu",
            Self::Ec2 => "ec2",
            Self::Ec2Rdx0 => "ec2-rdx0",
            Self::Gce => "gce",
        }
    }

    /// Whether the launch is EC2's, whatever its age.
    pub(super) fn is_ec2(self) -> bool {
        matches!(self, Self::Ec2 | Self::Ec2Rdx0)
    }

    /// The monitor called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|vmm| vmm.name().eq_ignore_ascii_case(name))
    }
}

/// The CPUID signature of a combined family, a combined model and a stepping.
pub fn cpu_signature(family: u8, model: u8, stepping: u8) -> u32 {
    let (family, model) = (u32::from(family), u32::from(model));
    let (base, extended) = if family > 0xf { (0xf, family - 0xf) } else { (family, 0) };
    extended << 20 | (model >> 4) << 16 | base << 8 | (model & 0xf) << 4 | u32::from(stepping & 0xf)
}

/// The VMSA page of a CPU that starts at `eip`, in real mode.
pub fn vmsa(vcpu: &Vcpu, eip: u32) -> [u8; PAGE_BYTES] {
    let ec2 = vcpu.vmm.is_ec2();
    let cs_attributes = if ec2 && eip == BSP_EIP { 0x9a } else { 0x9b };
    page(&State {
        cs: (0xf000, cs_attributes, 0xffff, u64::from(eip & 0xffff_0000)),
        data: REAL_DATA,
        ss: (0, if ec2 { 0x92 } else { 0x93 }, 0xffff, 0),
        tr_attributes: if ec2 { 0x83 } else { 0x8b },
        cr0: 0x10,
        rip: u64::from(eip & 0xffff),
        rdx: match vcpu.vmm {
            Vmm::Qemu => u64::from(vcpu.signature),
            Vmm::Ec2 | Vmm::Gce => 0x600,
            Vmm::Ec2Rdx0 => 0,
        },
        pat: if vcpu.vmm == Vmm::Gce { 0x0007_0106 } else { 0x0007_0406_0007_0406 },
        features: vcpu.features,
        mxcsr: if vcpu.vmm == Vmm::Qemu { 0x1f80 } else { 0 },
        fcw: if vcpu.vmm == Vmm::Qemu { 0x37f } else { 0 },
    })
}

/// The VMSA page of a CPU that starts a COCONUT SVSM at `eip`, in protected
/// mode (IGVM-less launch by QEMU).
pub fn svsm_vmsa(signature: u32, eip: u32) -> [u8; PAGE_BYTES] {
    let data = (16, 0xc93, 0xffff_ffff, 0);
    page(&State {
        cs: (8, 0xc9b, 0xffff_ffff, 0),
        data,
        ss: data,
        tr_attributes: 0x8b,
        cr0: 0x11,
        rip: u64::from(eip),
        rdx: u64::from(signature),
        pat: 0x0007_0406_0007_0406,
        features: 1,
        mxcsr: 0x1f80,
        fcw: 0,
    })
}

/// Lays the state out. Everything that is not named is zero.
fn page(state: &State) -> [u8; PAGE_BYTES] {
    let mut page = [0; PAGE_BYTES];
    let table = |attributes| (0, attributes, 0xffff, 0);
    let segments: [Segment; 10] = [
        state.data, // es
        state.cs,
        state.ss,
        state.data,  // ds
        state.data,  // fs
        REAL_DATA,   // gs: protected mode does not load it
        table(0),    // gdtr
        table(0x82), // ldtr
        table(0),    // idtr
        table(state.tr_attributes),
    ];
    for (index, (selector, attributes, limit, base)) in segments.into_iter().enumerate() {
        let at = index * 16;
        put(&mut page, at, &selector.to_le_bytes());
        put(&mut page, at + 2, &attributes.to_le_bytes());
        put(&mut page, at + 4, &limit.to_le_bytes());
        put(&mut page, at + 8, &base.to_le_bytes());
    }
    let fields: [(usize, u64); 12] = [
        (0x0d0, 0x1000), // EFER: SVME
        (0x148, 0x40),   // CR4: MCE
        (0x158, state.cr0),
        (0x160, 0x400),       // DR7
        (0x168, 0xffff_0ff0), // DR6
        (0x170, 2),           // RFLAGS
        (0x178, state.rip),
        (0x268, state.pat), // G_PAT
        (0x310, state.rdx),
        (0x3b0, state.features), // SEV_FEATURES
        (0x3e8, 1),              // XCR0
        (0x408, u64::from(state.mxcsr)),
    ];
    for (at, value) in fields {
        put(&mut page, at, &value.to_le_bytes());
    }
    put(&mut page, 0x410, &state.fcw.to_le_bytes());
    page
}

fn put(page: &mut [u8; PAGE_BYTES], at: usize, bytes: &[u8]) {
    for (place, byte) in page.iter_mut().skip(at).zip(bytes) {
        *place = *byte;
    }
}

/// The entry point of an SVSM that lies at `gpa`.
pub(super) fn svsm_eip(gpa: u64, offset: u32) -> Result<u32, MeasureError> {
    gpa.checked_add(u64::from(offset))
        .and_then(|eip| u32::try_from(eip).ok())
        .ok_or_else(|| MeasureError::new("SVSM entry point", "below 4 GiB", format!("{gpa:#x}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_of_known_models() {
        assert_eq!(cpu_signature(0x17, 0x01, 2), 0x0080_0f12);
        assert_eq!(cpu_signature(0x19, 0x01, 1), 0x00a0_0f11);
        assert_eq!(cpu_signature(0x19, 0x11, 0), 0x00a1_0f10);
        assert_eq!(cpu_signature(0x1a, 0x00, 0), 0x00b0_0f00);
    }
}
