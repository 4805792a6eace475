//! Each rule of an appraisal has a case here that it fails in, and only it;
//! and the ways from a result to a yes are walked.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::sync::OnceLock;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use casemate_attestation::anchors::HostAnchor;
use casemate_attestation::break_list::{BreakList, BrokenGeneration, FixedIn};
use casemate_attestation::snp::Product;
use casemate_attestation::{
    Appraisal, Boundary, EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind,
    Expected, Hardware, HostClaim, LaunchDigests, Outcome, Policy, Properties, Property,
    ReferenceValues, Risk, TrustAnchors, UnixTime, appraise, ear, verify,
};
use casemate_model::{PspConfig, PspModel, ReportFields, VekKind};

const NOW: UnixTime = UnixTime(1_795_000_000);
const START: UnixTime = UnixTime(1_790_000_000);
const REPORT_DATA: [u8; 64] = [5; 64];

struct Bench {
    model: PspModel,
    vlek: PspModel,
    host: Ed25519KeyPair,
    anchors: TrustAnchors,
}

fn bench() -> &'static Bench {
    static BENCH: OnceLock<Bench> = OnceLock::new();
    BENCH.get_or_init(|| {
        let model = PspModel::generate(PspConfig::milan(START)).unwrap();
        let csp = VekKind::Vlek("CN=cc.example".to_owned());
        let vlek = model.reissue(PspConfig { kind: csp, ..PspConfig::milan(START) }).unwrap();
        let toml = format!("{}{}", model.anchor_toml("dev"), vlek.anchor_toml("vlek"));
        let mut anchors = TrustAnchors::from_toml(&toml).unwrap();
        let host = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
        anchors.hosts.push(HostAnchor::new("h1", public(&host)));
        Bench { model, vlek, host, anchors }
    })
}

fn public(key: &Ed25519KeyPair) -> [u8; 32] {
    key.public_key().as_ref().try_into().unwrap()
}

fn snp(change: impl FnOnce(&mut ReportFields)) -> EvidenceItem {
    signed(&bench().model, change)
}

/// A report with a list, number 7, beside it.
fn listed() -> EvidenceItem {
    let mut item = snp(|_| {});
    let list = bench().model.crl(&[], START, UnixTime(NOW.0 + 10)).unwrap();
    item.endorsements.push((EndorsementKind::Crl, list));
    item
}

/// A report under a provider's key.
fn vlek() -> EvidenceItem {
    signed(&bench().vlek, |f| f.chip_id = [0; 64])
}

fn signed(model: &PspModel, change: impl FnOnce(&mut ReportFields)) -> EvidenceItem {
    let mut fields = model.fields();
    fields.report_data = REPORT_DATA;
    fields.measurement = [9; 48];
    change(&mut fields);
    EvidenceItem {
        kind: EvidenceKind::SnpReport,
        evidence: model.sign(fields.encode()).unwrap().to_vec(),
        endorsements: vec![(EndorsementKind::SnpCertTable, model.cert_table())],
    }
}

fn host(change: impl FnOnce(&mut HostClaim)) -> EvidenceItem {
    let key = &bench().host;
    let mut claim = HostClaim {
        host: "h1".to_owned(),
        machine: [1; 16],
        boundary: Boundary::MicroVm,
        properties: [Property::OwnKernel, Property::Mediated].into_iter().collect(),
        backend: "qemu-tcg".to_owned(),
        launch: LaunchDigests { kernel: [1; 32], initrd: [2; 32], cmdline: [3; 32] },
        report_data: REPORT_DATA,
        issued_at: NOW,
    };
    change(&mut claim);
    let sign = |message: &[u8]| key.sign(message).as_ref().try_into().unwrap();
    let evidence = claim.sign(&public(key), sign);
    EvidenceItem { kind: EvidenceKind::HostClaim, evidence, endorsements: vec![] }
}

