#![expect(unsafe_code, reason = "the IOMMU is told where guest memory lies")]
//! Mapping guest memory for devices.

use std::sync::Arc;

use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::VmFd;
use vfio_ioctls::{VfioContainer, VfioDeviceFd, VfioError};

use crate::memory::Memory;

/// KVM's own handle on the groups, where it has one: it keeps caches coherent with it.
pub(super) fn kvm_device(vm: &VmFd) -> Option<Arc<VfioDeviceFd>> {
    let mut device =
        kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
    let device = vm.create_device(&mut device).ok()?;
    Some(Arc::new(VfioDeviceFd::new_from_kvm(device)))
}

/// Maps every piece of RAM at its guest physical address.
///
/// The caller keeps `memory` alive as long as the container: both live to the end of the
/// process.
pub(super) fn map_guest_memory(
    container: &VfioContainer,
    memory: &Memory,
) -> Result<(), VfioError> {
    for piece in memory.slots() {
        let length = crate::bytes::narrow(piece.length);
        let host = std::ptr::with_exposed_provenance_mut(crate::bytes::narrow(piece.host));
        // SAFETY: the piece is a live mapping of exactly this length, never unmapped or moved
        // while the process lives; devices write only what the guest lets them.
        unsafe { container.vfio_dma_map(piece.guest, length, host) }?;
    }
    Ok(())
}
