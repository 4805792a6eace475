//! Prints how the reader of reference manifests sees each file of a folder, by
//! name: the SHA-384 of its canonical form without its signature, whether the
//! signature over SignedInfo holds, or the code with which it is refused.
//! `scripts/canonical-differential.py` compares it with libxml2.

use std::path::PathBuf;

use casemate_attestation::TrustAnchors;
use casemate_attestation::gpu::{Code, Verifier};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::args_os().nth(1).ok_or("usage: manifest_digest FOLDER")?;
    let verifier = Verifier::new(&TrustAnchors::vendor().nvidia);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    paths.sort();
    for path in paths {
        let checked = verifier.manifest(&std::fs::read(&path)?);
        let find = |code| checked.findings.iter().find(|finding| finding.code == code);
        let refused = [Code::RimXml, Code::RimSignatureProfile].into_iter().find_map(find);
        let digest = match (refused, find(Code::RimDigest)) {
            (Some(finding), _) => finding.code.name(),
            (None, Some(differs)) => &differs.actual,
            (None, None) => "as-signed",
        };
        let signature = if find(Code::RimSignature).is_none() { "signed" } else { "not-signed" };
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        println!("{name} {digest} {signature}");
    }
    Ok(())
}
