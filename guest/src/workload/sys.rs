//! The one call of the workload's confinement that rustix marks unsafe.
#![expect(unsafe_code, reason = "unshare is unsafe in rustix because of CLONE_FILES")]

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread new name spaces. Only name-space flags pass.
pub(crate) fn new_name_spaces(flags: UnshareFlags) -> Result<(), Errno> {
    if !NAME_SPACES.contains(flags) {
        return Err(Errno::INVAL);
    }
    // SAFETY: the only hazard of unshare is CLONE_FILES, which leaves threads
    // with different descriptor tables; the check above lets no flag but the
    // name spaces through.
    unsafe { unshare_unsafe(flags) }
}

const NAME_SPACES: UnshareFlags = UnshareFlags::NEWNS
    .union(UnshareFlags::NEWPID)
    .union(UnshareFlags::NEWNET)
    .union(UnshareFlags::NEWIPC)
    .union(UnshareFlags::NEWUTS)
    .union(UnshareFlags::NEWCGROUP);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_flags_are_refused() {
        assert_eq!(new_name_spaces(UnshareFlags::FILES), Err(Errno::INVAL));
        let mixed = UnshareFlags::NEWNS | UnshareFlags::FILES;
        assert_eq!(new_name_spaces(mixed), Err(Errno::INVAL));
    }
}
