//! The system calls of each kind of thread, with their reasons.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, SeccompCmpArgLen as Length, SeccompCmpOp as Compare, SeccompCondition,
    SeccompRule,
};

/// A kind of thread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// Lease, limits, control socket.
    Warden,
    /// Virtio devices and their host files.
    Devices,
    /// A CPU of the guest.
    Vcpu,
    /// A CPU of a guest that has a device of the host.
    VcpuWithDevice,
}

/// One call that is allowed.
struct Call {
    #[cfg_attr(not(test), expect(dead_code, reason = "read by people, and by the list's page"))]
    name: &'static str,
    number: i64,
    /// Bounds on its arguments; none means any.
    only: Only,
    /// Why the thread makes it.
    #[cfg_attr(not(test), expect(dead_code, reason = "read by people, and by the list's page"))]
    why: &'static str,
}

/// Bounds on arguments.
#[derive(Clone, Copy)]
enum Only {
    Any,
    /// Argument `.0` is one of these.
    OneOf(u8, &'static [u64]),
    /// Argument `.0` has none of these bits.
    Without(u8, u64),
}

const KVM_RUN: u64 = 0xae80;
const KVM_SIGNAL_MSI: u64 = 0x4020_aea5;
const VFIO_MAP_DMA: u64 = 0x3b71;
const VFIO_UNMAP_DMA: u64 = 0x3b72;
const FIONBIO: u64 = 0x5421;
const EXECUTABLE: u64 = 4;
const UNIX: u64 = 1;
const GET_FLAGS: u64 = 1;
const ABORT: u64 = 6;
/// SIGRTMIN differs: 34 in glibc, 35 in musl.
const KICKS: &[u64] = &[ABORT, 34, 35];

const fn call(name: &'static str, number: i64, only: Only, why: &'static str) -> Call {
    Call { name, number, only, why }
}

/// What every thread needs to work at all.
const EVERY: &[Call] = &[
    call("futex", libc::SYS_futex, Only::Any, "locks and condition variables"),
    call("mmap", libc::SYS_mmap, Only::Without(2, EXECUTABLE), "heap; never executable memory"),
    call(
        "mprotect",
        libc::SYS_mprotect,
        Only::Without(2, EXECUTABLE),
        "heap; never executable memory",
    ),
    call("munmap", libc::SYS_munmap, Only::Any, "heap, and the stacks of threads that end"),
    call("mremap", libc::SYS_mremap, Only::Any, "heap: vectors that grow"),
    call("madvise", libc::SYS_madvise, Only::Any, "heap given back; stacks of threads that end"),
    call("brk", libc::SYS_brk, Only::Any, "heap"),
    call("rt_sigreturn", libc::SYS_rt_sigreturn, Only::Any, "back from the kick's handler"),
    call(
        "rt_sigprocmask",
        libc::SYS_rt_sigprocmask,
        Only::Any,
        "threads that end, and kicks, mask signals",
    ),
    call(
        "sigaltstack",
        libc::SYS_sigaltstack,
        Only::Any,
        "threads that end give back their signal stack",
    ),
    call(
        "restart_syscall",
        libc::SYS_restart_syscall,
        Only::Any,
        "a wait that a signal interrupted",
    ),
    call("poll", libc::SYS_poll, Only::Any, "whether the console's file has room"),
    call("ppoll", libc::SYS_ppoll, Only::Any, "whether the console's file has room"),
    call("clock_gettime", libc::SYS_clock_gettime, Only::Any, "time, where the vDSO has none"),
    call("write", libc::SYS_write, Only::Any, "doorbells, console, last words"),
    call("writev", libc::SYS_writev, Only::Any, "last words"),
    call("close", libc::SYS_close, Only::Any, "connections that end"),
    call(
        "fcntl",
        libc::SYS_fcntl,
        Only::OneOf(1, &[GET_FLAGS]),
        "debug builds ask before they close",
    ),
    call("gettid", libc::SYS_gettid, Only::Any, "abort names its own thread"),
    call("getpid", libc::SYS_getpid, Only::Any, "abort and kicks name the own process"),
    call("tkill", libc::SYS_tkill, Only::OneOf(1, KICKS), "abort; and the warden's kicks"),
    call("tgkill", libc::SYS_tgkill, Only::OneOf(2, KICKS), "abort; and the warden's kicks"),
    call("exit", libc::SYS_exit, Only::Any, "a thread ends"),
    call("exit_group", libc::SYS_exit_group, Only::Any, "the process ends"),
];

/// What threads need that serve sockets.
const SOCKETS: &[Call] = &[
    call("epoll_wait", libc::SYS_epoll_wait, Only::Any, "waiting for files"),
    call("epoll_pwait", libc::SYS_epoll_pwait, Only::Any, "waiting for files"),
    call("epoll_pwait2", libc::SYS_epoll_pwait2, Only::Any, "waiting for files"),
    call("epoll_ctl", libc::SYS_epoll_ctl, Only::Any, "a new connection joins the wait"),
    call("accept4", libc::SYS_accept4, Only::Any, "a new connection"),
    call("read", libc::SYS_read, Only::Any, "doorbells"),
    call("recvfrom", libc::SYS_recvfrom, Only::Any, "bytes of connections"),
    call("sendto", libc::SYS_sendto, Only::Any, "bytes of connections"),
];

const WARDEN: &[Call] = &[
    call("ioctl", libc::SYS_ioctl, Only::OneOf(1, &[FIONBIO]), "connections that do not block"),
    call("nanosleep", libc::SYS_nanosleep, Only::Any, "between kicks"),
    call("clock_nanosleep", libc::SYS_clock_nanosleep, Only::Any, "between kicks"),
];

const DEVICES: &[Call] = &[
    call(
        "ioctl",
        libc::SYS_ioctl,
        Only::OneOf(1, &[FIONBIO, KVM_SIGNAL_MSI]),
        "connections that do not block; interrupts into the guest",
    ),
    call("socket", libc::SYS_socket, Only::OneOf(0, &[UNIX]), "the guest connects to a service"),
    call("connect", libc::SYS_connect, Only::Any, "the guest connects to a service"),
    call("shutdown", libc::SYS_shutdown, Only::Any, "the guest ends its sending"),
    call("pread64", libc::SYS_pread64, Only::Any, "disks"),
    call("getrandom", libc::SYS_getrandom, Only::Any, "the entropy device"),
];

const VCPU: &[Call] = &[call(
    "ioctl",
    libc::SYS_ioctl,
    Only::OneOf(1, &[KVM_RUN, KVM_SIGNAL_MSI]),
    "the guest itself; an interrupt that waited for its mask to fall",
)];

/// In place of the vCPU's own.
const ASSIGNED: &[Call] = &[
    call(
        "ioctl",
        libc::SYS_ioctl,
        Only::OneOf(1, &[KVM_RUN, KVM_SIGNAL_MSI, VFIO_MAP_DMA, VFIO_UNMAP_DMA]),
        "as without a device; devices reach what the guest shares",
    ),
    call("pread64", libc::SYS_pread64, Only::Any, "the guest reads registers of its device"),
    call("pwrite64", libc::SYS_pwrite64, Only::Any, "the guest writes registers of its device"),
];

/// The lists of a role, as rules for the compiler.
pub(super) fn rules(role: Role) -> Result<BTreeMap<i64, Vec<SeccompRule>>, BackendError> {
    let lists: &[&[Call]] = match role {
        Role::Warden => &[EVERY, SOCKETS, WARDEN],
        Role::Devices => &[EVERY, SOCKETS, DEVICES],
        Role::Vcpu => &[EVERY, VCPU],
        Role::VcpuWithDevice => &[EVERY, VCPU, ASSIGNED],
    };
    let mut rules = BTreeMap::new();
    for call in lists.iter().copied().flatten() {
        rules.insert(call.number, bounds(call.only)?);
    }
    Ok(rules)
}

fn bounds(only: Only) -> Result<Vec<SeccompRule>, BackendError> {
    let rule = |argument, compare, value| {
        let condition = SeccompCondition::new(argument, Length::Dword, compare, value)?;
        SeccompRule::new(vec![condition])
    };
    match only {
        Only::Any => Ok(Vec::new()),
        Only::OneOf(argument, values) => {
            values.iter().map(|value| rule(argument, Compare::Eq, *value)).collect()
        }
        Only::Without(argument, bits) => Ok(vec![rule(argument, Compare::MaskedEq(bits), 0)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_has_every_call_with_its_reason_and_no_other() {
        let page = include_str!("../../../../docs/vmm-system-calls.md");
        let lists = [EVERY, SOCKETS, WARDEN, DEVICES, VCPU, ASSIGNED];
        for call in lists.iter().copied().flatten() {
            let (start, end) = (format!("| `{}` |", call.name), format!("| {} |", call.why));
            let has = |line: &str| line.starts_with(&start) && line.ends_with(&end);
            assert!(page.lines().any(has), "{start} {end}");
        }
        let rows = page.lines().filter(|line| line.starts_with("| `")).count();
        assert_eq!(rows, lists.iter().map(|list| list.len()).sum::<usize>());
    }

    #[test]
    fn no_thread_can_open_files_or_start_programs() {
        for role in [Role::Warden, Role::Devices, Role::Vcpu, Role::VcpuWithDevice] {
            let rules = rules(role).unwrap();
            for number in [
                libc::SYS_open,
                libc::SYS_openat,
                libc::SYS_execve,
                libc::SYS_fork,
                libc::SYS_clone,
                libc::SYS_clone3,
                libc::SYS_ptrace,
                libc::SYS_process_vm_writev,
                libc::SYS_kill,
                libc::SYS_bpf,
                libc::SYS_io_uring_setup,
            ] {
                assert!(!rules.contains_key(&number), "{role:?} {number}");
            }
        }
        assert!(!rules(Role::Vcpu).unwrap().contains_key(&libc::SYS_socket));
        assert!(!rules(Role::Vcpu).unwrap().contains_key(&libc::SYS_read));
    }
}
