//! What a call costs: direct over stdio, through a bare rmcp relay, and through
//! port and gateway with two durable records, over lines and over HTTP.
//!
//! In this folder: `cargo build --release --examples && cargo bench`. One client,
//! written by hand, asks all of them in turns within one run, so that a busy
//! machine weighs on all alike: read the ratios. Each sandbox has a tool server
//! of its own, as each client has that is asked directly or through the relay.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use casemate_counterparties::{House, Sandbox, upstream};
use casemate_gateway::SigningKey;
use casemate_ledger::cgp::{MCP_VERSION, meta};
use casemate_ledger::checkpoint::VerifierKey;
use casemate_ledger_store::{Log, Options};
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};

type Failure = Box<dyn Error + Send + Sync>;

/// A way to the tool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Relay,
    RelayHttp,
    Lines,
    Http,
}

const WAYS: [(Way, &str); 5] = [
    (Way::Direct, "direct, stdio"),
    (Way::Relay, "rmcp relay, stdio"),
    (Way::RelayHttp, "rmcp relay, HTTP"),
    (Way::Lines, "Casemate, lines"),
    (Way::Http, "Casemate, HTTP"),
];
/// Sandboxes at once, and the calls of each, in rounds.
const LOADS: [(usize, usize, usize); 3] = [(1, 30, 10), (8, 8, 5), (64, 3, 3)];
const WARM: usize = 5;

fn main() -> Result<(), Failure> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let folder = tempfile::tempdir()?;
    runtime.worker_threads(2).enable_all().build()?.block_on(calls(folder.path()))?;
    log(&folder.path().join("log"))
}

async fn calls(folder: &Path) -> Result<(), Failure> {
    let fixture = example("fixture")?;
    let command = fixture.display().to_string();
    let loops = "[loops]\nidentical = [1000, 1010, 1020]\ncycle = [100, 110, 120]\n";
    let upstreams = upstream("fx", &[&command], "", "", &["echo"]) + loops;
    let house = House::start(folder, &upstreams, &["fx.echo"]).await;
    idle_memory(&house).await?;
    let mut relay = Started::relay(&fixture, "http")?;
    let port = relay.port().await?;
    let mut all =
        Clients { house, folder: folder.to_owned(), port, fixture, sandboxes: Vec::new() };
    for (at_once, each, rounds) in LOADS {
        let mut clients = Vec::new();
        for (way, _) in WAYS {
            clients.push(all.of(way, at_once).await?);
        }
        let mut figures = WAYS.map(|_| Figures::default());
        for round in 0..=rounds {
            for (clients, figures) in clients.iter_mut().zip(&mut figures) {
                let measured = turn(clients, if round == 0 { WARM } else { each }).await?;
                if round > 0 {
                    figures.add(measured);
                }
            }
        }
        println!("\n{at_once} at once, {} calls a way", at_once * each * rounds);
        report(figures);
    }
    drop(all.sandboxes);
    all.house.stop().await;
    Ok(())
}

/// What one turn of one way took: each call, the whole, this process's processor.
#[derive(Default)]
struct Figures {
    calls: Vec<Duration>,
    wall: Duration,
    processor: Duration,
}

impl Figures {
    fn add(&mut self, other: Self) {
        self.calls.extend(other.calls);
        self.wall += other.wall;
        self.processor += other.processor;
    }

    fn at(&self, percent: usize) -> f64 {
        let at = self.calls.len().saturating_sub(1) * percent / 100;
        self.calls.get(at).map_or(0.0, Duration::as_secs_f64) * 1e3
    }
}

fn report(mut figures: [Figures; 5]) {
    figures.iter_mut().for_each(|one| one.calls.sort());
    let (direct, relay) = (figures[0].at(50), figures[1].at(50));
    println!(
        "{:<18} {:>8} {:>8} {:>9} {:>9} {:>8} {:>12}",
        "way", "p50 ms", "p99 ms", "x direct", "x relay", "calls/s", "own CPU ms"
    );
    for ((_, name), one) in WAYS.iter().zip(&figures) {
        let count = one.calls.len() as f64;
        println!(
            "{name:<18} {:>8.3} {:>8.3} {:>9.2} {:>9.2} {:>8.0} {:>12.3}",
            one.at(50),
            one.at(99),
            one.at(50) / direct,
            one.at(50) / relay,
            count / one.wall.as_secs_f64(),
            one.processor.as_secs_f64() * 1e3 / count,
        );
    }
}

