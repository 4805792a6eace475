//! A gateway's socket that answers as each test says, in real time.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use tokio::net::UnixListener;
use tokio::sync::mpsc;

use super::*;

const LENGTH: Duration = Duration::from_secs(3);
const GRACE: Duration = Duration::from_secs(3);
/// What a busy machine may be late.
const SLACK: Duration = Duration::from_secs(5);

fn terms() -> Terms {
    Terms { length: LENGTH, grace: GRACE }
}

fn lease(folder: &Path) -> Lease {
    let who = Who { host: "h".into(), machine: "00".repeat(16), task: "t".into() };
    Lease::start(folder.join("hosts.sock"), terms(), who)
}

/// Answers while `speaks`, with the stop last sent; lives until it is dropped.
struct Gateway {
    speaks: Arc<AtomicBool>,
    stops: mpsc::UnboundedSender<Value>,
    serving: JoinHandle<()>,
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Gateway {
    fn start(folder: &Path) -> Self {
        let path = folder.join("hosts.sock");
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        let speaks = Arc::new(AtomicBool::new(true));
        let (stops, mut said) = mpsc::unbounded_channel();
        let heard = Arc::clone(&speaks);
        let serving = tokio::spawn(async move {
            let (mut stop, mut last) = (Value::Null, 0);
            while let Ok((stream, _)) = listener.accept().await {
                let (reader, mut writer) = stream.into_split();
                let mut lines = BufReader::new(reader).lines();
                loop {
                    tokio::select! {
                        line = lines.next_line() => {
                            let Ok(Some(line)) = line else { break };
                            let line: Value = serde_json::from_str(&line).unwrap();
                            last = line["beat"].as_u64().unwrap();
                        }
                        said = said.recv() => match said {
                            Some(said) => stop = said,
                            None => std::future::pending().await,
                        },
                    }
                    if heard.load(Ordering::Relaxed) {
                        let answer = json!({"beat": last, "stop": stop, "sandboxes": ["s"]});
                        let _ = writer.write_all(format!("{answer}\n").as_bytes()).await;
                    }
                }
            }
        });
        Self { speaks, stops, serving }
    }

    fn stop(&self, level: &str) {
        self.stops.send(if level.is_empty() { Value::Null } else { level.into() }).unwrap();
    }
}

/// Waits for a fate that `wanted` takes, and returns it and the time that it took.
async fn until(lease: &mut Lease, wanted: impl Fn(&Fate) -> bool) -> (Fate, Duration) {
    let start = Instant::now();
    let waiting = async {
        loop {
            let fate = lease.next().await;
            if wanted(&fate) {
                return fate;
            }
        }
    };
    (timeout(Duration::from_secs(30), waiting).await.unwrap(), start.elapsed())
}

fn runs(fate: &Fate) -> bool {
    matches!(fate, Fate::Runs(_))
}

fn stands(fate: &Fate) -> bool {
    matches!(fate, Fate::Stands(..))
}

fn ends(fate: &Fate) -> bool {
    matches!(fate, Fate::Ends(_))
}

/// No answer any more: the machine stands within the lease, and ends after the grace.
async fn runs_out(mut lease: Lease) {
    let (fate, after) = until(&mut lease, stands).await;
    assert_eq!(fate, Fate::Stands(Paused::Lease, Duration::ZERO));
    assert!(after <= LENGTH + SLACK, "{after:?}");
    let (fate, later) = until(&mut lease, ends).await;
    assert!(matches!(fate, Fate::Ends(Exit::LeaseOver { .. })), "{fate:?}");
    assert!(later >= GRACE / 2 && later <= GRACE + SLACK, "{later:?}");
    println!("stands {after:?} after the last word, ends {later:?} later");
}

#[tokio::test]
async fn a_gateway_that_answers_keeps_the_machine_running() {
    let folder = tempfile::tempdir().unwrap();
    let _gateway = Gateway::start(folder.path());
    let mut lease = lease(folder.path());
    let start = Instant::now();
    while start.elapsed() < LENGTH * 2 {
        let fate = lease.next().await;
        assert!(runs(&fate), "{fate:?}");
    }
}

#[tokio::test]
async fn a_gateway_that_is_gone_or_was_never_there_ends_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    runs_out(lease(folder.path())).await;
    let gateway = Gateway::start(folder.path());
    let mut lease = lease(folder.path());
    until(&mut lease, runs).await;
    drop(gateway);
    runs_out(lease).await;
}

#[tokio::test]
async fn a_stream_that_stays_open_and_silent_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path());
    let mut lease = lease(folder.path());
    until(&mut lease, runs).await;
    gateway.speaks.store(false, Ordering::Relaxed);
    runs_out(lease).await;
}

#[tokio::test]
async fn words_that_nobody_asked_for_renew_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("hosts.sock")).unwrap();
    // Says that all is well, again and again, and never reads a question.
    let saying = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        loop {
            let line = b"{\"beat\":0,\"sandboxes\":[]}\n{\"beat\":999,\"sandboxes\":[]}\n";
            let _ = stream.write_all(line).await;
            sleep(Duration::from_millis(10)).await;
        }
    });
    runs_out(lease(folder.path())).await;
    saying.abort();
}

#[tokio::test]
async fn stops_are_obeyed_at_once_and_lifted() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path());
    let mut lease = lease(folder.path());
    until(&mut lease, runs).await;
    gateway.stop("pause");
    let (fate, after) = until(&mut lease, stands).await;
    let Fate::Stands(Paused::Stop, left) = fate else { panic!("{fate:?}") };
    assert!(!left.is_zero() && after < LENGTH, "{left:?} {after:?}");
    // It stands for longer than lease and grace, because the gateway lives.
    let start = Instant::now();
    while start.elapsed() < LENGTH + GRACE + GRACE / 2 {
        let fate = lease.next().await;
        assert!(matches!(fate, Fate::Stands(Paused::Stop, _)), "{fate:?}");
    }
    for level in ["freeze", ""] {
        gateway.stop(level);
        until(&mut lease, runs).await;
    }
    gateway.stop("destroy");
    let (fate, after) = until(&mut lease, ends).await;
    assert_eq!(fate, Fate::Ends(Exit::Destroyed));
    assert!(after < LENGTH, "{after:?}");
}

#[tokio::test]
async fn a_gateway_that_comes_back_in_time_lets_the_machine_go_on() {
    let folder = tempfile::tempdir().unwrap();
    let gateway = Gateway::start(folder.path());
    let mut lease = lease(folder.path());
    until(&mut lease, runs).await;
    drop(gateway);
    until(&mut lease, stands).await;
    let _gateway = Gateway::start(folder.path());
    until(&mut lease, runs).await;
}

#[test]
fn an_answer_counts_from_when_its_question_was_sent() {
    let now = Instant::now();
    let at = |ms| now + Duration::from_millis(ms);
    let mut open = Open::from([(1, at(1)), (2, at(2)), (3, at(3))]);
    assert_eq!(take(&mut open, 0), None);
    assert_eq!(take(&mut open, 2), Some(at(2)));
    assert_eq!(take(&mut open, 1), None);
    assert_eq!(take(&mut open, 9), None);
    assert!(open.is_empty());
}
