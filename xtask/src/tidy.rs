//! House rules that the compiler and clippy do not check.
//!
//! Each rule is one function from a file to complaints; a complaint names the
//! file, the line, the rule, and what would satisfy it.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, bail};

/// One file of the repository, read once.
struct File {
    path: PathBuf,
    text: String,
}

/// Something that a rule found.
struct Complaint {
    path: PathBuf,
    line: usize,
    text: String,
}

/// A file longer than this, tests aside, is more than one thought.
const FILE_LINES_MAX: usize = 600;
/// A function longer than this does not fit on a screen.
const FUNCTION_LINES_MAX: usize = 70;

/// Checks every file that git tracks; fails if a rule is broken.
pub(crate) fn run() -> anyhow::Result<ExitCode> {
    let root = repository_root()?;
    let files = tracked_files(&root)?;
    let mut complaints = Vec::new();
    for file in &files {
        if is_rust(&file.path) {
            complaints.extend(unsafe_only_in_sys(file));
            complaints.extend(file_length(file));
            complaints.extend(function_length(file));
        }
        if has_extension(&file.path, "md") {
            complaints.extend(links_resolve(file, &root));
            complaints.extend(named_paths_exist(file, &root));
        }
    }
    complaints.extend(formats_are_cited(&files));
    for complaint in &complaints {
        println!("{}:{}: {}", complaint.path.display(), complaint.line, complaint.text);
    }
    if complaints.is_empty() {
        println!("tidy: {} files, nothing to complain about", files.len());
        return Ok(ExitCode::SUCCESS);
    }
    println!("tidy: {} complaints", complaints.len());
    Ok(ExitCode::FAILURE)
}

/// The word `unsafe` stands in files named sys.rs and nowhere else.
fn unsafe_only_in_sys(file: &File) -> Vec<Complaint> {
    if file.path.file_name().is_some_and(|name| name == "sys.rs") {
        return Vec::new();
    }
    let is_unsafe = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern", "unsafe trait"]
            .iter()
            .any(|form| code.contains(form) && !code.contains(&format!("\"{form}")))
    };
    file.lines()
        .filter(|(_, line)| is_unsafe(line))
        .map(|(line, _)| file.complain(line, "unsafe belongs into a file named sys.rs"))
        .collect()
}

/// A file has at most [`FILE_LINES_MAX`] lines before its tests.
fn file_length(file: &File) -> Vec<Complaint> {
    let lines = file.lines().take_while(|(_, line)| line.trim() != "#[cfg(test)]").count();
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![file.complain(lines, format!("file of {lines} lines, at most {FILE_LINES_MAX}: split it"))]
}

/// A function has at most [`FUNCTION_LINES_MAX`] lines. Counted by indentation, as rustfmt
/// leaves it: a function ends at the first `}` indented as its head.
fn function_length(file: &File) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut open: Option<(usize, usize)> = None;
    for (number, line) in file.lines() {
        let indent = line.len() - line.trim_start().len();
        match open {
            None if is_function_head(line.trim_start()) && !line.trim_end().ends_with(';') => {
                open = Some((number, indent));
            }
            Some((start, at)) if indent == at && line.trim_end() == format!("{:at$}}}", "") => {
                let length = number - start + 1;
                if length > FUNCTION_LINES_MAX {
                    let text = format!(
                        "function of {length} lines, at most {FUNCTION_LINES_MAX}: split it"
                    );
                    complaints.push(file.complain(start, text));
                }
                open = None;
            }
            Some((_, at)) if indent == at && line.trim_end().ends_with(';') => open = None,
            _ => {}
        }
    }
    complaints
}

fn is_function_head(line: &str) -> bool {
    let mut words = line.split_whitespace();
    words.find(|word| !is_qualifier(word)).is_some_and(|word| word == "fn")
}

fn is_qualifier(word: &str) -> bool {
    matches!(word, "pub" | "const" | "async" | "unsafe" | "extern") || word.starts_with("pub(")
}

/// A relative link in a Markdown file leads to a file that exists.
fn links_resolve(file: &File, root: &Path) -> Vec<Complaint> {
    let folder = root.join(&file.path).parent().map(Path::to_path_buf).unwrap_or_default();
    let mut complaints = Vec::new();
    for (number, line) in file.lines() {
        for target in link_targets(line) {
            let target = target.split('#').next().unwrap_or_default();
            let external = target.contains("://") || target.starts_with("mailto:");
            if !target.is_empty() && !external && !folder.join(target).exists() {
                complaints.push(file.complain(number, format!("dead link: {target}")));
            }
        }
    }
    complaints
}

fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split(')').next())
}

