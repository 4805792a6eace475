//! `casemate top`: what the gateway's sandboxes do now, redrawn each second.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use casemate_gateway::{
    Command, GrantSummary, LogEntry, OpenBreaker, Reply, StatusReport, Stopped, Waiting,
};
use clap::Args;

use crate::operator::Admin;
use crate::{Answer, approve, stop, table};

#[derive(Args)]
pub(crate) struct Arguments {
    #[command(flatten)]
    admin: Admin,
    /// Draws once and ends.
    #[arg(long)]
    once: bool,
    /// The gateway's numbers as Prometheus text, once.
    #[arg(long, conflicts_with = "once")]
    metrics: bool,
}

/// What one screen is drawn from.
struct View {
    status: StatusReport,
    grants: Vec<GrantSummary>,
    waiting: Vec<Waiting>,
    stops: Vec<Stopped>,
    entries: Vec<LogEntry>,
    now_ms: u64,
}

const BEAT: Duration = Duration::from_secs(1);
/// So many leaves at once, so often.
const LEAVES: u64 = 256;
const ASKS: u64 = 4;
const DENIALS: usize = 10;
const BAR: u64 = 20;

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<Answer> {
    if arguments.metrics {
        let Reply::Metrics(text) = arguments.admin.ask(&Command::Metrics)? else {
            bail!("the gateway answered something else than its numbers");
        };
        print!("{text}");
        return Ok(Answer::Yes);
    }
    loop {
        let screen = screen(view(&arguments.admin)?);
        if arguments.once {
            print!("{screen}");
            return Ok(Answer::Yes);
        }
        // Home, the screen, and clear what was below.
        let mut out = std::io::stdout().lock();
        write!(out, "\x1b[H{}\x1b[J", screen.replace('\n', "\x1b[K\n"))?;
        out.flush()?;
        drop(out);
        std::thread::sleep(BEAT);
    }
}

fn view(admin: &Admin) -> anyhow::Result<View> {
    let Reply::Status(status) = admin.ask(&Command::Status)? else {
        bail!("the gateway answered something else than its status");
    };
    let Reply::Grants(grants) = admin.ask(&Command::GrantList)? else {
        bail!("the gateway answered something else than its grants");
    };
    let (mut entries, mut from) = (Vec::new(), status.leaves.saturating_sub(LEAVES * ASKS));
    while from < status.leaves {
        let Reply::Log(some) = admin.ask(&Command::Log { from, count: LEAVES })? else {
            bail!("the gateway answered something else than its log");
        };
        entries.extend(some);
        from += LEAVES;
    }
    let (waiting, stops) = (approve::waiting(admin)?, stop::stops(admin)?);
    Ok(View { status: *status, grants, waiting, stops, entries, now_ms: approve::now_ms()? })
}

fn screen(view: View) -> String {
    let View { status, grants, waiting, stops, entries, now_ms } = view;
    let lag = status.witness_lag_s.map_or("none".to_owned(), |lag| format!("{lag} s behind"));
    let mut lines = vec![
        format!("{}  log {}, {} leaves", status.log, status.log_state, status.leaves),
        format!("connections {}  running {}  witnesses {lag}", status.connections, status.running),
        String::new(),
        "TASK             STATE      BUDGET".to_owned(),
    ];
    lines.extend(grants.iter().flat_map(budgets));
    let stopped = stops.into_iter().map(|stop| vec![stop.scope, stop.level]);
    section(&mut lines, "STOPPED", &["SCOPE", "LEVEL"], stopped);
    let calls = waiting.into_iter().map(|call| approve::row(call, now_ms));
    section(&mut lines, "WAITING FOR PEOPLE", &approve::HEAD, calls);
    for (title, word) in [("DRIFTED", "drifted"), ("SERVER DOWN", "resting")] {
        let tools = status.tools.iter().filter(|(_, is)| is == word);
        section(&mut lines, title, &["TOOL"], tools.map(|(name, _)| vec![name.clone()]));
    }
    let resting = status.breakers.into_iter().map(breaker);
    section(&mut lines, "RESTING", &["TOOL", "LEFT", "SANDBOX"], resting);
    denied(&mut lines, &entries);
    // What a sandbox or an issuer chose must not paint the operator's terminal.
    lines.iter().map(|line| table::plain(line) + "\n").collect()
}

/// A table under its title, if it has rows.
fn section(
    lines: &mut Vec<String>,
    title: &str,
    head: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) {
    let mut rows = rows.peekable();
    if rows.peek().is_some() {
        lines.extend([String::new(), title.to_owned()]);
        lines.extend(table::lines(head, rows));
    }
}

