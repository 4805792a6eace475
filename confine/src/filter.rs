//! The system calls that untrusted code may not make.
//!
//! It is any program, so this is a list of what is closed: whatever
//! reaches into other processes, changes mounts or name spaces, talks to
//! another network family than unix, or opens a large and rarely needed part
//! of the kernel. Most of it needs privileges that it lacks anyway;
//! the filter is the second lock.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// The networks that sockets may be made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// Unix sockets alone.
    Local,
    /// IPv4 and IPv6 too.
    Internet,
}

/// Installs the filters on the calling thread, for good.
pub fn apply(network: Network) -> Result<(), String> {
    for program in programs(network).map_err(|error| error.to_string())? {
        seccompiler::apply_filter(&program).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The two filters: refused calls, and calls that look as if the kernel were older.
fn programs(network: Network) -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    // clone3 takes its flags from memory, where a filter cannot look; libcs
    // fall back to clone when it is not there.
    let absent = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    Ok([program(refused(network)?, libc::EPERM)?, program(absent, libc::ENOSYS)?])
}

fn program(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?.try_into()
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn refused(network: Network) -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    for call in REFUSED {
        rules.insert(*call, Vec::new());
        // The same call through the x32 interface, on kernels that have it.
        rules.insert(call | X32_BIT, Vec::new());
    }
    for call in REFUSED_X32 {
        rules.insert(call | X32_BIT, Vec::new());
    }
    let families: &[u64] = match network {
        Network::Local => &[AF_UNIX],
        Network::Internet => &[AF_UNIX, AF_INET, AF_INET6],
    };
    let other = families
        .iter()
        .map(|family| SeccompCondition::new(0, Length::Dword, Op::Ne, *family))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_socket, vec![SeccompRule::new(other)?]);
    let name_spaces = NAME_SPACE_FLAGS
        .iter()
        .map(|flag| rule(0, Op::MaskedEq(*flag), *flag))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_clone, name_spaces);
    Ok(rules)
}

fn rule(argument: u8, op: Op, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(argument, Length::Dword, op, value)?])
}

const X32_BIT: i64 = 0x4000_0000;
/// Calls that are closed altogether through x32, which nothing here is built
/// for: those that are natively open under conditions, and those that have a
/// number of their own there (arch/x86/entry/syscalls/syscall_64.tbl).
const REFUSED_X32: [i64; 7] = [
    libc::SYS_socket,
    libc::SYS_clone,
    libc::SYS_clone3,
    521, // ptrace
    528, // kexec_load
    539, // process_vm_readv
    540, // process_vm_writev
];
const AF_UNIX: u64 = 1;
const AF_INET: u64 = 2;
const AF_INET6: u64 = 10;
/// linux/sched.h: CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET, TIME.
const NAME_SPACE_FLAGS: [u64; 8] = [
    0x0002_0000,
    0x0200_0000,
    0x0400_0000,
    0x0800_0000,
    0x1000_0000,
    0x2000_0000,
    0x4000_0000,
    0x0000_0080,
];

const REFUSED: &[i64] = &[
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Mounts and name spaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
    libc::SYS_fsconfig,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_name_to_handle_at,
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_iopl,
    libc::SYS_ioperm,
    libc::SYS_modify_ldt,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_acct,
    libc::SYS_quotactl,
    libc::SYS_quotactl_fd,
    libc::SYS_lookup_dcookie,
    libc::SYS_vhangup,
    // Keys, clock and names of the machine.
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_clock_adjtime,
    libc::SYS_adjtimex,
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filters_compile_and_fit() {
        for program in programs(Network::Internet).unwrap() {
            assert!(!program.is_empty() && program.len() < 4096, "{}", program.len());
        }
    }

    #[test]
    fn nothing_is_opened_through_x32() {
        let rules = refused(Network::Local).unwrap();
        let native = rules.keys().filter(|call| *call & X32_BIT == 0);
        for call in native.chain(&[libc::SYS_clone3, 521, 528, 539, 540]) {
            let conditions = rules.get(&(call | X32_BIT)).map(Vec::len);
            assert_eq!(
                conditions,
                Some(0),
                "{call}: expected to be refused whatever its arguments"
            );
        }
    }

    // A thread of its own: a filter stays until the thread ends.
    #[test]
    fn a_filtered_thread_is_refused() {
        let outcome = std::thread::spawn(|| {
            rustix::thread::set_no_new_privs(true).unwrap();
            apply(Network::Internet).unwrap();
            let allowed = std::net::UdpSocket::bind("127.0.0.1:0").is_ok();
            let raw = rustix::net::socket(
                rustix::net::AddressFamily::NETLINK,
                rustix::net::SocketType::RAW,
                None,
            );
            apply(Network::Local).unwrap();
            let network = std::net::UdpSocket::bind("127.0.0.1:0").map_err(|e| e.raw_os_error());
            let unix = std::os::unix::net::UnixStream::pair();
            let chroot = rustix::process::chroot("/").map_err(|e| e.raw_os_error());
            (allowed, raw.is_err(), network.err(), unix.is_ok(), chroot.err())
        })
        .join()
        .unwrap();
        let refused = Some(libc::EPERM);
        assert_eq!(outcome, (true, true, Some(refused), true, refused));
    }
}
