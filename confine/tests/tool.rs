//! A confined shell looks around: what it sees is what its plan says.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use casemate_confine::tool::{OUTSIDE, PLAN, Plan};

const UID: u32 = 1_900_000_001;

fn plan(script: &str) -> Plan {
    Plan {
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]),
        parent: i32::try_from(std::process::id()).unwrap(),
        uid: UID,
        read: Vec::new(),
        write: Vec::new(),
        network: false,
        processes: 64,
        memory_mib: 512,
        tmp_mib: 8,
    }
}

fn helper(plan: &Plan) -> Command {
    let test = std::env::current_exe().unwrap();
    let helper = test.parent().unwrap().parent().unwrap().join("examples/confine-tool");
    let text = serde_json::to_string(plan).unwrap();
    let mut command = Command::new(helper);
    command.arg(OUTSIDE).env_clear().env(PLAN, text);
    command
}

fn run(plan: &Plan) -> Output {
    helper(plan).output().unwrap()
}

fn said(plan: &Plan) -> String {
    let output = run(plan);
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    format!("{}{error}", String::from_utf8_lossy(&output.stdout))
}

#[test]
fn it_is_another_user_without_privilege_or_other_processes() {
    let text = said(&plan("echo $$; id -u; cat /proc/self/status; echo processes /proc/[0-9]*"));
    let user =
        if rustix::process::getuid().is_root() { UID } else { rustix::process::getuid().as_raw() };
    assert!(text.starts_with(&format!("2\n{user}\n")), "{text}");
    for line in ["CapPrm:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"] {
        assert!(text.contains(line), "{line}: {text}");
    }
    assert!(text.contains("Seccomp:\t2"), "{text}");
    // No process of the host, and not the one that watches.
    assert!(text.ends_with("processes /proc/2\n"), "{text}");
}

#[test]
fn it_cannot_reach_the_process_that_watches_it() {
    let text = said(&plan(
        "kill -9 1; kill -STOP 1; cat /proc/1/environ; cat /proc/1/maps; echo x > /proc/1/mem; \
         echo still; (exec sleep 60 >/dev/null 2>&1 <&1) & exit 7",
    ));
    assert!(text.starts_with("still\n"), "{text}");
    for closed in ["environ: No such file", "maps: No such file", "cannot create /proc/1/mem"] {
        assert!(text.contains(closed), "{closed}: {text}");
    }
    // The watcher ends with the server, its code is the server's, and what the
    // server left behind is gone.
    assert_eq!(run(&plan("sleep 60 & exit 7")).status.code(), Some(7));
}

