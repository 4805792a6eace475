//! PostgreSQL: a connection for each call, as a role that was found to have
//! rights to the listed columns alone.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tokio_postgres::config::Host;
use tokio_postgres::types::{Format, IsNull, ToSql, Type, private::BytesMut, to_sql_checked};
use tokio_postgres::{CancelToken, Client, Config, NoTls, SimpleQueryMessage};

use super::render::Catalogue;
use super::{Query, Rows};
use crate::native::{Breach, Failure};

/// A server and the role to be.
pub(super) struct Server {
    config: Config,
}

/// How long connecting may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What no reader may be or have. Each row says what was found.
const TOO_MUCH: &str = "
SELECT 'attribute of the role' FROM pg_catalog.pg_roles
 WHERE rolname OPERATOR(pg_catalog.=) CURRENT_USER
   AND (rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls)
UNION ALL
SELECT 'membership in ' || roleid::pg_catalog.regrole::text FROM pg_catalog.pg_auth_members
 WHERE member OPERATOR(pg_catalog.=) CURRENT_USER::pg_catalog.regrole
UNION ALL
SELECT 'owner of ' || oid::pg_catalog.regclass::text FROM pg_catalog.pg_class
 WHERE relowner OPERATOR(pg_catalog.=) CURRENT_USER::pg_catalog.regrole
UNION ALL
SELECT 'CREATE in schema ' || nspname FROM pg_catalog.pg_namespace
 WHERE nspname NOT LIKE 'pg\\_%' AND pg_catalog.has_schema_privilege(oid, 'CREATE')
UNION ALL
SELECT 'CREATE in the database' WHERE pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')
UNION ALL
SELECT 'more than SELECT on ' || c.oid::pg_catalog.regclass::text
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND (pg_catalog.has_table_privilege(c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')
        OR pg_catalog.has_any_column_privilege(c.oid, 'INSERT, UPDATE, REFERENCES'))
UNION ALL
SELECT 'SECURITY DEFINER function ' || p.oid::pg_catalog.regprocedure::text
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND p.prosecdef
   AND pg_catalog.has_function_privilege(p.oid, 'EXECUTE')";

/// Every column outside the system's schemas that the role may read.
const READABLE: &str = "
SELECT n.nspname, c.relname, a.attname
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid OPERATOR(pg_catalog.=) c.relnamespace
  JOIN pg_catalog.pg_attribute a ON a.attrelid OPERATOR(pg_catalog.=) c.oid
 WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast') AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
   AND a.attnum > 0 AND NOT a.attisdropped
   AND pg_catalog.has_column_privilege(c.oid, a.attnum, 'SELECT')";

impl Server {
    /// Reads the connection's words. Without TLS the way must stay on this host.
    pub(super) fn new(words: &str, password: Option<&str>) -> Result<Self, String> {
        let mut config: Config = words.parse().map_err(|error| format!("postgres: {error}"))?;
        let near = |host: &Host| match host {
            Host::Unix(path) => path.starts_with(Path::new("/")),
            Host::Tcp(host) => host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback()),
        };
        if config.get_hosts().is_empty() || !config.get_hosts().iter().all(near) {
            return Err(
                "postgres: expected host= as a socket directory or a loopback address".to_owned()
            );
        }
        if config.get_user().is_none() || config.get_dbname().is_none() {
            return Err("postgres: expected user= and dbname=".to_owned());
        }
        if let Some(password) = password {
            config.password(password);
        }
        config.connect_timeout(PATIENCE).application_name("casemate");
        Ok(Self { config })
    }

    /// Refuses a role that may do more than the listed reading.
    pub(super) async fn check_role(&self, catalogue: &Catalogue) -> Result<(), String> {
        let said = |error: tokio_postgres::Error| format!("postgres: {}", explain(&error));
        let (client, _connection) = self.connect().await.map_err(said)?;
        let found = client.simple_query(TOO_MUCH).await.map_err(said)?;
        if let Some(more) = found.iter().find_map(|message| cell(message, 0)) {
            return Err(format!("postgres: expected a role that only reads, got {more}"));
        }
        let found = client.simple_query(READABLE).await.map_err(said)?;
        for row in &found {
            let (Some(schema), Some(table), Some(column)) =
                (cell(row, 0), cell(row, 1), cell(row, 2))
            else {
                continue;
            };
            let listed = catalogue.tables().get(&(schema.to_owned(), table.to_owned()));
            if !listed.is_some_and(|columns| columns.iter().any(|one| one == column)) {
                return Err(format!(
                    "postgres: expected a role that reads listed columns, got {schema}.{table}.{column}"
                ));
            }
        }
        Ok(())
    }

    /// Runs `query` in a read-only transaction of its own.
    pub(super) async fn run(
        &self,
        query: &Query,
        parameters: &[Value],
        max_rows: usize,
        max_bytes: usize,
        max_ms: u64,
    ) -> Result<Rows, Failure> {
        let (client, _connection) = self.connect().await.map_err(upstream)?;
        let mut running = Cancel(Some(client.cancel_token()));
        let settings = format!(
            "BEGIN READ ONLY; SET LOCAL statement_timeout = {max_ms}; SET LOCAL lock_timeout = 1000; \
             SET LOCAL search_path = ''; SET LOCAL standard_conforming_strings = on; \
             SET LOCAL row_security = on"
        );
        client.batch_execute(&settings).await.map_err(upstream)?;
        let rows = fetch(&client, query, parameters, max_rows, max_bytes).await;
        running.0 = None;
        rows
    }

    async fn connect(&self) -> Result<(Client, Connection), tokio_postgres::Error> {
        let (client, connection) = self.config.connect(NoTls).await?;
        let task = tokio::spawn(async move {
            // Its error reaches whoever waits for an answer.
            let _ = connection.await;
        });
        Ok((client, Connection(task)))
    }
}

