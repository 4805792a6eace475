//! Kernel modules in the order that the image gives, and the switches that
//! close the kernel behind them.

use std::ffi::CStr;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::system::finit_module;

use crate::console::say;

/// The list of modules in the image: one path a line, `#` starts a comment.
pub const MODULE_LIST: &str = "/etc/casemate/modules";
const MAX_MODULES: usize = 64;
/// linux/module.h: the file is compressed and the kernel unpacks it.
const MODULE_INIT_COMPRESSED_FILE: i32 = 4;

/// Why the kernel is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A file could not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The list of modules is not what it should be.
    #[error("{MODULE_LIST}, line {line}: expected {expected}, got {actual:?}")]
    List {
        /// The line's number, from 1.
        line: usize,
        /// What a line may be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
    /// The kernel refused a module.
    #[error("module {path}: {source}")]
    Load {
        /// The module.
        path: PathBuf,
        /// What the kernel said.
        source: Errno,
    },
    /// A switch could not be set.
    #[error("{path}: expected to set {value:?}: {source}")]
    Switch {
        /// The switch.
        path: &'static str,
        /// The value.
        value: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// Loads the modules that the image lists; an image may list none.
pub fn load_modules() -> Result<(), KernelError> {
    let path = Path::new(MODULE_LIST);
    if !path.exists() {
        return Ok(());
    }
    let text = std::fs::read_to_string(path).map_err(|source| read_error(path, source))?;
    parse_list(&text)?.iter().try_for_each(|module| load(module))
}

/// Closes what nothing in the guest needs from here on. Each switch only
/// narrows; the first two are not optional.
pub fn close() -> Result<(), KernelError> {
    for (path, value, must_exist) in SWITCHES {
        match std::fs::write(path, value) {
            Ok(()) => {}
            Err(error) if !must_exist && error.kind() == std::io::ErrorKind::NotFound => {}
            Err(source) => return Err(KernelError::Switch { path, value, source }),
        }
    }
    Ok(())
}

/// path, value, whether a kernel without it is refused.
const SWITCHES: [(&str, &str, bool); 9] = [
    ("/proc/sys/kernel/modules_disabled", "1", true),
    ("/proc/sys/user/max_user_namespaces", "0", true),
    ("/proc/sys/kernel/kexec_load_disabled", "1", false),
    ("/proc/sys/kernel/io_uring_disabled", "2", false),
    ("/proc/sys/kernel/unprivileged_bpf_disabled", "1", false),
    ("/proc/sys/kernel/dmesg_restrict", "1", false),
    ("/proc/sys/kernel/kptr_restrict", "2", false),
    ("/proc/sys/kernel/perf_event_paranoid", "3", false),
    ("/proc/sys/kernel/yama/ptrace_scope", "2", false),
];

fn load(path: &Path) -> Result<(), KernelError> {
    let file = std::fs::File::open(path).map_err(|source| read_error(path, source))?;
    let compressed = path.extension().is_some_and(|extension| extension != "ko");
    let flags = if compressed { MODULE_INIT_COMPRESSED_FILE } else { 0 };
    match finit_module(&file, NO_PARAMETERS, flags) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        // The driver is there, its hardware is not: what it would have offered
        // is missing later, where that is decided.
        Err(Errno::NODEV) => {
            say(&format!("module {}: no such hardware here", path.display()));
            Ok(())
        }
        Err(source) => Err(KernelError::Load { path: path.into(), source }),
    }
}

const NO_PARAMETERS: &CStr = c"";

fn parse_list(text: &str) -> Result<Vec<PathBuf>, KernelError> {
    let mut modules = Vec::new();
    for (at, line) in text.lines().enumerate() {
        let wrong =
            |expected| KernelError::List { line: at + 1, expected, actual: line.to_owned() };
        let path = line.trim();
        if path.is_empty() || path.starts_with('#') {
            continue;
        }
        if !path.starts_with('/') || path.contains(char::is_whitespace) {
            return Err(wrong("one absolute path"));
        }
        if modules.len() == MAX_MODULES {
            return Err(wrong("at most 64 modules"));
        }
        modules.push(PathBuf::from(path));
    }
    Ok(modules)
}

fn read_error(path: &Path, source: std::io::Error) -> KernelError {
    KernelError::Read { path: path.into(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_keeps_its_order() {
        let modules = parse_list("# first\n/lib/b.ko\n\n/lib/a.ko.xz\n").unwrap();
        assert_eq!(modules, [PathBuf::from("/lib/b.ko"), PathBuf::from("/lib/a.ko.xz")]);
    }

    #[test]
    fn other_lines_are_refused_with_their_number() {
        for text in ["\nlib/a.ko", "\n/lib/a.ko param=1"] {
            let error = parse_list(text).unwrap_err().to_string();
            assert!(error.contains("line 2"), "{error}");
        }
        assert!(parse_list(&"/a.ko\n".repeat(65)).is_err());
    }
}
