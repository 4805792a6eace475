//! A PID 1 that only exercises the wire: tests boot a machine with it.
//!
//! It tells the host `up`, then does what the kernel's command line says in
//! `wire=`: `echo` sends 16 MiB through `verifier`, where the test echoes,
//! `claim` asks for the host's claim and the model's report and passes both to
//! `gateway`, `hang` goes on for ever, `mute` does so without a word, `panic` ends PID 1, `drop` lets
//! go of the wire, `flood` opens streams until the machine dies. Then it
//! powers off.

use std::io::Write;
use std::time::{Duration, Instant};

use casemate_mux::{Guest, MuxError, PORT_NAME, Port};
use rustix::fs::{CWD, Mode, mkdirat};
use rustix::mount::{MountFlags, mount};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::main(flavor = "current_thread")]
async fn main() {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        let _ = mkdirat(CWD, at, Mode::from_raw_mode(0o755));
        if let Err(error) = mount(kind, at, kind, MountFlags::empty(), None) {
            say(&format!("mount {at}: {error}"));
        }
    }
    if let Err(error) = exercise().await {
        say(&error.to_string());
    }
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
}

async fn exercise() -> Result<(), Box<dyn std::error::Error>> {
    let cmdline = std::fs::read_to_string("/proc/cmdline")?;
    let told = cmdline.split_whitespace().find_map(|word| word.strip_prefix("wire="));
    if told == Some("mute") {
        say("mute, as told");
        std::future::pending::<()>().await;
    }
    let port = Port::open(PORT_NAME, Duration::from_secs(20)).await?;
    let guest = Guest::start(port);
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    event(&guest, "up", uptime.trim()).await?;
    match told {
        Some("echo") => event(&guest, "echoed", &echo(&guest).await?).await?,
        Some("claim") => claim(&guest).await?,
        Some("flood") => flood(&guest).await?,
        Some("panic") => std::process::exit(3),
        Some("hang") => std::future::pending::<()>().await,
        Some("drop") => {
            drop(guest);
            tokio::time::sleep(Duration::from_secs(3600)).await;
        }
        _ => host(&guest, r#"{"op":"exited","code":7,"signal":null}"#).await.map(drop)?,
    }
    Ok(())
}

/// One request to the host's service, and all of its answer.
async fn host(guest: &Guest, request: &str) -> Result<Vec<u8>, Box<dyn std::error::Error>> {
    let mut stream = guest.open("host").await?;
    stream.write_all(format!("{request}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    Ok(answer)
}

async fn event(guest: &Guest, name: &str, data: &str) -> Result<(), Box<dyn std::error::Error>> {
    let request = format!(r#"{{"op":"event","name":"{name}","data":"{data}"}}"#);
    host(guest, &request).await.map(drop)
}

async fn claim(guest: &Guest) -> Result<(), Box<dyn std::error::Error>> {
    let report_data = "07".repeat(64);
    let request = format!(r#"{{"op":"claim","report_data":"{report_data}"}}"#);
    let mut answer = host(guest, &request).await?;
    let mut psp = guest.open("psp").await?;
    psp.write_all(&[7; 64]).await?;
    psp.read_to_end(&mut answer).await?;
    let mut gateway = guest.open("gateway").await?;
    gateway.write_all(&answer).await?;
    gateway.shutdown().await?;
    gateway.read_to_end(&mut Vec::new()).await?;
    Ok(())
}

/// Round trip and throughput, checked byte for byte.
async fn echo(guest: &Guest) -> Result<String, Box<dyn std::error::Error>> {
    let mut stream = guest.open("verifier").await?;
    let started = Instant::now();
    for _ in 0..100 {
        stream.write_all(b"x").await?;
        stream.read_u8().await?;
    }
    let round_trip = started.elapsed() / 100;
    let (mut read, mut write) = tokio::io::split(stream);
    let block: Vec<u8> = (0..=255).cycle().take(BLOCK).collect();
    let started = Instant::now();
    let send = async {
        for _ in 0..BLOCKS {
            write.write_all(&block).await?;
        }
        write.shutdown().await
    };
    let receive = async {
        let mut back = vec![0; BLOCK];
        for _ in 0..BLOCKS {
            read.read_exact(&mut back).await?;
            if back != block {
                return Err(std::io::Error::other("echo differs"));
            }
        }
        Ok(())
    };
    let (sent, received) = tokio::join!(send, receive);
    sent.and(received)?;
    Ok(format!("round trip {round_trip:?}, 16 MiB both ways {:?}", started.elapsed()))
}

/// Opens and drops streams as fast as it can, for ever.
async fn flood(guest: &Guest) -> Result<(), MuxError> {
    loop {
        if let Err(MuxError::Closed) = guest.open("nothing").await {
            return Err(MuxError::Closed);
        }
    }
}

fn say(text: &str) {
    let _ = writeln!(std::io::stderr(), "wire-init: {text}");
}

const BLOCK: usize = 256 * 1024;
const BLOCKS: usize = 64;
