//! A SELECT, understood and written anew.
//!
//! The walk is positive: what is not named here is refused. Names resolve
//! against the listed tables, and each is written folded and quoted, so that
//! the database reads the same names as this file did.

mod expression;
mod relation;

use std::collections::BTreeMap;

use sqlparser::ast::{
    Cte, Distinct, GroupByExpr, Ident, LimitClause, ObjectName, ObjectNamePart, OrderBy,
    OrderByKind, Query as Ast, Select, SelectFlavor, SelectItem, SelectItemQualifiedWildcardKind,
    SetExpr, SetOperator, SetQuantifier, Statement, WildcardAdditionalOptions,
};
use sqlparser::dialect::{PostgreSqlDialect, SQLiteDialect};
use sqlparser::parser::Parser;

use super::Query;
use crate::native::Breach;

/// The longest statement.
pub(super) const MAX_SQL_BYTES: usize = 16 * 1024;
/// How deep a statement may nest, and the most relations of one FROM.
const MAX_DEPTH: usize = 24;
const MAX_RELATIONS: usize = 16;
/// How deep the parser goes: a debug build needs some 60 KiB of stack for a level.
const PARSER_DEPTH: usize = 20;

/// Whose rules names and functions follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    Postgres,
    Sqlite,
}

/// What may be read.
#[derive(Debug, Clone)]
pub(super) struct Catalogue {
    dialect: Dialect,
    /// Columns by schema and table.
    tables: BTreeMap<(String, String), Vec<String>>,
    functions: Vec<String>,
}

/// The relations that a name can belong to, innermost last.
#[derive(Debug, Clone, Default)]
struct Scope {
    levels: Vec<Vec<Relation>>,
    /// Queries that were named by WITH.
    named: Vec<Relation>,
}

#[derive(Debug, Clone)]
struct Relation {
    name: String,
    columns: Vec<String>,
}

/// One statement being written.
struct Writer<'a> {
    catalogue: &'a Catalogue,
    scope: Scope,
    parameters: usize,
    depth: usize,
}

type Written<T> = Result<T, Breach>;

impl Catalogue {
    /// The listed tables, checked to be plain names.
    pub(super) fn new(
        dialect: Dialect,
        tables: &BTreeMap<String, Vec<String>>,
        functions: &[String],
    ) -> Result<Self, String> {
        let schema = if dialect == Dialect::Postgres { "public" } else { "main" };
        let plain = |name: &str| {
            !name.is_empty()
                && name.len() <= 63
                && !name.chars().any(|c| c.is_control() || c == '"')
        };
        let mut listed = BTreeMap::new();
        for (name, columns) in tables {
            let (schema, table) = name.split_once('.').unwrap_or((schema, name));
            if !plain(schema)
                || !plain(table)
                || columns.is_empty()
                || !columns.iter().all(|c| plain(c))
            {
                return Err(format!("tables: expected plain names and columns, got {name}"));
            }
            if schema.starts_with("pg_")
                || schema == "information_schema"
                || table.starts_with("sqlite_")
            {
                return Err(format!("tables: expected no system table, got {name}"));
            }
            listed.insert((schema.to_owned(), table.to_owned()), columns.clone());
        }
        let word = |name: &&String| {
            !name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_' || b.is_ascii_digit())
        };
        if let Some(odd) = functions.iter().find(word) {
            return Err(format!("functions: expected lower-case names, got {odd}"));
        }
        Ok(Self { dialect, tables: listed, functions: functions.to_vec() })
    }

    /// The listed columns by schema and table.
    pub(super) fn tables(&self) -> &BTreeMap<(String, String), Vec<String>> {
        &self.tables
    }

    /// Whether a function may be called.
    pub(super) fn has_function(&self, name: &str) -> bool {
        self.functions.iter().any(|one| one == name)
    }

    /// The tables, for people.
    pub(super) fn describe(&self) -> String {
        let table = |((schema, table), columns): (&(String, String), &Vec<String>)| {
            format!("{schema}.{table}({})", columns.join(", "))
        };
        self.tables.iter().map(table).collect::<Vec<_>>().join("; ")
    }

