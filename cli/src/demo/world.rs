//! Everything that stands before the first step: keys, configurations, services.
//!
//! Each party's files lie in a folder of its own, as they would on machines of
//! their own: `verifier/` is the tenant's, `gateway/` whoever runs the gateway's,
//! `host/` the operator's.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};

use super::Arguments;
use super::stage::Stage;

/// What the steps need to know.
pub(crate) struct World {
    /// PID 1 and the stand-in agent, static.
    pub(crate) guest: PathBuf,
    pub(crate) agent: PathBuf,
    /// The public key of whoever issues grants.
    pub(crate) issuer_key: String,
    /// Unix socket paths are short, so the sockets lie in a folder of their own.
    sockets: tempfile::TempDir,
}

/// The task that the grant is for, and that the sandbox is admitted for.
pub(crate) const TASK: &str = "plan-a-meeting";
/// The secret that this boundary may have, and the one that it may not.
pub(crate) const MEDIUM_SECRET: &str = "calendar-token";
pub(crate) const HIGH_SECRET: &str = "payroll-key";

impl World {
    /// Makes every party's keys and configuration.
    pub(crate) fn make(stage: &Stage, arguments: &Arguments) -> anyhow::Result<Self> {
        let programs = match &arguments.programs {
            Some(folder) => folder.clone(),
            None => programs_beside_this_one()?,
        };
        let mut world = Self {
            issuer_key: String::new(),
            guest: present(&programs.join("casemate-guest"), "make build")?,
            agent: present(&programs.join("casemate-agent"), "make build")?,
            sockets: tempfile::Builder::new().prefix("casemate-").tempdir()?,
        };
        let python = present(&arguments.python, "make setup")?;
        // Every play starts anew; only the kernel package and the model's keys
        // (slow to make) are kept.
        for folder in ["verifier", "gateway", "host", "issuer", "image", "tampered", "agent"] {
            stage.forget(folder)?;
        }
        println!("Before the first step: each party makes its keys.");
        world.make_verifier(stage)?;
        world.make_issuer(stage)?;
        world.make_gateway(stage, &python)?;
        world.make_host(stage)?;
        world.make_guest(stage)?;
        Ok(world)
    }

    /// A socket's path.
    pub(crate) fn socket(&self, name: &str) -> String {
        self.sockets.path().join(name).display().to_string()
    }

    fn make_verifier(&self, stage: &Stage) -> anyhow::Result<()> {
        stage.write("verifier/policy.toml", include_str!("../../../demo/policy.toml"))?;
        let config = format!(
            r#"listen = "unix:{listen}"
server_name = "verifier.demo.internal"
trust_domain = "demo.internal"
tenant = "acme"
audience = "acme"
state_dir = "state"
admin_socket = "{admin}"
policy_file = "policy.toml"
reference_value_files = ["reference.toml"]
trust_anchors_file = "trust-anchors.toml"

[[task]]
name = "{TASK}"
risk = "medium"
secrets = ["{MEDIUM_SECRET}", "{HIGH_SECRET}"]
"#,
            listen = self.socket("verifier"),
            admin = self.socket("verifier-admin"),
        );
        let config = stage.write("verifier/verifier.toml", &config)?;
        stage.must(&["verifier", "init", "--config", text(&config)?])?;
        Ok(())
    }

    fn make_issuer(&mut self, stage: &Stage) -> anyhow::Result<()> {
        let said = stage.must(&["grant", "keygen", "--out", text(&stage.path("issuer"))?])?;
        let key = said.split_whitespace().last().context("keygen prints the key last")?;
        key.clone_into(&mut self.issuer_key);
        Ok(())
    }

    fn make_gateway(&self, stage: &Stage, python: &Path) -> anyhow::Result<()> {
        let config = format!(
            r#"listen = "unix:{listen}"
server_name = "gateway.demo.internal"
tenant = "acme"
log_origin = "demo.internal/acme/log1"
state_dir = "state"
admin_socket = "{admin}"
identity_ca_file = "{identity_ca}"
boundary = "same-host"

[[issuer]]
name = "acme-operations"
key = "{key}"

[[upstream]]
name = "time"
command = ["{python}", "-m", "mcp_server_time", "--local-timezone", "UTC"]
confine = {{ read = {read} }}

[[upstream.tool]]
name = "get_current_time"
risk = "low"

[[upstream.tool]]
name = "convert_time"
risk = "low"
"#,
            listen = self.socket("gateway"),
            admin = self.socket("gateway-admin"),
            identity_ca = stage.path("verifier/state/identity-ca.pem").display(),
            key = self.issuer_key,
            python = python.display(),
            read = serde_json::to_string(&interpreter_folders(python)?)?,
        );
        let config = stage.write("gateway/gateway.toml", &config)?;
        stage.must(&["gateway", "init", "--config", text(&config)?])?;
        Ok(())
    }

