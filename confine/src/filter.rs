//! The system calls that untrusted code may not make.
//!
//! It is any program, so this is a list of what is closed: whatever
//! reaches into other processes, changes mounts or name spaces, talks to
//! another network than it was given, or opens a large and rarely needed part
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
    /// TCP over IPv4 too. Meant for a network name space with nothing but its
    /// loopback: the filter cannot see addresses.
    Loopback,
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
    rules.insert(libc::SYS_socket, sockets(network)?);
    // Of the other families the kernel would run the code that makes a socket
    // before it refuses the pair.
    rules.insert(libc::SYS_socketpair, vec![other_than(0, &[AF_UNIX])?]);
    let name_spaces = NAME_SPACE_FLAGS
        .iter()
        .map(|flag| rule(0, Op::MaskedEq(*flag), *flag))
        .collect::<Result<_, _>>()?;
    rules.insert(libc::SYS_clone, name_spaces);
    Ok(rules)
}

/// The sockets that are refused.
fn sockets(network: Network) -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
    match network {
        Network::Local => Ok(vec![other_than(0, &[AF_UNIX])?]),
        Network::Internet => Ok(vec![other_than(0, &[AF_UNIX, AF_INET, AF_INET6])?]),
        Network::Loopback => {
            let internet = condition(0, Op::Eq, AF_INET)?;
            // SOCK_STREAM is 1: what differs from it has another bit set, or that one not.
            let kinds = [(1, 0), (2, 2), (4, 4), (8, 8)];
            let kind = |(bit, set)| condition(1, Op::MaskedEq(bit), set);
            let mut rules = kinds
                .into_iter()
                .map(|bit| SeccompRule::new(vec![internet.clone(), kind(bit)?]))
                .collect::<Result<Vec<_>, _>>()?;
            let [any, tcp] = [condition(2, Op::Ne, 0)?, condition(2, Op::Ne, IPPROTO_TCP)?];
            rules.push(SeccompRule::new(vec![internet, any, tcp])?);
            rules.push(other_than(0, &[AF_UNIX, AF_INET])?);
            Ok(rules)
        }
    }
}

/// `argument` is none of `values`.
fn other_than(argument: u8, values: &[u64]) -> Result<SeccompRule, seccompiler::BackendError> {
    let conditions = values.iter().map(|value| condition(argument, Op::Ne, *value));
    SeccompRule::new(conditions.collect::<Result<_, _>>()?)
}

fn condition(
    argument: u8,
    op: Op,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(argument, Length::Dword, op, value)
}

fn rule(argument: u8, op: Op, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(argument, op, value)?])
}

const X32_BIT: i64 = 0x4000_0000;
/// Calls that are closed altogether through x32, which nothing here is built
/// for: those that are natively open under conditions, and those that have a
/// number of their own there (arch/x86/entry/syscalls/syscall_64.tbl).
const REFUSED_X32: [i64; 8] = [
    libc::SYS_socket,
    libc::SYS_socketpair,
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
const IPPROTO_TCP: u64 = 6;
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

    /// What `try_all` finds on a thread of its own: a filter stays until the thread ends.
    fn under<T: Send + 'static>(network: Network, try_all: fn() -> T) -> T {
        let work = move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            apply(network).unwrap();
            try_all()
        };
        std::thread::spawn(work).join().unwrap()
    }

    fn socket(family: i32, kind: i32, protocol: i32) -> bool {
        use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType};
        let family = AddressFamily::from_raw(family.try_into().unwrap());
        let kind = SocketType::from_raw(kind.try_into().unwrap());
        let protocol =
            u32::try_from(protocol).ok().and_then(std::num::NonZero::new).map(Protocol::from_raw);
        let result = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, protocol);
        result.err() != Some(rustix::io::Errno::PERM)
    }

    #[test]
    fn a_filtered_thread_is_refused() {
        let internet = || {
            let netlink = socket(libc::AF_NETLINK, libc::SOCK_RAW, 0);
            (std::net::UdpSocket::bind("127.0.0.1:0").is_ok(), netlink)
        };
        assert_eq!(under(Network::Internet, internet), (true, false));
        let outcome = under(Network::Local, || {
            let chroot = rustix::process::chroot("/").map_err(|error| error.raw_os_error());
            let network =
                std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.raw_os_error());
            (network.err(), std::os::unix::net::UnixStream::pair().is_ok(), chroot.err())
        });
        assert_eq!(outcome, (Some(Some(libc::EPERM)), true, Some(libc::EPERM)));
    }

    #[test]
    fn loopback_is_tcp_over_ipv4_and_nothing_else() {
        let good = under(Network::Loopback, || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let stream = std::net::TcpStream::connect(listener.local_addr().unwrap());
            let named = socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP);
            (stream.is_ok(), named, std::os::unix::net::UnixStream::pair().is_ok())
        });
        assert_eq!(good, (true, true, true));
        let open = under(Network::Loopback, || {
            let [stream, datagram, raw] = [libc::SOCK_STREAM, libc::SOCK_DGRAM, libc::SOCK_RAW];
            let others =
                (0..16).filter(|kind| *kind != stream).map(|kind| (libc::AF_INET, kind, 0));
            let protocols = [libc::IPPROTO_SCTP, libc::IPPROTO_UDP, 262 /* MPTCP */, 1 << 20];
            let protocols = protocols.map(|protocol| (libc::AF_INET, stream, protocol));
            let families = [
                (libc::AF_INET6, stream, 0),
                (libc::AF_INET6, datagram, 0),
                (libc::AF_NETLINK, raw, 0),
                (libc::AF_PACKET, raw, 0),
                (libc::AF_VSOCK, stream, 0),
                (libc::AF_ALG, libc::SOCK_SEQPACKET, 0),
                (libc::AF_TIPC, stream, 0),
            ];
            let all = others.chain(protocols).chain(families);
            all.filter(|(family, kind, protocol)| socket(*family, *kind, *protocol))
                .collect::<Vec<_>>()
        });
        assert_eq!(open, Vec::new());
    }
}
