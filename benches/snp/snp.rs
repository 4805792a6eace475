//! SNP reports: this library and the crate `sev`, beside the signatures alone.
//!
//! `CASEMATE_VECTORS=DIR cargo run --release` in this folder, and once more
//! with `--no-default-features --features sev-openssl` for the peer's other
//! back end. Paths take turns, and each is given as its median, so that a busy
//! machine weighs on all alike. `snp once PATH` runs one path once, for
//! callgrind.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED, ParsedPublicKey, RSA_PSS_2048_8192_SHA384, UnparsedPublicKey,
};
use casemate_attestation::anchors::{AmdAnchor, TrustAnchors};
use casemate_attestation::snp::{PreparedVek, Product, Report, SIGNED_BYTES};
use casemate_attestation::x509::Certificate;
use casemate_attestation::{
    EndorsementKind, Endorsements, Evidence, EvidenceItem, EvidenceKind, UnixTime, verify,
};
use sev::certs::snp::{Certificate as PeerCertificate, Chain, Verifiable, ca};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser;

const ROUNDS: usize = 80;
const PER_ROUND: usize = 12;
const PEER: &str = if cfg!(feature = "sev-openssl") { "openssl" } else { "crypto_nossl" };

/// One path: its name, and what it does once.
type PathRun<'a> = (&'static str, Box<dyn FnMut() + 'a>);

struct Subject {
    ark: Vec<u8>,
    ask: Vec<u8>,
    vek: Vec<u8>,
    report: Vec<u8>,
    now: UnixTime,
}

/// A signature as the primitives want it: key, message, signature.
struct Signed {
    key: Vec<u8>,
    message: Vec<u8>,
    signature: Vec<u8>,
}

fn main() {
    let dir = std::env::var("CASEMATE_VECTORS").expect("CASEMATE_VECTORS: the vectors' directory");
    let subject = subject(Path::new(&dir));
    let rsa = rsa_signatures(&subject);
    let ecdsa = ecdsa_signature(&subject);
    let parsed = ParsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &ecdsa.key).expect("a key");
    let anchors = TrustAnchors::vendor();
    let prepared = prepare(&subject, &anchors);
    let evidence = evidence(&subject);
    let peer_report = AttestationReport::from_bytes(&subject.report).expect("a report");
    let peer_vek = PeerCertificate::from_der(&subject.vek).expect("a certificate");
    let mut paths: Vec<PathRun<'_>> = vec![
        ("floor cold: 3 RSA-4096-PSS, 1 P-384", Box::new(|| floor_cold(&rsa, &ecdsa))),
        ("ours cold: everything new", Box::new(|| cold(&subject))),
        ("peer cold", Box::new(|| peer_cold(&subject))),
        ("floor warm: 1 P-384, key parsed", Box::new(|| {
            parsed.verify_sig(&ecdsa.message, &ecdsa.signature).expect("sound");
        })),
        ("ours warm: chain known", Box::new(|| {
            drop(black_box(prepared.verify(&subject.report, subject.now).expect("sound")));
        })),
        ("peer warm", Box::new(|| (&peer_vek, &peer_report).verify().expect("sound"))),
        ("ours, envelope: root and ASK known", Box::new(|| {
            let verified = verify(&evidence, &anchors, &Endorsements::default(), subject.now);
            drop(black_box(verified.expect("sound")));
        })),
    ];
    let arguments: Vec<String> = std::env::args().collect();
    if let [_, once, name] = arguments.as_slice()
        && once == "once"
    {
        let path = paths.iter_mut().find(|(known, _)| known.starts_with(name));
        return (path.expect("a path's name").1)();
    }
    let medians = measure(&mut paths);
    let names: Vec<_> = paths.iter().map(|(name, _)| *name).collect();
    report(&names, &medians);
}

fn subject(dir: &Path) -> Subject {
    let read = |name: &str| std::fs::read(dir.join("snp").join(name)).expect(name);
    let vek = read("milan-v3-aci/vek.der");
    let now = Certificate::parse(&vek).expect("a certificate").not_before().plus_seconds(1);
    Subject {
        ark: read("roots/Milan/ark.der"),
        ask: read("roots/Milan/ask.der"),
        report: read("milan-v3-aci/report.bin"),
        vek,
        now,
    }
}

