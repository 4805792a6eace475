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
    // An archive without PID 1: the kernel boots, finds no init, and panics.
    std::fs::write(broken.join("initrd"), EMPTY_ARCHIVE).unwrap();
    let start = Instant::now();
    let output = built.run_alone("never-boots", &["--boot-seconds", "30"]);
    let said = text(&output);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("did not speak") || said.contains("crashed"), "{said}");
    assert!(start.elapsed() < Duration::from_secs(90), "{:?}", start.elapsed());
    nothing_left_running(&built);
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn d_more_than_can_be_built_is_an_error_before_anything_runs() {
    let built = built();
    built.need_the_demos_image();
    let output = built.run_alone("image", &["--boundary", "tee"]);
    assert_eq!(output.status.code(), Some(1));
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

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn f_the_workload_gets_nothing_that_it_tries_to_take() {
    let built = built();
    built.need_the_demos_image();
    let world = World::start(&built, "probe");
    let image = world.image("/bin/casemate-probe", "casemate-probe", None);
    let output = world.run(&image);
    // The probe ends with 0 only if every attempt was refused.
    let console = world.console();
    println!("{console}");
    assert_eq!(output.status.code(), Some(0), "{}\n{console}", text(&output));
    assert_eq!(console.matches("\"outcome\":\"refused\"").count(), 34, "{console}");
    assert_eq!(console.matches("\"outcome\":\"works\"").count(), 2, "{console}");
    nothing_left_running(&built);
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn f_workload_calls_through_each_door_of_its_port() {
    let built = built();
    built.need_the_demos_image();
    let world = World::start(&built, "doors");
    let call = "{ do = \"call\", tool = \"time.get_current_time\", \
        arguments = { timezone = \"UTC\" } }";
    let script = format!(
        "socket = \"$CASEMATE_MCP_SOCKET\"\nstep = [{call},\n\
         {{ do = \"connect\", to = {{ url = \"$CASEMATE_MCP_URL\" }} }}, {call},\n\
         {{ do = \"connect\", to = {{ command = [\"$CASEMATE_MCP_COMMAND\"] }} }}, {call}]\n"
    );
    let image = world.image("/bin/casemate-agent", "casemate-agent", Some(&script));
    let output = world.run(&image);
    let console = world.console();
    println!("{console}");
    assert_eq!(output.status.code(), Some(0), "{}\n{console}", text(&output));
    // Each answer names its place in the log, and the log has each decision.
    assert_eq!(console.matches("dev.casemate/receipt").count(), 3, "{console}");
    let log = std::fs::read_to_string(world.folder.join("log.txt")).unwrap();
    assert_eq!(log.matches("allow time.get_current_time").count(), 3, "{log}");
    nothing_left_running(&built);
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn g_workload_that_floods_its_port_is_held_back_and_ends() {
    let built = built();
    built.need_the_demos_image();
    let world = World::start(&built, "flood");
    let script = "socket = \"/run/casemate/mcp.sock\"\n[[step]]\ndo = \"call\"\n\
        tool = \"time.get_current_time\"\narguments = { timezone = \"UTC\" }\ntimes = 1500\n";
    let image = world.image("/bin/casemate-agent", "casemate-agent", Some(script));
    let start = Instant::now();
    let output = world.run(&image);
    assert_eq!(output.status.code(), Some(0), "{}\n{}", text(&output), world.console());
    // 1500 calls without a pause: all of them answered, in bounded time.
    assert!(start.elapsed() < Duration::from_secs(240), "{:?}", start.elapsed());
    assert!(world.log_says("allow time.get_current_time #1 "));
    nothing_left_running(&built);
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn h_machine_without_the_required_gpu_is_refused() {
    let built = built();
    built.need_the_demos_image();
    let world = World::start(&built, "no-gpu");
    let config = world.folder.join("host/host.toml");
    let text_of = std::fs::read_to_string(&config).unwrap();
    let (without, _) = text_of.split_once("[gpu_model]").unwrap();
    std::fs::write(&config, without).unwrap();
    let output = world.run(&built.path("image"));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let refused = said.lines().find(|line| line.contains("attest-refused")).unwrap();
    assert!(refused.contains("\"rule\":\"gpu.count\""), "{refused}");
    assert!(!world.log_says("allow "), "a call was allowed");
    nothing_left_running(&built);
}

#[test]
#[ignore = "boots microVMs; `make e2e` runs it"]
fn i_stops_and_the_dead_mans_lease_reach_the_machine() {
    let built = built();
    built.need_the_demos_image();
    let world = World::start(&built, "stops");
    world.answer_for_machines();
    let script = "socket = \"/run/casemate/mcp.sock\"\n[[step]]\ndo = \"call\"\n\
        tool = \"time.get_current_time\"\narguments = { timezone = \"UTC\" }\n\
        times = 5000\npause_s = 0.2\n";
    let image = world.image("/bin/casemate-agent", "casemate-agent", Some(script));
    world.refer_to(&image);
    let _verifier = world.serve("verifier");
    let gateway = world.serve("gateway");
    world.prepare();
    let running = world.launch(&image);
    world.calls_succeed();

    // Frozen, the machine runs and its calls are refused; lifted, they go on.
    world.stop("freeze");
    world.until("a refusal", || world.console().contains("7103"));
    std::thread::sleep(Duration::from_secs(3));
    assert!(!running.told().contains("\"paused\""), "{}", running.told());
    world.lift();
    world.calls_succeed();

    let (asked, pid) = (Instant::now(), running.backend());
    world.stop("pause");
    running.until_told("\"by\":\"stop\"", 1);
    let took = asked.elapsed();
    println!("paused {took:?} after the operator asked, the command's start included");
    assert!(took < Duration::from_secs(5), "{took:?}");
    // Longer than lease and grace: the gateway answers for it.
    let used = cpu_ticks(pid);
    std::thread::sleep(Duration::from_secs(10));
    assert!(cpu_ticks(pid) - used < 20, "the vCPUs run: {} ticks", cpu_ticks(pid) - used);
    world.lift();
    running.until_told("\"event\":\"resumed\"", 1);
    world.calls_succeed();

    // Killed and started again within the grace.
    drop(gateway);
    let killed = Instant::now();
    running.until_told("\"by\":\"lease\"", 1);
    println!("paused {:?} after the gateway was killed", killed.elapsed());
    assert!(killed.elapsed() < Duration::from_secs(5), "{:?}", killed.elapsed());
    let gateway = world.serve("gateway");
    running.until_told("\"event\":\"resumed\"", 2);
    world.calls_succeed();

    let asked = Instant::now();
    world.stop("destroy");
    let said = running.end();
    println!("destroyed {:?} after the operator asked", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(said.contains("\"reason\":\"destroyed\""), "{said}");
    world.lift();

    // Killed for good: nobody answers for the second machine any more.
    let running = world.launch(&image);
    world.calls_succeed();
    drop(gateway);
    let killed = Instant::now();
    let said = running.end();
    println!("destroyed {:?} after the gateway was killed", killed.elapsed());
    assert!((4..20).contains(&killed.elapsed().as_secs()), "{:?}", killed.elapsed());
    assert!(said.contains("\"reason\":\"lease_over\""), "{said}");
    nothing_left_running(&built);
}

/// Clock ticks that a process has used (Linux, proc_pid_stat(5): utime and stime).
fn cpu_ticks(pid: u64) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    fields.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum()
}

/// `casemate run` beside the test. It ends with it.
struct Running {
    child: std::process::Child,
    output: PathBuf,
    state: PathBuf,
}

impl Running {
    fn told(&self) -> String {
        std::fs::read_to_string(&self.output).unwrap()
    }

    fn until_told(&self, word: &str, times: usize) {
        let end = Instant::now() + Duration::from_secs(60);
        while self.told().matches(word).count() < times {
            assert!(Instant::now() < end, "{word} is not told: {}", self.told());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The process of the machine's backend.
    fn backend(&self) -> u64 {
        let of = |entry: &std::fs::DirEntry| {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let folder = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
            folder.starts_with(&self.state) && line.starts_with(b"qemu-system")
        };
        let found = std::fs::read_dir("/proc").unwrap().flatten().find(of).unwrap();
        found.file_name().to_str().unwrap().parse().unwrap()
    }

    /// Waits for its end and returns what it told.
    fn end(mut self) -> String {
        let end = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "{}", self.told());
            std::thread::sleep(Duration::from_millis(10));
        }
        self.told()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Services of this test's own, with the demo's configurations on new sockets.
struct World<'a> {
    built: &'a Built,
    folder: PathBuf,
    sockets: tempfile::TempDir,
}

impl<'a> World<'a> {
    fn start(built: &'a Built, name: &str) -> Self {
        let folder = built.folder.join(format!("world-{name}"));
        let _ = std::fs::remove_dir_all(&folder);
        let sockets = tempfile::Builder::new().prefix("casemate-e2e-").tempdir().unwrap();
        std::fs::create_dir_all(&folder).unwrap();
        let world = Self { built, folder, sockets };
        for party in ["verifier", "gateway", "host"] {
            copy_folder(&built.folder.join(party), &world.folder.join(party));
            world.rewrite(party);
        }
        // The log and the grants of the demo's own play are not this test's.
        let _ = std::fs::remove_dir_all(world.folder.join("gateway/state/log"));
        world
    }

    /// Gives a party's configuration this test's sockets and folder.
    fn rewrite(&self, party: &str) {
        let path = self.folder.join(party).join(format!("{party}.toml"));
        let config = std::fs::read_to_string(&path).unwrap();
        let old = config.split('"').find(|part| part.contains("/casemate-")).unwrap();
        let old = old.trim_start_matches("unix:").rsplit_once('/').unwrap().0.to_owned();
        let config = config
            .replace(&old, self.sockets.path().to_str().unwrap())
            .replace(self.built.folder.to_str().unwrap(), self.folder.to_str().unwrap())
            .replace(&self.path("psp-model"), &self.built.path("psp-model"))
            .replace(&self.path("gpu-model"), &self.built.path("gpu-model"));
        std::fs::write(path, config).unwrap();
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn socket(&self, name: &str) -> String {
        self.sockets.path().join(name).display().to_string()
    }

    /// An image of the demo's guest with another workload.
    fn image(&self, argv: &str, program: &str, script: Option<&str>) -> String {
        let guest = std::fs::read_to_string(self.built.folder.join("agent/guest.toml")).unwrap();
        let guest = guest.replace("\"/bin/casemate-agent\"", &format!("\"{argv}\""));
        std::fs::write(self.folder.join("guest.toml"), guest).unwrap();
        std::fs::write(self.folder.join("script.toml"), script.unwrap_or_default()).unwrap();
        let init = self.built.programs.join("casemate-guest").display().to_string();
        let from = self.built.programs.join(program).display().to_string();
        let workload = format!("{from}=/workload{argv}:0755");
        let script = format!("{}=/workload/script.toml", self.path("script.toml"));
        let (config, out) = (self.path("guest.toml"), self.path("image"));
        let files = ["--file", &workload, "--file", &script, "--out", &out];
        let output = self
            .built
            .run(&[&["image", "build", "--init", &init, "--config", &config][..], &files].concat());
        assert!(output.status.success(), "{}", text(&output));
        out
    }

    /// The verifier takes this image, from its next start on.
    fn refer_to(&self, image: &str) {
        let reference = Path::new(image).join("reference.toml");
        std::fs::copy(reference, self.folder.join("verifier/reference.toml")).unwrap();
    }

    fn run(&self, image: &str) -> Output {
        self.refer_to(image);
        let _services = [self.serve("verifier"), self.serve("gateway")];
        self.prepare();
        let host = self.path("host/host.toml");
        let task = ["--task", "plan-a-meeting", "--json", "--wall-seconds", "300"];
        let run = ["run", "--config", &host, "--image", image];
        let output = self.built.run(&[&run[..], &task].concat());
        let admin = self.socket("gateway-admin");
        let log = self.built.run(&["log", "list", "--admin", &admin, "--from", "0"]);
        std::fs::write(self.folder.join("log.txt"), text(&log)).unwrap();
        output
    }

    /// The gateway answers for machines, which live for four and four seconds without.
    fn answer_for_machines(&self) {
        let socket = self.socket("gateway-hosts");
        let (gateway, host) =
            (self.folder.join("gateway/gateway.toml"), self.folder.join("host/host.toml"));
        let config = std::fs::read_to_string(&gateway).unwrap();
        std::fs::write(gateway, format!("host_socket = {socket:?}\n{config}")).unwrap();
        let config = std::fs::read_to_string(&host).unwrap();
        let lease = format!("[lease]\nsocket = {socket:?}\nseconds = 4\ngrace_seconds = 4\n");
        std::fs::write(host, format!("{config}\n{lease}")).unwrap();
    }

    fn launch(&self, image: &str) -> Running {
        let (host, output) = (self.path("host/host.toml"), self.folder.join("run.jsonl"));
        let run = ["run", "--config", &host, "--image", image, "--backend", "qemu"];
        let task = ["--task", "plan-a-meeting", "--json", "--wall-seconds", "300"];
        let log = std::fs::File::create(self.folder.join("run.log")).unwrap();
        let mut command = Command::new(&self.built.casemate);
        command.args(run).args(task).stdin(Stdio::null());
        command.stdout(std::fs::File::create(&output).unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let running = Running { child, output, state: self.folder.join("host/state") };
        running.until_told("\"event\":\"workload\"", 1);
        running
    }

    fn until(&self, what: &str, done: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(60);
        while !done() {
            assert!(Instant::now() < end, "{what} does not come: {}", self.console());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits for three more calls that the gateway decided.
    fn calls_succeed(&self) {
        let count = || self.console().matches("dev.casemate/receipt").count();
        let before = count();
        self.until("a call", || count() >= before + 3);
    }

    fn stop(&self, level: &str) {
        self.command(&["now", "task:plan-a-meeting", "--level", level]);
    }

    fn lift(&self) {
        self.command(&["lift", "task:plan-a-meeting"]);
    }

    fn command(&self, arguments: &[&str]) {
        let admin = self.socket("gateway-admin");
        let more = ["--admin", &admin, "--reason", "test"];
        let output = self.built.run(&[&["stop"], arguments, &more].concat());
        assert!(output.status.success(), "{}", text(&output));
    }

    fn serve(&self, party: &str) -> Service {
        let config = self.path(&format!("{party}/{party}.toml"));
        let log = std::fs::File::create(self.folder.join(format!("{party}.log"))).unwrap();
        let mut command = Command::new(&self.built.casemate);
        let arguments = [party, "serve", "--config", &config];
        let admin = self.sockets.path().join(format!("{party}-admin"));
        // What one that was killed has left.
        let _ = std::fs::remove_file(&admin);
        let child = command.args(arguments).stdin(Stdio::null()).stderr(log).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(60);
        while !admin.exists() {
            assert!(Instant::now() < end, "{party} does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        Service(child)
    }

    /// A fresh grant. The demo's secrets are in the copied store.
    fn prepare(&self) {
        let (admin, key) = (self.socket("gateway-admin"), self.built.path("issuer/issuer.key"));
        let grant = self.built.path("issuer/grant.toml");
        let signed = ["--key", &key, "--issuer", "acme-operations", &grant];
        let output =
            self.built.run(&[&["grant", "create", "--admin", &admin][..], &signed].concat());
        assert!(output.status.success(), "{}", text(&output));
    }

    /// The console of the machine that ran last.
    fn console(&self) -> String {
        let run = self.folder.join("host/state/run");
        let mut consoles: Vec<PathBuf> = std::fs::read_dir(run)
            .unwrap()
            .flatten()
            .map(|entry| entry.path().join("console.log"))
            .filter(|path| path.exists())
            .collect();
        consoles.sort_by_key(|path| std::fs::metadata(path).unwrap().modified().unwrap());
        let last = consoles.last().map(std::fs::read).unwrap().unwrap();
        String::from_utf8_lossy(&last).into_owned()
    }

    fn log_says(&self, word: &str) -> bool {
        std::fs::read_to_string(self.folder.join("log.txt")).unwrap().contains(word)
    }
}

/// A service that ends with the test.
struct Service(std::process::Child);

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn copy_folder(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// A cpio archive (newc) with nothing but its trailer.
const EMPTY_ARCHIVE: &[u8] = b"07070100000000000000000000000000000000000000010000000000000000\
    000000000000000000000000000000000000000B00000000TRAILER!!!\0\0\0\0";
