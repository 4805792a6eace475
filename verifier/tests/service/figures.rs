//! What attest and release cost, in CPU time of the verifier's own threads.
//!
//! `cargo test --release -p casemate-verifier --test service figures -- --ignored --nocapture`

use std::time::{Duration, Instant};

use casemate_attestation::Risk;

use crate::harness::{Guest, World};

const ROUNDS: u32 = 200;
const CONNECTIONS: usize = 8;

#[test]
#[ignore = "measures; run it alone and in release mode"]
fn figures() {
    // The service has threads of its own, so that guests are not counted.
    let service = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("verifier")
        .build()
        .unwrap();
    let guests = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let world = service.block_on(async { tokio::spawn(World::new()).await.unwrap() });
    guests.block_on(world.put_secret("medium-secret", Risk::Medium, &[7; 32]));
    let world = &world;
    guests.block_on(rounds(world, 4, Act::Both));
    for (name, act) in [
        ("challenge and attest, connection kept", Act::Attest),
        ("release of one secret, connection kept", Act::Release),
        ("new connection, attest, release", Act::Both),
    ] {
        let (cpu, wall) = (cpu_time(), Instant::now());
        let count = guests.block_on(rounds(world, ROUNDS, act));
        let (cpu, wall) = (cpu_time() - cpu, wall.elapsed());
        println!(
            "{name}: {:.0} a CPU second ({:.3} ms CPU each), {:.0}/s with {CONNECTIONS} connections",
            f64::from(count) / cpu.as_secs_f64(),
            cpu.as_secs_f64() * 1000.0 / f64::from(count),
            f64::from(count) / wall.as_secs_f64(),
        );
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Act {
    Attest,
    Release,
    Both,
}

/// Does `act` `rounds` times, spread over the connections; returns how often.
async fn rounds(world: &World, rounds: u32, act: Act) -> u32 {
    let each = rounds.div_ceil(CONNECTIONS.try_into().unwrap());
    let one = async || {
        let guest = Guest::new();
        let mut session = world.session().await;
        if act == Act::Release {
            assert_eq!(session.attest(world, &guest).await.0, 200);
        }
        for _ in 0..each {
            if act == Act::Both {
                session = world.session().await;
            }
            if act != Act::Release {
                assert_eq!(session.attest(world, &guest).await.0, 200);
            }
            if act != Act::Attest {
                assert_eq!(session.secret(&guest, "medium-secret").await.0, 200);
            }
        }
        each
    };
    let mut total = 0;
    let (a, b, c, d, e, f, g, h) =
        tokio::join!(one(), one(), one(), one(), one(), one(), one(), one());
    for count in [a, b, c, d, e, f, g, h] {
        total += count;
    }
    total
}

/// CPU time of the threads that serve: the runtime's and the database's.
fn cpu_time() -> Duration {
    let mut total = Duration::ZERO;
    for task in std::fs::read_dir("/proc/self/task").unwrap() {
        let path = task.unwrap().path();
        let name = std::fs::read_to_string(path.join("comm")).unwrap_or_default();
        if name.starts_with("verifier") || name.starts_with("sqlx") {
            let stat = std::fs::read_to_string(path.join("schedstat")).unwrap_or_default();
            let nanoseconds = stat.split(' ').next().and_then(|first| first.parse().ok());
            total += Duration::from_nanos(nanoseconds.unwrap_or(0));
        }
    }
    total
}
