//! `casemate approve`: see the calls that wait for people, and answer.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_attestation::UnixTime;
use casemate_gateway::{Command, Reply, SigningKey, Waiting};
use casemate_ledger::{Approval, Record};
use clap::{Args, Subcommand};

use crate::operator::Admin;
use crate::{Answer, Refused, table};

#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Makes an approver's key (approver.key, mode 0600) and prints its public half.
    Keygen {
        /// The folder for the key.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Lists the calls that wait.
    List {
        #[command(flatten)]
        admin: Admin,
    },
    /// Shows one call whole.
    Show {
        #[command(flatten)]
        admin: Admin,
        /// The call's id.
        id: String,
    },
    /// Shows one call and says yes to it.
    Yes(Word),
    /// Shows one call and says no to it.
    No(Word),
}

#[derive(Args)]
pub(crate) struct Word {
    #[command(flatten)]
    admin: Admin,
    /// The approver's key.
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The approver's name, as the gateway's operator listed it.
    #[arg(long, value_name = "NAME")]
    name: String,
    /// Why; it goes into the log.
    #[arg(long)]
    reason: Option<String>,
    /// The call's id.
    id: String,
}

/// How long a yes may be used.
const LIFETIME_SECONDS: u64 = 10 * 60;

pub(crate) fn run(verb: &Verb) -> anyhow::Result<Answer> {
    match verb {
        Verb::Keygen { out } => {
            std::fs::create_dir_all(out)?;
            let key = SigningKey::open(&out.join("approver.key"))?;
            println!("key {}", hex::encode(key.public()));
            Ok(Answer::Yes)
        }
        Verb::List { admin } => list(admin),
        Verb::Show { admin, id } => {
            show(&find(admin, id)?)?;
            Ok(Answer::Yes)
        }
        Verb::Yes(word) => answer(word, true),
        Verb::No(word) => answer(word, false),
    }
}

fn list(admin: &Admin) -> anyhow::Result<Answer> {
    let now_ms = now_ms()?;
    let rows = waiting(admin)?.into_iter().map(|call| row(call, now_ms));
    table::print(&HEAD, rows);
    Ok(Answer::Yes)
}

/// The columns of calls that wait.
pub(crate) const HEAD: [&str; 7] = ["CALL", "YES", "BY", "AGE", "LEFT", "TOOL", "SANDBOX"];

/// A call that waits, by those columns.
pub(crate) fn row(call: Waiting, now_ms: u64) -> Vec<String> {
    let people = match (call.display, call.people.is_empty()) {
        // Nobody can say yes to what nobody can see.
        (None, _) => "unseen: it must be made again".to_owned(),
        (Some(_), true) => "-".to_owned(),
        (Some(_), false) => call.people.join(" "),
    };
    let seconds = |ms: u64| format!("{} s", ms / 1000);
    vec![
        call.id,
        format!("{}/{}", call.given, call.needed),
        people,
        seconds(now_ms.saturating_sub(call.since_ms)),
        seconds(call.expires_ms.saturating_sub(now_ms)),
        call.tool,
        call.sandbox,
    ]
}

/// This machine's clock in milliseconds since 1970.
pub(crate) fn now_ms() -> anyhow::Result<u64> {
    Ok(u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis())?)
}

pub(crate) fn waiting(admin: &Admin) -> anyhow::Result<Vec<Waiting>> {
    let mut all: Vec<Waiting> = Vec::new();
    loop {
        let after = all.last().map(|call| call.id.clone());
        match admin.ask(&Command::ApprovalList { after })? {
            Reply::Approvals(calls) if calls.is_empty() => return Ok(all),
            Reply::Approvals(calls) => all.extend(calls),
            _ => bail!("the gateway answered something else than the calls that wait"),
        }
    }
}

fn find(admin: &Admin, id: &str) -> anyhow::Result<Waiting> {
    let found = waiting(admin)?.into_iter().find(|call| call.id == id);
    found.ok_or_else(|| Refused(format!("id: expected a call that waits, got {id}")).into())
}

/// Prints what there is to approve, and returns its exact bytes.
fn show(call: &Waiting) -> anyhow::Result<&str> {
    let Some(display) = &call.display else {
        let text = "the gateway started again since; the call must be made again to be seen";
        return Err(Refused(text.to_owned()).into());
    };
    let value: serde_json::Value = serde_json::from_str(display)?;
    println!("{}", table::plain(&serde_json::to_string_pretty(&value)?));
    Ok(display)
}

fn answer(word: &Word, approve: bool) -> anyhow::Result<Answer> {
    let call = find(&word.admin, &word.id)?;
    let display = show(&call)?;
    let said = (approve, word.reason.clone());
    let approval = sign(&word.key, &word.name, (&word.id, display), said)?;
    word.admin.act(&Command::ApprovalAdd { approval })
}

/// A person's word on what the decision or stop `hold` is about, of which they
/// were shown `display`: signed, base64url.
pub(crate) fn sign(
    key: &Path,
    name: &str,
    (hold, display): (&str, &str),
    (approve, reason): (bool, Option<String>),
) -> anyhow::Result<String> {
    let hold = hex::decode(hold)?.try_into().ok().context("id: expected 64 hex digits")?;
    let now = now_ms()? / 1000;
    let key = open(key)?;
    let approval = Approval {
        hold,
        approve,
        approver: name.to_owned(),
        display: casemate_ledger::digest(display.as_bytes()),
        expires: UnixTime(now + LIFETIME_SECONDS),
        reason,
    };
    let signed = approval.sign(key.public(), |message| key.sign(message));
    Ok(URL_SAFE_NO_PAD.encode(signed.bytes()))
}

fn open(key: &Path) -> anyhow::Result<SigningKey> {
    if !key.exists() {
        bail!("{}: no such key; `casemate approve keygen` makes one", key.display());
    }
    Ok(SigningKey::open(key)?)
}
