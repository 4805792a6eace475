//! The system calls that the workload may not make.
//!
//! The workload is any program, so this is a list of what is closed: whatever
//! reaches into other processes, changes mounts or name spaces, talks to
//! another network family than unix, or opens a large and rarely needed part
//! of the kernel. Most of it needs privileges that the workload lacks anyway;
//! the filter is the second lock.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Length, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, TargetArch,
};

/// Installs the filters on the calling thread, for good.
pub(super) fn apply() -> Result<(), String> {
    for program in programs().map_err(|error| error.to_string())? {
        seccompiler::apply_filter(&program).map_err(|error| error.to_string())?;
    }
    Ok(())
}

/// The two filters: refused calls, and calls that look as if the kernel were older.
fn programs() -> Result<[BpfProgram; 2], seccompiler::BackendError> {
    // clone3 takes its flags from memory, where a filter cannot look; libcs
    // fall back to clone when it is not there.
    let absent = [(libc::SYS_clone3, Vec::new())].into_iter().collect();
    Ok([program(refused()?, libc::EPERM)?, program(absent, libc::ENOSYS)?])
}

fn program(rules: Rules, errno: i32) -> Result<BpfProgram, seccompiler::BackendError> {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?.try_into()
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn refused() -> Result<Rules, seccompiler::BackendError> {
    let mut rules = Rules::new();
    for call in REFUSED {
        rules.insert(*call, Vec::new());
        // The same call through the x32 interface, on kernels that have it.
        rules.insert(call | X32_BIT, Vec::new());
    }
    for call in REFUSED_X32 {
        rules.insert(call | X32_BIT, Vec::new());
    }
    rules.insert(libc::SYS_socket, vec![rule(0, Op::Ne, u64::from(AF_UNIX))?]);
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
const AF_UNIX: u16 = 1;
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
        for program in programs().unwrap() {
            assert!(!program.is_empty() && program.len() < 4096, "{}", program.len());
        }
    }

    #[test]
    fn nothing_is_opened_through_x32() {
        let rules = refused().unwrap();
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
            apply().unwrap();
            let network = std::net::UdpSocket::bind("127.0.0.1:0").map_err(|e| e.raw_os_error());
            let unix = std::os::unix::net::UnixStream::pair();
            let chroot = rustix::process::chroot("/").map_err(|e| e.raw_os_error());
            (network.err(), unix.is_ok(), chroot.err())
        })
        .join()
        .unwrap();
        assert_eq!(outcome, (Some(Some(libc::EPERM)), true, Some(libc::EPERM)));
    }
}
