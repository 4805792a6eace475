//! Peers that do not keep to the protocol.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{Guest, World, connector, denied, encode, tls};

#[tokio::test]
async fn bodies_that_are_not_the_request_are_named() {
    let world = World::new().await;
    let guest = Guest::new();
    let mut session = world.session().await;
    let nonce = session.nonce().await;
    let good = guest.attestation(&guest.binding(&nonce, &session), world.now());

    let truncated = serde_json::to_vec(&good).unwrap();
    let truncated = truncated[..truncated.len() - 1].to_vec();
    denied(session.send("POST", "/v1/attest", truncated).await, 400, "bad-request");

    for (field, value, word) in [
        ("extra", json!(1), "unknown field `extra`"),
        ("epoch", json!(-1), "expected u64"),
        ("epoch", json!(1u64 << 53), "9007199254740992"),
        ("nonce", json!("***"), "Invalid"),
        ("nonce", json!("A".repeat(80)), "60 bytes"),
        ("identity_key", json!(encode(&[1; 31])), "31 bytes"),
        ("evidence", json!(""), "well-formed CBOR"),
        ("task", json!("t".repeat(129)), "129 bytes"),
    ] {
        let mut body = good.clone();
        body[field] = value;
        let denial = denied(session.post("/v1/attest", &body).await, 400, "bad-request");
        assert!(denial["actual"].as_str().unwrap().contains(word), "{field}: {denial:#}");
    }
    // None of them was an outcome: the challenge still stands.
    assert_eq!(session.post("/v1/attest", &good).await.0, 200);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_not_read() {
    let world = World::new().await;
    let mut stream = tls(&world).await;
    let head = "POST /v1/attest HTTP/1.1\r\nhost: v\r\ncontent-length: 1000000000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = [0; 4096];
    let read = stream.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("\"body-too-large\""), "{answer}");

    let mut session = world.session().await;
    let body = json!({"nonce": "A".repeat(200_000)});
    denied(session.post("/v1/attest", &body).await, 413, "body-too-large");
}

#[tokio::test]
async fn unknown_routes_and_methods_are_named() {
    let world = World::new().await;
    let mut session = world.session().await;
    denied(session.send("GET", "/", vec![]).await, 404, "not-found");
    denied(session.send("POST", "/v1/secrets/a/b", vec![]).await, 404, "not-found");
    denied(session.send("GET", "/v1/attest", vec![]).await, 405, "method-not-allowed");
    denied(session.send("POST", "/v1/challenge", vec![]).await, 400, "bad-request");
    denied(session.send("POST", "/v1/challenge", b"{} {}".to_vec()).await, 400, "bad-request");
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let world = World::new().await;
    let connector = connector(&world);
    for _ in 0..3 {
        let tcp = TcpStream::connect(world.address()).await.unwrap();
        let name = rustls_pki_types::ServerName::try_from("verifier.test.internal").unwrap();
        let mut stream = connector.connect(name, tcp).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: v\r\n\r\n").await.unwrap();
        // A ticket would arrive before the answer.
        assert!(stream.read(&mut [0; 4096]).await.unwrap() > 0);
        let connection = stream.get_ref().1;
        assert_eq!(connection.handshake_kind(), Some(rustls::HandshakeKind::Full));
        assert_eq!(connection.tls13_tickets_received(), 0);
    }
}

#[tokio::test]
async fn slow_peers_are_cut_off() {
    let limits = "handshake_timeout_ms = 300\nidle_timeout_ms = 300\nrequest_timeout_ms = 300\n";
    let world = World::with(|text| text + limits).await;
    let started = Instant::now();

    // Says nothing.
    let mut silent = TcpStream::connect(world.address()).await.unwrap();
    assert_eq!(silent.read(&mut [0; 16]).await.unwrap(), 0);
    // Does not speak TLS.
    let mut garbage = TcpStream::connect(world.address()).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    drop(garbage.read_to_end(&mut rest).await);
    // Sends its head a byte at a time.
    let mut slow = tls(&world).await;
    let dripped = async {
        loop {
            slow.write_all(b"G").await?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let dripped: std::io::Result<()> =
        tokio::time::timeout(Duration::from_secs(3), dripped).await.unwrap();
    assert!(dripped.is_err());
    // Says nothing after the handshake.
    let mut idle = tls(&world).await;
    drop(idle.read(&mut [0; 16]).await);
    // Announces a body and does not send it.
    let mut stuck = tls(&world).await;
    let head = "POST /v1/challenge HTTP/1.1\r\nhost: v\r\ncontent-length: 2\r\n\r\n{";
    stuck.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = stuck.read(&mut answer).await.unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");

    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    assert_eq!(world.session().await.nonce().await.len(), 36);
}

#[tokio::test]
async fn connections_are_counted() {
    let world = World::with(|text| text + "connections = 2\n").await;
    let (one, two) = (world.session().await, world.session().await);
    let waiting = tokio::time::timeout(Duration::from_millis(300), tls(&world));
    assert!(waiting.await.is_err());
    drop((one, two));
    let served = tokio::time::timeout(Duration::from_secs(5), tls(&world));
    assert!(served.await.is_ok());
}

#[tokio::test]
async fn stopping_ends_idle_connections() {
    let world = World::new().await;
    let _idle = world.session().await;
    let started = Instant::now();
    world.service.stop().await;
    assert!(started.elapsed() < Duration::from_secs(5));
}