/// A path of this repository that a Markdown file names in backticks exists.
fn named_paths_exist(file: &File, root: &Path) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (number, line) in file.lines() {
        for name in line.split('`').skip(1).step_by(2).filter(|name| is_repository_path(name, root))
        {
            if !root.join(name).exists() {
                complaints.push(file.complain(number, format!("no such file: {name}")));
            }
        }
    }
    complaints
}

/// Whether a text in backticks is a path that starts at one of our folders.
fn is_repository_path(text: &str, root: &Path) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/".contains(&byte);
    let folder = text.split_once('/').map(|(folder, _)| folder);
    text.bytes().all(plain)
        && folder.is_some_and(|folder| {
            !folder.is_empty() && root.join(folder).join("Cargo.toml").exists()
        })
}

/// Each page of docs/formats is cited by the code that implements it.
fn formats_are_cited(files: &[File]) -> Vec<Complaint> {
    let pages = files.iter().filter(|file| file.path.starts_with("docs/formats"));
    pages
        .filter(|page| {
            let name = page.path.to_string_lossy();
            !files.iter().any(|file| is_rust(&file.path) && file.text.contains(name.as_ref()))
        })
        .map(|page| page.complain(1, "no source file cites this page"))
        .collect()
}

fn repository_root() -> anyhow::Result<PathBuf> {
    let output = git(Path::new("."), &["rev-parse", "--show-toplevel"])?;
    Ok(PathBuf::from(output.trim()))
}

fn tracked_files(root: &Path) -> anyhow::Result<Vec<File>> {
    let list = git(root, &["ls-files", "--cached", "--others", "--exclude-standard", "-z"])?;
    let wanted = |path: &&str| is_rust(Path::new(path)) || has_extension(Path::new(path), "md");
    list.split('\0')
        .filter(wanted)
        .filter(|path| root.join(path).exists())
        .map(|path| {
            let text = std::fs::read_to_string(root.join(path))
                .with_context(|| format!("{path}: not readable as UTF-8"))?;
            Ok(File { path: PathBuf::from(path), text })
        })
        .collect()
}

fn git(folder: &Path, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new("git").current_dir(folder).args(arguments).output()?;
    if !output.status.success() {
        bail!("git {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8(output.stdout)?)
}

fn is_rust(path: &Path) -> bool {
    has_extension(path, "rs")
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|actual| actual == extension)
}

impl File {
    /// The lines, numbered from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.text.lines().enumerate().map(|(index, line)| (index + 1, line))
    }

    fn complain(&self, line: usize, text: impl Into<String>) -> Complaint {
        Complaint { path: self.path.clone(), line, text: text.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: PathBuf::from(path), text: text.to_owned() }
    }

    #[test]
    fn unsafe_is_found_outside_sys() {
        let text = format!("fn f() {{\n    {} {{ g() }}\n}}\n", "unsafe");
        assert_eq!(unsafe_only_in_sys(&file("host/src/a.rs", &text)).len(), 1);
        assert!(unsafe_only_in_sys(&file("host/src/sys.rs", &text)).is_empty());
        assert!(unsafe_only_in_sys(&file("a.rs", "// unsafe { in words }\n")).is_empty());
    }

    #[test]
    fn long_functions_are_found_and_short_ones_are_not() {
        let body = "    x();\n".repeat(80);
        let long = format!("pub(crate) async fn f() {{\n{body}}}\n");
        assert_eq!(function_length(&file("a.rs", &long)).len(), 1);
        let short = "fn f() {\n    x();\n}\n".repeat(40);
        assert!(function_length(&file("a.rs", &short)).is_empty());
    }

    #[test]
    fn long_files_are_found_but_tests_do_not_count() {
        let long = "x\n".repeat(700);
        assert_eq!(file_length(&file("a.rs", &long)).len(), 1);
        assert!(file_length(&file("a.rs", &format!("#[cfg(test)]\n{long}"))).is_empty());
    }

    #[test]
    fn paths_that_do_not_exist_are_found() {
        let root = repository_root().unwrap();
        let page = |text: &str| named_paths_exist(&file("docs/x.md", text), &root).len();
        assert_eq!(page("see `xtask/src/tidy.rs` and `xtask/src/gone.rs`"), 1);
        assert_eq!(page("`a/b` is a MIME type, `cargo run` a command"), 0);
    }

    #[test]
    fn uncited_format_pages_are_found() {
        let page = file("docs/formats/x.md", "# x");
        let code = file("a.rs", "//! Format: docs/formats/x.md.");
        assert_eq!(formats_are_cited(&[file("docs/formats/y.md", "# y"), code]).len(), 1);
        let code = file("a.rs", "//! Format: docs/formats/x.md.");
        assert!(formats_are_cited(&[page, code]).is_empty());
    }
}
