//! Fetches the pinned package with apt, without root: private state and cache
//! folders, and the machine's own mirror. apt checks the archive's signatures
//! with Debian's keyring; the pin's SHA-256 is checked on top.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use casemate_attestation::crypto::sha256;

use crate::pin::KernelPin;
use crate::{BuildError, Progress, Step, tool};

/// The pinned package's file: from the cache if its digest is right, else fetched.
pub(crate) fn package(
    pin: &KernelPin,
    cache: &Path,
    mirror: Option<&str>,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, BuildError> {
    let file = cache.join(pin.file_name());
    if file.exists() && check(pin, &file).is_ok() {
        return Ok(file);
    }
    let apt = PrivateApt::make(pin, cache, mirror)?;
    apt.update(progress)?;
    let fetched = apt.download(pin, progress)?;
    check(pin, &fetched)?;
    fs::rename(&fetched, &file).map_err(|e| BuildError::io("move", &file, e))?;
    apt.remove();
    Ok(file)
}

/// Compares the file with the pin.
fn check(pin: &KernelPin, file: &Path) -> Result<(), BuildError> {
    let bytes = fs::read(file).map_err(|e| BuildError::io("read", file, e))?;
    let actual = hex::encode(sha256(&bytes));
    if actual == pin.sha256 {
        return Ok(());
    }
    Err(BuildError::PackageDigest {
        package: format!("{} {}", pin.package, pin.version),
        expected: format!("SHA-256 {} ({} bytes)", pin.sha256, pin.size),
        actual: format!("SHA-256 {actual} ({} bytes)", bytes.len()),
    })
}

/// An apt that touches nothing of the machine's own.
struct PrivateApt {
    folder: PathBuf,
    config: PathBuf,
}

impl PrivateApt {
    fn make(pin: &KernelPin, cache: &Path, mirror: Option<&str>) -> Result<Self, BuildError> {
        let folder = cache.join("apt");
        let make =
            |path: PathBuf| fs::create_dir_all(&path).map_err(|e| BuildError::io("make", &path, e));
        for part in ["lists/partial", "archives/partial", "sources", "download"] {
            make(folder.join(part))?;
        }
        // apt wants absolute paths in its configuration.
        let folder = fs::canonicalize(&folder).map_err(|e| BuildError::io("find", &folder, e))?;
        let apt = Self { config: folder.join("apt.conf"), folder };
        apt.write("download/.keep", "")?;
        apt.write("apt.conf", &apt.configuration())?;
        let mirror = match mirror {
            Some(uri) => uri.to_owned(),
            None => apt.configured_mirror(pin)?,
        };
        apt.write("sources/kernel.sources", &sources(pin, &mirror))?;
        Ok(apt)
    }

    fn write(&self, name: &str, text: &str) -> Result<(), BuildError> {
        let path = self.folder.join(name);
        fs::write(&path, text).map_err(|e| BuildError::io("write", &path, e))
    }

    /// Everything apt would write, and its hooks, away from the system's.
    fn configuration(&self) -> String {
        let at = self.folder.display();
        format!(
            "Dir::State \"{at}\";\nDir::State::lists \"{at}/lists\";\nDir::State::status \"/dev/null\";\n\
             Dir::Cache \"{at}\";\nDir::Cache::archives \"{at}/archives\";\n\
             Dir::Cache::pkgcache \"\";\nDir::Cache::srcpkgcache \"\";\n\
             APT::Sandbox::User \"\";\n#clear APT::Update;\n#clear DPkg;\n\
             Acquire::Languages \"none\";\nAcquire::Retries \"3\";\n\
             Acquire::http::Timeout \"30\";\nAcquire::https::Timeout \"30\";\n"
        )
    }

    /// The mirror from which this machine has Debian's suites. No mirror is
    /// named in this repository: the machine's owner chose one already.
    fn configured_mirror(&self, pin: &KernelPin) -> Result<String, BuildError> {
        let mut command = Command::new("apt-get");
        command.arg("-c").arg(&self.config).args(["--print-uris", "update"]);
        let uris = tool::run(&mut command, Duration::from_secs(60), &mut || {})?;
        let uris = String::from_utf8_lossy(&uris).into_owned();
        choose_mirror(pin, &uris).ok_or_else(|| BuildError::NoMirror {
            suite: pin.suite.clone(),
            actual: suites(&uris).map(|(_, suite)| suite).collect::<Vec<_>>().join(", "),
        })
    }

    fn apt(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.arg("-c").arg(&self.config).args(["-o", "Dir::Etc::SourceList=/dev/null", "-o"]);
        command.arg(format!("Dir::Etc::SourceParts={}", self.folder.join("sources").display()));
        command.current_dir(self.folder.join("download"));
        command
    }

    fn update(&self, progress: &mut dyn FnMut(Progress)) -> Result<(), BuildError> {
        progress(Progress { step: Step::Index, done: 0, total: 1 });
        let mut command = self.apt("apt-get");
        // Without this an unreachable mirror is a warning.
        command.args(["-o", "APT::Update::Error-Mode=any", "update"]);
        tool::run(&mut command, INDEX_LIMIT, &mut || {})?;
        progress(Progress { step: Step::Index, done: 1, total: 1 });
        Ok(())
    }

    fn download(
        &self,
        pin: &KernelPin,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<PathBuf, BuildError> {
        let folder = self.folder.join("download");
        let wanted = format!("{}={}", pin.package, pin.version);
        let mut watch = || {
            let done = packages_in(&folder).iter().map(|path| size_of(path)).sum();
            progress(Progress { step: Step::Download, done, total: pin.size });
        };
        let mut command = self.apt("apt-get");
        command.args(["download", &wanted]);
        let said = tool::run_any(&mut command, DOWNLOAD_LIMIT, &mut watch)?;
        if !said.success {
            return Err(self.absent(pin, &said.err)?);
        }
        watch();
        packages_in(&folder).pop().ok_or_else(|| BuildError::Tool {
            tool: "apt-get".into(),
            said: "download succeeded and left no package".into(),
        })
    }

    /// Why the download failed: the mirror has other kernels, or something else.
    fn absent(&self, pin: &KernelPin, said: &str) -> Result<BuildError, BuildError> {
        let mut command = self.apt("apt-cache");
        command.args(["search", "--names-only", "^linux-image-6\\.12.*-cloud-amd64$"]);
        let found = tool::run(&mut command, INDEX_LIMIT, &mut || {})?;
        let found = String::from_utf8_lossy(&found).into_owned();
        let names: Vec<_> = found.lines().filter_map(|line| line.split(' ').next()).collect();
        if names.contains(&pin.package.as_str()) && !said.contains("was not found") {
            return Ok(BuildError::Tool { tool: "apt-get".into(), said: said.trim().to_owned() });
        }
        Ok(BuildError::NoPackage {
            suite: pin.suite.clone(),
            expected: format!("{} {}", pin.package, pin.version),
            actual: if names.is_empty() { "none".into() } else { names.join(", ") },
        })
    }

    /// The package is kept; the lists are not.
    fn remove(&self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A deb822 sources file for the pinned suite alone.
fn sources(pin: &KernelPin, mirror: &str) -> String {
    format!(
        "Types: deb\nURIs: {mirror}\nSuites: {}\nComponents: {}\nArchitectures: amd64\n\
         Signed-By: {KEYRING}\n",
        pin.suite, pin.component
    )
}

/// The mirror that already carries the suite, or its base suite.
fn choose_mirror(pin: &KernelPin, uris: &str) -> Option<String> {
    let base = pin.suite.split('-').next()?;
    [pin.suite.as_str(), base]
        .iter()
        .find_map(|wanted| suites(uris).find(|(_, suite)| suite == wanted))
        .map(|(mirror, _)| mirror.to_owned())
}

/// Mirror and suite of each configured repository, from `--print-uris`.
fn suites(uris: &str) -> impl Iterator<Item = (&str, &str)> {
    uris.lines().filter_map(|line| {
        let uri = line.strip_prefix('\'')?.split('\'').next()?;
        uri.strip_suffix("/InRelease")?.split_once("/dists/")
    })
}

fn packages_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect()
}

fn size_of(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const INDEX_LIMIT: Duration = Duration::from_secs(180);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(900);

#[cfg(test)]
mod tests {
    use super::*;

    const URIS: &str = "\
'http://mirror.test/debian/dists/bookworm/InRelease' mirror_bookworm 0 \n\
'http://mirror.test/debian-security/dists/bookworm-security/InRelease' sec 0 \n\
'http://mirror.test/debian/dists/bookworm/main/binary-amd64/Packages.xz' p 0 \n";

    #[test]
    fn the_machines_mirror_is_used() {
        let pin = KernelPin::released().unwrap();
        assert_eq!(choose_mirror(&pin, URIS).unwrap(), "http://mirror.test/debian");
        let own = "'http://b.test/debian/dists/bookworm-backports/InRelease' b 0\n";
        let both = format!("{URIS}{own}");
        assert_eq!(choose_mirror(&pin, &both).unwrap(), "http://b.test/debian");
        assert_eq!(choose_mirror(&pin, ""), None);
    }

    #[test]
    fn another_package_is_named_with_both_digests() {
        let pin = KernelPin::released().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("other.deb");
        fs::write(&file, b"other").unwrap();
        let error = check(&pin, &file).unwrap_err().to_string();
        assert!(error.contains(&pin.sha256) && error.contains("d9298a10d1b07358"), "{error}");
        assert!(error.contains("kernel.toml"), "{error}");
    }
}
