//! `casemate log serve`, `prove`, `check`: a published log as files.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context, bail};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use casemate_attestation::UnixTime;
use casemate_gateway::{Command, Reply};
use casemate_ledger::checkpoint::{Checkpoint, VerifierKey};
use casemate_ledger::proof::{MAX_PROOF_BYTES, TlogProof, verify_cose_receipt};
use casemate_ledger::quorum::{MAX_POLICY_BYTES, WitnessPolicy};
use casemate_ledger::{Leaf, leaf::MAX_LEAF_BYTES};
use casemate_ledger_store::Published;
use tokio::net::TcpListener;

use crate::operator::Admin;
use crate::{Answer, service, table};

/// Serves the log in `directory` until it is told to stop.
pub(super) fn serve(directory: &Path, listen: SocketAddr) -> anyhow::Result<Answer> {
    if !directory.join("checkpoint").is_file() {
        bail!("{}: expected a log with a checkpoint", directory.display());
    }
    service::run(async {
        let listener =
            TcpListener::bind(listen).await.with_context(|| format!("listen {listen}"))?;
        println!("http://{}/checkpoint", listener.local_addr()?);
        tokio::select! {
            () = casemate_ledger_http::serve_log(listener, directory) => {}
            ended = service::told_to_stop() => ended?,
        }
        Ok(())
    })?;
    Ok(Answer::Yes)
}

/// Writes a leaf and its tlog-proof, under the head that witnesses saw if it covers it.
pub(super) fn prove(directory: &Path, key: &str, leaf: u64, out: &Path) -> anyhow::Result<Answer> {
    let key = VerifierKey::parse(key)?;
    let log = match Published::open_witnessed(directory, &key)? {
        Some(log) if leaf < log.head().size => log,
        _ => Published::open(directory, &key)?,
    };
    let proof = log.prove(leaf)?;
    let note = log.note().to_owned();
    let text = TlogProof { extra: None, index: leaf, hashes: proof.hashes, note }.encode();
    write(&out.with_extension("leaf"), &proof.leaf)?;
    write(&out.with_extension("tlog-proof"), text.as_bytes())?;
    Ok(Answer::Yes)
}

/// Writes the COSE receipt that the gateway makes of a leaf.
pub(super) fn cose_receipt(admin: &Admin, leaf: u64, out: &Path) -> anyhow::Result<Answer> {
    let Reply::Receipt(text) = admin.ask(&Command::CoseReceipt { leaf })? else {
        bail!("the gateway answered something else than a receipt");
    };
    write(out, &URL_SAFE_NO_PAD.decode(text).context("the receipt is not base64url")?)?;
    Ok(Answer::Yes)
}

/// Checks a tlog-proof or a COSE receipt of the leaf in a file.
pub(super) fn check(
    proof: &Path,
    leaf: &Path,
    key: &str,
    witnesses: Option<&Path>,
) -> anyhow::Result<Answer> {
    let key = VerifierKey::parse(key)?;
    let leaf = read(leaf, MAX_LEAF_BYTES)?;
    let bytes = read(proof, MAX_PROOF_BYTES)?;
    let policy = witnesses.map(read_policy).transpose()?;
    let found = match str::from_utf8(&bytes) {
        Ok(text) if text.starts_with("c2sp.org/") => {
            TlogProof::parse(text).and_then(|proof| Ok((proof.verify(&leaf, &key)?, proof)))
        }
        _ => {
            if policy.is_some() {
                bail!("a COSE receipt has no cosignatures; give a tlog-proof");
            }
            let checked = verify_cose_receipt(&bytes, &leaf, &key);
            return Ok(told(checked.map(|()| "the leaf is in the log".to_owned())));
        }
    };
    let told_where = found.map(|(head, proof)| (place(&head, &proof, &leaf), proof.note));
    let Some(policy) = policy else { return Ok(told(told_where.map(|(text, _)| text))) };
    let (text, note) = match told_where {
        Ok(found) => found,
        Err(error) => return Ok(told(Err(error))),
    };
    println!("{text}");
    let seen = policy.witnessed(&note).map(|time| format!("witnessed at {}", UnixTime(time)));
    Ok(told(seen.ok_or("witnesses: expected the policy's quorum, got fewer")))
}

fn place(head: &Checkpoint, proof: &TlogProof, leaf: &[u8]) -> String {
    let what = Leaf::decode(leaf).map(|leaf| format!(": {}", table::plain(&leaf.describe())));
    let what = what.unwrap_or_default();
    format!("leaf {} of {}, {} leaves{what}", proof.index, head.origin, head.size)
}

fn told<E: std::fmt::Display>(checked: Result<String, E>) -> Answer {
    match checked {
        Ok(text) => {
            println!("{text}");
            Answer::Yes
        }
        Err(error) => {
            println!("NOT PROVED: {}", table::plain(&error.to_string()));
            Answer::No
        }
    }
}

fn read_policy(path: &Path) -> anyhow::Result<WitnessPolicy> {
    let text =
        String::from_utf8(read(path, MAX_POLICY_BYTES)?).context("the policy is not text")?;
    Ok(WitnessPolicy::parse(&text)?)
}

/// The whole of a file that may have at most `most` bytes.
pub(super) fn read(path: &Path, most: usize) -> anyhow::Result<Vec<u8>> {
    let size =
        std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
    if size.len() > u64::try_from(most)? {
        bail!("{}: expected at most {most} bytes, got {}", path.display(), size.len());
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{}: {} bytes", path.display(), bytes.len());
    Ok(())
}
