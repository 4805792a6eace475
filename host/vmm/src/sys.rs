#![expect(
    unsafe_code,
    reason = "KVM is told where guest memory lies; threads are interrupted by signal"
)]
//! The calls that the crates below us leave unsafe, each wrapped once.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::thread::JoinHandle;

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use crate::memory::Memory;

/// Gives KVM every piece of guest memory.
///
/// The caller keeps `memory` alive as long as the VM: the machine owns both, and drops
/// the VM first.
pub(crate) fn register_memory(vm: &VmFd, memory: &Memory) -> Result<(), kvm_ioctls::Error> {
    for (slot, piece) in (0u32..).zip(memory.slots()) {
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: piece.guest,
            memory_size: piece.length,
            userspace_addr: piece.host,
        };
        // SAFETY: the piece is a live private mapping of exactly this length, owned by `memory`,
        // whose mappings are never unmapped or moved before the VM is dropped.
        unsafe { vm.set_user_memory_region(region) }?;
    }
    Ok(())
}

/// Installs the signal that takes a vCPU thread out of the guest. It does nothing else:
/// a blocking KVM_RUN returns EINTR.
pub(crate) fn prepare_kick() -> std::io::Result<()> {
    extern "C" fn nothing(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), nothing).map_err(std::io::Error::from)
}

/// Takes a thread out of a blocking call, KVM_RUN in particular.
pub(crate) fn kick(thread: &JoinHandle<()>) {
    // A thread that is gone needs no kick; one that goes right now is not an error either.
    if !thread.is_finished() {
        let _ = thread.kill(SIGRTMIN());
    }
}

/// An eventfd as the standard library's kind of file.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` is borrowed, and it is not -1.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}
