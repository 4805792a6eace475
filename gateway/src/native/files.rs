//! `read`, `write` and `list` beneath one directory.
//!
//! The kernel resolves each path below the directory's descriptor and follows
//! no link (openat2(2): RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS,
//! RESOLVE_NO_MAGICLINKS, RESOLVE_NO_XDEV): there is no moment between a check
//! and a use.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use casemate_ledger::text;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, fstat, openat, openat2,
    renameat_with, statat, unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Breach, Failure, arguments};

/// What `gateway.toml` says of a directory.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// The directory that paths start at.
    pub root: PathBuf,
    /// Whether `write` is offered. Default no.
    #[serde(default)]
    pub write: bool,
    /// The most bytes of one file that is read or written. Default 1048576.
    #[serde(default = "default_bytes")]
    pub max_file_bytes: u64,
}

/// The tools over one directory.
pub(crate) struct Files {
    root: OwnedFd,
    write: bool,
    max_file_bytes: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadArguments {
    path: String,
    #[serde(default)]
    offset: u64,
    length: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WriteArguments {
    path: String,
    text: String,
    #[serde(default)]
    overwrite: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListArguments {
    path: String,
}

const MAX_PATH_BYTES: usize = 1024;
const MAX_PARTS: usize = 32;
const MAX_ENTRIES: usize = 1000;
const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);

impl Files {
    /// Opens the directory for good: what is put in its place later is not seen.
    pub(crate) fn open(config: &FilesConfig) -> std::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(rustix::fs::CWD, &config.root, flags, Mode::empty())?;
        Ok(Self { root, write: config.write, max_file_bytes: config.max_file_bytes })
    }

    /// The tools' definitions.
    pub(crate) fn definitions(&self) -> Vec<Value> {
        let path = json!({"type": "string", "maxLength": MAX_PATH_BYTES});
        let mut tools = vec![
            json!({
                "name": "read",
                "description": "Reads a regular file, by a path relative to the directory.",
                "inputSchema": {
                    "type": "object",
                    "properties": {
                        "path": path,
                        "offset": {"type": "integer", "minimum": 0},
                        "length": {"type": "integer", "minimum": 0},
                    },
                    "required": ["path"],
                    "additionalProperties": false,
                },
            }),
            json!({
                "name": "list",
                "description": "Lists a directory, by a path relative to the directory; \".\" is itself.",
                "inputSchema": {
                    "type": "object",
                    "properties": {"path": path},
                    "required": ["path"],
                    "additionalProperties": false,
                },
            }),
        ];
        if self.write {
            tools.push(json!({
                "name": "write",
                "description": "Writes a text file whole. An existing file is replaced only with overwrite.",
                "inputSchema": {
                    "type": "object",
                    "properties": {
                        "path": path,
                        "text": {"type": "string"},
                        "overwrite": {"type": "boolean"},
                    },
                    "required": ["path", "text"],
                    "additionalProperties": false,
                },
            }));
        }
        tools
    }

    /// Whether a call stays below the directory, as far as its words tell.
    pub(crate) fn check(&self, tool: &str, value: &Value) -> Result<(), Breach> {
        match tool {
            "read" => plain(&arguments::<ReadArguments>(value)?.path).map(drop),
            "list" => directory(&arguments::<ListArguments>(value)?.path).map(drop),
            "write" if self.write => {
                let wanted = arguments::<WriteArguments>(value)?;
                let length = u64::try_from(wanted.text.len()).unwrap_or(u64::MAX);
                if length > self.max_file_bytes {
                    let expected = format!("at most {} bytes", self.max_file_bytes);
                    return Err(Breach::reach("files/max_file_bytes", expected, length));
                }
                plain(&wanted.path).map(drop)
            }
            _ => Err(Breach::reach("files/tool", "a tool of this upstream", tool)),
        }
    }

    /// Does it. Blocks.
    pub(crate) fn call(&self, tool: &str, value: &Value) -> Result<Map<String, Value>, Failure> {
        self.check(tool, value)?;
        let result = match tool {
            "read" => self.read(&arguments(value)?)?,
            "list" => self.list(&arguments(value)?)?,
            _ => self.write(&arguments(value)?)?,
        };
        match result {
            Value::Object(result) => Ok(result),
            _ => Ok(Map::new()),
        }
    }

    fn read(&self, wanted: &ReadArguments) -> Result<Value, Failure> {
        let path = plain(&wanted.path)?;
        let mut file = self.regular(path, OFlags::RDONLY)?;
        let size = file.metadata().map_err(failed)?.len();
        file.seek(SeekFrom::Start(wanted.offset)).map_err(failed)?;
        let most = wanted.length.unwrap_or(self.max_file_bytes).min(self.max_file_bytes);
        let mut bytes = Vec::new();
        Read::by_ref(&mut file).take(most).read_to_end(&mut bytes).map_err(failed)?;
        let end = wanted.offset.saturating_add(u64::try_from(bytes.len()).unwrap_or(u64::MAX));
        let mut result = json!({"path": wanted.path, "size": size, "complete": end >= size});
        let (key, text) = match String::from_utf8(bytes) {
            Ok(text) => ("text", text),
            Err(error) => ("base64", STANDARD.encode(error.as_bytes())),
        };
        if let Some(result) = result.as_object_mut() {
            result.insert(key.to_owned(), text.into());
        }
        Ok(result)
    }

    fn list(&self, wanted: &ListArguments) -> Result<Value, Failure> {
        let path = directory(&wanted.path)?;
        let directory = self.open_at(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        let mut complete = true;
        for entry in rustix::fs::Dir::new(directory).map_err(refused)? {
            let entry = entry.map_err(refused)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                complete = false;
                break;
            }
            entries.push((name.to_owned(), kind(entry.file_type())));
        }
        entries.sort();
        let entries: Vec<Value> =
            entries.into_iter().map(|(name, kind)| json!({"name": name, "kind": kind})).collect();
        Ok(json!({"path": wanted.path, "entries": entries, "complete": complete}))
    }

    /// Writes beside the file and renames, so that nobody reads half of it.
    fn write(&self, wanted: &WriteArguments) -> Result<Value, Failure> {
        let path = plain(&wanted.path)?;
        let name = path.file_name().unwrap_or_default();
        let above = path.parent().filter(|path| !path.as_os_str().is_empty());
        let directory =
            self.open_at(above.unwrap_or(Path::new(".")), OFlags::RDONLY | OFlags::DIRECTORY)?;
        match statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile => {
                return Err(Breach::reach("files/kind", "a regular file", "another kind").into());
            }
            Ok(_) if !wanted.overwrite => {
                return Err(Failure::Tool("the file is there; say overwrite to replace it".into()));
            }
            Ok(_) | Err(Errno::NOENT) => {}
            Err(error) => return Err(refused(error)),
        }
        let random = crate::keys::random::<8>().unwrap_or_default();
        let part = format!(".{}.part", text::hex(&random));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let file = openat(&directory, part.as_str(), flags, Mode::from_raw_mode(0o600));
        let mut file = File::from(file.map_err(refused)?);
        let flags = if wanted.overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
        let written = file
            .write_all(wanted.text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| Ok(renameat_with(&directory, part.as_str(), &directory, name, flags)?));
        if let Err(error) = written {
            // A part that cannot be removed is in nobody's way.
            let _ = unlinkat(&directory, part.as_str(), AtFlags::empty());
            return Err(failed(error));
        }
        Ok(json!({"path": wanted.path, "bytes": wanted.text.len()}))
    }

