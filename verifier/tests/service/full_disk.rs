//! A disk that is really full, under the whole service.
//!
//! `sudo cargo test -p casemate-verifier --test service full_disk -- --ignored`

use std::path::Path;
use std::process::Command;

use crate::harness::{Guest, World, denied};

/// A small tmpfs that is unmounted when the test ends.
struct Small(std::path::PathBuf);

impl Small {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir(at).unwrap();
        let size = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        assert!(Command::new("mount").args(size).arg(at).status().unwrap().success());
        Self(at.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        drop(Command::new("umount").arg("-l").arg(&self.0).status());
    }
}

#[tokio::test]
#[ignore = "mounts a tmpfs: needs root"]
async fn a_full_disk_refuses_everybody_and_passes() {
    let disk = tempfile::tempdir().unwrap();
    let small = Small::mount(&disk.path().join("small"));
    let state = small.0.join("state");
    let world = World::with(|text| {
        text.replace("\"state\"", &format!("{:?}", state.display().to_string()))
    })
    .await;
    std::os::unix::fs::symlink(&state, world.path("state")).unwrap();
    let guest = Guest::new();
    let mut session = world.session().await;
    assert_eq!(session.attest(&world, &guest).await.0, 200);

    let ballast = small.0.join("ballast");
    drop(std::fs::write(&ballast, vec![1; 1 << 20]));
    let mut refused = 0;
    for _ in 0..50 {
        let (status, answer) = session.attest(&world, &guest).await;
        if status != 200 {
            assert!(answer.get("certificate_chain").is_none());
            denied((status, answer), 507, "store-full");
            refused += 1;
        }
    }
    assert!(refused > 10, "{refused}");

    std::fs::remove_file(ballast).unwrap();
    assert_eq!(session.attest(&world, &guest).await.0, 200);
}
