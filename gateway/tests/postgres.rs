//! The SQL tool on a real PostgreSQL: what is listed is read, and both locks
//! hold, the parser without the role and the role without the parser.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;

use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use harness::scene::Scene;
use harness::{House, code, grant};
use serde_json::{Value, json};

/// A cluster of its own, over a unix socket alone.
struct Cluster {
    directory: tempfile::TempDir,
    programs: PathBuf,
}

/// A server may not run as root: the user that Debian's package makes.
fn user() -> u32 {
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).unwrap();
    line.split(':').nth(2).unwrap().parse().unwrap()
}

impl Cluster {
    /// A running server, or nothing where PostgreSQL is not installed.
    fn start() -> Option<Self> {
        let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
        let mut programs: Vec<PathBuf> = versions.map(|one| one.path().join("bin")).collect();
        programs.retain(|path| path.join("initdb").exists());
        let Some(programs) = programs.pop() else {
            println!("skipped: PostgreSQL is not installed (Debian's package postgresql)");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        if rustix::process::getuid().is_root() {
            chown(directory.path(), Some(user()), Some(user())).unwrap();
        }
        std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o700)).unwrap();
        let cluster = Self { directory, programs };
        let data = cluster.path("data");
        cluster.run("initdb", &["-D", &data, "-A", "trust", "-U", "admin", "--no-sync"]);
        let options = format!("-c listen_addresses='' -c fsync=off -k {}", cluster.path(""));
        let log = cluster.path("log");
        cluster.run("pg_ctl", &["-D", &data, "-o", &options, "-l", &log, "-w", "start"]);
        cluster.sql(SETUP);
        Some(cluster)
    }

    fn path(&self, name: &str) -> String {
        self.directory.path().join(name).display().to_string()
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = Command::new(self.programs.join(program));
        command.args(arguments).current_dir("/").stdout(Stdio::null());
        if rustix::process::getuid().is_root() {
            command.uid(user()).gid(user());
        }
        assert!(command.status().unwrap().success(), "{program}");
    }

    fn sql(&self, text: &str) {
        let mut command = Command::new("psql");
        let socket = self.path("");
        let arguments = ["-q", "-v", "ON_ERROR_STOP=1", "-U", "admin", "-d", "postgres"];
        command.args(arguments).args(["-h", &socket, "-c", text]);
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{text}");
    }

    /// What the role is told when nobody reads its statement before.
    async fn directly(&self, text: &str) -> Result<(), String> {
        let words = format!("host={} user=reader dbname=postgres", self.path(""));
        let (client, connection) =
            tokio_postgres::connect(&words, tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        let begun = "SET search_path = ''; SET statement_timeout = 500; BEGIN READ ONLY";
        client.batch_execute(begun).await.unwrap();
        let done = client.simple_query(text).await;
        done.map(drop)
            .map_err(|error| format!("{:?}", error.as_db_error().map(|e| e.message().to_owned())))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.path("data");
        self.run("pg_ctl", &["-D", &data, "-m", "immediate", "-w", "stop"]);
    }
}

const SETUP: &str = "
CREATE TABLE orders(id bigint, customer text, total numeric, ssn text);
INSERT INTO orders VALUES (1, 'a', 1.50, 's1'), (2, 'b', 2.25, 's2'), (9007199254740993, 'c', 3, 's3');
CREATE TABLE salaries(id bigint, amount bigint);
CREATE ROLE reader LOGIN;
ALTER ROLE reader SET default_transaction_read_only = on;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;
REVOKE ALL ON DATABASE postgres FROM PUBLIC;
GRANT CONNECT ON DATABASE postgres TO reader;
GRANT SELECT (id, customer, total) ON orders TO reader;";