fn references() -> ReferenceValues {
    ReferenceValues::from_toml(&format!(
        "[[image]]\nlabel = \"i\"\nproperties = [\"mediated\"]\nsnp_measurements = [\"{}\"]\n\
         [[image.launch]]\nkernel = \"{}\"\ninitrd = \"{}\"\ncmdline = \"{}\"\n",
        "09".repeat(48),
        "01".repeat(32),
        "02".repeat(32),
        "03".repeat(32)
    ))
    .unwrap()
}

fn judge(items: Vec<EvidenceItem>, policy: &str) -> Appraisal {
    let claims = verify(&Evidence { items }, &bench().anchors, &Endorsements::default(), NOW);
    let policy = Policy::from_toml(policy).unwrap();
    let expected = Expected::ReportData(REPORT_DATA);
    appraise(&claims.unwrap(), &policy, &references(), expected, NOW)
}

fn failed(appraisal: &Appraisal) -> Vec<&'static str> {
    appraisal.failures().map(|check| check.rule).collect()
}

fn break_list(fixed_snp: Option<u8>) -> String {
    let key = &bench().host;
    let floor =
        casemate_attestation::snp::Tcb { snp: fixed_snp.unwrap_or(0), ..Default::default() };
    let list = BreakList {
        sequence: 3,
        issued_at: NOW,
        entries: vec![BrokenGeneration {
            id: "CVE-1".to_owned(),
            generation: Product::Milan.name().to_owned(),
            fixed_in: fixed_snp.map(|_| FixedIn::Snp(floor)),
            text: "keys can be read out".to_owned(),
        }],
    };
    let bytes = list.sign(&public(key), |m| key.sign(m).as_ref().try_into().unwrap());
    format!(
        "[generations]\nlist = \"{}\"\nkey = \"{}\"\n",
        base64::engine::general_purpose::STANDARD.encode(bytes),
        casemate_attestation::wire::hex(&public(key))
    )
}

