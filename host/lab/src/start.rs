//! What PID 1 does first and last.

use std::ffi::CStr;
use std::fs::File;
use std::path::Path;

use anyhow::Context;
use rustix::mount::{MountFlags, mount};
use rustix::system::{RebootCommand, finit_module, reboot};

/// Mounts the kernel's file systems and loads the modules of the image.
pub(crate) fn prepare() -> anyhow::Result<()> {
    for (kind, at) in
        [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")]
    {
        std::fs::create_dir_all(at)?;
        mount(kind, at, kind, MountFlags::empty(), None::<&CStr>)
            .with_context(|| format!("mount {at}"))?;
    }
    let list = std::fs::read_to_string("/etc/casemate/modules").unwrap_or_default();
    for path in list.lines() {
        // Providers of hardware that is not here refuse to load: that is no fault.
        let _ = File::open(path).map(|file| finit_module(file, c"", 0));
    }
    Ok(())
}

/// Everything is on its way out before the machine goes.
pub(crate) fn power_off() -> ! {
    std::thread::sleep(std::time::Duration::from_millis(100));
    let _ = reboot(RebootCommand::PowerOff);
    loop {
        std::thread::park();
    }
}

/// The kernel's command line, word by word.
pub(crate) fn words() -> Vec<String> {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    line.split_whitespace().map(str::to_owned).collect()
}

/// The named virtio port, once the kernel knows its name.
pub(crate) fn port(name: &str) -> anyhow::Result<File> {
    let class = Path::new("/sys/class/virtio-ports");
    for _ in 0..500 {
        for entry in std::fs::read_dir(class).into_iter().flatten().flatten() {
            let found = std::fs::read_to_string(entry.path().join("name")).unwrap_or_default();
            if found.trim() == name {
                let node = Path::new("/dev").join(entry.file_name());
                return Ok(File::options().read(true).write(true).open(node)?);
            }
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    anyhow::bail!("no port named {name}")
}
