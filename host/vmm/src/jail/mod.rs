//! The jail: entered when everything is open, before the guest runs.
//!
//! What a specification asks for is either reached or an error; system call
//! filters are not asked for, they are always on. A call that is not on the list
//! of its thread ends the process, and the machine with it.

mod calls;
mod sys;

use std::path::{Path, PathBuf};

use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};

pub(crate) use calls::Role;

use crate::spec::{JailSpec, VmSpec};

/// Why the jail could not be closed as asked.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The operating system refused a measure.
    #[error("jail: {measure}: {source}")]
    Refused {
        /// Which measure.
        measure: &'static str,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// Two wishes that do not go together.
    #[error("jail: {field} needs {expected}")]
    Wish {
        /// Key in the specification.
        field: &'static str,
        /// What it needs beside it.
        expected: &'static str,
    },
    /// The list of system calls could not be made into a filter.
    #[error("jail: system call filter: {0}")]
    Filter(String),
}

/// Compiled filters, one a kind of thread.
#[derive(Clone)]
pub(crate) struct Filters {
    warden: BpfProgram,
    devices: BpfProgram,
    vcpu: BpfProgram,
}

/// Files that a machine may have open: its own few, and its connections.
const FILES_MAX: u64 = 512;
/// Address space beside guest memory: stacks, heap, the program.
const SPACE_BESIDE: u64 = 256 << 20;

/// Where a path of the specification lies as seen from inside the jail.
pub(crate) fn inside(jail: &JailSpec, path: &Path) -> Result<PathBuf, JailError> {
    let Some(root) = &jail.root else { return Ok(path.to_owned()) };
    let rest = path.strip_prefix(root).map_err(|_| JailError::Wish {
        field: "vsock.socket",
        expected: "a path below jail.root",
    })?;
    Ok(Path::new("/").join(rest))
}

/// Locks the process in. The caller is its only thread.
pub(crate) fn enter(spec: &VmSpec) -> Result<(), JailError> {
    let jail = &spec.jail;
    if jail.root.is_some() && !jail.namespaces {
        return Err(JailError::Wish { field: "jail.root", expected: "jail.namespaces" });
    }
    limit(Resource::Nofile, FILES_MAX)?;
    limit(Resource::Core, 0)?;
    limit(Resource::As, spec.memory_bytes().saturating_add(SPACE_BESIDE))?;
    if jail.namespaces {
        sys::unshare().map_err(refused("namespaces"))?;
    }
    if let Some(root) = &jail.root {
        change_root(root).map_err(refused("root directory"))?;
    }
    if let Some(user) = jail.user {
        become_user(user).map_err(refused("user"))?;
    }
    let none = CapabilitySet::empty();
    let sets = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, sets).map_err(refused("capabilities"))?;
    rustix::thread::set_no_new_privs(true).map_err(refused("no new privileges"))
}

/// Devices pin guest memory: the limit on locked memory must have room for it.
pub(crate) fn allow_pinning(bytes: u64) -> Result<(), JailError> {
    let most = bytes.saturating_add(SPACE_BESIDE);
    let now = rustix::process::getrlimit(Resource::Memlock);
    let enough = |limit: Option<u64>| limit.is_none_or(|limit| limit >= most);
    if enough(now.current) {
        return Ok(());
    }
    let maximum = if enough(now.maximum) { now.maximum } else { Some(most) };
    let limit = Rlimit { current: Some(most), maximum };
    setrlimit(Resource::Memlock, limit).map_err(refused("locked memory for devices"))
}

fn limit(resource: Resource, most: u64) -> Result<(), JailError> {
    let limit = Rlimit { current: Some(most), maximum: Some(most) };
    setrlimit(resource, limit).map_err(refused("resource limit"))
}

/// Makes a directory the root of everything that this process can name.
fn change_root(root: &Path) -> rustix::io::Result<()> {
    use rustix::mount::{MountPropagationFlags, mount_bind, mount_change, mount_move};
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    mount_bind(root, root)?;
    rustix::process::chdir(root)?;
    mount_move(".", "/")?;
    rustix::process::chroot(".")?;
    rustix::process::chdir("/")
}

fn become_user(user: u32) -> rustix::io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(user), rustix::fs::Gid::from_raw(user));
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

fn refused<E: Into<std::io::Error>>(measure: &'static str) -> impl Fn(E) -> JailError {
    move |source| JailError::Refused { measure, source: source.into() }
}

impl Filters {
    /// Compiles the lists; a filter that cannot be made is an error before anything runs.
    pub(crate) fn new(assigned: bool) -> Result<Self, JailError> {
        let vcpu = if assigned { Role::VcpuWithDevice } else { Role::Vcpu };
        Ok(Self {
            warden: compile(Role::Warden)?,
            devices: compile(Role::Devices)?,
            vcpu: compile(vcpu)?,
        })
    }

    /// Confines the calling thread for good.
    pub(crate) fn apply(&self, role: Role) -> Result<(), JailError> {
        let program = match role {
            Role::Warden => &self.warden,
            Role::Devices => &self.devices,
            Role::Vcpu | Role::VcpuWithDevice => &self.vcpu,
        };
        seccompiler::apply_filter(program).map_err(|error| JailError::Filter(error.to_string()))
    }
}

fn compile(role: Role) -> Result<BpfProgram, JailError> {
    let wrong = |error: seccompiler::BackendError| JailError::Filter(error.to_string());
    let rules = calls::rules(role).map_err(wrong)?;
    let (deny, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, deny, allow, TargetArch::x86_64).map_err(wrong)?;
    filter.try_into().map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_list_compiles() {
        Filters::new(false).unwrap();
        Filters::new(true).unwrap();
    }

    #[test]
    fn paths_are_seen_from_inside() {
        let mut jail = JailSpec::default();
        assert_eq!(inside(&jail, Path::new("/a/v")).unwrap(), Path::new("/a/v"));
        jail.root = Some("/a".into());
        assert_eq!(inside(&jail, Path::new("/a/v")).unwrap(), Path::new("/v"));
        assert!(inside(&jail, Path::new("/b/v")).is_err());
    }

    #[test]
    fn a_root_without_namespaces_is_refused_before_anything_is_done() {
        let text =
            "kernel = \"k\"\ncmdline = \"\"\nvcpus = 1\nmemory_mib = 128\n[jail]\nroot = \"/r\"";
        let spec = VmSpec::parse(text).unwrap();
        assert!(matches!(enter(&spec), Err(JailError::Wish { field: "jail.root", .. })));
    }
}
