//! `tools/list`: what the caller's grants allow, and nothing else.

use std::collections::BTreeMap;

use casemate_ledger::Identity;
use casemate_ledger::cgp::{GrantMeta, RpcError, ToolMeta, error_code, meta};
use serde_json::{Value, json};

use crate::catalogue::Tool;
use crate::decide::Held;
use crate::service::Gateway;
use crate::sync::locked;

/// How long a port may keep the list.
const KEEP_MS: u64 = 30_000;

/// The tools of every grant that `caller` could use now, sorted by name.
pub(crate) fn tools(gateway: &Gateway, caller: &Identity) -> Result<Value, RpcError> {
    let now = gateway.clock.now();
    let all = gateway.catalogue.all();
    let mut listed = BTreeMap::new();
    let mut keep_ms = KEEP_MS;
    let state = locked(&gateway.state);
    for held in state.of_task(&caller.claims.task) {
        let line = state.line(&held.grant.id);
        let live = |held: &&Held| !held.revoked && held.grant.is_timely(now.unix());
        let usable = !line.is_empty()
            && line.iter().all(live)
            && held.is_for(caller)
            && caller.claims.properties.missing(&held.grant.require).is_empty();
        if !usable {
            continue;
        }
        let left = held.grant.expires.0.saturating_mul(1000).saturating_sub(now.unix_ms);
        keep_ms = if left < KEEP_MS { 0 } else { keep_ms };
        for clause in &held.grant.tools {
            let Some(tool) = all.get(&clause.tool).filter(|tool| fits(held, tool)) else {
                continue;
            };
            listed.entry(clause.tool.clone()).or_insert_with(|| show(&clause.tool, tool, held));
        }
    }
    let tools = listed.into_values().collect::<Result<Vec<Value>, _>>();
    let tools =
        tools.map_err(|error| RpcError::new(error_code::OVERLOAD, format!("listing: {error}")))?;
    Ok(json!({
        "resultType": "complete",
        "tools": tools,
        "ttlMs": keep_ms,
        "cacheScope": "private",
    }))
}

fn fits(held: &Held, tool: &Tool) -> bool {
    !tool.pinned.drifted && !tool.pinned.resting && tool.pinned.risk <= held.grant.risk_ceiling
}

fn show(name: &str, tool: &Tool, held: &Held) -> Result<Value, serde_json::Error> {
    let grant = GrantMeta { id: held.grant.id, digest: held.digest };
    let about = serde_json::to_value(ToolMeta { digest: tool.pinned.digest, grant })?;
    let mut shown = tool.definition.clone();
    shown.insert("name".to_owned(), name.into());
    shown.insert("_meta".to_owned(), json!({ meta::TOOL: about }));
    Ok(Value::Object(shown))
}