/// `each` calls by every client at once.
async fn turn(clients: &mut Vec<Client>, each: usize) -> Result<Figures, Failure> {
    let (start, processor) = (Instant::now(), processor_time());
    let running: Vec<_> = clients
        .drain(..)
        .map(|mut client| {
            tokio::spawn(async move {
                let mut calls = Vec::new();
                for _ in 0..each {
                    let start = Instant::now();
                    client.call().await?;
                    calls.push(start.elapsed());
                }
                Ok::<_, Failure>((client, calls))
            })
        })
        .collect();
    let mut figures = Figures::default();
    for client in running {
        let (client, calls) = client.await??;
        clients.push(client);
        figures.calls.extend(calls);
    }
    figures.wall = start.elapsed();
    figures.processor = processor_time() - processor;
    Ok(figures)
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Makes clients, and the sandboxes that they need.
struct Clients {
    house: House,
    folder: PathBuf,
    port: u16,
    fixture: PathBuf,
    sandboxes: Vec<Sandbox>,
}

impl Clients {
    async fn of(&mut self, way: Way, count: usize) -> Result<Vec<Client>, Failure> {
        let mut clients = Vec::new();
        for at in 0..count {
            clients.push(self.one(way, at).await?);
        }
        Ok(clients)
    }

    async fn one(&mut self, way: Way, at: usize) -> Result<Client, Failure> {
        match way {
            Way::Direct => Client::stdio(Started::new(Command::new(&self.fixture))?).await,
            Way::Relay => Client::stdio(Started::relay(&self.fixture, "stdio")?).await,
            Way::RelayHttp => Client::http(&format!("127.0.0.1:{}", self.port), "echo").await,
            Way::Lines => Client::lines(self.sandbox(at).await?).await,
            Way::Http => {
                let url = self.sandbox(at).await?.url.clone();
                let address = url.strip_prefix("http://").and_then(|url| url.split('/').next());
                Client::http(address.ok_or("a URL")?, "fx.echo").await
            }
        }
    }

    /// The sandbox `at`; a new one binds a grant of its own by its first call.
    async fn sandbox(&mut self, at: usize) -> Result<&Sandbox, Failure> {
        if at == self.sandboxes.len() {
            if at > 0 {
                let key = SigningKey::open(&self.folder.join("grants.key"))?;
                self.house.grant(&key, &["fx.echo"]).await;
            }
            let folder = self.folder.join(format!("doors{at}"));
            std::fs::create_dir(&folder)?;
            let sandbox = self.house.sandbox(&folder).await;
            Client::lines(&sandbox).await?.call().await?;
            self.sandboxes.push(sandbox);
        }
        self.sandboxes.get(at).ok_or("in order".into())
    }
}

/// A program with its pipes.
struct Started(Child);

impl Started {
    fn new(mut command: Command) -> Result<Self, Failure> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        Ok(Self(command.spawn()?))
    }

    fn relay(fixture: &Path, door: &str) -> Result<Self, Failure> {
        let mut command = Command::new(example("relay")?);
        command.arg(door).arg(fixture);
        Self::new(command)
    }

    /// The port that a relay says.
    async fn port(&mut self) -> Result<u16, Failure> {
        let output = self.0.stdout.take().ok_or("no pipe")?;
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).await?;
        Ok(line.trim().parse()?)
    }
}

/// One client, which waits for each answer.
struct Client {
    reader: BufReader<Box<dyn AsyncRead + Unpin + Send>>,
    writer: Box<dyn AsyncWrite + Unpin + Send>,
    http: Option<String>,
    tool: String,
    number: u64,
    _process: Option<Child>,
}

impl Client {
    fn new<R, W>(reader: R, writer: W, tool: &str) -> Self
    where
        R: AsyncRead + Unpin + Send + 'static,
        W: AsyncWrite + Unpin + Send + 'static,
    {
        let (reader, writer) = (BufReader::new(Box::new(reader) as _), Box::new(writer));
        Self { reader, writer, http: None, tool: tool.to_owned(), number: 0, _process: None }
    }

    async fn stdio(started: Started) -> Result<Self, Failure> {
        let mut child = started.0;
        let (output, input) = child.stdout.take().zip(child.stdin.take()).ok_or("no pipes")?;
        let mut client = Self::new(output, input, "echo");
        client._process = Some(child);
        client.initialize().await?;
        Ok(client)
    }

    async fn lines(sandbox: &Sandbox) -> Result<Self, Failure> {
        let (reader, writer) = UnixStream::connect(&sandbox.socket).await?.into_split();
        let mut client = Self::new(reader, writer, "fx.echo");
        client.initialize().await?;
        Ok(client)
    }

