//! A deterministic initramfs: cpio "newc" (Linux, Documentation/driver-api/
//! early-userspace/buffer-format.rst), sorted, owned by root, dated 0.

use std::collections::BTreeMap;

/// The files of an initramfs by path, each with its permission bits.
#[derive(Debug, Clone, Default)]
pub(crate) struct Archive {
    files: BTreeMap<String, (u32, Vec<u8>)>,
}

impl Archive {
    /// Adds `bytes` at `path` (absolute); its folders are made as needed.
    /// A path that is there already is replaced.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: Vec<u8>) {
        self.files.insert(path.trim_start_matches('/').to_owned(), (mode & 0o7777, bytes));
    }

    /// An empty folder.
    pub(crate) fn folder(&mut self, path: &str) {
        self.files.insert(format!("{}/", path.trim_matches('/')), (0o755, Vec::new()));
    }

    /// Path, mode and bytes of each file, in order, folders left out.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&str, u32, &[u8])> {
        self.files
            .iter()
            .filter(|(path, _)| !path.ends_with('/'))
            .map(|(path, (mode, bytes))| (path.as_str(), *mode, bytes.as_slice()))
    }

    /// The archive's bytes; the same files give the same bytes.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut nodes: BTreeMap<&str, (u32, &[u8])> = BTreeMap::new();
        for (path, (mode, bytes)) in &self.files {
            for (end, _) in path.match_indices('/') {
                nodes.insert(path.split_at(end).0, (FOLDER | 0o755, &[]));
            }
            if !path.ends_with('/') {
                nodes.insert(path, (REGULAR | mode, bytes));
            }
        }
        let mut out = Vec::new();
        for (inode, (path, (mode, bytes))) in (1..).zip(nodes) {
            entry(&mut out, inode, path, mode, bytes);
        }
        entry(&mut out, 0, "TRAILER!!!", 0, &[]);
        pad(&mut out, 512);
        out
    }
}

/// One header, name and content, each padded to 4 bytes.
fn entry(out: &mut Vec<u8>, inode: usize, name: &str, mode: u32, bytes: &[u8]) {
    let links = if mode & FOLDER == FOLDER { 2 } else { 1 };
    let fields =
        [inode, usize_of(mode), 0, 0, links, 0, bytes.len(), 0, 0, 0, 0, name.len() + 1, 0];
    out.extend_from_slice(b"070701");
    for field in fields {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    pad(out, 4);
    out.extend_from_slice(bytes);
    pad(out, 4);
}

fn pad(out: &mut Vec<u8>, to: usize) {
    out.resize(out.len().next_multiple_of(to), 0);
}

fn usize_of(mode: u32) -> usize {
    usize::try_from(mode).unwrap_or_default()
}

const REGULAR: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_of_insertion_does_not_matter() {
        let (mut one, mut two) = (Archive::default(), Archive::default());
        one.file("/init", 0o755, b"x".to_vec());
        one.file("/etc/a/b", 0o644, b"y".to_vec());
        two.file("/etc/a/b", 0o644, b"y".to_vec());
        two.file("/init", 0o755, b"x".to_vec());
        assert_eq!(one.encode(), two.encode());
    }

    #[test]
    fn cpio_reads_it_back() {
        let mut archive = Archive::default();
        archive.file("/etc/casemate/guest.toml", 0o644, b"hello".to_vec());
        archive.file("/init", 0o755, vec![7; 5000]);
        archive.folder("/proc");
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.cpio"), archive.encode()).unwrap();
        let script = "cpio -idm --quiet < a.cpio && stat -c '%a %s %n' init etc etc/casemate/guest.toml proc";
        let Ok(output) =
            std::process::Command::new("sh").arg("-c").arg(script).current_dir(&folder).output()
        else {
            return;
        };
        if output.status.code() == Some(127) {
            return; // no cpio on this machine; the boot test reads the archive, too
        }
        let listing = String::from_utf8(output.stdout).unwrap();
        for line in ["755 5000 init", "644 5 etc/casemate/guest.toml"] {
            assert!(listing.contains(line), "{listing}");
        }
    }
}