    /// Understands `sql` and writes it anew.
    pub(super) fn render(&self, sql: &str) -> Written<Query> {
        if sql.len() > MAX_SQL_BYTES {
            return Err(refuse("at most 16384 bytes", sql.len()));
        }
        let parsed = match self.dialect {
            Dialect::Postgres => parse(&PostgreSqlDialect {}, sql),
            Dialect::Sqlite => parse(&SQLiteDialect {}, sql),
        };
        let mut statements = parsed?;
        let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
            return Err(refuse("one statement", "another number"));
        };
        let Statement::Query(query) = statement else {
            return Err(refuse("a SELECT", "another statement"));
        };
        let mut writer =
            Writer { catalogue: self, scope: Scope::default(), parameters: 0, depth: 0 };
        let (text, columns) = writer.query(&query)?;
        Ok(Query { text, columns, parameters: writer.parameters })
    }

    /// A name as the database folds it.
    fn fold(&self, name: &Ident) -> Written<String> {
        let folded = match name.quote_style {
            None => name.value.to_ascii_lowercase(),
            Some('"') if self.dialect == Dialect::Postgres => name.value.clone(),
            // SQLite compares names without regard to case, quoted or not.
            Some('"') => name.value.to_ascii_lowercase(),
            Some(_) => return Err(refuse("names in double quotes or none", &name.value)),
        };
        if folded.is_empty()
            || folded.len() > 63
            || folded.chars().any(|c| c.is_control() || c == '"')
        {
            return Err(refuse("a plain name", &name.value));
        }
        Ok(folded)
    }
}

fn parse(dialect: &dyn sqlparser::dialect::Dialect, sql: &str) -> Written<Vec<Statement>> {
    let parser = Parser::new(dialect).with_recursion_limit(PARSER_DEPTH).try_with_sql(sql);
    parser
        .and_then(|mut parser| parser.parse_statements())
        .map_err(|error| refuse("SQL that this gateway reads", error))
}

