//! What stands for the gateway in the tests of the doors.

use std::sync::{Arc, Mutex};

use casemate_ledger::cgp::{Progress, RpcError, error_code};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::Shared;
use super::desk::Desk;
use crate::config;
use crate::gateway::Tools;

/// Answers each call with its arguments, after half of it if progress is wanted;
/// `slow` never answers, `killed` is refused.
#[derive(Debug, Clone, Default)]
pub(super) struct Echo {
    /// How many calls are over, whether answered or dropped.
    pub(super) over: Arc<Mutex<u32>>,
}

impl Echo {
    /// The handler with this behind it.
    pub(super) fn desk(&self, limits: config::Port) -> Desk<Self> {
        Desk::new(Shared::new(limits), self.clone())
    }
}

struct Running(Arc<Mutex<u32>>);

impl Drop for Running {
    fn drop(&mut self) {
        *self.0.lock().unwrap() += 1;
    }
}

impl Tools for Echo {
    async fn list(&self) -> Result<Value, RpcError> {
        Ok(json!({"tools": [{"name": "echo"}]}))
    }

    async fn call(
        &self,
        tool: String,
        arguments: Value,
        progress: Option<mpsc::Sender<Progress>>,
    ) -> Result<Value, RpcError> {
        if let Some(progress) = progress {
            let notice = Progress { progress_token: 1, progress: 0.5, total: None, message: None };
            progress.send(notice).await.unwrap();
        }
        let _running = Running(Arc::clone(&self.over));
        match tool.as_str() {
            "slow" => std::future::pending().await,
            "killed" => Err(RpcError::new(error_code::LEASE, "stopped")),
            _ => Ok(json!({"content": [], "structuredContent": arguments})),
        }
    }
}
