//! What FROM and JOIN name: listed tables, queries named by WITH, subqueries.

use sqlparser::ast::{
    JoinConstraint, JoinOperator, ObjectName, TableAlias, TableFactor, TableWithJoins,
};

use super::{Dialect, MAX_RELATIONS, Relation, Writer, Written, distinct, none, quoted, refuse};

impl Writer<'_> {
    pub(super) fn joined(
        &mut self,
        table: &TableWithJoins,
        seen: &mut Vec<Relation>,
    ) -> Written<String> {
        let first = seen.len();
        let mut text = self.relation(&table.relation, seen)?;
        for join in &table.joins {
            none("GLOBAL", !join.global)?;
            let (word, constraint) = match &join.join_operator {
                JoinOperator::Join(on) | JoinOperator::Inner(on) => ("JOIN", on),
                JoinOperator::Left(on) | JoinOperator::LeftOuter(on) => ("LEFT JOIN", on),
                JoinOperator::Right(on) | JoinOperator::RightOuter(on) => ("RIGHT JOIN", on),
                JoinOperator::FullOuter(on) => ("FULL JOIN", on),
                JoinOperator::CrossJoin(on) => ("CROSS JOIN", on),
                _ => return Err(refuse("a JOIN of standard SQL", "another")),
            };
            let right = self.relation(&join.relation, seen)?;
            text.push_str(&format!(" {word} {right}"));
            match constraint {
                JoinConstraint::On(condition) if word != "CROSS JOIN" => {
                    self.scope.levels.push(joinable(seen, first));
                    let condition = self.expression(condition);
                    self.scope.levels.pop();
                    text.push_str(&format!(" ON {}", condition?));
                }
                JoinConstraint::None if word == "CROSS JOIN" => {}
                _ => return Err(refuse("JOIN with ON", "another condition")),
            }
        }
        Ok(text)
    }

    fn relation(&mut self, factor: &TableFactor, seen: &mut Vec<Relation>) -> Written<String> {
        let (text, relation) = match factor {
            TableFactor::Table {
                name,
                alias,
                args,
                with_hints,
                version,
                with_ordinality,
                partitions,
                json_path,
                sample,
                index_hints,
            } => {
                none("table functions", args.is_none() && !with_ordinality)?;
                none("TABLESAMPLE", sample.is_none())?;
                let plain = with_hints.is_empty()
                    && version.is_none()
                    && partitions.is_empty()
                    && json_path.is_none()
                    && index_hints.is_empty();
                none("what follows a table's name", plain)?;
                self.table(name, alias.as_ref())?
            }
            TableFactor::Derived { lateral, subquery, alias, sample } => {
                none("LATERAL", !lateral)?;
                none("TABLESAMPLE", sample.is_none())?;
                let alias =
                    alias.as_ref().ok_or_else(|| refuse("a name for a subquery", "none"))?;
                let name = self.alias(alias)?;
                let (text, columns) = self.query(subquery)?;
                distinct(&columns)?;
                (format!("({text}) AS {}", quoted(&name)), Relation { name, columns })
            }
            _ => return Err(refuse("tables and subqueries", "another relation")),
        };
        if seen.len() >= MAX_RELATIONS || seen.iter().any(|one| one.name == relation.name) {
            return Err(refuse("at most 16 relations with distinct names", relation.name));
        }
        seen.push(relation);
        Ok(text)
    }

    fn table(&self, name: &ObjectName, alias: Option<&TableAlias>) -> Written<(String, Relation)> {
        let parts = self.parts(name)?;
        let default = if self.catalogue.dialect == Dialect::Postgres { "public" } else { "main" };
        let (schema, table) = match parts.as_slice() {
            [table] => {
                let named = self.scope.named.iter().rev().find(|one| one.name == *table);
                if let Some(named) = named {
                    let shown = alias.map_or(Ok(table.clone()), |alias| self.alias(alias))?;
                    let text = format!("{} AS {}", quoted(table), quoted(&shown));
                    return Ok((text, Relation { name: shown, columns: named.columns.clone() }));
                }
                (default, table)
            }
            [schema, table] => (schema.as_str(), table),
            _ => return Err(refuse("table or schema.table", name)),
        };
        let key = (schema.to_owned(), table.clone());
        let columns =
            self.catalogue.tables.get(&key).ok_or_else(|| refuse("a listed table", name))?;
        let shown = alias.map_or(Ok(table.clone()), |alias| self.alias(alias))?;
        // PostgreSQL reads ONLY before a table as a keyword; a quoted name is a name.
        let text = format!("{}.{} AS {}", quoted(schema), quoted(table), quoted(&shown));
        Ok((text, Relation { name: shown, columns: columns.clone() }))
    }

    pub(super) fn alias(&self, alias: &TableAlias) -> Written<String> {
        none("names for a table's columns", alias.columns.is_empty() && alias.at.is_none())?;
        self.catalogue.fold(&alias.name)
    }
}

/// What an ON can name: the relations of its own join. Those before a comma
/// have no columns there, yet their names are taken: PostgreSQL would look
/// for them further out.
fn joinable(seen: &[Relation], first: usize) -> Vec<Relation> {
    let mut level = seen.to_vec();
    level.iter_mut().take(first).for_each(|one| one.columns.clear());
    level
}
