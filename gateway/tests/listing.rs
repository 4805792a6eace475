//! How long a list of tools may be kept.

mod harness;

use casemate_ledger::Grant;
use casemate_ledger::cgp::{self, method};
use harness::scene::Scene;
use harness::{grant, now};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_list_is_not_kept_when_a_grant_ends_soon() {
    for (seconds, kept_ms) in [(600, 30_000), (120, 30_000), (25, 0)] {
        let expires = now().plus_seconds(seconds);
        let ends = Grant { expires, id: [9; 16], ..grant(&["fx.echo"], 5) };
        // Another grant that lasts does not make it longer.
        let (scene, mut port) = Scene::with(ends).await;
        scene.add(grant(&["fx.mark"], 5)).await;
        let list = port.request(method::TOOLS_LIST, cgp::list_params()).await.unwrap();
        assert_eq!(list["ttlMs"], kept_ms, "{seconds} s");
        assert_eq!(
            (&list["cacheScope"], &list["resultType"]),
            (&"private".into(), &"complete".into())
        );
    }
}
