use super::*;

fn catalogue(dialect: Dialect) -> Catalogue {
    let tables = [("orders", vec!["id", "customer", "total"]), ("customers", vec!["id", "name"])];
    let tables = tables
        .map(|(name, columns)| (name.to_owned(), columns.into_iter().map(str::to_owned).collect()))
        .into_iter()
        .collect();
    let functions = ["count", "sum", "lower"].map(str::to_owned);
    Catalogue::new(dialect, &tables, &functions).unwrap()
}

#[test]
fn a_statement_is_written_anew() {
    for (sql, expected) in [
        (
            "select ID, Total from Orders where customer = $1 limit 3",
            "SELECT \"orders\".\"id\" AS \"id\", \"orders\".\"total\" AS \"total\" \
             FROM \"public\".\"orders\" AS \"orders\" WHERE (\"orders\".\"customer\" = $1) LIMIT 3",
        ),
        (
            "SELECT * FROM public.orders o -- comment\n",
            "SELECT \"o\".\"id\", \"o\".\"customer\", \"o\".\"total\" FROM \"public\".\"orders\" AS \"o\"",
        ),
        (
            "SELECT lower(name) n, count(*) FROM customers GROUP BY name ORDER BY n DESC",
            "SELECT \"pg_catalog\".\"lower\"(\"customers\".\"name\") AS \"n\", \
             \"pg_catalog\".\"count\"(*) AS \"count\" FROM \"public\".\"customers\" AS \"customers\" \
             GROUP BY \"customers\".\"name\" ORDER BY \"n\" DESC",
        ),
        (
            "WITH big AS (SELECT id FROM orders WHERE total > 5) SELECT b.id FROM big b",
            "WITH \"big\" AS (SELECT \"orders\".\"id\" AS \"id\" FROM \"public\".\"orders\" AS \"orders\" \
             WHERE (\"orders\".\"total\" > 5)) SELECT \"b\".\"id\" AS \"id\" FROM \"big\" AS \"b\"",
        ),
        ("SELECT 'it''s' AS x", "SELECT 'it''s' AS \"x\""),
    ] {
        assert_eq!(catalogue(Dialect::Postgres).render(sql).unwrap().text, expected);
    }
}

