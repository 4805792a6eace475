//! A PID 1 that only exercises the wire: tests boot a machine with it.
//!
//! It greets the host on `hello`, then does what the kernel's command line
//! says in `wire=`: `echo` sends 16 MiB through `echo` and back, `hang` stops
//! answering, `flood` opens streams until the machine dies. Then it powers off.

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
    let port = Port::open(PORT_NAME, Duration::from_secs(20)).await?;
    let guest = Guest::start(port);
    let uptime = std::fs::read_to_string("/proc/uptime")?;
    let mut hello = guest.open("hello").await?;
    hello.write_all(format!("uptime {uptime}").as_bytes()).await?;
    let cmdline = std::fs::read_to_string("/proc/cmdline")?;
    if cmdline.contains("wire=echo") {
        let report = echo(&guest).await?;
        hello.write_all(report.as_bytes()).await?;
    }
    if cmdline.contains("wire=flood") {
        flood(&guest).await?;
    }
    if cmdline.contains("wire=hang") {
        std::future::pending::<()>().await;
    }
    hello.shutdown().await?;
    // The last bytes leave with the driver's next turn.
    let _ = tokio::time::timeout(Duration::from_secs(5), hello.read_u8()).await;
    Ok(())
}

/// Round trip and throughput, checked byte for byte.
async fn echo(guest: &Guest) -> Result<String, Box<dyn std::error::Error>> {
    let mut stream = guest.open("echo").await?;
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
    Ok(format!("round trip {round_trip:?}, 16 MiB both ways {:?}\n", started.elapsed()))
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
