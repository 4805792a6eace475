//! Scenarios about devices: sockets, disk, and a driver that attacks them.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use anyhow::ensure;
use casemate_vmm::{DiskSpec, Exit, JailSpec, VmSpec, VsockSpec};

use crate::machine::{Machine, PATIENCE, spec};
use crate::pattern;

/// A machine with sockets, of which the guest may reach port 80.
pub(crate) fn with_sockets(name: &str, vcpus: u8) -> VmSpec {
    let mut spec = spec(name, vcpus);
    let socket = format!("/run/{name}.vsock").into();
    spec.vsock = Some(VsockSpec { cid: 3, socket, guest_may_reach: vec![80] });
    spec
}

pub(crate) fn listener(name: &str, port: u32) -> anyhow::Result<UnixListener> {
    let path = format!("/run/{name}.vsock_{port}");
    let _ = std::fs::remove_file(&path);
    Ok(UnixListener::bind(path)?)
}

const BYTES: u64 = 16 << 20;

/// 16 MiB each way at once, with large and with small writes, both ways of connecting.
pub(crate) fn vsock(_: bool) -> anyhow::Result<String> {
    let mut machine = Machine::start("vsock", &with_sockets("vsock", 2))?;
    let service = listener("vsock", 80)?;
    machine.wait_up()?;
    let mut said = Vec::new();
    // Above 36 KiB Linux sends a packet in several descriptors; 61 bytes make many packets.
    for (bytes, chunk) in [(BYTES, 256 << 10), (BYTES, 4096), (BYTES / 32, 61)] {
        let started = Instant::now();
        machine.send(&format!("stream 80 {bytes} {chunk}"))?;
        let (mut stream, _) = service.accept()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        pattern::both_ways(&stream.try_clone()?, &mut stream, bytes, chunk)?;
        drop(stream);
        let answer = machine.answer()?;
        ensure!(answer.ends_with(&format!("pieces of {chunk}")), "{answer}");
        let seconds = started.elapsed().as_secs_f64();
        let rate = 2.0 * f64::from(u32::try_from(bytes >> 10)?) / seconds;
        said.push(format!("{rate:.0} KiB/s at {chunk}"));
    }
    ensure!(machine.tell("serve 5000 1048576 30000")? == "listening");
    let mut stream = into_guest(&mut machine, 5000)?;
    pattern::both_ways(&stream.try_clone()?, &mut stream, 1 << 20, 30_000)?;
    said.push(format!("round trip {:.0?}", round_trip(&mut machine, &service)?));
    let refused = machine.tell("connect 81 1")?;
    ensure!(refused == "0", "the guest reached a port that is not listed");
    Ok(said.join(", "))
}

/// Connects into the guest in the words of the hybrid protocol.
fn into_guest(machine: &mut Machine, port: u32) -> anyhow::Result<UnixStream> {
    let stream = machine.connect("vsock")?;
    writeln!(&stream, "CONNECT {port}")?;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        (&stream).read_exact(&mut byte)?;
        line.extend(byte);
    }
    ensure!(line.starts_with(b"OK "), "{}", String::from_utf8_lossy(&line));
    Ok(stream)
}

fn round_trip(machine: &mut Machine, service: &UnixListener) -> anyhow::Result<Duration> {
    const TURNS: u32 = 200;
    machine.send("echo-stream 80")?;
    let (mut stream, _) = service.accept()?;
    machine.answer()?;
    let started = Instant::now();
    for _ in 0..TURNS {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])?;
    }
    Ok(started.elapsed() / TURNS)
}

/// A disk reads back what is in its file, and cannot be written.
pub(crate) fn disk(_: bool) -> anyhow::Result<String> {
    let bytes: Vec<u8> =
        (0..4u64 << 20).map(|n| (n % 253).to_le_bytes()).map(|[n, ..]| n).collect();
    std::fs::write("/run/disk.img", &bytes)?;
    let sum =
        bytes.iter().fold(0u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    let mut spec = spec("disk", 1);
    spec.disks = vec![DiskSpec { path: "/run/disk.img".into() }];
    let mut machine = Machine::start("disk", &spec)?;
    machine.wait_up()?;
    let answer = machine.tell("disk /dev/vda")?;
    ensure!(answer == format!("{} {sum:x} false", bytes.len()), "{answer}");
    Ok("4 MiB read back, read-only".into())
}

/// The sum that the agent makes of a disk.
pub(crate) fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)))
}