impl Writer<'_> {
    fn query(&mut self, query: &Ast) -> Written<(String, Vec<String>)> {
        self.deeper(|writer| {
            let named = writer.scope.named.len();
            let written = writer.query_inside(query);
            writer.scope.named.truncate(named);
            written
        })
    }

    fn query_inside(&mut self, query: &Ast) -> Written<(String, Vec<String>)> {
        let Ast {
            with,
            body,
            order_by,
            limit_clause,
            fetch,
            locks,
            for_clause,
            settings,
            format_clause,
            pipe_operators,
        } = query;
        none("FETCH", fetch.is_none())?;
        none("FOR UPDATE and its like", locks.is_empty() && for_clause.is_none())?;
        none(
            "settings",
            settings.is_none() && format_clause.is_none() && pipe_operators.is_empty(),
        )?;
        let mut text = String::new();
        if let Some(with) = with {
            none("RECURSIVE", !with.recursive)?;
            let named =
                with.cte_tables.iter().map(|cte| self.named(cte)).collect::<Written<Vec<_>>>()?;
            text = format!("WITH {} ", named.join(", "));
        }
        let (written, columns) = self.body(body, order_by.as_ref())?;
        text.push_str(&written);
        if let Some(limit) = limit_clause {
            text.push_str(&self.limit(limit)?);
        }
        Ok((text, columns))
    }

    fn named(&mut self, cte: &Cte) -> Written<String> {
        none("WITH beyond name AS (query)", cte.from.is_none() && cte.materialized.is_none())?;
        let name = self.alias(&cte.alias)?;
        let (text, columns) = self.query(&cte.query)?;
        distinct(&columns)?;
        let written = format!("{} AS ({text})", quoted(&name));
        self.scope.named.push(Relation { name, columns });
        Ok(written)
    }

    fn limit(&mut self, limit: &LimitClause) -> Written<String> {
        let LimitClause::LimitOffset { limit, offset, limit_by } = limit else {
            return Err(refuse("LIMIT and OFFSET", "another limit"));
        };
        none("LIMIT BY", limit_by.is_empty())?;
        let mut text = String::new();
        if let Some(limit) = limit {
            text.push_str(&format!(" LIMIT {}", self.expression(limit)?));
        }
        if let Some(offset) = offset {
            text.push_str(&format!(" OFFSET {}", self.expression(&offset.value)?));
        }
        Ok(text)
    }

    fn body(&mut self, body: &SetExpr, order: Option<&OrderBy>) -> Written<(String, Vec<String>)> {
        match body {
            SetExpr::Select(select) => self.select(select, order),
            SetExpr::Query(query) => {
                none("ORDER BY after parentheses", order.is_none())?;
                let (text, columns) = self.query(query)?;
                Ok((format!("({text})"), columns))
            }
            SetExpr::SetOperation { left, op, set_quantifier, right } => {
                none("ORDER BY after UNION and its like", order.is_none())?;
                self.deeper(|writer| writer.set_operation(left, *op, *set_quantifier, right))
            }
            SetExpr::Values(_)
            | SetExpr::Insert(_)
            | SetExpr::Update(_)
            | SetExpr::Delete(_)
            | SetExpr::Merge(_)
            | SetExpr::Table(_) => Err(refuse("a SELECT", "another statement inside")),
        }
    }

    fn set_operation(
        &mut self,
        left: &SetExpr,
        op: SetOperator,
        quantifier: SetQuantifier,
        right: &SetExpr,
    ) -> Written<(String, Vec<String>)> {
        let word = match op {
            SetOperator::Union => "UNION",
            SetOperator::Except => "EXCEPT",
            SetOperator::Intersect => "INTERSECT",
            SetOperator::Minus => return Err(refuse("EXCEPT", "MINUS")),
        };
        let all = match quantifier {
            SetQuantifier::All => " ALL",
            SetQuantifier::None => "",
            _ => return Err(refuse("UNION or UNION ALL", "another form")),
        };
        let (first, columns) = self.body(left, None)?;
        let (second, others) = self.body(right, None)?;
        if columns.len() != others.len() {
            return Err(refuse(format!("{} columns", columns.len()), others.len()));
        }
        Ok((format!("{first} {word}{all} {second}"), columns))
    }

    fn select(
        &mut self,
        select: &Select,
        order: Option<&OrderBy>,
    ) -> Written<(String, Vec<String>)> {
        only_common(select)?;
        let mut relations = Vec::new();
        let mut from = Vec::new();
        // What a derived table sees is outside of this FROM.
        for table in &select.from {
            from.push(self.joined(table, &mut relations)?);
        }
        self.scope.levels.push(relations);
        let written = self.select_inside(select, &from, order);
        self.scope.levels.pop();
        written
    }

    fn select_inside(
        &mut self,
        select: &Select,
        from: &[String],
        order: Option<&OrderBy>,
    ) -> Written<(String, Vec<String>)> {
        let distinct = match &select.distinct {
            None | Some(Distinct::All) => "",
            Some(Distinct::Distinct) => "DISTINCT ",
            Some(Distinct::On(_)) => return Err(refuse("DISTINCT", "DISTINCT ON")),
        };
        let mut columns = Vec::new();
        let mut items = Vec::new();
        none("an empty list of columns", !select.projection.is_empty())?;
        for item in &select.projection {
            self.item(item, &mut items, &mut columns)?;
        }
        let mut text = format!("SELECT {distinct}{}", items.join(", "));
        if !from.is_empty() {
            text.push_str(&format!(" FROM {}", from.join(", ")));
        }
        if let Some(selection) = &select.selection {
            text.push_str(&format!(" WHERE {}", self.expression(selection)?));
        }
        match &select.group_by {
            GroupByExpr::Expressions(by, modifiers) if modifiers.is_empty() => {
                if !by.is_empty() {
                    text.push_str(&format!(" GROUP BY {}", self.expressions(by)?));
                }
            }
            _ => return Err(refuse("GROUP BY expressions", "another form")),
        }
        if let Some(having) = &select.having {
            text.push_str(&format!(" HAVING {}", self.expression(having)?));
        }
        if let Some(order) = order {
            text.push_str(&self.order(order, &columns)?);
        }
        Ok((text, columns))
    }

    fn item(
        &mut self,
        item: &SelectItem,
        items: &mut Vec<String>,
        columns: &mut Vec<String>,
    ) -> Written<()> {
        match item {
            SelectItem::UnnamedExpr(expression) => {
                let name = self.name_of(expression, columns.len())?;
                items.push(format!("{} AS {}", self.expression(expression)?, quoted(&name)));
                columns.push(name);
            }
            SelectItem::ExprWithAlias { expr, alias } => {
                let name = self.catalogue.fold(alias)?;
                items.push(format!("{} AS {}", self.expression(expr)?, quoted(&name)));
                columns.push(name);
            }
            SelectItem::Wildcard(options) => {
                plain_wildcard(options)?;
                self.all_columns(None, items, columns)?;
            }
            SelectItem::QualifiedWildcard(
                SelectItemQualifiedWildcardKind::ObjectName(name),
                options,
            ) => {
                plain_wildcard(options)?;
                let [name] = self.parts(name)?.try_into().map_err(|_| refuse("alias.*", name))?;
                self.all_columns(Some(&name), items, columns)?;
            }
            SelectItem::QualifiedWildcard(..) | SelectItem::ExprWithAliases { .. } => {
                return Err(refuse("columns, expressions and *", "another form"));
            }
        }
        Ok(())
    }

    /// `*` as the listed columns.
    fn all_columns(
        &self,
        only: Option<&str>,
        items: &mut Vec<String>,
        columns: &mut Vec<String>,
    ) -> Written<()> {
        let before = items.len();
        for relation in self.scope.levels.last().into_iter().flatten() {
            if only.is_some_and(|only| only != relation.name) {
                continue;
            }
            for column in &relation.columns {
                items.push(format!("{}.{}", quoted(&relation.name), quoted(column)));
                columns.push(column.clone());
            }
        }
        if items.len() == before { Err(refuse("a table of FROM", "none")) } else { Ok(()) }
    }

    fn order(&mut self, order: &OrderBy, columns: &[String]) -> Written<String> {
        let OrderByKind::Expressions(by) = &order.kind else {
            return Err(refuse("ORDER BY expressions", "ORDER BY ALL"));
        };
        none("INTERPOLATE", order.interpolate.is_none())?;
        let mut parts = Vec::new();
        for one in by {
            none("WITH FILL", one.with_fill.is_none())?;
            // A name of the result comes before a column, as in SQL.
            let mut text = match &one.expr {
                sqlparser::ast::Expr::Identifier(name)
                    if columns.contains(&self.catalogue.fold(name)?) =>
                {
                    quoted(&self.catalogue.fold(name)?)
                }
                expression => self.expression(expression)?,
            };
            text.push_str(match &one.options.sort {
                None => "",
                Some(sqlparser::ast::OrderBySort::Asc) => " ASC",
                Some(sqlparser::ast::OrderBySort::Desc) => " DESC",
                Some(_) => return Err(refuse("ASC or DESC", "another order")),
            });
            text.push_str(match one.options.nulls_first {
                None => "",
                Some(true) => " NULLS FIRST",
                Some(false) => " NULLS LAST",
            });
            parts.push(text);
        }
        Ok(format!(" ORDER BY {}", parts.join(", ")))
    }

    fn parts(&self, name: &ObjectName) -> Written<Vec<String>> {
        let part = |part: &ObjectNamePart| match part {
            ObjectNamePart::Identifier(name) => self.catalogue.fold(name),
            ObjectNamePart::Function(_) => Err(refuse("a name", "a function")),
        };
        name.0.iter().map(part).collect()
    }

    fn deeper<T>(&mut self, inside: impl FnOnce(&mut Self) -> Written<T>) -> Written<T> {
        if self.depth >= MAX_DEPTH {
            return Err(refuse("at most 24 levels", "more"));
        }
        self.depth += 1;
        let written = inside(self);
        self.depth -= 1;
        written
    }
}