fn denied(lines: &mut Vec<String>, entries: &[LogEntry]) {
    let denied: Vec<_> = entries.iter().filter(|entry| entry.text.starts_with("deny")).collect();
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for sandbox in denied.iter().filter_map(|entry| entry.sandbox.as_deref()) {
        *counts.entry(sandbox).or_default() += 1;
    }
    lines.extend([String::new(), format!("DENIED (of the last {} leaves)", entries.len())]);
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let most = counts.iter().take(DENIALS);
    lines.extend(most.map(|(sandbox, count)| format!("{count:>8}  in all: {sandbox}")));
    let last = denied.iter().rev().take(DENIALS);
    lines.extend(last.map(|entry| format!("{:>8}  {}", entry.index, entry.text)));
}

fn breaker(breaker: OpenBreaker) -> Vec<String> {
    vec![breaker.tool, format!("{} s", breaker.left_ms.div_ceil(1000)), breaker.sandbox]
}

/// A grant's budgets, one a line.
fn budgets(grant: &GrantSummary) -> Vec<String> {
    let sandbox = grant.sandbox.as_deref().unwrap_or("not used yet");
    let (task, state) = (&grant.task, &grant.state);
    let calls = bar(grant.calls, grant.max_calls);
    let first = format!("{task:<16} {state:<10} {calls} calls  {sandbox}");
    let others = grant.budgets.iter().map(|budget| {
        let name = budget.name.strip_prefix("grant.").unwrap_or(&budget.name);
        format!("{:28}{} {name}", "", bar(budget.used, budget.limit))
    });
    std::iter::once(first).chain(others).collect()
}

fn bar(used: u64, limit: u64) -> String {
    let most = u128::from(limit.max(1));
    let filled = u128::from(used).min(most) * u128::from(BAR) / most;
    let filled = usize::try_from(filled).unwrap_or(0);
    let bar = "#".repeat(filled) + &".".repeat(usize::try_from(BAR).unwrap_or(0) - filled);
    format!("{bar} {used:>4}/{limit:<6}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_gateway::BudgetLeft;
    use serde_json::json;

    #[test]
    fn all_is_drawn_and_cannot_paint() {
        let status: StatusReport = serde_json::from_value(json!({
            "public": {"log_vkey": "", "gateway_key": "", "ca_file": "", "server_name": ""},
            "log": "demo/log1", "leaves": 9, "head": 9, "witness_lag_s": 3, "log_state": "ok",
            "connections": 1, "running": 2, "waiting": 1,
            "tools": [["fx.echo", "ok"], ["fx.shift", "drifted"]],
            "breakers": [{"tool": "fx.crash", "sandbox": "spiffe://x/demo/sb/1", "left_ms": 900}],
        }))
        .unwrap();
        let grant = GrantSummary {
            id: String::new(),
            issuer: "ops".to_owned(),
            task: "report\x1b[2J".to_owned(),
            expires: 0,
            state: "active".to_owned(),
            tools: Vec::new(),
            calls: 5,
            max_calls: 10,
            budgets: vec![BudgetLeft { name: "grant.wall_ms".into(), used: u64::MAX, limit: 7 }],
            sandbox: Some("spiffe://x/demo/sb/1".to_owned()),
        };
        let waiting = serde_json::from_value(json!([{
            "id": "aa", "sandbox": "s", "tool": "bank.pay\x1b", "needed": 2, "given": 1,
            "people": ["bob"], "since_ms": 1000, "expires_ms": 901_000, "display": "{}",
        }]));
        let stops = serde_json::from_value(json!([{
            "scope": "task:other", "level": "freeze", "id": "", "display": null,
        }]));
        let entry = |text: &str| LogEntry {
            index: 4,
            kind: "decision".to_owned(),
            text: text.to_owned(),
            sandbox: Some("spiffe://x/demo/sb/2".to_owned()),
        };
        let entries = vec![entry("allow fx.echo #1"), entry("deny budget_exhausted fx.echo #2")];
        let (waiting, stops) = (waiting.unwrap(), stops.unwrap());
        let view = View { status, grants: vec![grant], waiting, stops, entries, now_ms: 61_000 };
        let screen = screen(view);
        for part in [
            "##########..........    5/10     calls",
            "/7      wall_ms",
            "witnesses 3 s behind",
            "budget_exhausted",
            "       1  in all: spiffe://x/demo/sb/2",
            "task:other  freeze",
            "1/2  bob  60 s  840 s  bank.pay",
            "DRIFTED\nTOOL\nfx.shift\n",
            "fx.crash  1 s   spiffe://x/demo/sb/1",
        ] {
            assert!(screen.contains(part), "{part}\n{screen}");
        }
        assert!(!screen.contains("allow fx") && !screen.contains('\x1b'), "{screen}");
    }
}
