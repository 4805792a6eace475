//! Real machines, start to end, through the program that people use.
//!
//! Ignored by `cargo test`, because each boots a microVM: `make e2e` builds what
//! they need and runs them, one at a time.

#![expect(clippy::unwrap_used, reason = "a test ends at the first thing that is not there")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// What `make build` leaves: the release build, the static programs, the Python environment.
struct Built {
    casemate: PathBuf,
    programs: PathBuf,
    python: PathBuf,
    folder: PathBuf,
}

fn built() -> Built {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf();
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or(root.join("target"), PathBuf::from);
    let built = Built {
        casemate: target.join("release/casemate"),
        programs: target.join("x86_64-unknown-linux-musl/release"),
        python: root.join(".casemate/venv/bin/python3"),
        folder: root.join(".casemate/e2e"),
    };
    for path in [&built.casemate, &built.programs, &built.python] {
        assert!(path.exists(), "{}: not there; `make e2e` makes it", path.display());
    }
    built
}

impl Built {
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.casemate);
        command.args(arguments).stdin(Stdio::null()).output().unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Plays the demo into this test's folder, once for all tests that need its image.
    fn demo(&self) -> Output {
        let (folder, programs) = (self.folder.to_str().unwrap(), self.programs.to_str().unwrap());
        let python = self.python.to_str().unwrap();
        self.run(&["demo", "--folder", folder, "--programs", programs, "--python", python])
    }

    /// A machine of the demo's image, whose services are gone.
    fn run_alone(&self, image: &str, more: &[&str]) -> Output {
        let (config, image) = (self.path("host/host.toml"), self.path(image));
        let task = ["--task", "plan-a-meeting", "--json"];
        self.run(&[&["run", "--config", &config, "--image", &image][..], &task, more].concat())
    }

    fn need_the_demos_image(&self) {
        if !self.folder.join("image/manifest.toml").exists() {
            assert!(self.demo().status.success());
        }
    }
}

fn text(output: &Output) -> String {
    let both = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    String::from_utf8_lossy(&both).into_owned()
}

/// No QEMU of ours outlives the command that started it.
fn nothing_left_running(built: &Built) {
    let run = built.folder.join("host/state/run");
    let mine = |entry: &std::fs::DirEntry| {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.contains("qemu-system") && line.contains(run.to_str().unwrap())
    };
    let left = std::fs::read_dir("/proc").unwrap().flatten().filter(mine).count();
    assert_eq!(left, 0, "{left} machines were left running");
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn a_demo_shows_all_seven_steps_twice_in_a_row() {
    let built = built();
    for turn in 1..=2 {
        let output = built.demo();
        let said = text(&output);
        println!("{said}");
        assert!(output.status.success(), "turn {turn}");
        for number in 1..=7 {
            assert!(said.contains(&format!("[{number}/7]")), "step {number} is missing");
        }
        nothing_left_running(&built);
    }
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn b_dead_verifier_stops_the_machine_and_says_so() {
    let built = built();
    built.need_the_demos_image();
    let start = Instant::now();
    let output = built.run_alone("image", &[]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("\"event\":\"stopped\"") && said.contains("verifier"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(150), "{:?}", start.elapsed());
    nothing_left_running(&built);
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn c_guest_that_never_boots_ends_in_time() {
    let built = built();
    built.need_the_demos_image();
    let broken = built.folder.join("never-boots");
    std::fs::create_dir_all(&broken).unwrap();
    for name in ["kernel", "manifest.toml", "cmdline"] {
        std::fs::copy(built.folder.join("image").join(name), broken.join(name)).unwrap();
    }
    // No PID 1 at all: the kernel panics, or waits for a root that is not there.
    std::fs::write(broken.join("initrd"), b"").unwrap();
    let start = Instant::now();
    let output = built.run_alone("never-boots", &["--boot-seconds", "30"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(start.elapsed() < Duration::from_secs(90), "{:?}", start.elapsed());
    nothing_left_running(&built);
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn d_more_than_can_be_built_is_an_error_before_anything_runs() {
    let built = built();
    built.need_the_demos_image();
    let output = built.run_alone("image", &["--boundary", "tee"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("asked for tee"), "{}", text(&output));
}

#[test]
#[ignore = "needs the demo's files; `make e2e` runs it"]
fn e_unknown_keys_are_named_in_every_configuration() {
    let built = built();
    built.need_the_demos_image();
    for (verb, file) in [
        (&["verifier", "init"][..], "verifier/verifier.toml"),
        (&["gateway", "init"], "gateway/gateway.toml"),
        (&["host", "enrolment"], "host/host.toml"),
    ] {
        let text_of = std::fs::read_to_string(built.folder.join(file)).unwrap();
        let path = built.path(&format!("{file}.unknown"));
        std::fs::write(&path, format!("colour = \"red\"\n{text_of}")).unwrap();
        let output = built.run(&[verb, &["--config", &path]].concat());
        assert_eq!(output.status.code(), Some(2), "{file}");
        assert!(text(&output).contains("colour"), "{file}: {}", text(&output));
    }
}