    fn regular(&self, path: &Path, flags: OFlags) -> Result<File, Failure> {
        // A pipe or a device must not make the gateway wait.
        let file = self.open_at(path, flags | OFlags::NONBLOCK | OFlags::NOCTTY)?;
        let about = fstat(&file).map_err(refused)?;
        if FileType::from_raw_mode(about.st_mode) != FileType::RegularFile {
            return Err(Breach::reach("files/kind", "a regular file", "another kind").into());
        }
        Ok(File::from(file))
    }

    fn open_at(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Failure> {
        let flags = flags | OFlags::CLOEXEC;
        openat2(&self.root, path, flags, Mode::empty(), BENEATH).map_err(refused)
    }
}

/// A path of plain names below the directory.
fn plain(path: &str) -> Result<&Path, Breach> {
    let fits = path.len() <= MAX_PATH_BYTES
        && path.split('/').count() <= MAX_PARTS
        && !path.chars().any(char::is_control)
        && path.split('/').all(|part| !matches!(part, "" | "." | "..") && part.len() <= 255);
    if fits {
        return Ok(Path::new(path));
    }
    let shown: String = path.chars().filter(|c| !c.is_control()).take(80).collect();
    Err(Breach::reach("files/path", "a relative path of plain names", shown))
}

fn directory(path: &str) -> Result<&Path, Breach> {
    if path == "." { Ok(Path::new(path)) } else { plain(path) }
}

/// What the kernel says of a path that leaves the directory, and of others.
fn refused(error: Errno) -> Failure {
    match error {
        Errno::LOOP | Errno::XDEV => {
            Breach::reach("files/beneath", "a path below the directory, without links", "another")
                .into()
        }
        error => failed(error.into()),
    }
}

fn failed(error: std::io::Error) -> Failure {
    Failure::Tool(error.kind().to_string())
}

fn kind(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        _ => "other",
    }
}

