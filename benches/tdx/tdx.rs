//! TDX quotes: this library and `dcap-qvl` (ring), beside the signatures alone.
//!
//! `cargo run --release`, in this folder. Evidence is a real quote
//! where the directory of evidence vectors is there (CASEMATE_VECTORS), else
//! one of the software model. Paths take turns, and each is given as its
//! median of CPU time, so that a busy machine weighs on none. `tdx once PATH`
//! runs one path once, for callgrind.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ParsedPublicKey};
use casemate_attestation::UnixTime;
use casemate_attestation::anchors::{IntelAnchor, TrustAnchors};
use casemate_attestation::tdx::{BodyKind, Collateral, Prepared, Quote};
use casemate_attestation::x509::Certificate;
use casemate_model::tdx::{CollateralSpec, QuoteSpec, TdxConfig, TdxModel};
use dcap_qvl::QuoteCollateralV3;
use dcap_qvl::verify::QuoteVerifier;
use serde_json::value::RawValue;

const ROUNDS: usize = 60;
const PER_ROUND: usize = 40;
/// More than the library remembers, so that each is met as new.
const PLATFORMS: usize = 2048;

struct Subject {
    name: &'static str,
    quote: Vec<u8>,
    collateral: Collateral,
    root: Certificate,
    now: UnixTime,
}

fn main() {
    let subject = real().unwrap_or_else(model);
    let anchor = IntelAnchor::new("bench", subject.root.clone()).expect("a root");
    let prepared = Prepared::new(&subject.collateral, &anchor).expect("sound collateral");
    prepared.verify(&subject.quote, subject.now).expect("a sound quote");
    let strangers: Vec<_> = (0..PLATFORMS).map(|n| stranger(&subject.quote, n)).collect();
    let peer = peer_inputs(&subject);
    let verifier = QuoteVerifier::new(subject.root.der().to_vec());
    let floor = Floor::of(&subject);
    let mut next = 0;
    let mut paths: Vec<(&str, Box<dyn FnMut() + '_>)> = vec![
        ("1 P-256 verification, aws-lc-rs", Box::new(|| floor.aws_lc_rs())),
        ("1 P-256 verification, ring", Box::new(|| floor.ring())),
        (
            "platform known",
            Box::new(|| {
                drop(black_box(prepared.verify(&subject.quote, subject.now).expect("sound")))
            }),
        ),
        (
            "platform new, collateral prepared",
            Box::new(|| {
                next = (next + 1) % strangers.len();
                drop(black_box(prepared.verify(&strangers[next], subject.now).expect("sound")));
            }),
        ),
        (
            "everything new",
            Box::new(|| {
                let prepared = Prepared::new(&subject.collateral, &anchor).expect("sound");
                drop(black_box(prepared.verify(&subject.quote, subject.now).expect("sound")));
            }),
        ),
    ];
    match verifier.verify(&subject.quote, &peer, subject.now.0) {
        Ok(_) => paths.push((
            "dcap-qvl 0.7.1 (ring), everything new",
            Box::new(|| {
                drop(black_box(
                    verifier.verify(&subject.quote, &peer, subject.now.0).expect("sound"),
                ));
            }),
        )),
        Err(error) => println!("dcap-qvl refuses this evidence: {error:#}"),
    }
    if let Some(path) = once() {
        let (_, run) = paths.iter_mut().find(|(name, _)| *name == path).expect("a path's name");
        return run();
    }
    let medians = measure(&mut paths);
    report(&subject, &paths.iter().map(|(name, _)| *name).collect::<Vec<_>>(), &medians);
}

/// `once PATH` on the command line: run that path once more, for callgrind.
fn once() -> Option<String> {
    let mut arguments = std::env::args().skip(1);
    (arguments.next()? == "once").then(|| arguments.next()).flatten()
}

/// Medians over rounds in which every path takes its turn.
fn measure(paths: &mut [(&str, Box<dyn FnMut() + '_>)]) -> Vec<Duration> {
    let mut times = vec![Vec::with_capacity(ROUNDS); paths.len()];
    for _ in 0..ROUNDS {
        for ((_, path), times) in paths.iter_mut().zip(&mut times) {
            let start = cpu_time();
            (0..PER_ROUND).for_each(|_| path());
            times.push((cpu_time() - start) / u32::try_from(PER_ROUND).expect("small"));
        }
    }
    times.iter_mut().for_each(|times| times.sort_unstable());
    times.iter().map(|times| times[ROUNDS / 2]).collect()
}

/// Of this thread alone: what else runs on the machine does not count.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let seconds = u64::try_from(time.tv_sec).expect("after 1970");
    Duration::new(seconds, u32::try_from(time.tv_nsec).expect("less than a second"))
}

fn report(subject: &Subject, names: &[&str], medians: &[Duration]) {
    println!("evidence: {}", subject.name);
    let one = medians[0].as_secs_f64();
    for (name, median) in names.iter().zip(medians) {
        let micros = median.as_secs_f64() * 1e6;
        println!("{name:40} {micros:8.1} us  {:7.2} P-256", median.as_secs_f64() / one);
    }
    let share =
        |path: usize, signatures: f64| 100.0 * signatures * one / medians[path].as_secs_f64();
    println!("platform known: {:.0} % of the floor of 2 (budget 85)", share(2, 2.0));
    println!("collateral prepared: {:.0} % of the floor of 3 (budget 85)", share(3, 3.0));
    if let Some(peer) = medians.get(5) {
        let times = |path: usize| peer.as_secs_f64() / medians[path].as_secs_f64();
        println!(
            "dcap-qvl takes {:.1} times a known platform, {:.1} times a new one, {:.1} times everything new",
            times(2),
            times(3),
            times(4)
        );
    }
}

/// The quote's own signature, and nothing around it.
struct Floor {
    key: Vec<u8>,
    parsed: ParsedPublicKey,
    message: Vec<u8>,
    signature: [u8; 64],
}

impl Floor {
    fn of(subject: &Subject) -> Self {
        let quote = Quote::parse(&subject.quote).expect("a quote");
        let key = [&[4], quote.attestation_key.as_slice()].concat();
        let parsed = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &key).expect("a key");
        Self { key, parsed, message: quote.signed.to_vec(), signature: quote.signature }
    }

    fn aws_lc_rs(&self) {
        let key = black_box(&self.parsed);
        key.verify_sig(&self.message, &self.signature).expect("a sound signature");
    }

    fn ring(&self) {
        let algorithm = &ring::signature::ECDSA_P256_SHA256_FIXED;
        let key = ring::signature::UnparsedPublicKey::new(algorithm, black_box(&self.key));
        key.verify(&self.message, &self.signature).expect("a sound signature");
    }
}

