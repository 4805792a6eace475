//! The kernel's modules: unpacked, with what they depend on, in load order.
//!
//! Debian's package has no modules.dep (depmod makes it on installation), so
//! the dependencies are read where depmod reads them: `depends=` in `.modinfo`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::{BuildError, tool};

/// A module ready to load.
#[derive(Debug)]
pub(crate) struct Module {
    /// Its name with underscores, as the kernel prints it.
    pub(crate) name: String,
    /// The uncompressed ELF file.
    pub(crate) bytes: Vec<u8>,
}

/// The `wanted` modules and what they depend on, each after its dependencies.
pub(crate) fn collect(folder: &Path, wanted: &[String]) -> Result<Vec<Module>, BuildError> {
    let mut files = BTreeMap::new();
    index(folder, 0, &mut files)?;
    let mut loaded = Vec::new();
    for name in wanted {
        add(name, &files, &mut loaded, 0)?;
    }
    Ok(loaded)
}

fn add(
    name: &str,
    files: &BTreeMap<String, PathBuf>,
    loaded: &mut Vec<Module>,
    depth: usize,
) -> Result<(), BuildError> {
    if loaded.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let file = files.get(name).filter(|_| depth < MAX_DEPTH);
    let file = file.ok_or_else(|| BuildError::NoModule { name: name.to_owned() })?;
    let bytes = unpack(file)?;
    let depends =
        modinfo(&bytes, "depends").ok_or_else(|| BuildError::NoModule { name: name.to_owned() })?;
    for dependency in depends.split(',').filter(|dependency| !dependency.is_empty()) {
        add(&canonical(dependency), files, loaded, depth + 1)?;
    }
    loaded.push(Module { name: name.to_owned(), bytes });
    Ok(())
}

/// The value of `key` in the module's `.modinfo`, a run of `key=value\0`.
fn modinfo(module: &[u8], key: &str) -> Option<String> {
    let needle = [b"\0", key.as_bytes(), b"="].concat();
    let at = module.windows(needle.len()).position(|window| window == needle)?;
    let value = module.get(at + needle.len()..)?.split(|&byte| byte == 0).next()?;
    String::from_utf8(value.to_vec()).ok()
}

fn unpack(file: &Path) -> Result<Vec<u8>, BuildError> {
    if file.extension().is_some_and(|extension| extension == "ko") {
        return fs::read(file).map_err(|e| BuildError::io("read", file, e));
    }
    let mut command = Command::new("xz");
    tool::run(command.arg("-dc").arg(file), Duration::from_secs(60), &mut || {})
}

/// Every module file below `folder` by name.
fn index(
    folder: &Path,
    depth: usize,
    files: &mut BTreeMap<String, PathBuf>,
) -> Result<(), BuildError> {
    let entries = fs::read_dir(folder).map_err(|e| BuildError::io("list", folder, e))?;
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if path.is_dir() && depth < MAX_DEPTH {
            index(&path, depth + 1, files)?;
        } else if let Some(stem) = name.strip_suffix(".ko.xz").or(name.strip_suffix(".ko")) {
            files.insert(canonical(stem), path);
        }
    }
    Ok(())
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

const MAX_DEPTH: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_first() {
        let folder = tempfile::tempdir().unwrap();
        let module = |name: &str, depends: &str| {
            let bytes = format!("\x7fELF\0license=GPL\0depends={depends}\0name={name}\0");
            fs::write(folder.path().join(format!("{name}.ko")), bytes).unwrap();
        };
        module("sev-guest", "tsm");
        module("tsm", "configfs");
        module("configfs", "");
        let wanted = ["sev_guest".to_owned(), "configfs".to_owned()];
        let names: Vec<_> =
            collect(folder.path(), &wanted).unwrap().into_iter().map(|m| m.name).collect();
        assert_eq!(names, ["configfs", "tsm", "sev_guest"]);
        let error = collect(folder.path(), &["gone".to_owned()]).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }

    #[test]
    fn a_circle_ends() {
        let folder = tempfile::tempdir().unwrap();
        for (name, depends) in [("a", "b"), ("b", "a")] {
            let bytes = format!("\0depends={depends}\0");
            fs::write(folder.path().join(format!("{name}.ko")), bytes).unwrap();
        }
        assert!(collect(folder.path(), &["a".to_owned()]).is_err());
    }
}