    fn make_host(&self, stage: &Stage) -> anyhow::Result<()> {
        let config = format!(
            r#"name = "demo-host"
state = "{state}"

[services]
verifier = "unix:{verifier}"
gateway = "unix:{gateway}"

[psp_model]
folder = "{psp}"

[gpu_model]
folder = "{gpu}"
"#,
            state = stage.path("host/state").display(),
            psp = stage.path("psp-model").display(),
            gpu = stage.path("gpu-model").display(),
            verifier = self.socket("verifier"),
            gateway = self.socket("gateway"),
        );
        let config = stage.write("host/host.toml", &config)?;
        // The tenant enrols the operator's host key and, for this demo alone, the
        // roots of the software models; all are named for what they are.
        let enrolment = stage.must(&["host", "enrolment", "--config", text(&config)?])?;
        stage.write("verifier/trust-anchors.toml", &enrolment)?;
        Ok(())
    }

    fn make_guest(&self, stage: &Stage) -> anyhow::Result<()> {
        let pem = |name: &str| {
            let path = stage.path(name);
            std::fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))
        };
        let config = format!(
            r#"[verifier]
server_name = "verifier.demo.internal"
ca_pem = """{verifier_ca}"""
identity_ca_pem = """{identity_ca}"""

[gateway]
server_name = "gateway.demo.internal"
ca_pem = """{gateway_ca}"""

[workload]
root = "/workload"
argv = ["/bin/casemate-agent", "/script.toml"]
uid = 1000
gid = 1000

[[secret]]
name = "{MEDIUM_SECRET}"
receiver = "workload-fd"
fd = 3
required = true

[[secret]]
name = "{HIGH_SECRET}"
receiver = "guest"
required = false
"#,
            verifier_ca = pem("verifier/state/tls-ca.pem")?,
            identity_ca = pem("verifier/state/identity-ca.pem")?,
            gateway_ca = pem("gateway/state/keys/ca.pem")?,
        );
        stage.write("agent/guest.toml", &config)?;
        stage.write("agent/script.toml", include_str!("../../../demo/agent.toml"))?;
        Ok(())
    }

    /// Starts verifier and gateway, stores the secrets, and gives the grant.
    pub(crate) fn start_services(&self, stage: &mut Stage) -> anyhow::Result<()> {
        let config = stage.path("verifier/verifier.toml");
        stage.spawn("verifier", &["verifier", "serve", "--config", text(&config)?])?;
        let config = stage.path("gateway/gateway.toml");
        stage.spawn("gateway", &["gateway", "serve", "--config", text(&config)?])?;
        for name in ["verifier-admin", "gateway-admin"] {
            let socket = self.socket(name);
            stage.wait(name, SERVICE_LIMIT, || Path::new(&socket).exists().then_some(()))?;
        }
        self.put_secret(stage, MEDIUM_SECRET, "medium")?;
        self.put_secret(stage, HIGH_SECRET, "high")?;
        let grant = stage.write("issuer/grant.toml", include_str!("../../../demo/grant.toml"))?;
        stage.must(&[
            "grant",
            "create",
            "--admin",
            &self.socket("gateway-admin"),
            "--key",
            text(&stage.path("issuer/issuer.key"))?,
            "--issuer",
            "acme-operations",
            text(&grant)?,
        ])?;
        Ok(())
    }

    fn put_secret(&self, stage: &Stage, name: &str, risk: &str) -> anyhow::Result<()> {
        let value =
            stage.write(&format!("verifier/{name}.value"), &format!("the value of {name}"))?;
        let admin = self.socket("verifier-admin");
        let file = text(&value)?;
        stage.must(&["secret", "put", "--admin", &admin, name, "--risk", risk, "--file", file])?;
        Ok(())
    }
}

/// A path as an argument.
pub(crate) fn text(path: &Path) -> anyhow::Result<&str> {
    path.to_str().with_context(|| format!("{}: expected a path in UTF-8", path.display()))
}

/// `make` builds this program into target/release and the static ones beside that.
fn programs_beside_this_one() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe()?;
    let target = program.parent().and_then(Path::parent).context("this program has no folder")?;
    Ok(target.join("x86_64-unknown-linux-musl/release"))
}

fn present(path: &Path, maker: &str) -> anyhow::Result<PathBuf> {
    if !path.exists() {
        bail!("{}: not there; `{maker}` makes it", path.display());
    }
    std::path::absolute(path).with_context(|| path.display().to_string())
}

const SERVICE_LIMIT: Duration = Duration::from_secs(60);

/// What the interpreter needs beside the system's own files: the environment
/// with its packages, and the installation it came from, where that is elsewhere.
fn interpreter_folders(python: &Path) -> anyhow::Result<Vec<String>> {
    let real = python.canonicalize().with_context(|| format!("{}", python.display()))?;
    let folder =
        |program: &Path| program.ancestors().nth(2).map(|folder| folder.display().to_string());
    let installation = folder(&real).filter(|_| !real.starts_with("/usr"));
    Ok(folder(python).into_iter().chain(installation).collect())
}