/// What evades a parser that looks for bad things. Each is refused here.
const EVASIONS: &[&str] = &[
    "",
    ";",
    "SELECT id FROM orders; SELECT 1",
    "SELECT id FROM orders; DROP TABLE orders",
    "SELECT 1; COMMIT; DELETE FROM orders",
    "INSERT INTO orders VALUES (1)",
    "UPDATE orders SET total = 0",
    "DELETE FROM orders",
    "TRUNCATE orders",
    "DROP TABLE orders",
    "CREATE TABLE x AS SELECT id FROM orders",
    "SELECT id INTO leak FROM orders",
    "COPY orders TO '/tmp/x'",
    "COPY (SELECT id FROM orders) TO PROGRAM 'sh'",
    "TABLE orders",
    "VALUES (1)",
    "EXPLAIN ANALYZE SELECT id FROM orders",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "DO $$ BEGIN END $$",
    "CALL f()",
    "SET ROLE postgres",
    "SET search_path = evil",
    "RESET ALL",
    "LISTEN x",
    "VACUUM",
    "BEGIN",
    "WITH x AS (DELETE FROM orders RETURNING id) SELECT id FROM x",
    "WITH x AS (INSERT INTO orders VALUES (1) RETURNING id) SELECT id FROM x",
    "WITH x AS (UPDATE orders SET total = 0 RETURNING id) SELECT id FROM x",
    "WITH RECURSIVE x AS (SELECT id FROM orders) SELECT id FROM x",
    "SELECT ssn FROM customers",
    "SELECT customers.ssn FROM customers",
    "SELECT \"SSN\" FROM customers",
    "WITH o AS (SELECT 1 AS ssn) SELECT (SELECT t.ssn FROM customers AS t LIMIT 1) FROM o AS t",
    "WITH o AS (SELECT 1 AS ssn) SELECT (SELECT ssn FROM customers AS t LIMIT 1) FROM o AS t",
    "WITH o AS (SELECT 1 AS ssn) SELECT EXISTS (SELECT 1 FROM o t, orders x JOIN orders y ON t.ssn = 1) FROM customers t",
    "SELECT (SELECT t.total FROM customers AS t LIMIT 1) FROM orders AS t",
    "SELECT t.id FROM (SELECT 1 AS id, 2 AS ssn) t WHERE EXISTS (SELECT 1 FROM customers t WHERE t.ssn = 1)",
    "SELECT customers FROM customers",
    "SELECT c FROM customers c",
    "SELECT row_to_json(c) FROM customers c",
    "SELECT (c).ssn FROM customers c",
    "SELECT (c).* FROM customers c",
    "SELECT c.*::text FROM customers c",
    "SELECT count(c) FROM customers c",
    "SELECT id FROM customers WHERE ssn LIKE '1%'",
    "SELECT id FROM customers ORDER BY ssn",
    "SELECT id FROM customers GROUP BY id, ssn",
    "SELECT id FROM orders WHERE EXISTS (SELECT 1 FROM salaries)",
    "SELECT id FROM orders UNION SELECT id FROM salaries",
    "SELECT id FROM orders JOIN salaries ON true",
    "SELECT id FROM orders NATURAL JOIN customers",
    "SELECT id FROM orders o JOIN customers c USING (ssn)",
    "SELECT * FROM salaries",
    "SELECT * FROM pg_catalog.pg_class",
    "SELECT * FROM pg_class",
    "SELECT * FROM information_schema.tables",
    "SELECT * FROM evil.orders",
    "SELECT * FROM ONLY orders",
    "SELECT * FROM orders TABLESAMPLE SYSTEM (1)",
    "SELECT * FROM orders FOR UPDATE",
    "SELECT * FROM orders FOR SHARE",
    "SELECT * FROM orders, LATERAL (SELECT 1) x",
    "SELECT * FROM generate_series(1, 9)",
    "SELECT * FROM dblink('host=evil', 'SELECT 1') AS t(a int)",
    "SELECT pg_read_file('/etc/passwd')",
    "SELECT pg_catalog.pg_read_file('/etc/passwd')",
    "SELECT \"pg_read_file\"('/etc/passwd')",
    "SELECT PG_READ_FILE('/etc/passwd')",
    "SELECT pg_read_file /* x */ ('/etc/passwd')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT pg_sleep(9)",
    "SELECT query_to_xml('SELECT 1', true, true, '')",
    "SELECT current_setting('config_file')",
    "SELECT set_config('search_path', 'evil', false)",
    "SELECT version()",
    "SELECT current_user",
    "SELECT evil.lower('x')",
    "SELECT lower(pg_sleep(1)::text)",
    "SELECT 'pg_class'::regclass",
    "SELECT CAST('orders' AS regclass)",
    "SELECT id FROM orders WHERE id OPERATOR(pg_catalog.=) 1",
    "SELECT count(*) OVER () FROM orders",
    "SELECT count(*) FILTER (WHERE true) FROM orders",
    "SELECT U&\"s\\0073n\" FROM customers",
    "SELECT E'\\x41' FROM customers",
    "SELECT $$x$$ FROM customers",
    "SELECT \u{ff53}\u{ff53}\u{ff4e} FROM customers",
    "SELECT s\u{200b}sn FROM customers",
    "SELECT ssn\u{0} FROM customers",
    "SELECT `ssn` FROM customers",
    "SELECT [ssn] FROM customers",
    "SELECT /*! ssn */ FROM customers",
    "SELECT id FROM orders -- \n; DELETE FROM orders",
    "SELECT id FROM orders /* /* */ ; DELETE FROM orders",
    "SELECT id FROM orders LIMIT (SELECT 1 FROM salaries)",
    "SELECT DISTINCT ON (id) id FROM orders",
    "SELECT id FROM orders o, customers c",
    "SELECT ARRAY(SELECT ssn FROM customers)",
    "SELECT id FROM orders WHERE id = ANY (SELECT id FROM salaries)",
    "SELECT $0",
    "SELECT $65",
];

#[test]
fn evasions_are_refused() {
    for dialect in [Dialect::Postgres, Dialect::Sqlite] {
        let catalogue = catalogue(dialect);
        // SQLite's names have no case.
        let other = (dialect == Dialect::Postgres).then_some("SELECT * FROM \"Orders\"");
        for sql in EVASIONS.iter().copied().chain(other) {
            let written = catalogue.render(sql);
            assert!(written.is_err(), "{sql}: {written:?}");
        }
    }
}

#[test]
fn sqlite_has_its_own_evasions() {
    let catalogue = catalogue(Dialect::Sqlite);
    for sql in [
        "SELECT * FROM sqlite_master",
        "SELECT sql FROM sqlite_schema",
        "SELECT * FROM pragma_table_info('customers')",
        "PRAGMA table_info(customers)",
        "ATTACH '/etc/passwd' AS x",
        "SELECT load_extension('x')",
        "SELECT readfile('/etc/passwd')",
        "SELECT rowid FROM customers",
        "SELECT * FROM temp.orders",
        "SELECT 'a' 'b'",
        "VACUUM INTO '/tmp/x'",
    ] {
        assert!(catalogue.render(sql).is_err(), "{sql}");
    }
}

#[test]
fn a_deep_statement_ends_before_the_stack_does() {
    let catalogue = catalogue(Dialect::Postgres);
    for (open, close) in [("(", ")"), ("NOT ", ""), ("-", ""), ("(SELECT ", ")")] {
        let sql = format!("SELECT {}1{}", open.repeat(1500), close.repeat(1500));
        assert!(catalogue.render(&sql).is_err(), "{open}");
    }
    assert!(catalogue.render(&"x".repeat(MAX_SQL_BYTES + 1)).is_err());
}
