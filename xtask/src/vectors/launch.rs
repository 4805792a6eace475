//! SNP launches as cases of `DIR/measure` describe them.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use casemate_attestation::measure::ovmf::Ovmf;
use casemate_attestation::measure::snp;
use casemate_attestation::measure::snp::{
    Explanation, KernelHashes, Launch, LaunchDigest, PageType, Search, SvsmLaunch, Vcpu, Vmm,
    cpu_signature, cpu_signature_of, launch_digest, svsm_launch_digest,
};
use casemate_attestation::wire::{unhex, unhex_array};
use serde_json::Value;

use super::{file, text};

/// The most bytes that a compressed image may unpack to.
const MAX_IMAGE_BYTES: u64 = 64 * 1024 * 1024;
/// SEV_FEATURES where a case does not say: SNPActive alone.
const SNP_ACTIVE: u64 = 1;

/// The launch digest of a case.
pub(super) fn digest(folder: &Path, case: &Value) -> anyhow::Result<[u8; 48]> {
    let image = image(folder, text(case, "ovmf").or_else(|_| text(case, "firmware"))?)?;
    match text(case, "mode").unwrap_or("snp") {
        "snp" | "explain" => Ok(launch_digest(&launch(case, &image)?)?),
        "snp-svsm" | "snp:svsm" | "svsm" => {
            let svsm = self::image(folder, text(case, "svsm")?)?;
            Ok(svsm_launch_digest(&svsm_launch(case, &image, &svsm)?)?)
        }
        // The firmware's pages alone: what other cases start from.
        "snp-ovmf-hash" | "snp:ovmf-hash" => {
            let ovmf = Ovmf::parse(&image)?;
            let mut digest = LaunchDigest::new();
            digest.normal_pages(ovmf.gpa(), ovmf.image())?;
            Ok(digest.finish())
        }
        other => bail!("mode: unknown {other}"),
    }
}

/// The digest of pages that a case lists one by one, and of its CPUs after them.
pub(super) fn pages(folder: &Path, case: &Value) -> anyhow::Result<[u8; 48]> {
    let list = case.get("pages").and_then(Value::as_array).context("pages: expected a list")?;
    let mut digest = LaunchDigest::new();
    for page in list {
        let kind = page_type(text(page, "type")?)?;
        let gpa = match kind {
            PageType::Vmsa if page.get("gpa").is_none() => snp::VMSA_GPA,
            _ => number(page, "gpa")?,
        };
        let content = content(folder, page)?;
        match (kind, content) {
            (PageType::Normal, Some(bytes)) => {
                digest.normal_pages(gpa, &bytes)?;
            }
            (PageType::Vmsa, Some(bytes)) => {
                digest.page(kind, gpa, &bytes)?;
            }
            (PageType::Normal | PageType::Vmsa, None) => bail!("page: expected contents"),
            (_, _) => {
                let count = page.get("count").map_or(Ok(1), |_| number(page, "count"))?;
                digest.empty_pages(kind, gpa, u32::try_from(count)?)?;
            }
        }
    }
    Ok(digest.finish())
}

fn page_type(name: &str) -> anyhow::Result<PageType> {
    Ok(match name.to_ascii_lowercase().as_str() {
        "normal" => PageType::Normal,
        "vmsa" => PageType::Vmsa,
        "zero" => PageType::Zero,
        "unmeasured" => PageType::Unmeasured,
        "secrets" => PageType::Secrets,
        "cpuid" => PageType::Cpuid,
        other => bail!("page type: unknown {other}"),
    })
}

fn content(folder: &Path, page: &Value) -> anyhow::Result<Option<Vec<u8>>> {
    if let Ok(name) = text(page, "file") {
        return image(folder, name).map(Some);
    }
    let digits =
        text(page, "data").or_else(|_| text(page, "hex")).or_else(|_| text(page, "content"));
    let Ok(digits) = digits else { return Ok(None) };
    unhex(digits).map(Some).context("page: expected hex digits")
}

