//! Launch digests: `DIR/measure/*/cases.json`.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::measure::ovmf::Ovmf;
use casemate_attestation::measure::snp::{
    KernelHashes, Launch, SvsmLaunch, Vcpu, Vmm, launch_digest, svsm_launch_digest,
};
use casemate_attestation::measure::tdx::{PageOrder, Tdvf};
use casemate_attestation::wire::{hex, unhex_array};
use serde_json::Value;

use super::{Line, file, json, line, text};

/// The most bytes that a compressed image may unpack to.
const MAX_IMAGE_BYTES: u64 = 64 * 1024 * 1024;

/// Runs every list of cases under `dir` (the folder `measure` itself).
pub(crate) fn run(dir: &Path) -> anyhow::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for folder in super::folders(dir)? {
        let path = dir.join(&folder);
        let cases = json(&path, "cases.json")?;
        // A plain list holds launch digests; an object has one list for each kind.
        let lists = match &cases {
            Value::Array(list) => vec![("snp".to_owned(), list.clone())],
            Value::Object(map) => map
                .iter()
                .filter_map(|(key, value)| Some((key.clone(), value.as_array()?.clone())))
                .collect(),
            _ => bail!("{folder}/cases.json: expected a list or an object"),
        };
        for (kind, list) in lists {
            for case in list {
                let id = text(&case, "id").unwrap_or("(no id)");
                lines.push(line(&format!("{folder}/{id}"), || one(&path, &kind, &case)));
            }
        }
    }
    Ok(lines)
}

fn one(folder: &Path, kind: &str, case: &Value) -> anyhow::Result<String> {
    match kind {
        "snp" => compare(case, snp(folder, case)),
        "mrtd" => compare(case, mrtd(folder, case)),
        other => bail!("no calculator for {other}"),
    }
}

/// Compares a digest, or its absence, with what the case expects.
fn compare(case: &Value, digest: anyhow::Result<[u8; 48]>) -> anyhow::Result<String> {
    match (case.get("expected").and_then(Value::as_str), digest) {
        (Some(expected), Ok(digest)) => {
            ensure!(hex(&digest) == expected, "expected {expected}, got {}", hex(&digest));
            Ok("digest".to_owned())
        }
        (Some(_), Err(error)) => Err(error),
        (None, Ok(digest)) => bail!("expected a refusal, got {}", hex(&digest)),
        (None, Err(error)) => {
            text(case, "expected_error")?;
            Ok(format!("refused: {error}"))
        }
    }
}

fn snp(folder: &Path, case: &Value) -> anyhow::Result<[u8; 48]> {
    let image = image(folder, text(case, "ovmf")?)?;
    let ovmf = Ovmf::parse(&image)?;
    let signature = u32::try_from(number(case, "cpu_sig")?)?;
    let vcpus = u32::try_from(number(case, "vcpus")?)?;
    match text(case, "mode")? {
        "snp" => {
            let vmm = text(case, "vmm")?;
            let vmm = Vmm::from_name(vmm).with_context(|| format!("vmm: unknown {vmm}"))?;
            let launch = Launch {
                ovmf,
                ovmf_digest: seed(case)?,
                kernel: kernel(case)?,
                vcpu: Vcpu { vmm, signature, features: number(case, "guest_features")? },
                vcpus,
            };
            Ok(launch_digest(&launch)?)
        }
        "snp-svsm" => {
            let svsm = self::image(folder, text(case, "svsm")?)?;
            let launch = SvsmLaunch {
                ovmf,
                vars_bytes: u32::try_from(number(case, "ovmf_vars_size")?)?,
                svsm: Ovmf::parse(&svsm)?,
                signature,
                vcpus,
            };
            Ok(svsm_launch_digest(&launch)?)
        }
        other => bail!("mode: unknown {other}"),
    }
}

fn mrtd(folder: &Path, case: &Value) -> anyhow::Result<[u8; 48]> {
    let image = image(folder, text(case, "firmware")?)?;
    let order = text(case, "order")?;
    let order = PageOrder::ALL.into_iter().find(|known| known.name() == order);
    Ok(Tdvf::parse(&image)?.mrtd(order.context("order: expected per-page or two-pass")?))
}

/// A firmware image; a name that ends in .gz is unpacked.
fn image(folder: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
    let bytes = file(folder, name)?;
    if !name.ends_with(".gz") {
        return Ok(bytes);
    }
    let mut out = Vec::new();
    flate2::read::GzDecoder::new(bytes.as_slice())
        .take(MAX_IMAGE_BYTES)
        .read_to_end(&mut out)
        .with_context(|| name.to_owned())?;
    Ok(out)
}

fn seed(case: &Value) -> anyhow::Result<Option<[u8; 48]>> {
    match case.get("ovmf_hash_seed").and_then(Value::as_str) {
        None => Ok(None),
        Some(seed) => Ok(Some(unhex_array(seed).context("ovmf_hash_seed: expected 96 digits")?)),
    }
}

/// Kernel, initrd and command line; the vectors give them as text.
fn kernel(case: &Value) -> anyhow::Result<Option<KernelHashes>> {
    if case.get("kernel_hashes").and_then(Value::as_bool) != Some(true) {
        return Ok(None);
    }
    let part = |key| case.get(key).and_then(Value::as_str).unwrap_or_default();
    Ok(Some(KernelHashes::new(
        part("kernel").as_bytes(),
        part("initrd").as_bytes(),
        part("cmdline"),
    )))
}

/// A number, written as one or as hex digits after 0x.
fn number(case: &Value, key: &str) -> anyhow::Result<u64> {
    let value = case.get(key).with_context(|| format!("{key}: expected a number, got none"))?;
    match (value.as_u64(), value.as_str()) {
        (Some(number), _) => Ok(number),
        (_, Some(text)) => u64::from_str_radix(text.trim_start_matches("0x"), 16)
            .with_context(|| format!("{key}: expected hex digits, got {text}")),
        _ => bail!("{key}: expected a number, got {value}"),
    }
}
