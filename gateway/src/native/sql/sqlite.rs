//! SQLite: a read-only connection for each call, with an authorizer that knows
//! the listed tables, columns and functions and nothing of the parser.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};
use rusqlite::limits::Limit;
use rusqlite::types::{ToSql, ToSqlOutput, ValueRef};
use rusqlite::{Connection, ErrorCode, OpenFlags};
use serde_json::Value;

use super::render::Catalogue;
use super::{Query, Rows};
use crate::native::{Breach, Failure};

/// How many of SQLite's steps pass between looks at the clock.
const STEPS: i32 = 1000;
/// The most bytes of one value or row on its way through a statement: two
/// whole results. SQLite's own limit is 1 GB, which one step can make.
const MAX_VALUE_BYTES: i32 = 4 << 20;

/// Opens the database once, and looks whether the listed columns are there.
pub(super) fn look(file: &Path, catalogue: &Catalogue) -> Result<(), String> {
    let wrong = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
    let database = open(file, catalogue).map_err(|error| wrong(&error))?;
    for ((schema, table), columns) in catalogue.tables() {
        let columns: Vec<String> = columns.iter().map(|one| format!("{one:?}")).collect();
        let text = format!("SELECT {} FROM {schema:?}.{table:?} LIMIT 0", columns.join(", "));
        database.prepare(&text).map_err(|error| wrong(&error))?;
    }
    Ok(())
}

/// Runs `query` within `limits`: rows, bytes and milliseconds.
pub(super) fn run(
    file: &Path,
    catalogue: &Catalogue,
    query: &Query,
    parameters: &[Value],
    (max_rows, max_bytes, max_ms): (usize, usize, u64),
) -> Result<Rows, Failure> {
    let database = open(file, catalogue).map_err(failed)?;
    let end = Instant::now() + Duration::from_millis(max_ms);
    let late = move || Instant::now() > end;
    database.progress_handler(STEPS, Some(late)).map_err(failed)?;
    let mut statement = database.prepare(&query.text).map_err(failed)?;
    let parameters: Vec<Parameter<'_>> = parameters.iter().map(Parameter).collect();
    let mut found = statement.query(rusqlite::params_from_iter(parameters)).map_err(failed)?;
    let mut rows = Rows { rows: Vec::new(), complete: true };
    let mut left = max_bytes;
    while let Some(row) = found.next().map_err(failed)? {
        if rows.rows.len() == max_rows {
            rows.complete = false;
            break;
        }
        let values = (0..query.columns.len()).map(|at| Ok(json(row.get_ref(at).map_err(failed)?)));
        let values = values.collect::<Result<_, Failure>>()?;
        rows.push(values, &mut left)?;
    }
    Ok(rows)
}

fn open(file: &Path, catalogue: &Catalogue) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(file, flags)?;
    database.set_limit(Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES)?;
    database.busy_timeout(Duration::from_secs(1))?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    database.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    let catalogue = catalogue.clone();
    database.authorizer(Some(move |context: AuthContext<'_>| allow(&catalogue, &context)))?;
    Ok(database)
}

/// SQLite asks before it does anything (sqlite3_set_authorizer). A view or a
/// trigger that reads for somebody is refused with what it reads.
fn allow(catalogue: &Catalogue, context: &AuthContext<'_>) -> Authorization {
    let allowed = match context.action {
        AuthAction::Select => true,
        AuthAction::Read { table_name, column_name } => {
            let schema = context.database_name.unwrap_or("main").to_owned();
            let columns = catalogue.tables().get(&(schema, table_name.to_ascii_lowercase()));
            // A query that needs rows but no column reads the column "".
            columns.is_some_and(|columns| {
                column_name.is_empty()
                    || columns.iter().any(|one| one.eq_ignore_ascii_case(column_name))
            })
        }
        AuthAction::Function { function_name } => {
            function_name.eq_ignore_ascii_case("like") || catalogue.has_function(function_name)
        }
        _ => false,
    };
    if allowed { Authorization::Allow } else { Authorization::Deny }
}

struct Parameter<'a>(&'a Value);

impl ToSql for Parameter<'_> {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(match self.0 {
            Value::String(text) => ValueRef::Text(text.as_bytes()),
            Value::Bool(value) => ValueRef::Integer(i64::from(*value)),
            Value::Number(number) => match (number.as_i64(), number.as_f64()) {
                (Some(number), _) => ValueRef::Integer(number),
                (None, Some(number)) => ValueRef::Real(number),
                (None, None) => ValueRef::Null,
            },
            _ => ValueRef::Null,
        }))
    }
}

/// A value that every JSON parser reads alike: large integers are texts.
fn json(value: ValueRef<'_>) -> Value {
    const EXACT: u64 = (1 << 53) - 1;
    match value {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) if number.unsigned_abs() <= EXACT => number.into(),
        ValueRef::Integer(number) => number.to_string().into(),
        ValueRef::Real(number) => number.into(),
        ValueRef::Text(text) => String::from_utf8_lossy(text).into(),
        ValueRef::Blob(bytes) => casemate_ledger::text::hex(bytes).into(),
    }
}

fn failed(error: rusqlite::Error) -> Failure {
    match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) => {
            Failure::Upstream("the statement took too long".to_owned())
        }
        Some(ErrorCode::AuthorizationForStatementDenied | ErrorCode::ReadOnly) => {
            Breach::reach("sql/role", "what the database's authorizer allows", error).into()
        }
        _ => Failure::Tool(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::render::Dialect;
    use super::*;

    /// One value that each of `times` common tables makes twice as long.
    fn doubled(times: usize) -> String {
        let first = "WITH \"t0\" AS (SELECT '0123456789abcdef' AS \"x\")".to_owned();
        let tables = (1..=times).map(|at| {
            let before = at - 1;
            format!(
                ", \"t{at}\" AS MATERIALIZED (SELECT \"x\" || \"x\" AS \"x\" FROM \"t{before}\")"
            )
        });
        let last = format!(" SELECT length(\"x\") FROM \"t{times}\"");
        [vec![first], tables.collect(), vec![last]].concat().concat()
    }

    #[test]
    fn a_value_cannot_double_without_end() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("shop.db");
        Connection::open(&file).unwrap().execute_batch("CREATE TABLE orders(id)").unwrap();
        let tables = BTreeMap::from([("orders".to_owned(), vec!["id".to_owned()])]);
        let functions = ["length".to_owned()];
        let catalogue = Catalogue::new(Dialect::Sqlite, &tables, &functions).unwrap();
        let run = |times| {
            let query = Query { text: doubled(times), columns: vec!["n".into()], parameters: 0 };
            run(&file, &catalogue, &query, &[], (10, 1000, 5000)).map(|rows| rows.rows)
        };
        // 16 bytes, doubled 17 times, are 2 MiB; with its row's head 4 MiB is too much.
        assert_eq!(run(17).unwrap(), [[Value::from(16 << 17)]]);
        for times in [18, 22] {
            let Err(Failure::Tool(text)) = run(times) else { panic!("{times}") };
            assert!(text.contains("too big"), "{text}");
        }
    }
}