    async fn http(address: &str, tool: &str) -> Result<Self, Failure> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let (reader, writer) = stream.into_split();
        let mut client = Self::new(reader, writer, tool);
        client.http = Some(format!(
            "POST /mcp HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
             accept: application/json, text/event-stream\r\n\
             mcp-protocol-version: {MCP_VERSION}\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n"
        ));
        Ok(client)
    }

    async fn initialize(&mut self) -> Result<(), Failure> {
        let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {},
            "clientInfo": {"name": "bench", "version": "1"},
        }});
        self.send(&hello).await?;
        self.line().await?;
        self.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"})).await
    }

    async fn send(&mut self, message: &Value) -> Result<(), Failure> {
        let mut bytes = serde_json::to_vec(message)?;
        match &self.http {
            Some(head) => {
                let head = format!("{head}content-length: {}\r\n\r\n", bytes.len());
                bytes = [head.as_bytes(), &bytes].concat();
            }
            None => bytes.push(b'\n'),
        }
        self.writer.write_all(&bytes).await?;
        Ok(self.writer.flush().await?)
    }

    async fn line(&mut self) -> Result<String, Failure> {
        let mut line = String::new();
        match self.reader.read_line(&mut line).await? {
            0 => Err("hung up".into()),
            _ => Ok(line),
        }
    }

    /// One call, whose answer must have its arguments in it.
    async fn call(&mut self) -> Result<(), Failure> {
        self.number += 1;
        let mut params = json!({"name": self.tool, "arguments": {"number": self.number}});
        if let (Some(_), Some(params)) = (&self.http, params.as_object_mut()) {
            let about = json!({
                (meta::PROTOCOL_VERSION): MCP_VERSION,
                "io.modelcontextprotocol/clientCapabilities": {},
                "io.modelcontextprotocol/clientInfo": {"name": "bench", "version": "1"},
            });
            params.insert("_meta".to_owned(), about);
        }
        let method = "tools/call";
        let request =
            json!({"jsonrpc": "2.0", "id": self.number, "method": method, "params": params});
        self.send(&request).await?;
        let wanted = format!("\\\"number\\\":{}}}", self.number);
        loop {
            let answer = match self.http {
                Some(_) => self.response().await?,
                None => self.line().await?,
            };
            if answer.contains(&wanted) && !answer.contains("\"isError\":true") {
                return Ok(());
            }
            if answer.contains(&format!("\"id\":{}", self.number)) {
                return Err(format!("not the answer: {answer}").into());
            }
        }
    }

    /// The body of one response, of a known length or in chunks.
    async fn response(&mut self) -> Result<String, Failure> {
        let mut length = None;
        loop {
            let line = self.line().await?.to_ascii_lowercase();
            if line == "\r\n" {
                break;
            }
            if let Some(text) = line.strip_prefix("content-length:") {
                length = Some(text.trim().parse()?);
            }
        }
        let mut body = Vec::new();
        match length {
            Some(length) => {
                body.resize(length, 0);
                self.reader.read_exact(&mut body).await?;
            }
            None => loop {
                let size = usize::from_str_radix(self.line().await?.trim(), 16)?;
                let mut chunk = vec![0; size + 2];
                self.reader.read_exact(&mut chunk).await?;
                body.extend(chunk.get(..size).unwrap_or_default());
                if size == 0 {
                    break;
                }
            },
        }
        Ok(String::from_utf8(body)?)
    }
}

/// What a sandbox's connection takes while nothing is called, at both its ends.
async fn idle_memory(house: &House) -> Result<(), Failure> {
    const COUNT: u64 = 64;
    let mut open = Vec::new();
    open.push(house.connect().await);
    let before = resident_kib()?;
    for _ in 0..COUNT {
        open.push(house.connect().await);
    }
    let each = resident_kib()?.saturating_sub(before) / COUNT;
    println!("memory of an idle sandbox connection, port and gateway together: {each} KiB");
    for (_, keeper) in open {
        keeper.abort();
    }
    Ok(())
}

fn resident_kib() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("VmRSS")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse()?)
}

/// Durable leaves a second, and how long one waits at a steady pace.
fn log(directory: &Path) -> Result<(), Failure> {
    let key = Ed25519KeyPair::from_seed_unchecked(&[1; 32]).map_err(|_| "a key")?;
    let options = Options {
        directory: directory.to_owned(),
        key: VerifierKey::new("bench/log1", key.public_key().as_ref().try_into()?)?,
        sign: Box::new(move |message| key.sign(message).as_ref().try_into().unwrap_or([0; 64])),
        checkpoint_interval: Duration::from_secs(1),
        segment_bytes: 64 << 20,
    };
    let log = Log::open(options, |_, _| Ok(()))?;
    let start = Instant::now();
    let waits = append(&log, 40_000, Duration::ZERO)?;
    let rate = waits.len() as f64 / start.elapsed().as_secs_f64();
    println!("\nlog, flat out: {rate:.0} durable leaves/s of 700 bytes");
    let mut waits = append(&log, 3000, Duration::from_millis(1))?;
    waits.sort();
    let at = |percent: usize| waits.get((waits.len() - 1) * percent / 100);
    println!("log, at 1000 leaves/s: commit p50 {:?}, p99 {:?}", at(50), at(99));
    Ok(())
}

/// Appends leaves `gap` apart; how long each took until it was on disk.
fn append(log: &Log, count: u32, gap: Duration) -> Result<Vec<Duration>, Failure> {
    let (sender, receiver) = mpsc::channel();
    let start = Instant::now();
    for at in 0..count {
        std::thread::sleep((start + gap * at).saturating_duration_since(Instant::now()));
        let (sender, begin) = (sender.clone(), Instant::now());
        log.append(at.to_be_bytes().repeat(175), move |result| {
            let _ = sender.send(result.map(|()| begin.elapsed()));
        })?;
    }
    drop(sender);
    Ok(receiver.iter().collect::<Result<_, _>>()?)
}

/// A program that `cargo build --examples` made.
fn example(name: &str) -> Result<PathBuf, Failure> {
    let bench = std::env::current_exe()?;
    let release = bench.parent().and_then(Path::parent).ok_or("a folder")?;
    let path = release.join("examples").join(name);
    path.exists().then_some(path).ok_or("cargo build --release --examples comes first".into())
}
