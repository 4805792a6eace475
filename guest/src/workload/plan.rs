//! What PID 1 tells its helper process, as one JSON text on the helper's
//! standard input: the pipe between them is the only place where a secret is
//! outside their memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::PORT_DIRECTORY;
use crate::config::Workload;
use crate::port;

/// Everything the helper needs to become the workload.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// The directory that becomes `/`.
    pub root: PathBuf,
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// The working directory.
    pub cwd: PathBuf,
    /// The user.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// The environment, whole.
    pub env: BTreeMap<String, String>,
    /// The most processes and threads.
    pub processes: u32,
    /// The most open files a process.
    pub open_files: u32,
    /// The most memory, for the limit on one file.
    pub memory_mib: u32,
    /// The size of `/tmp`.
    pub tmp_mib: u32,
    /// The secrets to inherit.
    pub secrets: Vec<InheritedSecret>,
}

/// A secret and the file descriptor from which the workload reads it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InheritedSecret {
    /// The descriptor's number.
    pub fd: i32,
    /// The secret in base64.
    value: String,
}

impl Plan {
    /// The plan that `config` describes, without secrets yet. The environment
    /// also names the port's doors.
    pub fn new(config: &Workload) -> Self {
        let mut env = config.env.clone();
        env.extend(port::environment(Path::new(PORT_DIRECTORY)));
        Self {
            root: config.root.clone(),
            argv: config.argv.clone(),
            cwd: config.cwd.clone(),
            uid: config.uid,
            gid: config.gid,
            env,
            processes: config.processes,
            open_files: config.open_files,
            memory_mib: config.memory_mib,
            tmp_mib: config.tmp_mib,
            secrets: Vec::new(),
        }
    }

    /// Hands `secret` to the workload as descriptor `fd`.
    pub fn inherit(&mut self, fd: i32, secret: &[u8]) {
        self.secrets.push(InheritedSecret { fd, value: STANDARD.encode(secret) });
    }
}

impl InheritedSecret {
    /// The secret's bytes.
    pub fn bytes(&self) -> Result<Zeroizing<Vec<u8>>, base64::DecodeError> {
        STANDARD.decode(&self.value).map(Zeroizing::new)
    }
}

impl core::fmt::Debug for InheritedSecret {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "InheritedSecret {{ fd: {} }}", self.fd)
    }
}

impl Drop for InheritedSecret {
    fn drop(&mut self) {
        self.value.zeroize();
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::workload) fn plan() -> Plan {
        Plan {
            root: "/workload".into(),
            argv: vec!["/bin/agent".into()],
            cwd: "/".into(),
            uid: 1000,
            gid: 1000,
            env: BTreeMap::new(),
            processes: 8,
            open_files: 16,
            memory_mib: 16,
            tmp_mib: 1,
            secrets: Vec::new(),
        }
    }

    #[test]
    fn a_plan_reads_back_and_prints_no_secret() {
        let mut plan = plan();
        plan.inherit(3, b"hush");
        let text = serde_json::to_string(&plan).unwrap();
        let read: Plan = serde_json::from_str(&text).unwrap();
        assert_eq!(read.secrets[0].bytes().unwrap().as_slice(), b"hush");
        let shown = format!("{read:?}");
        assert!(!shown.contains("hush") && !shown.contains(&STANDARD.encode("hush")), "{shown}");
    }
}