/// A driver of the guest's own, with broken registers and rings: the monitor stays, its
/// other devices stay, and it does not grow.
pub(crate) fn hostile(long: bool) -> anyhow::Result<String> {
    let mut spec = with_sockets("hostile", 2);
    spec.disks = vec![DiskSpec { path: "/initrd".into() }];
    let mut machine = Machine::start("hostile", &spec)?;
    machine.wait_up()?;
    let (before, _) = machine.own_memory()?;
    let rounds = if long { 20_000 } else { 300 };
    let answer = machine.tell(&format!("hostile {rounds}"))?;
    ensure!(machine.tell("echo alive")? == "alive");
    let (after, _) = machine.own_memory()?;
    ensure!(after < before + 1024, "the monitor grew from {before} to {after} KiB");
    Ok(format!("{answer} in {rounds} rounds each; own memory {before} to {after} KiB"))
}

/// The jail is what it says: every thread filtered, another user, no capabilities, another
/// root and network; and the machine still works from inside it.
pub(crate) fn jail(_: bool) -> anyhow::Result<String> {
    std::fs::create_dir_all("/run/jail")?;
    let mut spec = spec("jail/m", 2);
    let socket = "/run/jail/m.vsock".into();
    spec.vsock = Some(VsockSpec { cid: 3, socket, guest_may_reach: vec![80] });
    spec.jail = JailSpec { root: Some("/run/jail".into()), user: Some(1000), namespaces: true };
    let mut machine = Machine::start("jail/m", &spec)?;
    let service = listener("jail/m", 80)?;
    std::fs::set_permissions("/run/jail/m.vsock_80", std::fs::Permissions::from_mode(0o666))?;
    machine.wait_up()?;
    let process = format!("/proc/{}", machine.child.id());
    let mut threads = 0;
    for thread in std::fs::read_dir(format!("{process}/task"))?.flatten() {
        threads += 1;
        let status = std::fs::read_to_string(thread.path().join("status"))?;
        let says = |key: &str, value: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
            ensure!(line.split_whitespace().next() == Some(value), "{key} {line}");
            Ok(())
        };
        says("Seccomp:", "2")?;
        says("NoNewPrivs:", "1")?;
        says("Uid:", "1000")?;
        says("CapEff:", "0000000000000000")?;
    }
    // Two CPUs, devices, warden; KVM itself adds a worker.
    ensure!(threads >= 4, "{threads} threads");
    for space in ["net", "mnt", "ipc", "uts"] {
        let own = std::fs::read_link(format!("/proc/self/ns/{space}"))?;
        ensure!(own != std::fs::read_link(format!("{process}/ns/{space}"))?, "{space}");
    }
    ensure!(!std::path::Path::new(&format!("{process}/root/kernel")).exists(), "the root is ours");
    std::thread::spawn(move || service.incoming().for_each(drop));
    ensure!(machine.tell("connect 80 3")? == "3", "no way out of the jail to the service");
    machine.ask(r#"{"op":"pause"}"#)?;
    machine.ask(r#"{"op":"destroy"}"#)?;
    ensure!(machine.end()? == Exit::Destroyed);
    Ok(format!("{threads} threads filtered, uid 1000, own root and network"))
}

/// Connections and machines come and go, and leave nothing behind.
pub(crate) fn leaks(long: bool) -> anyhow::Result<String> {
    let mut machine = Machine::start("leaks", &with_sockets("leaks", 1))?;
    let service = listener("leaks", 80)?;
    std::thread::spawn(move || service.incoming().for_each(drop));
    machine.wait_up()?;
    machine.tell("connect 80 20")?;
    let before = (machine.open_files()?, machine.own_memory()?.0);
    let times = if long { 5000 } else { 500 };
    ensure!(machine.tell(&format!("connect 80 {times}"))? == times.to_string());
    std::thread::sleep(Duration::from_millis(200));
    let after = (machine.open_files()?, machine.own_memory()?.0);
    ensure!(after.0 <= before.0 && after.1 < before.1 + 256, "{before:?} to {after:?}");
    drop(machine);
    let rounds = if long { 50 } else { 10 };
    let free = available()?;
    for _ in 0..rounds {
        let mut machine = Machine::start("leaks", &with_sockets("leaks", 1))?;
        std::thread::sleep(Duration::from_millis(300));
        machine.ask(r#"{"op":"destroy"}"#)?;
        machine.end()?;
    }
    // The kernel gives back a dead process's memory when it likes.
    let mut lost = u64::MAX;
    for _ in 0..20 {
        lost = free.saturating_sub(available()?);
        if lost < 1 << 10 {
            break;
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    ensure!(lost < 16 << 10, "{lost} KiB lost in {rounds} rounds");
    Ok(format!("{times} connections, {rounds} machines; {lost} KiB of the host's memory less"))
}

/// Memory that the host could give to programs, in KiB.
fn available() -> anyhow::Result<u64> {
    let file = BufReader::new(std::fs::File::open("/proc/meminfo")?);
    let line = file.lines().map_while(Result::ok).find(|line| line.starts_with("MemAvailable"));
    let line = line.unwrap_or_default();
    Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
}
