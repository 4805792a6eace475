//! The operator's door.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use casemate_attestation::Risk;
use casemate_verifier::{Clock, Command, Config, Reply, SecretTerms, Service};

use crate::harness::World;

#[tokio::test]
async fn secrets_are_stored_under_terms_and_never_shown() {
    let world = World::new().await;
    world.put_secret("db", Risk::High, b"hunter2-hunter2").await;
    world.put_secret("db", Risk::Medium, b"hunter3-hunter3").await;
    let Reply::Secrets(secrets) = world.operator(Command::ListSecrets).await.unwrap() else {
        panic!()
    };
    let terms = SecretTerms { name: "db".to_owned(), risk: Risk::Medium, ttl_seconds: 60 };
    assert_eq!(secrets, [terms]);
    let mut files = Vec::new();
    for file in std::fs::read_dir(world.path("state")).unwrap() {
        let path = file.unwrap().path();
        files.extend_from_slice(&std::fs::read(&path).unwrap());
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let public = path.extension().is_some_and(|extension| extension == "pem");
        assert!(public || mode == 0o600, "{path:?} {mode:o}");
    }
    assert!(!files.windows(7).any(|window| window == b"hunter3"));
}

#[tokio::test]
async fn impossible_terms_are_named() {
    let world = World::new().await;
    for (command, field) in [
        (Command::put_secret("../x", Risk::Low, 60, b"v"), "name"),
        (Command::put_secret("x", Risk::Low, 0, b"v"), "ttl_seconds"),
        (Command::put_secret("x", Risk::Low, 60, b""), "value"),
        (Command::put_secret("x", Risk::Low, 60, &[0; 65537]), "value"),
    ] {
        let error = world.operator(command).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("bad-request: {field}:")), "{error}");
    }
    let Reply::Status(status) = world.operator(Command::Status).await.unwrap() else { panic!() };
    assert_eq!(status.tenant, "acme");
}

#[tokio::test]
async fn lines_that_are_no_command_are_refused() {
    let world = World::new().await;
    let socket = world.path("admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    tokio::task::spawn_blocking(move || {
        for line in ["{}\n", "{\"op\":\"unlock\"}\n", "x\n", &"x".repeat(200_000)] {
            let mut stream = UnixStream::connect(&socket).unwrap();
            // A line that is too long is not read to its end.
            drop(stream.write_all(line.as_bytes()));
            let mut answer = String::new();
            drop(BufReader::new(stream).read_line(&mut answer));
            assert!(line.len() > 1000 || answer.contains("bad-request"), "{line:.20}: {answer}");
        }
    })
    .await
    .unwrap();
    assert!(world.operator(Command::Status).await.is_ok());
}

#[tokio::test]
async fn two_verifiers_do_not_share_a_door() {
    let world = World::new().await;
    let config = Config::load(&world.path("verifier.toml")).unwrap();
    let error = Service::start(config, Clock::system()).await.unwrap_err().to_string();
    assert!(error.contains("admin_socket") && error.contains("running service"), "{error}");
}

#[tokio::test]
async fn a_missing_document_is_named() {
    let world = World::new().await;
    std::fs::write(world.path("policy.toml"), "skip_checks = true").unwrap();
    let mut config = Config::load(&world.path("verifier.toml")).unwrap();
    config.admin_socket = world.path("other.sock");
    let error = Service::start(config.clone(), Clock::system()).await.unwrap_err().to_string();
    assert!(error.contains("policy_file") && error.contains("skip_checks"), "{error}");
    std::fs::remove_file(world.path("policy.toml")).unwrap();
    let error = Service::start(config, Clock::system()).await.unwrap_err().to_string();
    assert!(error.contains("policy.toml: No such file"), "{error}");
}
