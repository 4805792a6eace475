//! Guest and host over an in-memory wire.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use casemate_mux::{Guest, Host, MAX_STREAMS, MuxError};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

/// A host that echoes on `echo` and refuses `busy`.
fn pair() -> Guest {
    let (guest, host) = duplex(64 * 1024);
    tokio::spawn(serve(host));
    Guest::start(guest)
}

async fn serve(wire: DuplexStream) {
    let mut host = Host::start(wire, ["echo", "busy"]);
    while let Some(incoming) = host.accept().await {
        tokio::spawn(async move {
            if incoming.service() == "busy" {
                return incoming.refuse("try\nlater").await.unwrap();
            }
            let (mut read, mut write) = tokio::io::split(incoming.accept().await.unwrap());
            let _ = tokio::io::copy(&mut read, &mut write).await;
            let _ = write.shutdown().await;
        });
    }
}

#[tokio::test]
async fn bytes_come_back_in_order() {
    let guest = pair();
    let mut stream = guest.open("echo").await.unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(|n| n.to_le_bytes()).collect();
    let (mut read, mut write) = tokio::io::split(&mut stream);
    let mut received = Vec::new();
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let receive = read.read_to_end(&mut received);
    tokio::join!(send, receive).1.unwrap();
    assert!(received == sent);
}

#[tokio::test]
async fn unknown_and_refused_services_say_why() {
    let guest = pair();
    let error = guest.open("shell").await.unwrap_err().to_string();
    assert_eq!(error, "the host refused service shell: unknown service");
    let error = guest.open("busy").await.unwrap_err().to_string();
    assert_eq!(error, "the host refused service busy: try?later");
    assert!(matches!(guest.open("a\nb").await, Err(MuxError::Name { .. })));
}

#[tokio::test]
async fn many_streams_share_the_wire_and_a_place_is_given_back() {
    let guest = pair();
    for _ in 0..3 {
        let mut open = Vec::new();
        for _ in 0..MAX_STREAMS / 2 {
            open.push(guest.open("echo").await.unwrap());
        }
        for stream in &mut open {
            stream.write_all(b"x").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), b'x');
        }
    }
}

#[tokio::test]
async fn a_dead_wire_ends_everything() {
    let (wire, host) = duplex(1024);
    let guest = Guest::start(wire);
    drop(host);
    tokio::time::timeout(Duration::from_secs(5), guest.closed()).await.unwrap();
    assert!(matches!(guest.open("echo").await, Err(MuxError::Closed)));
}

#[tokio::test]
async fn garbage_on_the_wire_ends_the_connection() {
    let (mut wire, host) = duplex(1024);
    let mut host = Host::start(host, ["echo"]);
    wire.write_all(&[0xff; 64]).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_secs(5), host.accept()).await.unwrap();
    assert!(ended.is_none());
}

#[tokio::test]
async fn a_flood_of_streams_is_slowed_and_the_host_lives() {
    let (wire, host) = duplex(64 * 1024);
    tokio::spawn(serve(host));
    let guest = Guest::start(wire);
    let started = std::time::Instant::now();
    for _ in 0..2 * MAX_STREAMS {
        assert!(guest.open("shell").await.is_err());
    }
    // 64 free, the other 64 at 5 ms each.
    assert!(started.elapsed() > Duration::from_millis(250), "{:?}", started.elapsed());
    assert!(guest.open("echo").await.is_ok());
}
