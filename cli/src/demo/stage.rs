//! The stage on which the demo plays: a folder, this program's own commands,
//! and the services that must be gone when the play ends, however it ends.

use std::fs::{self, File};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

/// The folder, the program, and the children.
pub(crate) struct Stage {
    program: PathBuf,
    folder: PathBuf,
    children: Vec<(String, Child)>,
    started: Instant,
    colour: bool,
}

/// What a command printed and how it ended.
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Stage {
    /// A stage in `folder`, playing with this very program.
    pub(crate) fn new(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self {
            program: std::env::current_exe().context("cannot find this program's own file")?,
            folder: folder.canonicalize()?,
            children: Vec::new(),
            started: Instant::now(),
            colour: std::io::stdout().is_terminal(),
        })
    }

    /// A path on the stage.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Writes a file of the stage.
    pub(crate) fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.path(name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Removes a folder of an earlier play.
    pub(crate) fn forget(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        if path.exists() {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// The stage's folder, as a person would name it from here.
    pub(crate) fn shown(&self) -> String {
        let here = std::env::current_dir().unwrap_or_default();
        self.folder.strip_prefix(here).unwrap_or(&self.folder).display().to_string()
    }

    /// Announces a step.
    pub(crate) fn step(&self, number: usize, title: &str) {
        let seconds = self.started.elapsed().as_secs_f32();
        println!();
        println!("{}", self.paint(BOLD, &format!("[{number}/7] {title}   ({seconds:.1} s)")));
    }

    /// One line for people.
    pub(crate) fn say(&self, text: impl AsRef<str>) {
        for line in text.as_ref().lines() {
            println!("      {line}");
        }
    }

    /// One fact that was checked and holds.
    pub(crate) fn holds(&self, text: impl AsRef<str>) {
        println!("   {}  {}", self.paint(GREEN, "ok"), text.as_ref());
    }

    /// Runs one of this program's commands to its end, showing what a person would type.
    pub(crate) fn run(&self, arguments: &[&str]) -> anyhow::Result<Done> {
        self.show(arguments);
        let output = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run casemate {}", arguments.join(" ")))?;
        Ok(Done::of(&output))
    }

    /// Runs a command that must succeed, and returns what it printed.
    pub(crate) fn must(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let done = self.run(arguments)?;
        if done.code != 0 {
            bail!("casemate {} ended with {}\n{}", arguments.join(" "), done.code, done.stderr);
        }
        Ok(done.stdout)
    }

    /// Runs a command with this terminal, for its progress bar.
    pub(crate) fn watch(&self, arguments: &[&str]) -> anyhow::Result<()> {
        self.show(arguments);
        let status = Command::new(&self.program).args(arguments).stdin(Stdio::null()).status()?;
        if !status.success() {
            bail!("casemate {} ended with {status}", arguments.join(" "));
        }
        Ok(())
    }

    /// Starts one of this program's services; its output goes to `NAME.log`.
    pub(crate) fn spawn(&mut self, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
        self.show(arguments);
        let log = File::create(self.path(&format!("{name}.log")))?;
        // A service dies with the demo, also when the demo is killed.
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        self.children.push((name.to_owned(), child));
        Ok(())
    }

    /// Waits until the service `name` has ended, and returns its exit code.
    pub(crate) fn join(&mut self, name: &str, limit: Duration) -> anyhow::Result<Option<i32>> {
        let end = Instant::now() + limit;
        let found = self.children.iter().position(|(known, _)| known == name);
        let at = found.with_context(|| format!("{name} was never started"))?;
        loop {
            let (_, child) = self.children.get_mut(at).context("the child is listed")?;
            if let Some(status) = child.try_wait()? {
                self.children.remove(at);
                return Ok(status.code());
            }
            if Instant::now() >= end {
                bail!("{name} did not end within {} s\n{}", limit.as_secs(), self.tail(name));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Ends every service that still runs.
    pub(crate) fn stop_services(&mut self) {
        // Machines first: they are the last started.
        for (_, mut child) in self.children.drain(..).rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Waits for `what` to come true while every service still lives.
    pub(crate) fn wait<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let end = Instant::now() + limit;
        loop {
            if let Some(value) = ready() {
                return Ok(value);
            }
            if let Some(dead) = self.a_dead_child()? {
                bail!("{what}: {dead} ended while we waited\n{}", self.tail(&dead));
            }
            if Instant::now() >= end {
                let logs: Vec<String> =
                    self.children.iter().map(|(name, _)| self.tail(name)).collect();
                bail!("{what}: not within {} s\n{}", limit.as_secs(), logs.join("\n"));
            }
            std::thread::sleep(POLL);
        }
    }

    /// Seconds since the play began.
    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    fn a_dead_child(&mut self) -> anyhow::Result<Option<String>> {
        for (name, child) in &mut self.children {
            if child.try_wait()?.is_some_and(|status| !status.success()) {
                return Ok(Some(name.clone()));
            }
        }
        Ok(None)
    }

    /// The last lines of a service's log.
    fn tail(&self, name: &str) -> String {
        let log = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(TAIL_LINES).collect();
        let lines: Vec<&str> = lines.into_iter().rev().collect();
        format!("-- the end of {name}.log:\n{}", lines.join("\n"))
    }

    fn show(&self, arguments: &[&str]) {
        let folder = format!("{}/", self.folder.display());
        let line = format!("$ casemate {}", arguments.join(" ")).replace(&folder, "");
        println!("      {}", self.paint(DIM, &line));
        // What a child prints must not overtake what was said before it.
        let _ = std::io::stdout().flush();
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.stop_services();
    }
}

impl Done {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

const POLL: Duration = Duration::from_millis(50);
const TAIL_LINES: usize = 25;
const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