/// A case of `explain`: the launch that a digest was observed of is found, and
/// is the one that the case names.
pub(super) fn explain(folder: &Path, case: &Value) -> anyhow::Result<String> {
    let observed = unhex_array(text(case, "observed")?).context("observed: expected 96 digits")?;
    let image = image(folder, text(case, "ovmf").or_else(|_| text(case, "firmware"))?)?;
    let search = Search::default();
    let found = match text(case, "svsm") {
        Ok(name) => {
            let svsm = self::image(folder, name)?;
            snp::explain_svsm(&svsm_launch(case, &image, &svsm)?, &observed, search)?
        }
        Err(_) => snp::explain(&launch(case, &image)?, &observed, search)?,
    };
    let wants = ["matches", "expect", "launch"].iter().find_map(|key| case.get(*key));
    if wants.is_some_and(|wants| wants.is_null() || wants.as_array().is_some_and(Vec::is_empty)) {
        ensure!(found.matches.is_empty(), "expected no match, got {:?}", found.matches);
        return Ok("no launch of these inputs".to_owned());
    }
    let Explanation { matches, tried, .. } = &found;
    ensure!(!matches.is_empty(), "expected a match, got none of {tried} launches");
    if let Some(wants) = wants.filter(|wants| wants.is_object()) {
        only_known(wants)?;
        let fits = |variant: &&snp::Variant| is_the(variant, wants).unwrap_or(false);
        ensure!(matches.iter().any(|one| fits(&one)), "expected {wants}, got {matches:?}");
    }
    let hint = found.differences.join("; ");
    Ok(if hint.is_empty() { "the launch itself".to_owned() } else { hint })
}

/// A field that is not compared must not pass for one that is.
fn only_known(wants: &Value) -> anyhow::Result<()> {
    let known = ["vmm", "kernel_hashes", "guest_features", "cpu_sig", "vcpus", "ovmf_vars_size"];
    let keys = wants.as_object().into_iter().flat_map(|fields| fields.keys());
    match keys.into_iter().find(|key| !known.contains(&key.as_str())) {
        Some(key) => bail!("launch: expected fields of {known:?}, got {key}"),
        None => Ok(()),
    }
}

/// Whether `variant` is the launch that `wants` names, in the fields that it names.
fn is_the(variant: &snp::Variant, wants: &Value) -> anyhow::Result<bool> {
    let same = |key: &str, actual: u64| -> anyhow::Result<bool> {
        wants.get(key).map_or(Ok(true), |_| Ok(number(wants, key)? == actual))
    };
    let vmm = text(wants, "vmm").map_or(Some(variant.vcpu.vmm), Vmm::from_name);
    let kernel = wants.get("kernel_hashes").and_then(Value::as_bool);
    Ok(vmm == Some(variant.vcpu.vmm)
        && kernel.is_none_or(|kernel| kernel == variant.kernel_hashes)
        && same("guest_features", variant.vcpu.features)?
        && same("cpu_sig", u64::from(variant.vcpu.signature))?
        && same("vcpus", u64::from(variant.vcpus))?
        && same("ovmf_vars_size", variant.svsm_vars_bytes.map_or(0, u64::from))?)
}

fn launch<'a>(case: &Value, image: &'a [u8]) -> anyhow::Result<Launch<'a>> {
    let vmm = text(case, "vmm").unwrap_or("qemu");
    let words = &["vmm", "monitor", "hypervisor"];
    let vmm = Vmm::from_name(vmm).ok_or_else(|| Unmeasurable::new("vmm", words, vmm))?;
    let features = case.get("guest_features").filter(|value| !value.is_null());
    Ok(Launch {
        ovmf: Ovmf::parse(image)?,
        ovmf_digest: seed(case)?,
        kernel: kernel(case)?,
        vcpu: Vcpu {
            vmm,
            signature: signature(case)?,
            features: features.map_or(Ok(SNP_ACTIVE), |_| number(case, "guest_features"))?,
        },
        vcpus: u32::try_from(number(case, "vcpus")?)?,
    })
}

fn svsm_launch<'a>(
    case: &Value,
    image: &'a [u8],
    svsm: &'a [u8],
) -> anyhow::Result<SvsmLaunch<'a>> {
    Ok(SvsmLaunch {
        ovmf: Ovmf::parse(image)?,
        vars_bytes: u32::try_from(number(case, "ovmf_vars_size")?)?,
        svsm: Ovmf::parse(svsm)?,
        signature: signature(case)?,
        vcpus: u32::try_from(number(case, "vcpus")?)?,
    })
}

