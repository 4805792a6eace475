//! `query`: one SELECT over listed tables, columns and functions.
//!
//! Two locks. `render` understands the statement whole, refuses what is not on
//! its list, and writes it anew with every name resolved and quoted: the text
//! that came in is never executed. Behind it stands what the database itself
//! allows: a role with rights to the listed columns alone (PostgreSQL), or the
//! authorizer of a read-only connection (SQLite). Each holds without the other.

mod postgres;
mod render;
mod sqlite;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use self::render::{Catalogue, Dialect};
use super::{Breach, Failure, arguments};
use crate::secrets::Secrets;

/// What `gateway.toml` says of a database.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct SqlConfig {
    /// An SQLite database's file.
    #[serde(default)]
    pub sqlite: Option<PathBuf>,
    /// A PostgreSQL server: `host=/run/postgresql user=reader dbname=shop`,
    /// over a unix socket or loopback.
    #[serde(default)]
    pub postgres: Option<String>,
    /// The file with the role's password, if it has one.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The tables, `orders` or `shop.orders`, and their columns.
    pub tables: BTreeMap<String, Vec<String>>,
    /// The functions. Default `avg`, `count`, `max`, `min`, `sum`, `lower`, `upper`, `length`, `abs`, `round`.
    #[serde(default = "default_functions")]
    pub functions: Vec<String>,
    /// The most rows of a result. Default 1000.
    #[serde(default = "default_rows")]
    pub max_rows: usize,
    /// The longest that the database may work, in milliseconds. Default 5000.
    #[serde(default = "default_time")]
    pub max_ms: u64,
}

/// The tool over one database.
pub(crate) struct Sql {
    catalogue: Catalogue,
    engine: Engine,
    max_rows: usize,
    max_ms: u64,
}

enum Engine {
    Sqlite(PathBuf),
    Postgres(Box<postgres::Server>),
}

/// A statement that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Query {
    /// The statement, written anew.
    text: String,
    /// The names of its columns.
    columns: Vec<String>,
    /// How many parameters it has.
    parameters: usize,
}

/// Rows, as strings, numbers, booleans and nulls.
struct Rows {
    rows: Vec<Vec<Value>>,
    complete: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Arguments {
    sql: String,
    #[serde(default)]
    parameters: Vec<Value>,
}

const MAX_PARAMETERS: usize = 64;

impl Sql {
    /// Opens the database once, and checks what its role may do.
    pub(crate) async fn open(
        config: &SqlConfig,
        secrets: &Secrets,
        timeout_ms: u64,
    ) -> Result<Self, String> {
        let max_ms = config.max_ms.min(timeout_ms);
        let (dialect, engine) = match (&config.sqlite, &config.postgres) {
            (Some(file), None) => (Dialect::Sqlite, Engine::Sqlite(file.clone())),
            (None, Some(server)) => {
                let password = match &config.password_file {
                    Some(file) => Some(secrets.value(file).ok_or("password_file: not read")?),
                    None => None,
                };
                let server = postgres::Server::new(server, password)?;
                (Dialect::Postgres, Engine::Postgres(Box::new(server)))
            }
            _ => return Err("expected one of sqlite and postgres".to_owned()),
        };
        let catalogue = Catalogue::new(dialect, &config.tables, &config.functions)?;
        match &engine {
            Engine::Sqlite(file) => sqlite::look(file, &catalogue)?,
            Engine::Postgres(server) => server.check_role(&catalogue).await?,
        }
        Ok(Self { catalogue, engine, max_rows: config.max_rows, max_ms })
    }

    /// The tool's definition, with the tables that it reads.
    pub(crate) fn definitions(&self) -> Vec<Value> {
        let description = format!(
            "Runs one SELECT over these tables: {}. Values go into parameters as $1, $2. \
             At most {} rows.",
            self.catalogue.describe(),
            self.max_rows
        );
        vec![json!({
            "name": "query",
            "description": description,
            "inputSchema": {
                "type": "object",
                "properties": {
                    "sql": {"type": "string", "maxLength": render::MAX_SQL_BYTES},
                    "parameters": {
                        "type": "array",
                        "maxItems": MAX_PARAMETERS,
                        "items": {"type": ["string", "number", "boolean", "null"]},
                    },
                },
                "required": ["sql"],
                "additionalProperties": false,
            },
        })]
    }

    /// Whether the statement reads what is listed and nothing else.
    pub(crate) fn check(&self, value: &Value) -> Result<(), Breach> {
        self.understand(value).map(drop)
    }

    /// Runs the statement.
    pub(crate) async fn call(
        &self,
        value: &Value,
        limit: usize,
    ) -> Result<Map<String, Value>, Failure> {
        let (query, parameters) = self.understand(value)?;
        let columns = query.columns.clone();
        let rows = match &self.engine {
            Engine::Sqlite(file) => {
                let (file, catalogue) = (file.clone(), self.catalogue.clone());
                let limits = (self.max_rows, limit, self.max_ms);
                let work = move || sqlite::run(&file, &catalogue, &query, &parameters, limits);
                let ended = tokio::task::spawn_blocking(work).await;
                ended.map_err(|error| Failure::Upstream(error.to_string()))??
            }
            Engine::Postgres(server) => {
                server.run(&query, &parameters, self.max_rows, limit, self.max_ms).await?
            }
        };
        let mut found = Map::new();
        found.insert("columns".to_owned(), columns.into());
        found.insert("rows".to_owned(), rows.rows.into_iter().map(Value::Array).collect());
        found.insert("complete".to_owned(), rows.complete.into());
        Ok(found)
    }

    fn understand(&self, value: &Value) -> Result<(Query, Vec<Value>), Breach> {
        let wanted: Arguments = arguments(value)?;
        let odd = wanted.parameters.iter().any(|one| one.is_array() || one.is_object());
        if odd || wanted.parameters.len() > MAX_PARAMETERS {
            return Err(Breach::reach("sql/parameters", "at most 64 simple values", "others"));
        }
        let query = self.catalogue.render(&wanted.sql)?;
        if query.parameters != wanted.parameters.len() {
            let actual = wanted.parameters.len();
            return Err(Breach::reach("sql/parameters", query.parameters, actual));
        }
        Ok((query, wanted.parameters))
    }
}

impl Rows {
    /// Adds a row while the bytes of all stay within `left`.
    fn push(&mut self, row: Vec<Value>, left: &mut usize) -> Result<(), Failure> {
        let bytes: usize = row.iter().map(|value| value.to_string().len().saturating_add(1)).sum();
        *left = left
            .checked_sub(bytes)
            .ok_or_else(|| Failure::Blocked("more bytes than a result may have".to_owned()))?;
        self.rows.push(row);
        Ok(())
    }
}

fn default_functions() -> Vec<String> {
    ["avg", "count", "max", "min", "sum", "lower", "upper", "length", "abs", "round"]
        .map(str::to_owned)
        .to_vec()
}

fn default_rows() -> usize {
    1000
}

fn default_time() -> u64 {
    5000
}
