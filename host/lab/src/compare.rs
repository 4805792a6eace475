//! Ours beside `qemu -accel kvm`: the same kernel, initramfs and command line, on the same
//! emulated host, in turns.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::machine::{Machine, PATIENCE, own_memory, spec};
use crate::{pattern, sys, traffic};

/// Boot to agent, own memory, and sockets.
pub(crate) fn compare(long: bool) -> anyhow::Result<String> {
    let rounds = if long { 9 } else { 3 };
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    let (mut our_memory, mut their_memory) = (0, 0);
    for _ in 0..rounds {
        let mut machine = Machine::start("compare", &spec("compare", 1))?;
        ours.push(machine.wait_up()?.1);
        our_memory = machine.own_memory()?.0;
        drop(machine);
        let mut qemu = Qemu::start(&[])?;
        theirs.push(qemu.wait_up()?);
        their_memory = own_memory(qemu.child.id(), MEMORY_MIB << 10)?.0;
    }
    let (our_boot, their_boot) = (median(&mut ours), median(&mut theirs));
    let ratio = their_boot.as_secs_f64() / our_boot.as_secs_f64();
    println!(
        "    boot to agent, median of {rounds}: ours {:.2} s, qemu -accel kvm {:.2} s, ratio {ratio:.2}",
        our_boot.as_secs_f64(),
        their_boot.as_secs_f64()
    );
    println!("    own memory: ours {our_memory} KiB, qemu {their_memory} KiB");
    let our_sockets = our_sockets()?;
    println!("    vsock, ours: {our_sockets}");
    let their_sockets = their_sockets()?;
    println!("    vsock, qemu with the kernel's vhost-vsock: {their_sockets}");
    ensure!(ratio > 1.0, "qemu boots faster");
    Ok(format!("boots {ratio:.2} times as fast as qemu -accel kvm"))
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

const MEMORY_MIB: u64 = 128;
const PORT: u32 = 80;
const BYTES: u64 = 8 << 20;
const CHUNK: usize = 32 << 10;
const TURNS: u32 = 200;

fn our_sockets() -> anyhow::Result<String> {
    let mut machine = Machine::start("compare", &traffic::with_sockets("compare", 1))?;
    let service = traffic::listener("compare", PORT)?;
    machine.wait_up()?;
    machine.send(&format!("stream {PORT} {BYTES} {CHUNK}"))?;
    let (mut stream, _) = service.accept()?;
    let rate = rate(&stream.try_clone()?, &mut stream)?;
    machine.answer()?;
    machine.send(&format!("echo-stream {PORT}"))?;
    let (mut stream, _) = service.accept()?;
    machine.answer()?;
    Ok(format!("{rate}, {}", round_trip(&mut stream)?))
}

/// QEMU has no vsock device of its own: the host's kernel serves it, without leaving the kernel.
fn their_sockets() -> anyhow::Result<String> {
    let mut qemu = Qemu::start(&["-device", "vhost-vsock-pci,guest-cid=4"])?;
    qemu.wait_up()?;
    let mut stream = accept_after(&mut qemu, &format!("stream {PORT} {BYTES} {CHUNK}"))?;
    let rate = rate(&stream.try_clone()?, &mut stream)?;
    qemu.line()?;
    let mut stream = accept_after(&mut qemu, &format!("echo-stream {PORT}"))?;
    qemu.line()?;
    Ok(format!("{rate}, {}", round_trip(&mut stream)?))
}

/// Tells the guest to connect once the host's kernel listens.
fn accept_after(qemu: &mut Qemu, command: &str) -> anyhow::Result<File> {
    let mut sent = Ok(());
    let stream = sys::vsock_accept(PORT, || sent = qemu.send(command))?;
    sent?;
    Ok(stream)
}

fn rate<W: Write + Send>(reader: impl Read, writer: &mut W) -> anyhow::Result<String> {
    let started = Instant::now();
    pattern::both_ways(reader, writer, BYTES, CHUNK)?;
    let kib = 2.0 * f64::from(u32::try_from(BYTES >> 10)?);
    Ok(format!("{:.0} KiB/s at {CHUNK}", kib / started.elapsed().as_secs_f64()))
}

fn round_trip(stream: &mut (impl Read + Write)) -> anyhow::Result<String> {
    let started = Instant::now();
    for _ in 0..TURNS {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
    }
    Ok(format!("round trip {:.0?}", started.elapsed() / TURNS))
}

/// A QEMU machine with the lab's port.
struct Qemu {
    child: Child,
    started: Instant,
    port: Option<BufReader<UnixStream>>,
}

const SOCKET: &str = "/run/qemu.lab";

impl Qemu {
    fn start(more: &[&str]) -> anyhow::Result<Self> {
        let _ = std::fs::remove_file(SOCKET);
        let started = Instant::now();
        let child = Command::new("/usr/bin/qemu-system-x86_64")
            .args(["-M", "q35,usb=off,vmport=off,smm=off,hpet=off", "-accel", "kvm"])
            .args(["-cpu", "host", "-smp", "1", "-m", &format!("{MEMORY_MIB}M")])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"])
            .args(["-nic", "none", "-serial", "file:/run/qemu.console"])
            .args(["-kernel", "/kernel", "-initrd", "/initrd"])
            .args(["-append", &spec("qemu", 1).cmdline])
            .args(["-chardev", &format!("socket,id=lab,path={SOCKET},server=on,wait=off")])
            .args(["-device", "virtio-serial-pci,max_ports=2"])
            .args(["-device", "virtserialport,chardev=lab,name=lab"])
            .args(["-object", "rng-random,id=rng,filename=/dev/urandom"])
            .args(["-device", "virtio-rng-pci,rng=rng"])
            .args(more)
            .stdin(Stdio::null())
            .spawn()
            .context("qemu-system-x86_64")?;
        Ok(Self { child, started, port: None })
    }

    fn wait_up(&mut self) -> anyhow::Result<Duration> {
        while self.started.elapsed() < PATIENCE {
            if let Ok(stream) = UnixStream::connect(SOCKET) {
                stream.set_read_timeout(Some(PATIENCE))?;
                self.port = Some(BufReader::new(stream));
                break;
            }
            ensure!(self.child.try_wait()?.is_none(), "QEMU ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let line = self.line()?;
        ensure!(line == "up 1", "the guest said {line:?}");
        Ok(self.started.elapsed())
    }

    fn send(&mut self, command: &str) -> anyhow::Result<()> {
        let port = self.port.as_mut().context("not up")?;
        Ok(writeln!(port.get_mut(), "{command}")?)
    }

    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.port.as_mut().context("not up")?.read_line(&mut line)?;
        ensure!(!line.starts_with("error"), "{line}");
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
