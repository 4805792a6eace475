//! What an auditor is given of a gateway, in a test.

use std::path::{Path, PathBuf};
use std::time::Duration;

use casemate_gateway::{RulesAgain, SigningKey};
use casemate_ledger::audit::{Auditor, Report};
use casemate_ledger::receipt::TrustFile;
use casemate_ledger::{Leaf, LeafKind, Record, record, text};
use casemate_ledger_store::{Export, Published};

use super::House;
use super::scene::Scene as Live;

/// A gateway's log after its end, with what an auditor trusts.
pub struct Scene {
    pub house: House,
    pub trust: TrustFile,
    pub leaves: Vec<Vec<u8>>,
}

impl Scene {
    pub fn state(&self) -> PathBuf {
        self.house.directory.join("state")
    }

    pub fn keys(&self) -> PathBuf {
        self.house.directory.join("state/keys/payloads")
    }

    pub fn audit(&self, leaves: &[Vec<u8>]) -> Report {
        let export = Export::open(&self.state(), Some(&self.keys())).unwrap();
        let rules = RulesAgain::default();
        let mut auditor = Auditor::new(&self.trust, &export).with_rules(&rules);
        leaves.iter().for_each(|leaf| auditor.leaf(leaf));
        auditor.finish()
    }

    /// The first leaf of this kind that `wanted` takes.
    pub fn find(&self, kind: LeafKind, wanted: impl Fn(&Leaf) -> bool) -> usize {
        let leaves = self.leaves.iter().map(|leaf| Leaf::decode(leaf).unwrap());
        leaves.enumerate().find(|(_, leaf)| leaf.kind == kind && wanted(leaf)).unwrap().0
    }

    /// What the gateway's operator, who has its key, could have written.
    pub fn forged<T: Record>(&self, kind: LeafKind, record: T) -> Vec<u8> {
        let key = SigningKey::open(&self.state().join("keys/record.key")).unwrap();
        let signed = record.sign(key.public(), |message| key.sign(message));
        Leaf::new(kind, signed.bytes()).encode()
    }

    /// The record of the leaf at `index`.
    pub fn read<T: Record>(&self, index: usize) -> T {
        record::peek::<T>(&Leaf::decode(&self.leaves[index]).unwrap().record).unwrap().1
    }
}

/// What an auditor is given of a gateway, which ends.
pub async fn taken(live: Live) -> Scene {
    let public = live.gateway.public().clone();
    let house = live.stop().await;
    let trust = TrustFile::from_toml(&format!(
        "log = \"{}\"\ngateway_key = \"{}\"\nidentity_ca = '''\n{}'''\ntrust_anchors = ''\n\
         [[issuer]]\nname = \"ops\"\nkey = \"{}\"\n{}",
        public.log_vkey,
        public.gateway_key,
        house.authority.pem,
        text::hex(house.issuer.public()),
        // An auditor is given the approvers as the gateway is.
        house.controls.find("[[approver]]").map_or("", |at| &house.controls[at..])
    ))
    .unwrap();
    closed(&house.directory.join("state/log")).await;
    let log = Published::open(&house.directory.join("state/log"), &trust.log).unwrap();
    let leaves = (0..log.head().size.div_ceil(256)).flat_map(|at| log.bundle(at).unwrap());
    Scene { trust, leaves: leaves.collect(), house }
}

/// Waits until nobody has the log, whose last head is published then.
async fn closed(log: &Path) {
    let begun = std::time::Instant::now();
    let lock = std::fs::File::open(log.join("lock")).unwrap();
    while lock.try_lock().is_err() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the log stays locked");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub fn failures(report: &Report) -> Vec<&'static str> {
    let failed = report.counts.iter().filter(|(_, count)| count.fail > 0);
    failed.map(|(check, _)| *check).collect()
}
