//! A receipt of a real call, whose caller was attested by the software model
//! of the PSP, verifies offline; and nothing else does.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "helpers of tests fail the test"
)]

mod harness;

use std::sync::Arc;
use std::time::Duration;

use casemate_attestation::{
    Binding, Bundle, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind,
    IdentityClaims, Policy, ReferenceValues, TrustAnchors, UnixTime, appraise, verify,
};
use casemate_gateway::{Client, Command, Gateway, Reply};
use casemate_ledger::receipt::{self, Outcome, Receipt, TrustFile};
use casemate_ledger::{Grant, text};
use casemate_model::{PspConfig, PspModel};
use harness::{Credential, House, grant, no_arguments, now};
use serde_json::json;

const MEASUREMENT: [u8; 48] = [9; 48];

/// A sandbox as the verifier would admit it, with evidence by the model.
fn attested(house: &House, model: &PspModel) -> Credential {
    attested_at(house, model, now(), |_| ())
}

/// The same, verified at `time`, with a certificate that `change` has changed.
fn attested_at(
    house: &House,
    model: &PspModel,
    time: UnixTime,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> Credential {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let binding = Binding {
        nonce: vec![1; 32],
        identity_key: pair.public_key_raw().try_into().unwrap(),
        sealing_key: [3; 32],
        channel: [4; 32],
        epoch: 1,
        devices: None,
    };
    let report = model.report(&binding.report_data(), &MEASUREMENT).unwrap();
    let evidence = Evidence {
        items: vec![EvidenceItem {
            kind: EvidenceKind::SnpReport,
            evidence: report.to_vec(),
            endorsements: vec![(EndorsementKind::SnpCertTable, model.cert_table())],
        }],
    };
    let anchors = TrustAnchors::from_toml(&model.anchor_toml("dev model")).unwrap();
    let none = Endorsements::default();
    let claims = verify(&evidence, &anchors, &none, time).unwrap();
    let references = ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"demo\"\nproperties = [\"own_kernel\", \"mediated\"]\n\
         snp_measurements = [\"{}\"]\n",
        text::hex(&MEASUREMENT)
    ))
    .unwrap();
    let policy = Policy::default();
    let appraisal = appraise(&claims, &policy, &references, &binding, time);
    let bundle = Bundle::new(&evidence, &binding, &none, &policy, &references, &appraisal);
    let claims = IdentityClaims {
        epoch: 1,
        boundary: appraisal.boundary(),
        properties: appraisal.properties().clone(),
        bundle: bundle.digest(),
        measurement: MEASUREMENT.to_vec(),
        task: "report".to_owned(),
        anchor: "dev model".to_owned(),
        hardware: "model".to_owned(),
    };
    let credential = house.authority.identity_of(&pair, claims, change);
    Credential { bundle: bundle.encode(), ..credential }
}

/// A grant that a caller without a proved property can use: a model proves none.
fn lenient() -> Grant {
    Grant { require: Default::default(), ..grant(&["fx.echo"], 1) }
}

struct Scene {
    house: House,
    model: PspModel,
    gateway: Arc<Gateway>,
}

impl Scene {
    async fn new() -> Self {
        let house = House::new();
        let gateway = house.gateway().await;
        let (stop, stopped) = tokio::sync::watch::channel(false);
        let served = Arc::clone(&gateway);
        tokio::spawn(async move {
            let _stop = stop;
            served.serve(stopped).await.unwrap();
        });
        let model = PspModel::generate(PspConfig::milan(UnixTime(1_790_000_000))).unwrap();
        let scene = Self { house, model, gateway };
        while Client::call(&scene.socket(), &Command::Status).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        scene
    }

    fn socket(&self) -> std::path::PathBuf {
        self.house.directory.join("admin.sock")
    }