/// Ends the connection's task with the call.
struct Connection(tokio::task::JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the server that nobody waits, when a call is cut short.
struct Cancel(Option<CancelToken>);

impl Drop for Cancel {
    fn drop(&mut self) {
        if let (Some(token), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(async move { token.cancel_query(NoTls).await });
        }
    }
}

/// Each value as text: PostgreSQL's own form is the one form of every type.
async fn fetch(
    client: &Client,
    query: &Query,
    parameters: &[Value],
    max_rows: usize,
    max_bytes: usize,
) -> Result<Rows, Failure> {
    let text = bounded(query, max_rows, max_bytes);
    let statement = client.prepare(&text).await.map_err(failed)?;
    let parameters: Vec<Parameter<'_>> = parameters.iter().map(Parameter).collect();
    let found = client.query_raw(&statement, parameters.iter()).await.map_err(failed)?;
    let mut found = std::pin::pin!(found);
    let mut rows = Rows { rows: Vec::new(), complete: true };
    let mut left = max_bytes;
    while let Some(row) = futures_util::StreamExt::next(&mut found).await {
        let row = row.map_err(failed)?;
        if rows.rows.len() == max_rows {
            rows.complete = false;
            break;
        }
        if !row.try_get::<_, bool>(query.columns.len()).map_err(failed)? {
            return Err(Failure::Blocked("a row of more bytes than a result may have".to_owned()));
        }
        let value = |at| row.try_get::<_, Option<&str>>(at).map(Value::from).map_err(failed);
        let values = (0..query.columns.len()).map(value).collect::<Result<_, _>>()?;
        rows.push(values, &mut left)?;
    }
    Ok(rows)
}

/// `query` with one row too many, so that more can be told from all, and with
/// one column more: whether the row has at most `max_bytes`. A row that has
/// not comes without its values: they never reach this process. What a
/// statement may use inside the server is for the server to bound.
fn bounded(query: &Query, max_rows: usize, max_bytes: usize) -> String {
    let places = || 0..query.columns.len();
    let join = |each: &dyn Fn(usize) -> String, between: &str| {
        places().map(each).collect::<Vec<_>>().join(between)
    };
    let names = join(&|at| format!("\"c{at}\""), ", ");
    let texts = join(&|at| format!("CAST(\"c{at}\" AS text) AS \"t{at}\""), ", ");
    let sizes = join(
        &|at| format!("COALESCE(pg_catalog.octet_length(\"t{at}\"), 0)::bigint"),
        " OPERATOR(pg_catalog.+) ",
    );
    let shown = join(&|at| format!("CASE WHEN \"fits\" THEN \"t{at}\" END"), ", ");
    let limit = max_rows.saturating_add(1);
    // A subquery with a limit is not merged into what is around it: each value
    // is made once.
    format!(
        "SELECT {shown}, \"fits\" FROM (SELECT *, ({sizes}) OPERATOR(pg_catalog.<=) {max_bytes} AS \"fits\" \
         FROM (SELECT {texts} FROM ({}) AS \"q\"({names}) LIMIT {limit}) AS \"r\") AS \"s\"",
        query.text
    )
}

/// A parameter as text, which the server reads as the type that it needs.
#[derive(Debug)]
struct Parameter<'a>(&'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(
        &self,
        _: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn std::error::Error + Sync + Send>> {
        match self.0 {
            Value::Null => return Ok(IsNull::Yes),
            Value::String(text) => out.extend_from_slice(text.as_bytes()),
            other => out.extend_from_slice(other.to_string().as_bytes()),
        }
        Ok(IsNull::No)
    }

    fn accepts(_: &Type) -> bool {
        true
    }

    fn encode_format(&self, _: &Type) -> Format {
        Format::Text
    }

    to_sql_checked!();
}

fn cell(message: &SimpleQueryMessage, at: usize) -> Option<&str> {
    match message {
        SimpleQueryMessage::Row(row) => row.try_get(at).ok().flatten(),
        _ => None,
    }
}

fn upstream(error: tokio_postgres::Error) -> Failure {
    Failure::Upstream(explain(&error))
}

/// SQLSTATE classes: 42501 is insufficient_privilege, 25006 a write in a
/// read-only transaction, 57014 a statement that took too long.
fn failed(error: tokio_postgres::Error) -> Failure {
    match error.code().map(tokio_postgres::error::SqlState::code) {
        Some("42501" | "25006") => {
            Breach::reach("sql/role", "what the database's role may do", explain(&error)).into()
        }
        Some("57014") => Failure::Upstream("the statement took too long".to_owned()),
        Some(_) => Failure::Tool(explain(&error)),
        None => Failure::Upstream(explain(&error)),
    }
}

fn explain(error: &tokio_postgres::Error) -> String {
    error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned())
}
