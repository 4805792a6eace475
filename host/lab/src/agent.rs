//! The guest: takes one command a line from the port `lab`, answers one line.

use std::io::{BufRead, BufReader, Write};

use crate::{hostile, pattern, start, sys};

/// Serves until told to stop.
pub(crate) fn run() -> anyhow::Result<()> {
    let port = start::port("lab")?;
    let mut answers = port.try_clone()?;
    writeln!(answers, "up {}", cpus())?;
    for line in BufReader::new(port).lines() {
        let line = line?;
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["off"] => break,
            words => {
                let answer = obey(words).unwrap_or_else(|error| format!("error {error:#}"));
                writeln!(answers, "{answer}")?;
            }
        }
    }
    Ok(())
}

fn obey(words: &[&str]) -> anyhow::Result<String> {
    match words {
        ["random"] => random(),
        ["echo", text] => Ok((*text).to_owned()),
        ["spin"] => spin(),
        ["stream", port, bytes, chunk] => {
            let mut stream = sys::vsock_connect(HOST, port.parse()?)?;
            pattern::both_ways(&stream.try_clone()?, &mut stream, bytes.parse()?, chunk.parse()?)
        }
        ["serve", port, bytes, chunk] => serve(port.parse()?, bytes.parse()?, chunk.parse()?),
        ["echo-stream", port] => {
            std::thread::spawn({
                let stream = sys::vsock_connect(HOST, port.parse()?)?;
                move || pattern::echo(stream)
            });
            Ok("echoing".into())
        }
        ["connect", port, times] => connect(port.parse()?, times.parse()?),
        ["disk", node] => disk(node),
        ["overwrite", node] => overwrite(node),
        ["hostile", rounds] => hostile::attack(rounds.parse()?),
        ["panic"] => {
            std::fs::write("/proc/sysrq-trigger", "c")?;
            Ok("still here".into())
        }
        _ => anyhow::bail!("unknown command"),
    }
}

/// The host's context.
const HOST: u32 = 2;

/// Waits for one connection of the host's; the answer comes before it.
fn serve(port: u32, bytes: u64, chunk: usize) -> anyhow::Result<String> {
    let (say, heard) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let served = sys::vsock_accept(port, || {
            let _ = say.send(());
        });
        served.and_then(|mut stream| {
            pattern::both_ways(&stream.try_clone()?, &mut stream, bytes, chunk)
        })
    });
    heard.recv()?;
    Ok("listening".into())
}

/// Connects and hangs up, again and again; says how often it worked.
fn connect(port: u32, times: u32) -> anyhow::Result<String> {
    let good = (0..times).filter(|_| sys::vsock_connect(HOST, port).is_ok()).count();
    Ok(format!("{good}"))
}

/// Drivers find their devices when they like.
fn open_soon(node: &str) -> anyhow::Result<std::fs::File> {
    for _ in 0..500 {
        if let Ok(file) = std::fs::File::options().read(true).open(node) {
            return Ok(file);
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    anyhow::bail!("no {node}")
}

/// Writes the first sectors and reads them back past the cache.
fn overwrite(node: &str) -> anyhow::Result<String> {
    use std::os::unix::fs::FileExt;
    open_soon(node)?;
    let disk = std::fs::File::options().read(true).write(true).open(node)?;
    let written = [0xa5; 64 << 10];
    disk.write_all_at(&written, 0)?;
    disk.sync_all()?;
    rustix::fs::fadvise(&disk, 0, None, rustix::fs::Advice::DontNeed)?;
    let mut read = [0; 64 << 10];
    disk.read_exact_at(&mut read, 0)?;
    anyhow::ensure!(read == written, "other bytes came back");
    Ok("written and read back".into())
}

/// The disk's length and the sum of its bytes, and whether it can be written.
fn disk(node: &str) -> anyhow::Result<String> {
    use std::io::Read;
    let mut disk = open_soon(node)?;
    let mut bytes = vec![0; 1 << 16];
    let (mut length, mut sum) = (0, 0u64);
    loop {
        let read = disk.read(&mut bytes)?;
        if read == 0 {
            break;
        }
        length += read;
        sum = bytes
            .iter()
            .take(read)
            .fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
    }
    // Opening is always allowed; what counts is that nothing can be written.
    let written = std::fs::File::options().write(true).open(node).and_then(|mut disk| {
        disk.write_all(&[0; 512])?;
        disk.sync_all()
    });
    Ok(format!("{length} {sum:x} {}", written.is_ok()))
}

fn cpus() -> usize {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    text.lines().filter(|line| line.starts_with("processor")).count()
}

/// Bytes from the host's entropy device.
fn random() -> anyhow::Result<String> {
    use std::io::Read;
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/hwrng")?.read_exact(&mut bytes)?;
    Ok(format!("{:016x}", u64::from_le_bytes(bytes)))
}

/// Keeps every CPU busy for good, after the answer.
fn spin() -> anyhow::Result<String> {
    for _ in 0..cpus() {
        std::thread::spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            loop {
                std::hint::spin_loop();
            }
        });
    }
    Ok("spinning".into())
}
