//! The gateway's own tools, and MCP over HTTP, through whole calls: what is
//! given runs, what is not is a decision, and no credential comes back.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

mod harness;
mod web;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use casemate_ledger::Grant;
use harness::scene::Scene;
use harness::{House, code, grant, text_of};
use serde_json::{Value, json};

const TOKEN: &str = "Bearer 9f2c-very-secret-token";

/// A house with `upstreams` alone.
fn house(upstreams: impl FnOnce(&Path) -> String) -> House {
    let mut house = House::new();
    house.upstreams = upstreams(&house.directory);
    let token = house.directory.join("token");
    std::fs::write(&token, TOKEN).unwrap();
    std::fs::set_permissions(&token, PermissionsExt::from_mode(0o600)).unwrap();
    house
}

fn tool(name: &str) -> String {
    format!("[[upstream.tool]]\nname = \"{name}\"\nrisk = \"low\"\nidempotent = true\n")
}

async fn scene(house: House, tools: &[&str]) -> (Scene, harness::Port) {
    let scene = Scene::in_house(house).await;
    scene.add(Grant { ..grant(tools, 200) }).await;
    let port = scene.port().await;
    (scene, port)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_are_read_below_their_root() {
    let house = house(|directory| {
        std::fs::create_dir(directory.join("data")).unwrap();
        std::fs::write(directory.join("data/note"), "hello").unwrap();
        std::os::unix::fs::symlink("../token", directory.join("data/link")).unwrap();
        format!(
            "[[upstream]]\nname = \"fs\"\nfiles = {{ root = \"data\" }}\n{}{}",
            tool("read"),
            tool("list")
        )
    });
    let (_scene, mut port) = scene(house, &["fs.read", "fs.list"]).await;
    assert_eq!(port.list().await, ["fs.list", "fs.read"]);
    let note = port.call("fs.read", json!({"path": "note"})).await.unwrap();
    assert_eq!(note["structuredContent"]["text"], "hello");
    for (path, expected) in [
        ("../token", "data_reach"),
        ("/etc/passwd", "data_reach"),
        // What only the kernel can see, after the decision.
        ("link", "data_reach"),
        // It fails, and says so in its result.
        ("none", "none"),
    ] {
        let result = port.call("fs.read", json!({"path": path})).await.unwrap();
        assert_eq!(code(&result), expected, "{path}: {result}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_answers_what_is_listed() {
    let house = house(|directory| {
        let database = rusqlite::Connection::open(directory.join("shop.db")).unwrap();
        database
            .execute_batch(
                "CREATE TABLE orders(id INTEGER, customer TEXT, ssn TEXT);
                 INSERT INTO orders VALUES (1, 'a', 'x'), (2, 'b', 'y'), (9007199254740993, 'c', 'z');
                 CREATE TABLE salaries(id INTEGER);",
            )
            .unwrap();
        format!(
            "[[upstream]]\nname = \"db\"\n[upstream.sql]\nsqlite = \"shop.db\"\nmax_rows = 2\nmax_ms = 500\n\
             tables = {{ orders = [\"id\", \"customer\"] }}\n{}",
            tool("query")
        )
    });
    let (_scene, mut port) = scene(house, &["db.query"]).await;
    let sql =
        "SELECT customer, count(*) AS n FROM orders WHERE id > $1 GROUP BY customer ORDER BY n";
    let result = port.call("db.query", json!({"sql": sql, "parameters": [1]})).await.unwrap();
    assert_eq!(
        result["structuredContent"],
        json!({"columns": ["customer", "n"], "rows": [["b", 1], ["c", 1]], "complete": true}),
        "{result}"
    );
    let all = port.call("db.query", json!({"sql": "SELECT * FROM orders"})).await.unwrap();
    assert_eq!(all["structuredContent"]["complete"], false);
    for sql in ["SELECT ssn FROM orders", "SELECT id FROM salaries", "DELETE FROM orders"] {
        let result = port.call("db.query", json!({"sql": sql})).await.unwrap();
        assert_eq!(code(&result), "data_reach", "{sql}");
        assert_eq!(result["structuredContent"]["casemate"]["rule"], "reach/sql");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_carry_credentials_that_never_come_back() {
    let server = web::start().await;
    let house = house(|directory| {
        std::fs::write(directory.join("roots.pem"), &server.root).unwrap();
        format!(
            "[[upstream]]\nname = \"web\"\ntimeout_ms = 3000\n[upstream.http]\nroots = \"roots.pem\"\n\
             networks = [\"127.0.0.1\", \"::1\"]\n\
             [[upstream.http.rule]]\nhost = \"localhost\"\nport = {}\npath = \"/{{id}}\"\n\
             inject = {{ authorization = \"token\" }}\n{}",
            server.port,
            tool("request")
        )
    });
    let (_scene, mut port) = scene(house, &["web.request"]).await;
    let url = |path: &str| json!({"method": "GET", "url": format!("https://localhost:{}{path}", server.port)});
    let seen = port.call("web.request", url("/length")).await.unwrap();
    // The server got the credential.
    assert_eq!(seen["structuredContent"]["json"], json!({"authorization": TOKEN.len()}), "{seen}");
    let moved = port.call("web.request", url("/moved")).await.unwrap();
    assert_eq!(moved["structuredContent"]["status"], 302, "{moved}");
    for (path, expected) in [
        ("/echo", "response_blocked"),
        ("/base64", "response_blocked"),
        ("/html", "response_blocked"),
        ("/endless", "response_blocked"),
        ("/slow", "timeout"),
        ("/a/b", "data_reach"),
    ] {
        let result = port.call("web.request", url(path)).await.unwrap();
        assert_eq!(code(&result), expected, "{path}: {result}");
    }
}

/// Without the configuration's networks the same name may not be reached.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_points_inside_is_not_reached() {
    let server = web::start().await;
    let house = house(|directory| {
        std::fs::write(directory.join("roots.pem"), &server.root).unwrap();
        format!(
            "[[upstream]]\nname = \"web\"\n[upstream.http]\nroots = \"roots.pem\"\n\
             [[upstream.http.rule]]\nhost = \"localhost\"\nport = {}\npath = \"/{{id}}\"\n{}",
            server.port,
            tool("request")
        )
    });
    let (_scene, mut port) = scene(house, &["web.request"]).await;
    let url = format!("https://localhost:{}/length", server.port);
    let result: Value =
        port.call("web.request", json!({"method": "GET", "url": url})).await.unwrap();
    assert_eq!(code(&result), "data_reach", "{result}");
    assert_eq!(server.requests(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_mcp_server_over_http_serves_in_both_eras() {
    for path in ["/mcp", "/legacy"] {
        let server = web::start().await;
        let house = house(|directory| {
            std::fs::write(directory.join("roots.pem"), &server.root).unwrap();
            format!(
                "[[upstream]]\nname = \"far\"\n[upstream.remote]\nurl = \"https://localhost:{}{path}\"\n\
                 roots = \"roots.pem\"\nnetworks = [\"127.0.0.1\", \"::1\"]\n\
                 headers = {{ authorization = \"token\" }}\n{}{}",
                server.port,
                tool("greet"),
                tool("leak")
            )
        });
        let (_scene, mut port) = scene(house, &["far.greet", "far.leak"]).await;
        let result = port.call("far.greet", json!({"name": "x"})).await.unwrap();
        assert_eq!(text_of(&result), "hello x", "{path}: {result}");
        assert_eq!(result["resultType"], "complete");
        let leak = port.call("far.leak", json!({})).await.unwrap();
        assert_eq!(code(&leak), "response_blocked", "{path}");
        assert_eq!(server.without_token(), 0, "{path}");
    }
}