/// A server that does all that a process can to be left alone.
#[test]
fn nothing_of_a_server_outlives_its_connection() {
    let mark = format!("mark-{}", std::process::id());
    let script = format!(
        "import ctypes, os, signal, sys, time\n\
         def away():\n\
        \x20   ctypes.CDLL(None).prctl(1, 0)\n\
        \x20   os.setsid()\n\
        \x20   for number in set(range(1, 32)) - {{9, 19}}: signal.signal(number, signal.SIG_IGN)\n\
         child = os.fork()\n\
         away()\n\
         if child: os.write(1, b'ready\\n')\n\
         for fd in (0, 1, 2): os.close(fd)\n\
         time.sleep(600)  # {mark}\n"
    );
    let command = ["/usr/bin/python3", "-c", &script].map(str::to_owned).to_vec();
    let mut helper = helper(&Plan { command, ..plan("") }).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(helper.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    let running = || {
        let processes = std::fs::read_dir("/proc").unwrap().flatten();
        let commands = processes.filter_map(|one| std::fs::read(one.path().join("cmdline")).ok());
        let python = commands.filter(|words| words.starts_with(b"/usr/bin/python3\0"));
        python.filter(|words| String::from_utf8_lossy(words).contains(&mark)).count()
    };
    assert_eq!(running(), 2);
    helper.kill().unwrap();
    helper.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while running() > 0 {
        assert!(Instant::now() < end, "{} still run", running());
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn it_sees_what_its_plan_names() {
    let house = tempfile::tempdir().unwrap();
    for name in ["secret", "shown", "kept"] {
        std::fs::create_dir(house.path().join(name)).unwrap();
        std::fs::write(house.path().join(name).join("file"), name).unwrap();
    }
    let kept = house.path().join("kept");
    std::fs::set_permissions(&kept, PermissionsExt::from_mode(0o777)).unwrap();
    let at = |name: &str| house.path().join(name);
    let script = format!(
        "cat {secret}; cat {shown}; echo x > {shown}; echo x > {kept} && echo kept; \
         echo x > /usr/x; echo x > /x; echo x > /tmp/x && echo tmp; ls {root}; ls /root /home",
        secret = at("secret/file").display(),
        shown = at("shown/file").display(),
        kept = at("kept/new").display(),
        root = house.path().display(),
    );
    let text = said(&Plan { read: vec![at("shown")], write: vec![kept], ..plan(&script) });
    assert!(text.starts_with("shownkept\ntmp\nkept\nshown\n"), "{text}");
    for refused in ["secret/file: No such file", "/usr/x: Read-only", "/x: Read-only"] {
        assert!(text.contains(refused), "{refused}: {text}");
    }
    assert_eq!(std::fs::read_to_string(at("shown/file")).unwrap(), "shown");
    assert!(at("kept/new").exists());
}

#[test]
fn it_has_no_network_and_no_way_back() {
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!(
        "import os, socket\n\
         for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_VSOCK):\n\
        \x20   try: socket.socket(family); print('open', family)\n\
        \x20   except OSError as error: print(error.errno)\n\
         for attempt in (lambda: os.kill({host}, 0), lambda: os.chroot('/'), lambda: os.unshare(0x10000000)):\n\
        \x20   try: attempt(); print('done')\n\
        \x20   except (OSError, AttributeError) as error: print(getattr(error, 'errno', 1))\n\
         print(len(os.listdir('/proc/self/fd')), {port})\n",
        host = std::process::id(),
        port = host.local_addr().unwrap().port(),
    );
    let python = Path::new("/usr/bin/python3");
    assert!(python.exists(), "the test needs python3");
    let command = ["/usr/bin/python3", "-c", &script].map(str::to_owned).to_vec();
    let text = said(&Plan { command, ..plan("") });
    // EPERM for each socket; no such process; EPERM for chroot and unshare;
    // three descriptors and the one that lists them.
    let expected = format!("1\n1\n1\n1\n3\n1\n1\n4 {}\n", host.local_addr().unwrap().port());
    assert_eq!(text, expected);
}

#[test]
fn with_a_network_it_reaches_the_host_and_nothing_else_changes() {
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let script = format!(
        "import os, socket\nsocket.create_connection(('127.0.0.1', {}), 5)\nprint(os.getpid())",
        host.local_addr().unwrap().port()
    );
    let command = ["/usr/bin/python3", "-c", &script].map(str::to_owned).to_vec();
    assert_eq!(said(&Plan { command, network: true, ..plan("") }), "2\n");
}

#[test]
fn what_cannot_be_confined_does_not_run() {
    let wrong = Plan { parent: 1, ..plan("echo ran") };
    assert!(said(&wrong).starts_with("not started: parent: expected process 1"));
    let missing = Plan { read: vec!["/nowhere/at/all".into()], ..plan("echo ran") };
    assert!(said(&missing).starts_with("not started: take a path"));
    let command = vec!["/bin/nothing".to_owned()];
    assert!(said(&Plan { command, ..plan("") }).starts_with("not started: start /bin/nothing"));
    assert_eq!(run(&wrong).status.code(), Some(125));
}

#[test]
fn limits_hold() {
    let text =
        said(&plan("ulimit -c; ulimit -n; ulimit -d; dd if=/dev/zero of=/tmp/x bs=1M count=20"));
    assert!(text.starts_with("0\n1024\n524288\n"), "{text}");
    assert!(text.contains("No space left"), "{text}");
}
