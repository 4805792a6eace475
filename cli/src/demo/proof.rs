//! Step 7: one call proved offline, from the log's head to the trust anchor.

use anyhow::Context;

use super::record;
use super::stage::Stage;
use super::work::{allowed, denied};
use super::world::{World, text};

/// Exports two receipts, proves them without any service, and breaks one.
pub(crate) fn show(stage: &mut Stage, world: &World) -> anyhow::Result<()> {
    stage.step(7, "Proof: any call, offline, to anybody");
    let calls = record::decisions(world, 0);
    let yes = allowed(&calls, "time.convert_time").next().context("no call was allowed")?.leaf;
    let no = denied(&calls, "tool_not_granted", "shell.run").next().context("none denied")?.leaf;
    let receipt = export(stage, world, yes, "allowed.receipt")?;
    let denial = export(stage, world, no, "denied.receipt")?;
    let trust = trust_file(stage, world)?;
    // From here on nothing is asked of anybody: the services are gone.
    stage.stop_services();
    let tree = stage.must(&["receipt", "verify", &receipt, "--trust", &trust])?;
    let device = tree.contains("gpu0, a software MODEL");
    stage.say(tree);
    anyhow::ensure!(device, "the receipt does not show the machine's GPU");
    stage.holds("an allowed call, proved with the services gone");
    stage.must(&["receipt", "verify", &denial, "--trust", &trust, "--json"])?;
    stage.holds("a denied call, proved too");
    broken(stage, &receipt, &trust)
}

fn export(stage: &Stage, world: &World, leaf: u64, name: &str) -> anyhow::Result<String> {
    let out = text(&stage.path(name))?.to_owned();
    let (admin, leaf) = (world.socket("gateway-admin"), leaf.to_string());
    stage.must(&["receipt", "export", "--admin", &admin, "--decision", &leaf, "--out", &out])?;
    Ok(out)
}

/// What an auditor trusts: the log's and gateway's keys, the verifier's CA, the
/// issuer, policy and reference values, and where evidence may end.
fn trust_file(stage: &Stage, world: &World) -> anyhow::Result<String> {
    let config = stage.path("gateway/gateway.toml");
    let keys = stage.must(&["gateway", "init", "--config", text(&config)?])?;
    let key = |name: &str| {
        let line = keys.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_whitespace().nth(1)).with_context(|| format!("no {name}"))
    };
    let read = |name: &str| std::fs::read_to_string(stage.path(name)).context(name.to_owned());
    let trust = format!(
        r#"log = "{log}"
gateway_key = "{gateway}"
policy_sha256 = "{policy}"
reference_sha256 = "{reference}"
identity_ca = """{ca}"""
trust_anchors = '''
{anchors}'''

[[issuer]]
name = "acme-operations"
key = "{issuer}"
"#,
        log = key("log_vkey")?,
        gateway = key("gateway_key")?,
        policy = sha256(&read("verifier/policy.toml")?),
        reference = sha256(&read("verifier/reference.toml")?),
        ca = read("verifier/state/identity-ca.pem")?,
        anchors = read("verifier/trust-anchors.toml")?,
        issuer = world.issuer_key,
    );
    Ok(text(&stage.write("trust.toml", &trust)?)?.to_owned())
}

fn sha256(text: &str) -> String {
    hex::encode(casemate_attestation::crypto::sha256(text.as_bytes()))
}

/// One flipped bit, and the proof says where it breaks.
fn broken(stage: &Stage, receipt: &str, trust: &str) -> anyhow::Result<()> {
    let mut bytes = std::fs::read(receipt)?;
    let middle = bytes.len() / 2;
    let byte = bytes.get_mut(middle).context("the receipt is empty")?;
    *byte ^= 1;
    let path = stage.path("broken.receipt");
    std::fs::write(&path, bytes)?;
    let done = stage.run(&["receipt", "verify", text(&path)?, "--trust", trust])?;
    anyhow::ensure!(done.code == 1, "a broken receipt ended with {}, expected 1", done.code);
    stage.say(done.stdout.lines().last().unwrap_or_default());
    stage.holds("the same receipt with one bit flipped: not proved");
    Ok(())
}
