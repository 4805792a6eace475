//! Giving up what a process may do, for good.

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{
    CapabilitySet, CapabilitySets, Gid, Uid, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use crate::step::{StepError, step};

/// Becomes another user with one group. The caller runs on one thread.
pub fn become_user(uid: u32, gid: u32) -> Result<(), StepError> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    step("drop the groups", set_thread_groups(&[]))?;
    step("set the group", set_thread_res_gid(gid, gid, gid))?;
    step("set the user", set_thread_res_uid(uid, uid, uid))
}

/// Lets no later program have any capability.
pub fn drop_bounding_set() -> Result<(), StepError> {
    for capability in CapabilitySet::all().iter() {
        // A kernel with fewer capabilities answers EINVAL for the rest.
        if capability_is_in_bounding_set(capability).unwrap_or(false) {
            step("drop a capability", remove_capability_from_bounding_set(capability))?;
        }
    }
    step("clear ambient capabilities", clear_ambient_capability_set())
}

/// Drops every capability, and the ways to gain one.
pub fn drop_capabilities() -> Result<(), StepError> {
    let none = CapabilitySets {
        effective: CapabilitySet::empty(),
        permitted: CapabilitySet::empty(),
        inheritable: CapabilitySet::empty(),
    };
    step("drop the capabilities", set_capabilities(None, none))?;
    step("forbid new privileges", set_no_new_privs(true))
}

/// Sets each limit, soft and hard.
pub fn limit(limits: &[(Resource, u64)]) -> Result<(), StepError> {
    limits.iter().try_for_each(|(resource, most)| {
        let limit = Rlimit { current: Some(*most), maximum: Some(*most) };
        step("set a resource limit", setrlimit(*resource, limit))
    })
}
