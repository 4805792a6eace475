//! One machine under test: its specification, its process, its sockets.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use casemate_vmm::{ConsoleSpec, Exit, JailSpec, LimitSpec, PortSpec, VmSpec};

/// A running `casemate-vmm`.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) child: Child,
    pub(crate) started: Instant,
    memory_kib: u64,
    port: Option<BufReader<UnixStream>>,
    control: Option<BufReader<UnixStream>>,
}

/// A guest in the lab needs seconds for what takes milliseconds elsewhere.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A machine with one port and a control socket.
pub(crate) fn spec(name: &str, vcpus: u8) -> VmSpec {
    let path = |end: &str| PathBuf::from(format!("/run/{name}.{end}"));
    VmSpec {
        kernel: "/kernel".into(),
        initrd: Some("/initrd".into()),
        cmdline: "console=ttyS0 quiet panic=-1 reboot=k random.trust_cpu=on pci=realloc=off".into(),
        vcpus,
        memory_mib: 128,
        control: Some(path("control")),
        console: ConsoleSpec { path: Some(path("console")), ..ConsoleSpec::default() },
        ports: vec![PortSpec { name: "lab".into(), socket: path("lab") }],
        vsock: None,
        disks: Vec::new(),
        devices: Vec::new(),
        lease: None,
        limits: LimitSpec::default(),
        jail: JailSpec::default(),
    }
}

impl Machine {
    /// Starts the VMM and lets the machine run.
    pub(crate) fn start(name: &str, spec: &VmSpec) -> anyhow::Result<Self> {
        let file = format!("/run/{name}.toml");
        std::fs::write(&file, spec.to_toml()?)?;
        let started = Instant::now();
        let child = Command::new("/casemate-vmm").arg(&file).stderr(Stdio::piped()).spawn()?;
        let memory_kib = spec.memory_mib * 1024;
        let name = name.to_owned();
        let (port, control) = (None, None);
        let mut machine = Self { name, child, started, memory_kib, port, control };
        if spec.control.is_some() {
            machine.control = Some(BufReader::new(machine.connect("control")?));
            machine.ask(r#"{"op":"run"}"#)?;
        }
        Ok(machine)
    }

    /// Connects to one of the machine's sockets, as soon as it is there.
    pub(crate) fn connect(&mut self, end: &str) -> anyhow::Result<UnixStream> {
        let path = format!("/run/{}.{end}", self.name);
        for _ in 0..1000 {
            if let Ok(stream) = UnixStream::connect(&path) {
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            if self.child.try_wait()?.is_some() {
                bail!("the VMM ended: {} {}", self.words(), refused_calls());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        bail!("no socket {path}")
    }

    /// One request on the control socket.
    pub(crate) fn ask(&mut self, request: &str) -> anyhow::Result<serde_json::Value> {
        let control = self.control.as_mut().context("no control socket")?;
        writeln!(control.get_mut(), "{request}")?;
        let mut line = String::new();
        control.read_line(&mut line).with_context(refused_calls)?;
        serde_json::from_str(&line).with_context(|| format!("answer {line:?} to {request}"))
    }

    /// The next line on the control socket, whatever asked for it.
    pub(crate) fn hear(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.control.as_mut().context("no control socket")?.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    /// Waits for the guest's first word; says how many CPUs it sees and how long it took.
    pub(crate) fn wait_up(&mut self) -> anyhow::Result<(usize, Duration)> {
        let stream = self.connect("lab")?;
        self.port = Some(BufReader::new(stream));
        let line = self.line().with_context(|| self.tail())?;
        let cpus = line.strip_prefix("up ").with_context(|| format!("guest said {line:?}"))?;
        Ok((cpus.parse()?, self.started.elapsed()))
    }

    /// Sends the guest a command and waits for its answer.
    pub(crate) fn tell(&mut self, command: &str) -> anyhow::Result<String> {
        self.send(command)?;
        self.answer().with_context(|| command.to_owned())
    }

    /// Waits for the answer to a command that was sent.
    pub(crate) fn answer(&mut self) -> anyhow::Result<String> {
        let answer = self.line().with_context(|| self.tail())?;
        if answer.starts_with("error") {
            bail!("{answer}");
        }
        Ok(answer)
    }

    /// How many files the process has open.
    pub(crate) fn open_files(&self) -> anyhow::Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.child.id()))?.count())
    }

    /// Sends the guest a command.
    pub(crate) fn send(&mut self, command: &str) -> anyhow::Result<()> {
        let port = self.port.as_mut().context("not up")?;
        Ok(writeln!(port.get_mut(), "{command}")?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.port.as_mut().context("not up")?.read_line(&mut line)? == 0 {
            bail!("the guest's port closed");
        }
        Ok(line.trim_end().to_owned())
    }

    /// Waits for the process and reads its last words.
    pub(crate) fn end(&mut self) -> anyhow::Result<Exit> {
        self.end_within(PATIENCE)
    }

    /// The same with a limit.
    pub(crate) fn end_within(&mut self, limit: Duration) -> anyhow::Result<Exit> {
        let end = Instant::now() + limit;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                self.child.kill()?;
                bail!("the VMM did not end; {}", self.tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let words = self.words();
        let last = words.lines().last().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("last words: {words}"))
    }

    /// Leaves the control socket, as a client that died.
    pub(crate) fn hang_up(&mut self) {
        self.control = None;
    }

    fn words(&mut self) -> String {
        let mut words = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            let _ = stderr.read_to_string(&mut words);
        }
        words
    }

    /// The last lines of the guest's console.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read(format!("/run/{}.console", self.name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().rev().take(60).collect();
        let mut tail = lines.into_iter().rev().collect::<Vec<_>>().join("\n  ");
        tail.push_str(&refused_calls());
        tail
    }

    /// Resident memory of the process beside its guest's, in KiB: (all, of which anonymous).
    pub(crate) fn own_memory(&self) -> anyhow::Result<(u64, u64)> {
        own_memory(self.child.id(), self.memory_kib)
    }
}

/// Resident memory of a process beside its guest's `guest_kib`: (all, of which anonymous).
pub(crate) fn own_memory(process: u32, guest_kib: u64) -> anyhow::Result<(u64, u64)> {
    let maps = std::fs::read_to_string(format!("/proc/{process}/smaps"))?;
    let mut sums = (0, 0);
    let mut guest = false;
    for line in maps.lines() {
        let mut words = line.split_whitespace();
        let key = words.next().unwrap_or_default();
        let value = words.next().and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match key {
            "Size:" => guest = value == guest_kib,
            "Rss:" if !guest => sums.0 += value,
            "Anonymous:" if !guest => sums.1 += value,
            _ => {}
        }
    }
    Ok(sums)
}

/// System calls for which the kernel has killed a process, from its log.
fn refused_calls() -> String {
    let mut found = String::new();
    let flags = i32::try_from(rustix::fs::OFlags::NONBLOCK.bits()).unwrap_or(0);
    let log = std::fs::File::options().read(true).custom_flags(flags).open("/dev/kmsg");
    let Ok(mut log) = log else { return found };
    let mut record = [0; 8192];
    while let Ok(length) = log.read(&mut record) {
        let text = String::from_utf8_lossy(record.get(..length).unwrap_or_default());
        if text.contains("type=1326") {
            found = format!("\n  {}", text.trim_end());
        }
    }
    found
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