/// A rule, the policy that asks, and the evidence that does not satisfy it.
type Case = (&'static str, String, Vec<EvidenceItem>);

fn cases() -> Vec<Case> {
    let s = |policy: &str| format!("[snp]\n{policy}\n");
    let digest = |bytes: usize| "fe".repeat(bytes);
    vec![
        ("snp.version", s(""), vec![snp(|f| f.version = 2)]),
        ("snp.vmpl", s(""), vec![snp(|f| f.vmpl = 1)]),
        ("snp.vmpl", s("vmpl = 1"), vec![snp(|_| {})]),
        ("snp.crl", s("require_crl = true"), vec![snp(|_| {})]),
        ("snp.reserved", s(""), vec![snp(|f| f.guest_policy = 0x1_0000)]),
        ("snp.reserved", s(""), vec![snp(|f| f.guest_policy |= 1 << 26)]),
        ("snp.debug", s(""), vec![snp(|f| f.guest_policy |= 1 << 19)]),
        ("snp.migration-agent", s(""), vec![snp(|f| f.guest_policy |= 1 << 18)]),
        ("snp.migration-agent", s(""), vec![snp(|f| f.report_id_ma = [1; 32])]),
        ("snp.smt", s("allow_smt = false"), vec![snp(|_| {})]),
        ("snp.alias-check", s(""), vec![snp(|f| f.platform_info = 5)]),
        ("snp.tsme", s("require_tsme = true"), vec![snp(|_| {})]),
        ("snp.ecc", s("require_ecc = true"), vec![snp(|f| f.platform_info = 0x21)]),
        ("snp.tio", s("allow_tio = false"), vec![snp(|f| f.platform_info |= 1 << 7)]),
        ("snp.vlek", s("allow_vlek = false"), vec![vlek()]),
        ("snp.ciphertext-hiding", s("require_ciphertext_hiding = true"), vec![snp(|_| {})]),
        ("snp.cxl", s("allow_cxl = false"), vec![snp(|f| f.guest_policy |= 1 << 21)]),
        ("snp.single-socket", s("require_single_socket = true"), vec![snp(|_| {})]),
        ("snp.aes-256-xts", s("require_aes_256_xts = true"), vec![snp(|_| {})]),
        ("snp.rapl", s("require_rapl_off = true"), vec![snp(|f| f.guest_policy |= 1 << 23)]),
        ("snp.page-swap", s("require_page_swap_off = true"), vec![snp(|_| {})]),
        ("snp.abi", s("min_abi = [1, 1]"), vec![snp(|_| {})]),
        ("snp.host-data", s(&format!("host_data = [\"{}\"]", digest(32))), vec![snp(|_| {})]),
        ("snp.id-key", s(&format!("id_key_digests = [\"{}\"]", digest(48))), vec![snp(|_| {})]),
        (
            "snp.author-key",
            s(&format!("author_key_digests = [\"{}\"]", digest(48))),
            vec![snp(
                // Without AUTHOR_KEY_EN the digest means nothing.
                |f| f.author_key_digest = [0xfe; 48],
            )],
        ),
        ("snp.family-id", s(&format!("family_ids = [\"{}\"]", digest(16))), vec![snp(|_| {})]),
        ("snp.image-id", s(&format!("image_ids = [\"{}\"]", digest(16))), vec![snp(|_| {})]),
        ("snp.guest-svn", s("min_guest_svn = 1"), vec![snp(|_| {})]),
        ("snp.chip", s(&format!("chip_ids = [\"{}\"]", digest(64))), vec![snp(|_| {})]),
        ("snp.csp", s("csp_ids = [\"CN=other\"]"), vec![vlek()]),
        // A list of the one kind says nothing for a machine of the other.
        ("snp.chip", s(&format!("chip_ids = [\"{}\"]", digest(64))), vec![vlek()]),
        ("snp.csp", s("csp_ids = [\"CN=other\"]"), vec![snp(|_| {})]),
        ("snp.chip", s(&both_lists()), vec![snp(|_| {})]),
        ("snp.csp", s(&both_lists()), vec![vlek()]),
        ("snp.platform-smt", s("allow_platform_smt = false"), vec![snp(|f| f.platform_info |= 1)]),
        ("snp.crl-age", s("max_crl_age_days = 3650"), vec![snp(|_| {})]),
        ("snp.crl", s("min_crl_number = \"0x010000000000000000\""), vec![listed()]),
        ("evidence.bound", s(""), vec![snp(|f| f.report_data[63] ^= 1)]),
        ("snp.report-data", s(""), vec![snp(|f| f.report_data[63] ^= 1), host(|_| {})]),
        ("snp.measurement", s(""), vec![snp(|f| f.measurement[0] ^= 1)]),
        ("snp.generation", break_list(None), vec![snp(|_| {})]),
        ("snp.generation", break_list(Some(25)), vec![snp(|_| {})]),
        ("host.name", "[host]\nhosts = [\"h2\"]\n".to_owned(), vec![snp(|_| {}), host(|_| {})]),
        ("host.report-data", s(""), vec![snp(|_| {}), host(|c| c.report_data[0] ^= 1)]),
        ("host.age", s(""), vec![snp(|_| {}), host(|c| c.issued_at = UnixTime(NOW.0 - 301))]),
        ("host.age", s(""), vec![snp(|_| {}), host(|c| c.issued_at = UnixTime(NOW.0 + 61))]),
        ("host.launch", s(""), vec![snp(|_| {}), host(|c| c.launch.cmdline[0] ^= 1)]),
    ]
}

fn both_lists() -> String {
    format!("chip_ids = [\"{}\"]\ncsp_ids = [\"CN=other\"]", "fe".repeat(64))
}

/// A floor that the bench reaches in one list, and one of `snp` in another.
fn floors(low: &str, high: &str, snp: u8) -> String {
    let product = "product = \"Milan\"\nsnp =";
    format!("[[snp.{low}]]\n{product} 1\n[[snp.{high}]]\n{product} {snp}\n")
}

#[test]
fn a_generation_under_known_attack_is_labelled_even_where_it_is_accepted() {
    let accept = "accept = [{ id = \"CVE-1\", until = \"2099-01-01T00:00:00Z\" }]\n";
    for (policy, failures) in [
        (break_list(None), vec!["snp.generation"]),
        (format!("{}{accept}", break_list(None)), vec![]),
    ] {
        let appraisal = judge(vec![snp(|_| {})], &policy);
        assert_eq!(failed(&appraisal), failures);
        assert_eq!(appraisal.known_attacks(), ["CVE-1"]);
        assert!(appraisal.label().ends_with("under known attack (CVE-1)"), "{}", appraisal.label());
    }
    let sound = judge(vec![snp(|_| {})], &break_list(Some(24)));
    assert!(sound.known_attacks().is_empty() && !sound.label().contains("attack"));
}

#[test]
fn a_floor_holds_from_its_date_on() {
    let dated = |since: &str| format!("{}since = \"{since}\"\n", floors("tcb", "tcb", 25));
    let later = judge(vec![snp(|_| {})], &dated("2099-01-01T00:00:00Z"));
    assert!(failed(&later).is_empty(), "{:?}", failed(&later));
    // What is not asked yet is not shown as if it held.
    let only = "[[snp.tcb]]\nproduct = \"Milan\"\nsnp = 25\nsince = \"2099-01-01T00:00:00Z\"\n";
    let later = judge(vec![snp(|_| {})], only);
    assert!(failed(&later).is_empty(), "{:?}", failed(&later));
    for rule in ["snp.reported-tcb", "snp.committed-tcb", "snp.launch-tcb"] {
        let check = later.checks().iter().find(|check| check.rule == rule).unwrap();
        assert_eq!(check.outcome, Outcome::NotApplicable, "{rule}");
        assert!(check.expected.contains("2099"), "{}", check.expected);
    }
    let now = judge(vec![snp(|_| {})], &dated("2001-01-01T00:00:00Z"));
    assert_eq!(failed(&now), ["snp.reported-tcb", "snp.committed-tcb", "snp.launch-tcb"]);
    // A chip that is listed is enough where the provider's list is not met.
    let policy = "[snp]\ncsp_ids = [\"CN=other\"]\nchip_ids = [\"";
    let chip = casemate_attestation::wire::hex(bench().model.chip_id());
    assert!(failed(&judge(vec![snp(|_| {})], &format!("{policy}{chip}\"]\n"))).is_empty());
}

/// What the platform ran at launch and runs now.
fn cases_of_versions() -> Vec<Case> {
    let s = |policy: &str| format!("[snp]\n{policy}\n");
    let low_tcb = |f: &mut ReportFields| f.launch_tcb[6] -= 1;
    let floor = "[[snp.tcb]]\nproduct = \"Milan\"\nsnp = 24\n";
    vec![
        ("snp.tcb-order", s(""), vec![snp(|f| f.committed_tcb[6] -= 1)]),
        ("snp.tcb-order", s(""), vec![snp(|f| f.launch_tcb[7] += 1)]),
        (
            "snp.provisional-firmware",
            s("allow_provisional_firmware = false"),
            vec![snp(|f| f.current_tcb[7] += 1)],
        ),
        ("snp.reported-tcb", "[[snp.tcb]]\nproduct = \"Genoa\"\n".to_owned(), vec![snp(|_| {})]),
        ("snp.committed-tcb", floor.to_owned(), vec![snp(|f| f.committed_tcb[6] -= 1)]),
        ("snp.launch-tcb", floor.to_owned(), vec![snp(low_tcb)]),
        ("snp.committed-tcb", floors("tcb", "committed_tcb", 25), vec![snp(|_| {})]),
        ("snp.launch-tcb", floors("tcb", "launch_tcb", 25), vec![snp(|_| {})]),
        ("snp.firmware-version", s("min_firmware = [1, 56, 0]"), vec![snp(|_| {})]),
        (
            "snp.launch-mitigations",
            s("required_mitigations = 1"),
            vec![snp(|f| {
                f.current_mitigations = 1;
            })],
        ),
        (
            "snp.current-mitigations",
            s("required_mitigations = 1"),
            vec![snp(|f| {
                f.launch_mitigations = 1;
            })],
        ),
    ]
}

#[test]
fn every_rule_has_a_case_that_fails_it() {
    let mut seen = BTreeSet::new();
    for (rule, policy, items) in cases().into_iter().chain(cases_of_versions()) {
        let appraisal = judge(items, &policy);
        let failed = failed(&appraisal);
        assert!(failed.contains(&rule), "{rule}: {failed:?}");
        let denial = appraisal.affirmed(Risk::Low).unwrap_err();
        assert!(!denial.hint.is_empty() && denial.expected != denial.actual, "{denial}");
        seen.insert(rule);
    }
    let all = judge(vec![snp(|_| {}), host(|_| {})], "");
    assert_eq!(failed(&all), Vec::<&str>::new());
    // The devices' rules have their cases beside the model that makes devices.
    for check in all.checks() {
        let elsewhere = check.rule.starts_with("gpu.");
        assert!(seen.contains(check.rule) || elsewhere, "{} has no case", check.rule);
    }
}

#[test]
fn a_model_and_a_host_make_a_microvm_and_no_more() {
    let appraisal = judge(vec![snp(|_| {}), host(|_| {})], "");
    assert_eq!(appraisal.hardware(), Hardware::Model);
    assert_eq!(appraisal.boundary(), Boundary::MicroVm);
    assert_eq!(appraisal.properties().to_string(), "{own_kernel, mediated}");
    assert!(appraisal.affirmed(Risk::Medium).is_ok());
    let denial = appraisal.affirmed(Risk::High).unwrap_err();
    assert_eq!(denial.rule, "risk.high.properties");
    assert!(denial.hint.starts_with("{attested_fresh, operator_excluded, debug_off}"), "{denial}");
    let tee = judge(vec![snp(|_| {}), host(|_| {})], "[risk.low]\nboundary = \"tee\"\n");
    assert_eq!(tee.affirmed(Risk::Low).unwrap_err().rule, "risk.low.boundary");
}

#[test]
fn a_host_is_not_believed_about_what_it_cannot_see_to() {
    let everything: Properties = Property::ALL.into_iter().collect();
    let appraisal = judge(vec![host(|c| c.properties = everything)], "");
    let had = appraisal.properties();
    for property in [
        Property::OperatorExcluded,
        Property::AttestedFresh,
        Property::DebugOff,
        Property::GpuConfidential,
    ] {
        assert!(!had.contains(property), "{property}");
    }
    assert_eq!((appraisal.hardware(), appraisal.host()), (Hardware::None, Some("h1")));
}

#[test]
fn nothing_that_is_not_bound_is_affirmed() {
    let evidence = Evidence { items: vec![snp(|_| {}), host(|_| {})] };
    let claims = verify(&evidence, &bench().anchors, &Endorsements::default(), NOW).unwrap();
    let appraisal = appraise(&claims, &Policy::default(), &references(), Expected::Nothing, NOW);
    assert_eq!(failed(&appraisal), ["host.report-data", "evidence.bound"]);
    assert!(appraisal.affirmed(Risk::Low).is_err());
}

/// A vTPM's nonce is not in the claim, which may be another machine's.
#[test]
fn a_host_is_not_believed_where_nothing_ties_its_claim_to_the_evidence() {
    let claims = verify(
        &Evidence { items: vec![host(|_| {})] },
        &bench().anchors,
        &Endorsements::default(),
        NOW,
    )
    .unwrap();
    let expected = Expected::TpmNonce(b"nonce");
    let appraisal = appraise(&claims, &Policy::default(), &references(), expected, NOW);
    assert_eq!(failed(&appraisal), ["host.report-data", "evidence.bound"]);
    assert_eq!((appraisal.host(), appraisal.image()), (None, None));
    assert_eq!(appraisal.boundary(), Boundary::SameHost);
    assert_eq!(appraisal.properties().iter().count(), 0);
}

#[test]
fn a_break_may_be_accepted_until_a_date_and_fixed_tcbs_pass() {
    let accept = |until| {
        format!("{}accept = [{{ id = \"CVE-1\", until = \"{until}\" }}]\n", break_list(None))
    };
    assert!(failed(&judge(vec![snp(|_| {})], &accept("2030-01-01T00:00:00Z"))).is_empty());
    assert!(!failed(&judge(vec![snp(|_| {})], &accept("2020-01-01T00:00:00Z"))).is_empty());
    assert!(failed(&judge(vec![snp(|_| {})], &break_list(Some(24)))).is_empty());
    // A guest that was launched on the broken TCB stays broken.
    let launched_before = judge(vec![snp(|f| f.launch_tcb[6] = 23)], &break_list(Some(24)));
    assert_eq!(failed(&launched_before), ["snp.generation"]);
    let stale = format!("{}min_sequence = 4\n", break_list(None));
    assert!(Policy::from_toml(&stale).is_err());
    let signer = casemate_attestation::wire::hex(&public(&bench().host));
    let other_key = break_list(None).replace(&signer, &"07".repeat(32));
    assert!(Policy::from_toml(&other_key).is_err());
}

#[test]
fn tokens_say_no_more_than_the_appraisal() {
    let appraisal = judge(vec![snp(|_| {}), host(|_| {})], "");
    let context = ear::EarContext {
        issuer: "https://verifier.example",
        subject: "spiffe://example/t/sb/1",
        audience: "vault",
        token_id: "1",
        issued_at: NOW,
        lifetime_seconds: 9000,
        nonce: &[1; 32],
        identity_key: &[2; 32],
        risk: Risk::Medium,
        bundle: [3; 32],
        task: "t",
        dialect: ear::Dialect::Both,
    };
    let claims = ear::claims(&appraisal, &context);
    let cpu = &claims["submods"]["cpu0"];
    assert_eq!(cpu["ear.status"], "warning");
    assert_eq!(cpu["ear_status"], "warning");
    assert!(cpu["ear.trustworthiness-vector"].get("hardware").is_none());
    assert_eq!(claims["casemate_decision"], "allow-medium");
    assert_eq!(claims["urn:casemate:claims:v1"]["known_attacks"].as_array().unwrap().len(), 0);
    assert_eq!(claims["exp"], NOW.0 + 300);

    let key = aws_lc_rs::signature::EcdsaKeyPair::generate(
        &aws_lc_rs::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
    )
    .unwrap();
    let random = aws_lc_rs::rand::SystemRandom::new();
    let token = ear::sign(&claims, "k1", |message| {
        key.sign(&random, message).unwrap().as_ref().try_into().unwrap()
    });
    let public = casemate_attestation::crypto::PublicKey::p256(key.public_key().as_ref()).unwrap();
    let check = |audience, at| {
        ear::verify(&token, &public, "https://verifier.example", audience, UnixTime(at))
    };
    assert_eq!(check("vault", NOW.0).unwrap(), claims);
    assert_eq!(check("other", NOW.0).unwrap_err().field, "aud");
    assert_eq!(check("vault", NOW.0 + 300).unwrap_err().field, "exp");
    assert_eq!(check("vault", NOW.0 - 1).unwrap_err().field, "exp");

    let refused = judge(vec![snp(|f| f.vmpl = 1), host(|_| {})], "");
    let claims = ear::claims(&refused, &context);
    assert_eq!(claims["submods"]["cpu0"]["ear.status"], "contraindicated");
    assert_eq!(claims["casemate_decision"], "deny");
    assert!(refused.checks().iter().any(|check| check.outcome == Outcome::Fail));
}
