//! `casemate top`: what the gateway's sandboxes do now, redrawn each second.

use std::io::Write;
use std::time::Duration;

use anyhow::bail;
use casemate_gateway::{Command, GrantSummary, LogEntry, Reply, StatusReport};
use clap::Args;

use crate::operator::Admin;
use crate::{Answer, table};

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

const BEAT: Duration = Duration::from_secs(1);
const LEAVES: u64 = 256;
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
        let screen = draw(&arguments.admin)?;
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

fn draw(admin: &Admin) -> anyhow::Result<String> {
    let Reply::Status(status) = admin.ask(&Command::Status)? else {
        bail!("the gateway answered something else than its status");
    };
    let Reply::Grants(grants) = admin.ask(&Command::GrantList)? else {
        bail!("the gateway answered something else than its grants");
    };
    let from = status.leaves.saturating_sub(LEAVES);
    let Reply::Log(entries) = admin.ask(&Command::Log { from, count: LEAVES })? else {
        bail!("the gateway answered something else than its log");
    };
    Ok(screen(&status, &grants, &entries))
}

fn screen(status: &StatusReport, grants: &[GrantSummary], entries: &[LogEntry]) -> String {
    let lag = status.witness_lag_s.map_or("none".to_owned(), |lag| format!("{lag} s behind"));
    let mut lines = vec![
        format!("{}  log {}, {} leaves", status.log, status.log_state, status.leaves),
        format!("connections {}  running {}  witnesses {lag}", status.connections, status.running),
        String::new(),
        "TASK             STATE      CALLS                            SANDBOX".to_owned(),
    ];
    lines.extend(grants.iter().map(budget));
    lines.push(String::new());
    lines.push(format!("DENIED (of the last {} leaves)", entries.len()));
    let denied = |entry: &&LogEntry| entry.text.starts_with("deny");
    let denied: Vec<_> = entries.iter().rev().filter(denied).take(DENIALS).collect();
    lines.extend(denied.iter().map(|entry| format!("{:>8}  {}", entry.index, entry.text)));
    // What a sandbox or an issuer chose must not paint the operator's terminal.
    lines.iter().map(|line| table::plain(line) + "\n").collect()
}

fn budget(grant: &GrantSummary) -> String {
    let most = grant.max_calls.max(1);
    let filled = usize::try_from(grant.calls.min(most) * BAR / most).unwrap_or(0);
    let bar = "#".repeat(filled) + &".".repeat(usize::try_from(BAR).unwrap_or(0) - filled);
    let sandbox = grant.sandbox.as_deref().unwrap_or("not used yet");
    let (task, state) = (&grant.task, &grant.state);
    format!("{task:<16} {state:<10} {bar} {:>4}/{:<6} {sandbox}", grant.calls, grant.max_calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_and_denials_are_drawn_and_cannot_paint() {
        let status: StatusReport = serde_json::from_value(serde_json::json!({
            "public": {"log_vkey": "", "gateway_key": "", "ca_file": "", "server_name": ""},
            "log": "demo/log1", "leaves": 9, "head": 9, "witness_lag_s": 3, "log_state": "ok",
            "connections": 1, "running": 2, "tools": []
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
            sandbox: Some("spiffe://x/demo/sb/1".to_owned()),
        };
        let entry =
            |text: &str| LogEntry { index: 4, kind: "decision".to_owned(), text: text.to_owned() };
        let entries = [entry("allow fx.echo #1"), entry("deny budget_exhausted fx.echo #2")];
        let screen = screen(&status, &[grant], &entries);
        assert!(screen.contains("##########..........    5/10"), "{screen}");
        assert!(screen.contains("budget_exhausted") && !screen.contains("allow fx"), "{screen}");
        assert!(screen.contains("witnesses 3 s behind") && !screen.contains('\x1b'), "{screen}");
    }
}