fn house(cluster: &Cluster) -> House {
    let mut house = House::new();
    house.upstreams = format!(
        "[[upstream]]\nname = \"sql\"\n[upstream.sql]\n\
         postgres = \"host={} user=reader dbname=postgres\"\nmax_rows = 3\nmax_ms = 500\n\
         tables = {{ orders = [\"id\", \"customer\", \"total\"] }}\n\
         functions = [\"count\", \"sum\", \"lower\", \"repeat\", \"length\"]\n\
         [[upstream.tool]]\nname = \"query\"\nrisk = \"low\"\nidempotent = true\n",
        cluster.path("")
    );
    house
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_listed_is_read() {
    let Some(cluster) = Cluster::start() else { return };
    let scene = Scene::in_house(house(&cluster)).await;
    scene.add(grant(&["sql.query"], 100)).await;
    let mut port = scene.port().await;
    for (arguments, expected) in [
        (
            json!({"sql": "SELECT * FROM orders WHERE id = $1", "parameters": [2]}),
            json!([["2", "b", "2.25"]]),
        ),
        (json!({"sql": "SELECT count(*), sum(total) t FROM Orders"}), json!([["3", "6.75"]])),
        (
            json!({"sql": "SELECT id FROM orders WHERE customer = 'c'"}),
            json!([["9007199254740993"]]),
        ),
        (
            json!({"sql": "SELECT customer FROM orders WHERE customer = $1", "parameters": ["' OR true --"]}),
            json!([]),
        ),
        (
            json!({"sql": "WITH x AS (SELECT id FROM orders) SELECT x.id FROM x ORDER BY id LIMIT 1"}),
            json!([["1"]]),
        ),
        (json!({"sql": "SELECT NULL AS n, true AS t"}), json!([[null, "true"]])),
    ] {
        let result = port.call("sql.query", arguments.clone()).await.unwrap();
        assert_eq!(result["structuredContent"]["rows"], expected, "{arguments}: {result}");
    }
    // 3^16 rows to count, against half a second.
    let relations: Vec<String> = ('a'..='p').map(|name| format!("orders {name}")).collect();
    let slow = format!("SELECT count(*) FROM {}", relations.join(" CROSS JOIN "));
    let many = "SELECT a.id FROM orders a CROSS JOIN orders b";
    let result = port.call("sql.query", json!({"sql": many})).await.unwrap();
    assert_eq!(result["structuredContent"]["complete"], false);
    for (sql, expected) in [
        ("SELECT ssn FROM orders", "data_reach"),
        ("SELECT id FROM salaries", "data_reach"),
        ("SELECT pg_read_file('/etc/passwd')", "data_reach"),
        ("SELECT id FROM orders; SELECT 1", "data_reach"),
        ("SELECT repeat('x', 300000)", "response_blocked"),
        (slow.as_str(), "upstream_error"),
    ] {
        let result: Value = port.call("sql.query", json!({"sql": sql})).await.unwrap();
        assert_eq!(code(&result), expected, "{sql}: {result}");
    }
    // What is too long stays with the server: 30 MB, and this process does not grow.
    let mut patient = house(&cluster);
    patient.upstreams = patient.upstreams.replacen("max_ms = 500", "max_ms = 20000", 1);
    let scene = Scene::in_house(patient).await;
    scene.add(grant(&["sql.query"], 100)).await;
    let mut port = scene.port().await;
    let short = json!({"sql": "SELECT repeat('x', 300000)"});
    assert_eq!(code(&port.call("sql.query", short).await.unwrap()), "response_blocked");
    let before = peak_kib();
    let long = json!({"sql": "SELECT repeat('x', 30000000)"});
    assert_eq!(code(&port.call("sql.query", long).await.unwrap()), "response_blocked");
    let grown = peak_kib() - before;
    assert!(grown < 15_000, "{grown} KiB");
}

/// The most memory that this process had.
fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse().unwrap()
}

/// The second lock: each of these reaches the role as it stands.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_role_refuses_without_the_parser() {
    let Some(cluster) = Cluster::start() else { return };
    assert_eq!(cluster.directly("SELECT id FROM public.orders").await, Ok(()));
    for text in [
        "SELECT ssn FROM public.orders",
        "SELECT * FROM public.orders",
        "SELECT o FROM public.orders o",
        "SELECT pg_catalog.row_to_json(o) FROM public.orders o",
        "SELECT id FROM public.salaries",
        "SELECT id FROM public.orders FOR UPDATE",
        "INSERT INTO public.orders(id) VALUES (1)",
        "UPDATE public.orders SET total = 0",
        "DELETE FROM public.orders",
        "WITH x AS (DELETE FROM public.orders RETURNING id) SELECT id FROM x",
        "TRUNCATE public.orders",
        "SELECT id INTO public.leak FROM public.orders",
        "CREATE TABLE public.leak(id int)",
        "CREATE TEMP TABLE leak(id int)",
        "COPY public.orders(id) TO '/tmp/x'",
        "COPY public.orders(id) TO PROGRAM 'sh'",
        "SELECT pg_catalog.pg_read_file('/etc/passwd')",
        "SELECT pg_catalog.pg_ls_dir('/')",
        "SELECT pg_catalog.lo_import('/etc/passwd')",
        "SELECT pg_catalog.query_to_xml('SELECT ssn FROM public.orders', true, true, '')",
        "SELECT public.dblink('', '')",
        "SET ROLE admin",
        "SELECT pg_catalog.pg_sleep(9)",
        "COMMIT; CREATE TABLE public.leak(id int)",
        "ROLLBACK; BEGIN READ WRITE; DELETE FROM public.orders",
    ] {
        assert!(cluster.directly(text).await.is_err(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_role_with_more_rights_stops_the_gateway() {
    let Some(cluster) = Cluster::start() else { return };
    for (more, less, said) in [
        (
            "GRANT SELECT (ssn) ON orders TO reader",
            "REVOKE SELECT (ssn) ON orders FROM reader",
            "orders.ssn",
        ),
        ("GRANT SELECT ON salaries TO PUBLIC", "REVOKE SELECT ON salaries FROM PUBLIC", "salaries"),
        (
            "GRANT INSERT ON orders TO reader",
            "REVOKE INSERT ON orders FROM reader",
            "more than SELECT",
        ),
        (
            "GRANT pg_read_server_files TO reader",
            "REVOKE pg_read_server_files FROM reader",
            "membership",
        ),
        ("ALTER ROLE reader CREATEDB", "ALTER ROLE reader NOCREATEDB", "attribute"),
        (
            "GRANT CREATE ON SCHEMA public TO reader",
            "REVOKE CREATE ON SCHEMA public FROM reader",
            "CREATE in schema",
        ),
        (
            "CREATE FUNCTION f() RETURNS text LANGUAGE sql SECURITY DEFINER AS 'SELECT ssn FROM public.orders'",
            "DROP FUNCTION f",
            "SECURITY DEFINER",
        ),
    ] {
        cluster.sql(more);
        let house = house(&cluster);
        let opened = casemate_gateway::Gateway::open(house.config()).await;
        let error = opened.err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains(said), "{more}: {error}");
        cluster.sql(less);
    }
    let house = house(&cluster);
    assert!(casemate_gateway::Gateway::open(house.config()).await.is_ok());
}
