//! One digest over everything that decisions rest on beside the grants. It
//! stands in each decision and in what people approve: when anything here
//! changes, an approval is for nothing. What it covers is kept by it, for
//! auditors. Format: docs/formats/gateway-policy.md.

use std::collections::BTreeMap;

use casemate_ledger::policy::{self, Floor, MAX_POLICY_BYTES, Sha256};
use casemate_ledger::text;

use crate::catalogue::Tool;
use crate::config::{Config, ConfigError, field};
use crate::decide::{PinnedTool, Rules};

/// Covers each upstream's whole configuration as `gateway.toml` has it, with
/// paths and not with the contents of the files: credentials may be renewed.
pub(crate) fn file(
    config: &Config,
    issuers: &BTreeMap<String, [u8; 32]>,
    tools: &BTreeMap<String, Tool>,
    rules: Option<&Rules>,
) -> Result<Vec<u8>, ConfigError> {
    let hex = |(name, bytes): (&String, [u8; 32])| (name.clone(), text::hex(&bytes));
    let issuers: BTreeMap<_, _> = issuers.iter().map(|(name, key)| hex((name, *key))).collect();
    let tools: BTreeMap<_, _> =
        tools.iter().map(|(name, tool)| (name.clone(), told(&tool.pinned))).collect();
    let floor = &config.boundary_floor;
    let (low, medium) = (floor.low.clone(), floor.medium.clone());
    let approvers = config.approvers.iter().map(|one| [&one.name, &one.person, &one.key]);
    let policy = serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "tenant": config.tenant,
        "boundary": config.boundary.name(),
        "rules": rules.map(|rules| text::hex(&rules.digest)),
        "require_permit": config.rules.as_ref().is_some_and(|rules| rules.require_permit),
        "approvers": approvers.collect::<Vec<_>>(),
        "loops": config.loops,
        "floor": Floor { low, medium, high: floor.high.clone() },
        "issuers": issuers,
        "tools": tools,
    });
    let wrong = |error: &dyn std::fmt::Display| field("gateway.toml", "paths in UTF-8", error);
    // Not inside the macro, which panics on a path that is no text.
    let upstreams = serde_json::to_value(&config.upstreams).map_err(|error| wrong(&error))?;
    let policy = serde_json::json!({ "policy": policy, "upstreams": upstreams });
    let bytes = casemate_ledger::json::canonical(&policy).map_err(|error| wrong(&error))?;
    if bytes.len() > MAX_POLICY_BYTES {
        return Err(field("gateway.toml", "a configuration of at most 4 MiB", bytes.len()));
    }
    Ok(bytes)
}

/// A tool as the file has it.
fn told(tool: &PinnedTool) -> policy::Tool {
    policy::Tool {
        upstream: tool.upstream.clone(),
        definition: Sha256(tool.digest),
        risk: tool.risk,
        idempotent: tool.idempotent,
        read_only: tool.read_only,
        cost_micro: tool.cost_micro,
        label: tool.label,
        volatile: tool.volatile.clone(),
        max_result_bytes: tool.max_result_bytes,
        timeout_ms: tool.timeout_ms,
    }
}

/// A tool as decisions take it, by the file.
pub(crate) fn pinned(tool: &policy::Tool) -> PinnedTool {
    PinnedTool {
        upstream: tool.upstream.clone(),
        digest: tool.definition.0,
        risk: tool.risk,
        idempotent: tool.idempotent,
        read_only: tool.read_only,
        cost_micro: tool.cost_micro,
        label: tool.label,
        volatile: tool.volatile.clone(),
        drifted: false,
        resting: false,
        max_result_bytes: tool.max_result_bytes,
        timeout_ms: tool.timeout_ms,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    const UPSTREAMS: &str = r#"
        [[upstream]]
        name = "web"
        timeout_ms = 1000
        [upstream.http]
        networks = ["10.1.0.0/16"]
        [[upstream.http.rule]]
        host = "api.example.com"
        path = "/v1/items"
        [[upstream.tool]]
        name = "request"
        risk = "low"

        [[upstream]]
        name = "fs"
        files = { root = "/srv/data" }

        [[upstream]]
        name = "db"
        sql = { sqlite = "/srv/shop.db", tables = { orders = ["id"] }, max_rows = 10 }

        [[upstream]]
        name = "far"
        remote = { url = "https://mcp.example.com/mcp" }

        [[upstream]]
        name = "near"
        command = ["/usr/bin/env", "true"]
        confine = { memory_mib = 512 }
    "#;

    fn read(upstreams: &str) -> Config {
        let example = include_str!("../gateway.example.toml");
        let own = example.split("[[upstream]]").next().unwrap();
        toml::from_str(&format!("{own}{upstreams}")).unwrap()
    }

    fn of(upstreams: &str) -> [u8; 32] {
        let config = read(upstreams);
        config.upstreams.iter().for_each(|upstream| upstream.check(&[]).unwrap());
        casemate_ledger::digest(&file(&config, &BTreeMap::new(), &BTreeMap::new(), None).unwrap())
    }

    #[test]
    fn each_change_of_an_upstream_changes_the_digest() {
        assert_eq!(of(UPSTREAMS), of(UPSTREAMS));
        let mut seen = BTreeSet::from([of(UPSTREAMS)]);
        for (from, to) in [
            ("timeout_ms = 1000", "timeout_ms = 1001"),
            ("10.1.0.0/16", "10.1.0.0/15"),
            ("api.example.com", "*.example.com"),
            ("/v1/items", "/v1/{id}"),
            ("path =", "inject = { authorization = \"/token\" }\npath ="),
            ("risk = \"low\"", "risk = \"low\"\nread_only = true"),
            ("risk = \"low\"", "risk = \"low\"\nlabel = \"internal\""),
            ("root = \"/srv/data\"", "root = \"/srv\""),
            ("root = \"/srv/data\"", "root = \"/srv/data\", write = true"),
            ("orders = [\"id\"]", "orders = [\"id\", \"ssn\"]"),
            ("max_rows = 10", "max_rows = 11"),
            ("max_rows = 10", "max_rows = 10, functions = []"),
            ("/mcp\"", "/other\""),
            ("/mcp\" }", "/mcp\", networks = [\"10.0.0.1\"] }"),
            ("\"true\"", "\"false\""),
            ("memory_mib = 512", "memory_mib = 513"),
            ("memory_mib = 512", "memory_mib = 512, network = true"),
            ("memory_mib = 512", "memory_mib = 512, write = [\"/srv/out\"]"),
            ("confine =", "env = { A = \"b\" }\nconfine ="),
            ("confine =", "secret_env = { A = \"/b\" }\nconfine ="),
            ("confine =", "confinement = \"none\"\nconfine ="),
        ] {
            assert!(UPSTREAMS.contains(from), "{from}");
            assert!(seen.insert(of(&UPSTREAMS.replace(from, to))), "{to}");
        }
    }

    #[test]
    fn what_has_no_digest_stops_the_gateway() {
        let mut config = read(UPSTREAMS);
        let root = std::ffi::OsStr::from_bytes(b"/srv/\xff").into();
        config.upstreams.iter_mut().flat_map(|one| &mut one.files).for_each(|files| {
            files.root = std::path::PathBuf::clone(&root);
        });
        let error = file(&config, &BTreeMap::new(), &BTreeMap::new(), None).unwrap_err();
        assert!(error.to_string().contains("gateway.toml"), "{error}");
    }
}
