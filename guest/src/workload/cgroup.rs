//! One cgroup for everything the workload starts: the limit on memory and
//! processes that no rlimit gives, and one switch that ends it all.

use std::io;
use std::path::Path;

const ROOT: &str = "/sys/fs/cgroup";
const WORKLOAD: &str = "/sys/fs/cgroup/workload";

/// Makes the group with its limits; called by PID 1.
pub(super) fn create(memory_mib: u32, processes: u32) -> io::Result<()> {
    write(Path::new(ROOT), "cgroup.subtree_control", "+memory +pids")?;
    let group = Path::new(WORKLOAD);
    std::fs::create_dir_all(group)?;
    write(group, "memory.max", &(u64::from(memory_mib) << 20).to_string())?;
    write(group, "memory.oom.group", "1")?;
    write(group, "pids.max", &processes.to_string())
}

/// Puts the calling process into the group.
pub(super) fn enter() -> io::Result<()> {
    write(Path::new(WORKLOAD), "cgroup.procs", "0")
}

/// Kills every process of the group.
pub(super) fn kill() -> io::Result<()> {
    write(Path::new(WORKLOAD), "cgroup.kill", "1")
}

fn write(group: &Path, file: &str, value: &str) -> io::Result<()> {
    let path = group.join(file);
    std::fs::write(&path, value)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}