fn default_bytes() -> u64 {
    1 << 20
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Place {
        directory: tempfile::TempDir,
        files: Files,
    }

    fn place(write: bool) -> Place {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("root");
        std::fs::create_dir_all(root.join("deep/er")).unwrap();
        std::fs::write(directory.path().join("secret"), "secret").unwrap();
        std::fs::write(root.join("deep/er/file"), "inside").unwrap();
        std::fs::write(root.join("binary"), [0xff, 0xfe]).unwrap();
        for (target, link) in [
            ("../secret", "up"),
            ("deep/er/file", "in"),
            ("/etc/passwd", "absolute"),
            ("/proc/self/root", "magic"),
            ("..", "above"),
        ] {
            symlink(target, root.join(link)).unwrap();
        }
        rustix::fs::mkfifoat(rustix::fs::CWD, root.join("pipe"), Mode::from_raw_mode(0o600))
            .unwrap();
        let files = Files::open(&FilesConfig { root, write, max_file_bytes: 64 }).unwrap();
        Place { directory, files }
    }

    #[test]
    fn nothing_outside_is_read_or_listed() {
        let place = place(false);
        let files = &place.files;
        for path in [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../secret",
            "deep/../../secret",
            "deep/..",
            "./deep/er/file",
            "deep//er/file",
            "deep/er/file/",
            "up",
            "in",
            "absolute",
            "magic/etc/passwd",
            "above/secret",
            "\u{0}",
            "deep/er/\u{0}file",
            "a/".repeat(40).as_str(),
            "x".repeat(300).as_str(),
            "pipe",
        ] {
            let error = files.call("read", &json!({"path": path})).unwrap_err();
            assert!(matches!(error, Failure::Breach(_)), "{path:?}: {error:?}");
        }
        for path in ["up", "above", "magic", "..", "/"] {
            assert!(files.call("list", &json!({"path": path})).is_err(), "{path}");
        }
    }

    #[test]
    fn what_is_inside_is_read_in_parts_and_listed() {
        let place = place(false);
        let files = &place.files;
        let read = |value: Value| Value::Object(files.call("read", &value).unwrap());
        let whole = read(json!({"path": "deep/er/file"}));
        assert_eq!(whole["text"], "inside");
        assert_eq!((&whole["size"], &whole["complete"]), (&json!(6), &json!(true)));
        let part = read(json!({"path": "deep/er/file", "offset": 2, "length": 3}));
        assert_eq!((&part["text"], &part["complete"]), (&json!("sid"), &json!(false)));
        assert_eq!(read(json!({"path": "binary"}))["base64"], "//4=");
        let list = Value::Object(files.call("list", &json!({"path": "."})).unwrap());
        assert_eq!(list["entries"][0], json!({"name": "above", "kind": "other"}));
        assert_eq!(list["entries"].as_array().unwrap().len(), 8);
        assert!(matches!(files.call("read", &json!({"path": "none"})), Err(Failure::Tool(_))));
        for value in [json!({}), json!({"path": 1}), json!({"path": "x", "more": 1})] {
            assert!(matches!(files.call("read", &value), Err(Failure::Breach(_))), "{value}");
        }
    }

    #[test]
    fn writing_replaces_only_when_asked_and_never_through_a_link() {
        let closed = place(false);
        assert!(closed.files.call("write", &json!({"path": "x", "text": ""})).is_err());
        let Place { directory, files } = place(true);
        let write = |path: &str, overwrite: bool| {
            files.call("write", &json!({"path": path, "text": "new", "overwrite": overwrite}))
        };
        assert!(write("deep/new", false).is_ok());
        assert!(matches!(write("deep/new", false), Err(Failure::Tool(_))));
        assert!(write("deep/new", true).is_ok());
        for path in ["up", "in", "above/secret", "../secret", "deep", "pipe"] {
            assert!(matches!(write(path, true), Err(Failure::Breach(_))), "{path}");
        }
        let long = json!({"path": "long", "text": "x".repeat(65)});
        assert!(matches!(files.check("write", &long), Err(Breach { .. })));
        assert_eq!(std::fs::read_to_string(directory.path().join("secret")).unwrap(), "secret");
        let left = std::fs::read_dir(directory.path().join("root/deep")).unwrap().count();
        assert_eq!(left, 2);
    }
}
