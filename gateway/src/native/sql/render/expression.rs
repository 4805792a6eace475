//! Expressions of a SELECT: columns that resolve, values, listed functions,
//! and operators without a way to anything else.

use sqlparser::ast::{
    BinaryOperator, CaseWhen, CastKind, DataType, DuplicateTreatment, Expr, Function, FunctionArg,
    FunctionArgExpr, FunctionArguments, Ident, UnaryOperator, Value,
};

use super::{Dialect, Relation, Writer, Written, none, quoted, refuse};

impl Writer<'_> {
    pub(super) fn expressions(&mut self, all: &[Expr]) -> Written<String> {
        let written = all.iter().map(|one| self.expression(one)).collect::<Written<Vec<_>>>()?;
        Ok(written.join(", "))
    }

    pub(super) fn expression(&mut self, expression: &Expr) -> Written<String> {
        self.deeper(|writer| writer.inside(expression))
    }

    fn inside(&mut self, expression: &Expr) -> Written<String> {
        match expression {
            Expr::Identifier(name) => self.column(None, name),
            Expr::CompoundIdentifier(parts) => match parts.as_slice() {
                [table, name] => self.column(Some(table), name),
                _ => Err(refuse("column or alias.column", expression)),
            },
            Expr::Value(value) => self.value(&value.value),
            Expr::Nested(inner) => Ok(format!("({})", self.expression(inner)?)),
            Expr::BinaryOp { left, op, right } => {
                let word = operator(op)?;
                Ok(format!("({} {word} {})", self.expression(left)?, self.expression(right)?))
            }
            Expr::UnaryOp { op, expr } => {
                let word = match op {
                    UnaryOperator::Not => "NOT",
                    UnaryOperator::Minus => "-",
                    UnaryOperator::Plus => "+",
                    _ => return Err(refuse("NOT, + or -", op)),
                };
                Ok(format!("({word} {})", self.expression(expr)?))
            }
            Expr::IsNull(inner) => self.suffix(inner, "IS NULL"),
            Expr::IsNotNull(inner) => self.suffix(inner, "IS NOT NULL"),
            Expr::IsTrue(inner) => self.suffix(inner, "IS TRUE"),
            Expr::IsNotTrue(inner) => self.suffix(inner, "IS NOT TRUE"),
            Expr::IsFalse(inner) => self.suffix(inner, "IS FALSE"),
            Expr::IsNotFalse(inner) => self.suffix(inner, "IS NOT FALSE"),
            Expr::Between { expr, negated, low, high } => Ok(format!(
                "({} {}BETWEEN {} AND {})",
                self.expression(expr)?,
                not(*negated),
                self.expression(low)?,
                self.expression(high)?
            )),
            Expr::InList { expr, list, negated } => {
                none("an empty list", !list.is_empty())?;
                let (one, list) = (self.expression(expr)?, self.expressions(list)?);
                Ok(format!("({one} {}IN ({list}))", not(*negated)))
            }
            _ => self.rarer(expression),
        }
    }

    fn rarer(&mut self, expression: &Expr) -> Written<String> {
        match expression {
            Expr::InSubquery { expr, subquery, negated } => {
                let one = self.expression(expr)?;
                let (text, columns) = self.query(subquery)?;
                none("several columns after IN", columns.len() == 1)?;
                Ok(format!("({one} {}IN ({text}))", not(*negated)))
            }
            Expr::Exists { subquery, negated } => {
                Ok(format!("({}EXISTS ({}))", not(*negated), self.query(subquery)?.0))
            }
            Expr::Subquery(query) => {
                let (text, columns) = self.query(query)?;
                none("several columns in a value", columns.len() == 1)?;
                Ok(format!("({text})"))
            }
            Expr::Like { negated, any, expr, pattern, escape_char } => {
                none("LIKE ANY and ESCAPE", !any && escape_char.is_none())?;
                let (one, pattern) = (self.expression(expr)?, self.expression(pattern)?);
                Ok(format!("({one} {}LIKE {pattern})", not(*negated)))
            }
            Expr::ILike { negated, any, expr, pattern, escape_char } => {
                let postgres = self.catalogue.dialect == Dialect::Postgres;
                none("ILIKE ANY and ESCAPE", postgres && !any && escape_char.is_none())?;
                let (one, pattern) = (self.expression(expr)?, self.expression(pattern)?);
                Ok(format!("({one} {}ILIKE {pattern})", not(*negated)))
            }
            Expr::Case { case_token: _, end_token: _, operand, conditions, else_result } => {
                self.case(operand.as_deref(), conditions, else_result.as_deref())
            }
            Expr::Cast { kind, expr, data_type, format } => {
                let plain = matches!(kind, CastKind::Cast | CastKind::DoubleColon);
                none("TRY_CAST and FORMAT", plain && format.is_none())?;
                Ok(format!("CAST({} AS {})", self.expression(expr)?, type_name(data_type)?))
            }
            Expr::Function(function) => self.function(function),
            _ => Err(refuse("columns, values, operators and listed functions", expression)),
        }
    }

    /// A column of the innermost relation that has it. A table's name alone
    /// is no column: the whole row cannot be asked for.
    fn column(&self, table: Option<&Ident>, name: &Ident) -> Written<String> {
        let column = self.catalogue.fold(name)?;
        let table = table.map(|table| self.catalogue.fold(table)).transpose()?;
        for (depth, level) in self.scope.levels.iter().rev().enumerate() {
            let has = |one: &&Relation| {
                table.as_ref().is_none_or(|table| *table == one.name)
                    && one.columns.contains(&column)
            };
            let mut found = level.iter().filter(has);
            match (found.next(), found.next()) {
                (Some(relation), None) => {
                    // The database would take the innermost relation of this
                    // name, which may have a column that is not listed.
                    let inner = self.scope.levels.iter().rev().take(depth).flatten();
                    if inner.into_iter().any(|one| one.name == relation.name) {
                        return Err(refuse("a relation that no other one hides", name));
                    }
                    return Ok(format!("{}.{}", quoted(&relation.name), quoted(&column)));
                }
                (Some(_), Some(_)) => return Err(refuse("alias.column, for there are two", name)),
                (None, _) => {}
            }
        }
        Err(refuse("a listed column", name))
    }

    fn value(&mut self, value: &Value) -> Written<String> {
        match value {
            Value::Number(text, false) => {
                let plain = text.len() <= 40
                    && text.bytes().all(|b| b.is_ascii_digit() || b".eE+-".contains(&b));
                none("odd numbers", plain)?;
                Ok(text.clone())
            }
            Value::SingleQuotedString(text) => {
                none("control characters in a text", !text.chars().any(char::is_control))?;
                // Both databases read a backslash here as itself.
                Ok(format!("'{}'", text.replace('\'', "''")))
            }
            Value::Boolean(true) => Ok("TRUE".to_owned()),
            Value::Boolean(false) => Ok("FALSE".to_owned()),
            Value::Null => Ok("NULL".to_owned()),
            Value::Placeholder(text) => {
                let number = text.strip_prefix(['$', '?']).and_then(|n| n.parse::<usize>().ok());
                let number = number.filter(|number| (1..=64).contains(number));
                let number = number.ok_or_else(|| refuse("$1 to $64", text))?;
                self.parameters = self.parameters.max(number);
                let sign = if self.catalogue.dialect == Dialect::Postgres { '$' } else { '?' };
                Ok(format!("{sign}{number}"))
            }
            _ => Err(refuse("numbers, 'texts', TRUE, FALSE, NULL and $1", value)),
        }
    }

    fn case(
        &mut self,
        operand: Option<&Expr>,
        conditions: &[CaseWhen],
        otherwise: Option<&Expr>,
    ) -> Written<String> {
        let mut text = "CASE".to_owned();
        if let Some(operand) = operand {
            text.push_str(&format!(" {}", self.expression(operand)?));
        }
        for CaseWhen { condition, result } in conditions {
            let (when, then) = (self.expression(condition)?, self.expression(result)?);
            text.push_str(&format!(" WHEN {when} THEN {then}"));
        }
        if let Some(otherwise) = otherwise {
            text.push_str(&format!(" ELSE {}", self.expression(otherwise)?));
        }
        Ok(text + " END")
    }

    fn function(&mut self, function: &Function) -> Written<String> {
        let Function {
            name,
            uses_odbc_syntax,
            parameters,
            args,
            within_group,
            filter,
            null_treatment,
            over,
        } = function;
        let plain = !uses_odbc_syntax
            && matches!(parameters, FunctionArguments::None)
            && within_group.is_empty()
            && filter.is_none()
            && null_treatment.is_none()
            && over.is_none();
        none("OVER, FILTER and their like", plain)?;
        let [name] = self.parts(name)?.try_into().map_err(|_| refuse("a listed function", name))?;
        if !self.catalogue.has_function(&name) {
            return Err(refuse("a listed function", name));
        }
        let FunctionArguments::List(list) = args else {
            return Err(refuse("arguments in parentheses", "none"));
        };
        none("clauses inside a function", list.clauses.is_empty())?;
        let distinct = match list.duplicate_treatment {
            None | Some(DuplicateTreatment::All) => "",
            Some(DuplicateTreatment::Distinct) => "DISTINCT ",
        };
        let mut written = Vec::new();
        for one in &list.args {
            written.push(match one {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(one)) => self.expression(one)?,
                FunctionArg::Unnamed(FunctionArgExpr::Wildcard) if name == "count" => {
                    "*".to_owned()
                }
                _ => return Err(refuse("plain arguments", "others")),
            });
        }
        // With its schema, so that no function of another one takes its place.
        let schema =
            if self.catalogue.dialect == Dialect::Postgres { "\"pg_catalog\"." } else { "" };
        Ok(format!("{schema}{}({distinct}{})", quoted(&name), written.join(", ")))
    }

    fn suffix(&mut self, inner: &Expr, words: &str) -> Written<String> {
        Ok(format!("({} {words})", self.expression(inner)?))
    }

    /// What a result's column is called when nobody says.
    pub(super) fn name_of(&self, expression: &Expr, at: usize) -> Written<String> {
        match expression {
            Expr::Identifier(name) => self.catalogue.fold(name),
            Expr::CompoundIdentifier(parts) => match parts.last() {
                Some(name) => self.catalogue.fold(name),
                None => Err(refuse("a column", "nothing")),
            },
            Expr::Function(function) => match self.parts(&function.name)?.pop() {
                Some(name) => Ok(name),
                None => Err(refuse("a function", "nothing")),
            },
            _ => Ok(format!("column{}", at.saturating_add(1))),
        }
    }
}