    async fn receipt(&self, sandbox: &str, sequence: u64) -> Vec<u8> {
        let ask = Command::ReceiptOf { sandbox: sandbox.to_owned(), epoch: 1, sequence };
        match Client::call(&self.socket(), &ask).await.unwrap() {
            Reply::Receipt(receipt) => text::from_base64url(&receipt).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn trust(&self) -> TrustFile {
        let public = self.gateway.public();
        TrustFile::from_toml(&format!(
            "log = \"{}\"\ngateway_key = \"{}\"\nidentity_ca = '''\n{}'''\n\
             trust_anchors = '''\n{}'''\n[[issuer]]\nname = \"ops\"\nkey = \"{}\"\n",
            public.log_vkey,
            public.gateway_key,
            self.house.authority.pem,
            self.model.anchor_toml("dev model"),
            text::hex(self.house.issuer.public())
        ))
        .unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_allowed_and_a_denied_call_are_proved_and_each_changed_byte_is_seen() {
    let scene = Scene::new().await;
    let signed = text::base64url(&scene.house.sign(lenient()));
    Client::call(&scene.socket(), &Command::GrantAdd { grant: signed }).await.unwrap();
    let credential = attested(&scene.house, &scene.model);
    let sandbox = credential.sandbox.clone();
    let mut port = scene.house.port(&scene.gateway, credential).await;
    port.call("fx.echo", json!({"a": 1})).await.unwrap();
    port.call("fx.echo", no_arguments()).await.unwrap();
    let trust = scene.trust();

    let allowed = scene.receipt(&sandbox, 1).await;
    let tree = receipt::verify(&allowed, &trust);
    assert!(tree.holds(), "{tree}");
    let text = tree.to_string();
    assert!(text.contains("a software MODEL, not hardware"), "{text}");
    assert!(text.contains("executed by mcp-stdio fx"), "{text}");
    assert!(serde_json::to_string(&tree).unwrap().contains("\"not_checkable\""));
    println!("{tree}");

    let denied = scene.receipt(&sandbox, 2).await;
    let tree = receipt::verify(&denied, &trust);
    assert!(tree.holds() && tree.subject.contains("denied budget_exhausted"), "{tree}");

    flip_every_byte(&allowed, &trust);
    splice(&allowed, &denied, &trust);
    distrust(&allowed, &trust);
    pin(&allowed, &trust);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_certificate_does_not_rest_on_old_evidence() {
    let scene = Scene::new().await;
    let signed = text::base64url(&scene.house.sign(lenient()));
    Client::call(&scene.socket(), &Command::GrantAdd { grant: signed }).await.unwrap();
    let old = UnixTime(now().0 - 3600);
    let start = i64::try_from(now().0 - 600).unwrap();
    let credential = attested_at(&scene.house, &scene.model, old, |params| {
        params.not_before = time::OffsetDateTime::from_unix_timestamp(start).unwrap();
    });
    let sandbox = credential.sandbox.clone();
    let mut port = scene.house.port(&scene.gateway, credential).await;
    port.call("fx.echo", no_arguments()).await.unwrap();
    let tree = receipt::verify(&scene.receipt(&sandbox, 1).await, &scene.trust());
    assert_eq!(tree.failures(), ["attestation.time"], "{tree}");
}

/// A trust file can say which policy and reference values it accepts.
fn pin(receipt: &[u8], trust: &TrustFile) {
    let bundle = Bundle::decode(&Receipt::decode(receipt).unwrap().bundle).unwrap();
    let policy = casemate_ledger::digest(bundle.policy.as_bytes());
    let reference = casemate_ledger::digest(bundle.references.as_bytes());
    let pinned = |policy, reference| TrustFile {
        policy_sha256: Some(policy),
        reference_sha256: Some(reference),
        ..trust.clone()
    };
    let open = receipt::verify(receipt, trust).to_string();
    assert!(open.contains("are the ones you want") && open.contains(&text::hex(&policy)), "{open}");
    let tree = receipt::verify(receipt, &pinned(policy, reference));
    assert!(tree.holds() && !tree.to_string().contains("are the ones you want"), "{tree}");
    let tree = receipt::verify(receipt, &pinned(reference, policy));
    let both = ["attestation.policy-pinned", "attestation.reference-pinned"];
    assert_eq!(tree.failures(), both, "{tree}");
}

/// No byte of a receipt can change without a check that says so. Large parts
/// under one digest are sampled; their digest is checked whole.
fn flip_every_byte(receipt: &[u8], trust: &TrustFile) {
    let read = Receipt::decode(receipt).unwrap();
    let bundle = receipt.len() - read.bundle.len();
    let places = (0..bundle).chain((bundle..receipt.len()).step_by(41));
    for at in places {
        let mut bytes = receipt.to_vec();
        bytes[at] ^= 1;
        let tree = receipt::verify(&bytes, trust);
        assert!(!tree.holds() && !tree.failures().is_empty(), "byte {at} changed unseen");
    }
}

/// Parts of another genuine receipt do not fit.
fn splice(one: &[u8], other: &[u8], trust: &TrustFile) {
    let read = Receipt::decode(one).unwrap();
    let foreign = Receipt::decode(other).unwrap();
    let cases = [
        (
            Receipt { decision: foreign.decision.clone(), ..read.clone() },
            "gateway.outcome-of-decision",
        ),
        (Receipt { checkpoint: "x".to_owned(), ..read.clone() }, "log.checkpoint"),
        (Receipt { grant: None, ..read.clone() }, "grant.signature"),
        (Receipt { grant: read.outcome.clone(), ..read.clone() }, "grant.signature"),
        (Receipt { bundle: Vec::new(), ..read.clone() }, "attestation.bundle"),
        (Receipt { certificate: Vec::new(), ..read.clone() }, "identity.certificate"),
        (Receipt { outcome: Some(read.decision.clone()), ..read.clone() }, "gateway.outcome"),
    ];
    for (receipt, id) in cases {
        let tree = receipt::verify(&receipt.encode(), trust);
        assert!(tree.failures().contains(&id), "{id}: {tree}");
    }
    let mut moved = read.clone();
    moved.decision.index += 1;
    let tree = receipt::verify(&moved.encode(), trust);
    assert!(tree.failures().contains(&"log.decision"), "{tree}");
    let mut late = read.clone();
    late.grant.as_mut().unwrap().index = late.decision.index;
    let tree = receipt::verify(&late.encode(), trust);
    assert!(tree.failures().contains(&"grant.order"), "{tree}");
}

/// An auditor who trusts other keys is told which one failed.
fn distrust(receipt: &[u8], trust: &TrustFile) {
    let stranger = harness::Authority::new();
    let ca = casemate_attestation::x509::Certificate::parse(&stranger.der).unwrap();
    let log = casemate_ledger::checkpoint::VerifierKey::new(trust.log.name(), [0; 32]).unwrap();
    let cases = [
        (TrustFile { log, ..trust.clone() }, "log.checkpoint"),
        (TrustFile { gateway_key: [0; 32], ..trust.clone() }, "gateway.decision"),
        (TrustFile { identity_ca: ca, ..trust.clone() }, "identity.certificate"),
        (TrustFile { issuers: Default::default(), ..trust.clone() }, "grant.signature"),
        (TrustFile { anchors: TrustAnchors::vendor(), ..trust.clone() }, "attestation.evidence"),
    ];
    for (trust, id) in cases {
        let tree = receipt::verify(receipt, &trust);
        assert!(tree.failures().contains(&id), "{id}: {tree}");
    }
    let tree = receipt::verify(receipt, trust);
    assert!(tree.checks.iter().any(|check| check.outcome == Outcome::NotCheckable));
}