/// The CPUID signature, given as such or by the name of the CPU model. Monitors
/// that do not start CPUs with it do without.
fn signature(case: &Value) -> anyhow::Result<u32> {
    let has = |key: &&&str| case.get(**key).is_some_and(|value| !value.is_null());
    if let Some(key) = ["cpu_sig", "vcpu_sig"].iter().find(has) {
        return Ok(u32::try_from(number(case, key)?)?);
    }
    let parts = ["vcpu_family", "vcpu_model", "vcpu_stepping"];
    if parts.iter().all(|key| has(&key)) {
        let [family, model, stepping] = parts.map(|key| number(case, key));
        let (family, model) = (u8::try_from(family?)?, u8::try_from(model?)?);
        return Ok(cpu_signature(family, model, u8::try_from(stepping?)?));
    }
    let name = ["vcpu_type", "cpu", "cpu_type"].iter().find_map(|key| text(case, key).ok());
    let name = name.context("cpu_sig: expected a number or, as vcpu_type, a model's name")?;
    let words = &["cpu", "model"];
    Ok(cpu_signature_of(name).ok_or_else(|| Unmeasurable::new("vcpu_type", words, name))?)
}

/// What a case names and nothing can be measured with: a refusal, where the case
/// is about that.
#[derive(Debug)]
pub(super) struct Unmeasurable {
    field: &'static str,
    /// Of which one is in any text about the field.
    words: &'static [&'static str],
    actual: String,
}

impl Unmeasurable {
    fn new(field: &'static str, words: &'static [&'static str], actual: &str) -> Self {
        Self { field, words, actual: actual.to_owned() }
    }

    /// Whether a case that expects the error `wanted` is about this field.
    pub(super) fn is_about(&self, wanted: &str) -> bool {
        let wanted = wanted.to_lowercase();
        self.words.iter().any(|word| wanted.contains(word))
    }
}

impl core::fmt::Display for Unmeasurable {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: no launch with {:?} can be measured", self.field, self.actual)
    }
}

impl std::error::Error for Unmeasurable {}

/// A firmware image; a name that ends in .gz is unpacked.
pub(super) fn image(folder: &Path, name: &str) -> anyhow::Result<Vec<u8>> {
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
        Some(seed) => {
            let words = &["seed", "hash"];
            let bytes = unhex_array(seed);
            Ok(Some(bytes.ok_or_else(|| Unmeasurable::new("ovmf_hash_seed", words, seed))?))
        }
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
pub(super) fn number(case: &Value, key: &str) -> anyhow::Result<u64> {
    let value = case.get(key).with_context(|| format!("{key}: expected a number, got none"))?;
    match (value.as_u64(), value.as_str()) {
        (Some(number), _) => Ok(number),
        (_, Some(text)) => {
            let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
            let number = u64::from_str_radix(digits.unwrap_or(text), 16);
            number.with_context(|| format!("{key}: expected hex digits, got {text}"))
        }
        _ => bail!("{key}: expected a number, got {value}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use casemate_attestation::measure::MeasureError;
    use serde_json::json;

    #[test]
    fn a_launch_is_read_in_every_form_that_cases_have() {
        let read = |case: Value| signature(&case);
        for case in [
            json!({"cpu_sig": "0x800f12"}),
            json!({"cpu_sig": 0x80_0f12}),
            json!({"cpu": "EPYC-v4"}),
        ] {
            assert_eq!(read(case).unwrap(), 0x0080_0f12);
        }
        assert!(read(json!({"vcpu_type": "Pentium"})).is_err() && read(json!({})).is_err());
    }

    #[test]
    fn a_field_that_is_not_compared_fails() {
        only_known(&json!({"vmm": "qemu", "vcpus": 2})).unwrap();
        let error = only_known(&json!({"vcpus": 2, "colour": 1})).unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
    }

    #[test]
    fn pages_are_measured_as_they_are_listed() {
        let page = "07".repeat(4096);
        let case = json!({"pages": [
            {"type": "normal", "gpa": "0x1000", "data": page},
            {"type": "ZERO", "gpa": 8192, "count": 2},
        ]});
        let mut digest = LaunchDigest::new();
        digest.normal_pages(4096, &[7; 4096]).unwrap();
        digest.empty_pages(PageType::Zero, 8192, 2).unwrap();
        assert_eq!(pages(Path::new("/nowhere"), &case).unwrap(), digest.finish());
        let short = json!({"pages": [{"type": "normal", "gpa": 0, "data": "07"}]});
        let error = pages(Path::new("/nowhere"), &short).unwrap_err();
        assert!(error.is::<MeasureError>(), "{error}");
    }
}