fn not(negated: bool) -> &'static str {
    if negated { "NOT " } else { "" }
}

fn operator(op: &BinaryOperator) -> Written<&'static str> {
    Ok(match op {
        BinaryOperator::Plus => "+",
        BinaryOperator::Minus => "-",
        BinaryOperator::Multiply => "*",
        BinaryOperator::Divide => "/",
        BinaryOperator::Modulo => "%",
        BinaryOperator::StringConcat => "||",
        BinaryOperator::Gt => ">",
        BinaryOperator::Lt => "<",
        BinaryOperator::GtEq => ">=",
        BinaryOperator::LtEq => "<=",
        BinaryOperator::Eq => "=",
        BinaryOperator::NotEq => "<>",
        BinaryOperator::And => "AND",
        BinaryOperator::Or => "OR",
        _ => return Err(refuse("an operator of standard SQL", op)),
    })
}

/// Types that only say how a value reads. `regclass` and its like look names up.
fn type_name(kind: &DataType) -> Written<&'static str> {
    Ok(match kind {
        DataType::Text => "text",
        DataType::Int(None) | DataType::Integer(None) => "integer",
        DataType::BigInt(None) => "bigint",
        DataType::Real => "real",
        DataType::DoublePrecision => "double precision",
        DataType::Boolean | DataType::Bool => "boolean",
        DataType::Date => "date",
        DataType::Numeric(sqlparser::ast::ExactNumberInfo::None) => "numeric",
        _ => return Err(refuse("a plain type", kind)),
    })
}
