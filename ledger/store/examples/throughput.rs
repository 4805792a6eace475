//! Durable leaves per second and commit latency of this machine's disk:
//! `cargo run --release -p casemate-ledger-store --example throughput -- DIRECTORY`.

use std::path::PathBuf;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_ledger::checkpoint::VerifierKey;
use casemate_ledger_store::{Log, Options, StoreError};

const LEAF_BYTES: usize = 700;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args_os().nth(1).ok_or("usage: throughput DIRECTORY")?;
    let directory = PathBuf::from(directory);
    let log = open(&directory)?;
    let flat_out = saturate(&log, 100_000)?;
    println!("flat out: {flat_out:.0} durable leaves/s of {LEAF_BYTES} bytes");
    let mut waits = paced(&log, 1_000, Duration::from_secs(5))?;
    waits.sort();
    for percent in [50, 99] {
        let at = waits.len().saturating_sub(1) * percent / 100;
        println!("at 1000 leaves/s: p{percent} commit {:?}", waits.get(at));
    }
    let size = log.size();
    drop(log);
    let start = Instant::now();
    drop(open(&directory)?);
    println!("recovery of {size} leaves: {:?}", start.elapsed());
    Ok(())
}

fn open(directory: &std::path::Path) -> Result<Log, Box<dyn std::error::Error>> {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32])?;
    let options = Options {
        directory: directory.to_owned(),
        key: VerifierKey::new("bench/log1", key.public_key().as_ref().try_into()?)?,
        sign: Box::new(move |message| key.sign(message).as_ref().try_into().unwrap_or([0; 64])),
        checkpoint_interval: Duration::from_secs(1),
        segment_bytes: 64 << 20,
    };
    Ok(Log::open(options, |_, _| Ok(()))?)
}

/// As many leaves as the log takes, with 4096 in flight.
fn saturate(log: &Log, count: u32) -> Result<f64, StoreError> {
    let (sender, receiver) = mpsc::sync_channel(4096);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(move || {
            receiver.iter().try_for_each(|wait: mpsc::Receiver<Result<(), StoreError>>| {
                wait.recv().unwrap_or(Err(StoreError::Closed))
            })
        });
        for at in 0..count {
            let (done, wait) = mpsc::sync_channel(1);
            let durable = move |result| {
                let _ = done.send(result);
            };
            log.append(leaf(at), durable)?;
            let _ = sender.send(wait);
        }
        drop(sender);
        waiter.join().unwrap_or(Err(StoreError::Closed))
    })?;
    Ok(f64::from(count) / start.elapsed().as_secs_f64())
}

/// `per_second` leaves, each measured from append to durable.
fn paced(log: &Log, per_second: u32, time: Duration) -> Result<Vec<Duration>, StoreError> {
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    let gap = Duration::from_secs(1) / per_second;
    let mut sent = 0;
    while gap * sent < time {
        std::thread::sleep((start + gap * sent).saturating_duration_since(Instant::now()));
        let (sender, begin) = (sender.clone(), Instant::now());
        let durable = move |result: Result<(), StoreError>| {
            let _ = sender.send(result.map(|()| begin.elapsed()));
        };
        log.append(leaf(sent), durable)?;
        sent += 1;
    }
    drop(sender);
    receiver.iter().collect()
}

fn leaf(at: u32) -> Vec<u8> {
    at.to_be_bytes().repeat(LEAF_BYTES / 4)
}