/// The three RSA signatures of the chain, taken apart.
fn rsa_signatures(subject: &Subject) -> Vec<Signed> {
    let pairs = [
        (&subject.ark, &subject.ark),
        (&subject.ask, &subject.ark),
        (&subject.vek, &subject.ask),
    ];
    pairs
        .into_iter()
        .map(|(der, issuer)| {
            let issuer = Certificate::parse(issuer).expect("a certificate");
            // Both lengths stand in two bytes; a signature of 512 bytes ends the certificate.
            let length = usize::from(u16::from_be_bytes([der[6], der[7]]));
            Signed {
                key: issuer.key().bytes().to_vec(),
                message: der[4..8 + length].to_vec(),
                signature: der[der.len() - 512..].to_vec(),
            }
        })
        .collect()
}

fn ecdsa_signature(subject: &Subject) -> Signed {
    let vek = Certificate::parse(&subject.vek).expect("a certificate");
    let report = Report::parse(&subject.report).expect("a report");
    Signed {
        key: vek.key().bytes().to_vec(),
        message: subject.report[..SIGNED_BYTES].to_vec(),
        signature: report.signature.to_vec(),
    }
}

fn floor_cold(rsa: &[Signed], ecdsa: &Signed) {
    for one in rsa {
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, &one.key)
            .verify(&one.message, &one.signature)
            .expect("sound");
    }
    UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, &ecdsa.key)
        .verify(&ecdsa.message, &ecdsa.signature)
        .expect("sound");
}

/// Root, signing key, endorsement key and report, all from bytes.
fn cold(subject: &Subject) {
    let parse = |der: &[u8]| Certificate::parse(der).expect("a certificate");
    let intermediates = vec![parse(&subject.ask)];
    let anchor = AmdAnchor::new("bench", Product::Milan, parse(&subject.ark), intermediates);
    let anchors = TrustAnchors { amd: vec![anchor.expect("a root")], ..TrustAnchors::default() };
    let prepared = prepare(subject, &anchors);
    drop(black_box(prepared.verify(&subject.report, subject.now).expect("sound")));
}

fn prepare(subject: &Subject, anchors: &TrustAnchors) -> PreparedVek {
    let vek = Certificate::parse(&subject.vek).expect("a certificate");
    PreparedVek::new(vek, &[], &[], anchors, subject.now).expect("a sound chain")
}

fn evidence(subject: &Subject) -> Evidence {
    let item = EvidenceItem {
        kind: EvidenceKind::SnpReport,
        evidence: subject.report.clone(),
        endorsements: vec![(EndorsementKind::CertificateChain, subject.vek.clone())],
    };
    Evidence { items: vec![item] }
}

fn peer_cold(subject: &Subject) {
    let parse = |der: &[u8]| PeerCertificate::from_der(der).expect("a certificate");
    let chain = Chain {
        ca: ca::Chain { ark: parse(&subject.ark), ask: parse(&subject.ask) },
        vek: parse(&subject.vek),
    };
    let report = AttestationReport::from_bytes(&subject.report).expect("a report");
    (&chain, &report).verify().expect("sound");
}

/// The median time of each path.
fn measure(paths: &mut [PathRun<'_>]) -> Vec<Duration> {
    let mut times = vec![Vec::with_capacity(ROUNDS); paths.len()];
    for _ in 0..ROUNDS {
        for ((_, run), times) in paths.iter_mut().zip(&mut times) {
            let start = Instant::now();
            (0..PER_ROUND).for_each(|_| run());
            times.push(start.elapsed() / PER_ROUND as u32);
        }
    }
    times
        .into_iter()
        .map(|mut times| {
            times.sort();
            times[times.len() / 2]
        })
        .collect()
}

fn report(names: &[&str], medians: &[Duration]) {
    println!("peer: sev 8.0.0, {PEER}\n");
    for (name, median) in names.iter().zip(medians) {
        println!("{:>10.1} us  {name}", median.as_secs_f64() * 1e6);
    }
    let ratio = |a: usize, b: usize| medians[a].as_secs_f64() / medians[b].as_secs_f64();
    println!("\ncold: {:.1} % of the floor, {:.2} times the peer", 100.0 * ratio(0, 1), ratio(2, 1));
    println!("warm: {:.1} % of the floor, {:.2} times the peer", 100.0 * ratio(3, 4), ratio(5, 4));
}