/// The same quote with other blank space before its PCK certificate: the
/// platform is the same, and yet its chain was never met.
fn stranger(quote: &[u8], number: usize) -> Vec<u8> {
    let parsed = Quote::parse(quote).expect("a quote");
    let blank: Vec<u8> =
        (0..12).map(|bit| if number >> bit & 1 == 1 { b'\n' } else { b' ' }).collect();
    let at = |part: &[u8]| part.as_ptr() as usize - quote.as_ptr() as usize;
    let (signed, chain) = (parsed.signed.len(), at(parsed.pck_chain));
    let mut out = [&quote[..chain], &blank, &quote[chain..]].concat();
    // Three lengths grow: of the signature data, and of both certification data.
    for length in [signed, signed + 4 + 64 + 64 + 2, chain - 4] {
        let field: [u8; 4] = out[length..length + 4].try_into().expect("four bytes");
        let grown = u32::from_le_bytes(field) + u32::try_from(blank.len()).expect("small");
        out[length..length + 4].copy_from_slice(&grown.to_le_bytes());
    }
    out
}

fn real() -> Option<Subject> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/vectors");
    let dir = std::env::var_os("CASEMATE_VECTORS").map_or_else(|| default.into(), PathBuf::from);
    let quote = std::fs::read(dir.join("tdx/v4-gce-cos113/quote.bin")).ok()?;
    let set = dir.join("tdx/collateral/2025-07-20");
    let read = |name: &str| std::fs::read(set.join(name)).ok();
    Some(Subject {
        name: "v4-gce-cos113, a real quote of 2025",
        quote,
        collateral: Collateral {
            tcb_info: read("tcb_info_tdx_00806f050000.json")?,
            qe_identity: read("qe_identity_td.json")?,
            tcb_signing_chain: read("tcb_signing_chain.pem")?,
            root_crl: read("root_ca_crl.der")?,
            pck_crls: vec![read("pck_crl_platform.der")?],
        },
        root: TrustAnchors::vendor().intel.first()?.root().clone(),
        now: UnixTime::from_rfc3339("2025-07-20T00:00:00Z")?,
    })
}

fn model() -> Subject {
    let at = |time: &str| UnixTime::from_rfc3339(time).expect("a time");
    let model = TdxModel::generate(TdxConfig::new(at("2024-01-01T00:00:00Z"))).expect("keys");
    let spec = CollateralSpec::new(&model, at("2026-06-01T00:00:00Z"));
    Subject {
        name: "a quote of the software model",
        quote: model.quote(&QuoteSpec::new(BodyKind::Td10, [7; 64])).expect("a quote"),
        collateral: model.collateral(&spec).expect("collateral"),
        root: Certificate::parse(model.root()).expect("a certificate"),
        now: at("2026-06-15T00:00:00Z"),
    }
}

/// The same collateral in the peer's form.
fn peer_inputs(subject: &Subject) -> QuoteCollateralV3 {
    let collateral = &subject.collateral;
    let chain = String::from_utf8_lossy(&collateral.tcb_signing_chain).into_owned();
    let quote = Quote::parse(&subject.quote).expect("a quote");
    let pck_chain = String::from_utf8_lossy(quote.pck_chain).trim_end_matches('\0').to_owned();
    let ca_chain = pck_chain.split_inclusive("-----END CERTIFICATE-----").skip(1).collect();
    let (tcb_info, tcb_info_signature) = signed(&collateral.tcb_info, "tcbInfo");
    let (qe_identity, qe_identity_signature) = signed(&collateral.qe_identity, "enclaveIdentity");
    QuoteCollateralV3 {
        pck_crl_issuer_chain: ca_chain,
        root_ca_crl: collateral.root_crl.clone(),
        pck_crl: collateral.pck_crls[0].clone(),
        tcb_info_issuer_chain: chain.clone(),
        tcb_info,
        tcb_info_signature,
        qe_identity_issuer_chain: chain,
        qe_identity,
        qe_identity_signature,
        pck_certificate_chain: None,
    }
}

fn signed(response: &[u8], member: &str) -> (String, Vec<u8>) {
    let members: std::collections::HashMap<String, &RawValue> =
        serde_json::from_slice(response).expect("a response");
    let signature = members["signature"].get().trim_matches('"');
    let signature = casemate_attestation::wire::unhex(signature).expect("hex");
    (members[member].get().to_owned(), signature)
}