/// Everything of a SELECT that is not written must not be there.
fn only_common(select: &Select) -> Written<()> {
    let Select {
        select_token: _,
        optimizer_hints,
        distinct: _,
        select_modifiers,
        top,
        top_before_distinct: _,
        projection: _,
        exclude,
        into,
        from: _,
        lateral_views,
        prewhere,
        selection: _,
        connect_by,
        group_by: _,
        cluster_by,
        distribute_by,
        sort_by,
        having: _,
        named_window,
        qualify,
        window_before_qualify: _,
        value_table_mode,
        flavor,
    } = select;
    none("INTO", into.is_none())?;
    none("hints and modifiers", optimizer_hints.is_empty() && select_modifiers.is_none())?;
    none("TOP and EXCLUDE", top.is_none() && exclude.is_none())?;
    none("LATERAL VIEW", lateral_views.is_empty())?;
    none("WINDOW and QUALIFY", named_window.is_empty() && qualify.is_none())?;
    none("CONNECT BY and PREWHERE", connect_by.is_empty() && prewhere.is_none())?;
    let sorted = cluster_by.is_empty() && distribute_by.is_empty() && sort_by.is_empty();
    none("CLUSTER BY and its like", sorted)?;
    none("SELECT AS", value_table_mode.is_none())?;
    none("FROM before SELECT", *flavor == SelectFlavor::Standard)
}

fn plain_wildcard(options: &WildcardAdditionalOptions) -> Written<()> {
    let WildcardAdditionalOptions {
        wildcard_token: _,
        opt_ilike,
        opt_exclude,
        opt_except,
        opt_replace,
        opt_rename,
        opt_alias,
    } = options;
    let plain = opt_ilike.is_none()
        && opt_exclude.is_none()
        && opt_except.is_none()
        && opt_replace.is_none()
        && opt_rename.is_none()
        && opt_alias.is_none();
    none("what follows *", plain)
}

/// A relation's columns are looked up by name.
fn distinct(columns: &[String]) -> Written<()> {
    let mut names: Vec<&String> = columns.iter().collect();
    names.sort_unstable();
    names.dedup();
    none("two columns of one name inside a subquery", names.len() == columns.len())
}

fn none(what: &str, is_absent: bool) -> Written<()> {
    if is_absent { Ok(()) } else { Err(refuse(format!("a SELECT without {what}"), "it")) }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

fn refuse(expected: impl ToString, actual: impl ToString) -> Breach {
    let actual: String = actual.to_string().chars().filter(|c| !c.is_control()).take(160).collect();
    Breach::reach("sql", expected, actual)
}

#[cfg(test)]
mod tests;
