//! The guest: takes one command a line from the port `lab`, answers one line.

use std::io::{BufRead, BufReader, Write};

use crate::start;

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
        ["panic"] => {
            std::fs::write("/proc/sysrq-trigger", "c")?;
            Ok("still here".into())
        }
        _ => anyhow::bail!("unknown command"),
    }
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
