#![expect(unsafe_code, reason = "the IOMMU is told where guest memory lies")]
//! Mapping guest memory for devices.

use std::sync::Arc;

use kvm_bindings::{kvm_create_device, kvm_device_type_KVM_DEV_TYPE_VFIO};
use kvm_ioctls::VmFd;
use vfio_ioctls::{VfioContainer, VfioDeviceFd};

use super::dma::Iommu;
use crate::memory::{Memory, Slot};

/// KVM's own handle on the groups, where it has one: it keeps caches coherent with it.
pub(super) fn kvm_device(vm: &VmFd) -> Option<Arc<VfioDeviceFd>> {
    let mut device =
        kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_VFIO, fd: 0, flags: 0 };
    let device = vm.create_device(&mut device).ok()?;
    Some(Arc::new(VfioDeviceFd::new_from_kvm(device)))
}

/// The container's IOMMU domain. Every piece belongs to `_memory`, kept to the end.
pub(super) struct Domain {
    pub(super) container: Arc<VfioContainer>,
    pub(super) _memory: Memory,
}

impl Iommu for Domain {
    fn map(&self, piece: Slot) -> std::io::Result<()> {
        let length = crate::bytes::narrow(piece.length);
        let host = std::ptr::with_exposed_provenance_mut(crate::bytes::narrow(piece.host));
        // SAFETY: a `Slot` is made by `Memory` alone, from a live mapping of at least this length,
        // never unmapped or moved while the process lives; devices write only what the guest lets
        // them.
        let mapped = unsafe { self.container.vfio_dma_map(piece.guest, length, host) };
        mapped.map_err(std::io::Error::other)
    }

    fn unmap(&self, guest: u64, length: u64) -> std::io::Result<()> {
        let length = crate::bytes::narrow(length);
        self.container.vfio_dma_unmap(guest, length).map_err(std::io::Error::other)
    }
}
