//! Tools that the gateway runs itself, because only who reads a request whole
//! can bound what it reaches: files beneath a directory, HTTPS requests to
//! listed places, SQL over listed tables.
//!
//! Each has two faces. `check` looks at the arguments alone and is part of the
//! decision; `call` does the work, and holds even if `check` had missed
//! something: the kernel, the address that was looked at, the database's role.

pub(crate) mod files;
pub(crate) mod http;
pub(crate) mod sql;
pub(crate) mod url;

use std::sync::Arc;

use casemate_ledger::cgp::{Denial, DenyCode};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::secrets::Secrets;
use crate::upstream::config::Upstream;

/// The tools of one upstream. Shared: no call leaves anything behind in it.
#[derive(Clone)]
pub(crate) enum Native {
    Files(Arc<files::Files>),
    Http(Arc<http::Http>),
    Sql(Arc<sql::Sql>),
}

/// Arguments that reach for what is not given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Breach {
    pub(crate) code: DenyCode,
    pub(crate) rule: String,
    pub(crate) expected: String,
    pub(crate) actual: String,
}

/// Why there is no result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The call reached for what is not given.
    Breach(Breach),
    /// The tool failed, and says why.
    Tool(String),
    /// The server behind the tool broke a limit or the protocol.
    Upstream(String),
    /// The answer is longer than it may be, or of a kind that may not pass.
    Blocked(String),
}

impl Native {
    /// The native tools of an upstream, if it has any.
    pub(crate) async fn open(config: &Upstream, secrets: &Secrets) -> Result<Option<Self>, String> {
        if let Some(files) = &config.files {
            let path = files.root.display();
            let files = files::Files::open(files).map_err(|error| format!("{path}: {error}"))?;
            return Ok(Some(Self::Files(Arc::new(files))));
        }
        if let Some(http) = &config.http {
            return Ok(Some(Self::Http(Arc::new(http::Http::open(http, secrets)?))));
        }
        if let Some(sql) = &config.sql {
            let sql = sql::Sql::open(sql, secrets, config.timeout_ms).await?;
            return Ok(Some(Self::Sql(Arc::new(sql))));
        }
        Ok(None)
    }

    /// The tools' definitions.
    pub(crate) fn definitions(&self) -> Vec<Map<String, Value>> {
        let tools = match self {
            Self::Files(files) => files.definitions(),
            Self::Http(http) => http.definitions(),
            Self::Sql(sql) => sql.definitions(),
        };
        let object = |tool| if let Value::Object(tool) = tool { Some(tool) } else { None };
        tools.into_iter().filter_map(object).collect()
    }

    /// Whether the arguments reach for what is given. A pure function of them
    /// and the configuration.
    pub(crate) fn check(&self, tool: &str, arguments: &Value) -> Result<(), Breach> {
        match self {
            Self::Files(files) => files.check(tool, arguments),
            Self::Http(http) => http.check(arguments),
            Self::Sql(sql) => sql.check(arguments),
        }
    }

    /// Does what the arguments say, in an MCP result.
    pub(crate) async fn call(
        &self,
        tool: &str,
        arguments: Value,
        limit: usize,
    ) -> Result<Map<String, Value>, Failure> {
        let found = match self {
            Self::Files(files) => {
                let (files, tool) = (Arc::clone(files), tool.to_owned());
                tokio::task::spawn_blocking(move || files.call(&tool, &arguments))
                    .await
                    .map_err(|error| Failure::Upstream(error.to_string()))?
            }
            Self::Http(http) => http.call(&arguments, limit).await,
            Self::Sql(sql) => sql.call(&arguments, limit).await,
        };
        match found {
            Ok(found) => {
                let found = Value::Object(found);
                let failed = matches!(self, Self::Http(_)) && http::is_failure(&found);
                Ok(result(found, failed))
            }
            Err(Failure::Tool(text)) => Ok(result(json!({ "error": text }), true)),
            Err(failure) => Err(failure),
        }
    }
}

impl Breach {
    pub(crate) fn reach(
        rule: impl Into<String>,
        expected: impl ToString,
        actual: impl ToString,
    ) -> Self {
        let (expected, actual) = (expected.to_string(), actual.to_string());
        Self { code: DenyCode::DataReach, rule: rule.into(), expected, actual }
    }

    /// What a sandbox is told.
    pub(crate) fn denial(self) -> Denial {
        Denial {
            code: self.code,
            rule: format!("reach/{}", self.rule),
            expected: self.expected,
            actual: self.actual,
            hint: "ask for what the tool's configuration gives".to_owned(),
            retryable: false,
            retry_after_ms: None,
        }
    }
}

impl From<Breach> for Failure {
    fn from(breach: Breach) -> Self {
        Self::Breach(breach)
    }
}

/// `value` as a tool's arguments; an unknown one is refused.
fn arguments<T: DeserializeOwned>(value: &Value) -> Result<T, Breach> {
    T::deserialize(value).map_err(|error| {
        let mut breach = Breach::reach("arguments", "the tool's arguments", error);
        breach.code = DenyCode::ArgsInvalid;
        breach
    })
}

fn result(found: Value, is_error: bool) -> Map<String, Value> {
    let mut result = Map::new();
    let content = json!([{"type": "text", "text": found.to_string()}]);
    result.insert("resultType".to_owned(), "complete".into());
    result.insert("content".to_owned(), content);
    result.insert("structuredContent".to_owned(), found);
    result.insert("isError".to_owned(), is_error.into());
    result
}
