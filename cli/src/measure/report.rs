//! The results of `casemate measure`, for people and as JSON
//! (docs/formats/measurement.md).

use casemate_attestation::measure::snp::{Explanation, Variant};
use casemate_attestation::measure::tdx::{PageOrder, Tdvf};
use serde_json::{Value, json};

use crate::Answer;

/// A launch digest; with what was observed and, where that is another one, what
/// was found out about it.
pub(crate) fn launch(
    digest: &[u8; 48],
    observed: Option<(&[u8; 48], Option<&Explanation>)>,
    as_json: bool,
) -> anyhow::Result<Answer> {
    let same = observed.is_none_or(|(observed, _)| observed == digest);
    if as_json {
        let observed = observed.map(|(observed, found)| {
            let differences = found.map(|found| found.differences.clone()).unwrap_or_default();
            let matches: Vec<_> =
                found.into_iter().flat_map(|found| found.matches.iter().map(variant)).collect();
            json!({
                "digest": hex::encode(observed),
                "same": same,
                "tried": found.map_or(0, |found| found.tried),
                "differences": differences,
                "matches": matches,
            })
        });
        return print("snp", same, &json!({"digest": hex::encode(digest), "observed": observed}));
    }
    println!("{}", hex::encode(digest));
    match observed {
        None => {}
        Some((_, None)) => println!("the observed digest is this one"),
        Some((_, Some(found))) => {
            println!("the observed digest is another one; {} launches tried", found.tried);
            found.differences.iter().for_each(|difference| println!("  {difference}"));
        }
    }
    Ok(answer(same))
}

/// The MRTD of a firmware in both page orders.
pub(crate) fn mrtd(
    tdvf: &Tdvf<'_>,
    observed: Option<&[u8; 48]>,
    as_json: bool,
) -> anyhow::Result<Answer> {
    let order = observed.and_then(|observed| tdvf.explain(observed));
    let same = observed.is_none() || order.is_some();
    if as_json {
        let digests: serde_json::Map<_, _> = PageOrder::ALL
            .into_iter()
            .map(|order| (order.name().to_owned(), json!(hex::encode(tdvf.mrtd(order)))))
            .collect();
        let observed = observed.map(|observed| {
            json!({
                "digest": hex::encode(observed),
                "same": same,
                "order": order.map(PageOrder::name),
            })
        });
        let absent = tdvf.absent_bytes();
        let fields = json!({"digests": digests, "absent_bytes": absent, "observed": observed});
        return print("mrtd", same, &fields);
    }
    for order in PageOrder::ALL {
        println!("{:<9} {}", order.name(), hex::encode(tdvf.mrtd(order)));
    }
    if tdvf.absent_bytes() > 0 {
        let absent = tdvf.absent_bytes();
        println!("the image is the code alone: {absent:#x} bytes before it are not measured");
    }
    match (observed, order) {
        (None, _) => {}
        (_, Some(order)) => {
            println!("the observed MRTD is this firmware's, pages added {}", order.name());
        }
        (_, None) => {
            println!("the observed MRTD is another firmware's, or another page order");
        }
    }
    Ok(answer(same))
}

/// Run-time registers, the first being RTMR0 where there are four.
pub(crate) fn registers(registers: &[[u8; 48]], as_json: bool) -> anyhow::Result<Answer> {
    let digests: Vec<_> = registers.iter().map(hex::encode).collect();
    if as_json {
        return print("rtmr", true, &json!({"rtmrs": digests}));
    }
    let whole = digests.len() > 1;
    for (index, digest) in digests.iter().enumerate() {
        if whole {
            println!("rtmr{index} {digest}");
        } else {
            println!("{digest}");
        }
    }
    Ok(Answer::Yes)
}

fn variant(variant: &Variant) -> Value {
    json!({
        "monitor": variant.vcpu.vmm.name(),
        "cpu": variant.cpu,
        "cpu_signature": variant.vcpu.signature,
        "features": variant.vcpu.features,
        "vcpus": variant.vcpus,
        "kernel_hashes": variant.kernel_hashes,
        "svsm_vars_bytes": variant.svsm_vars_bytes,
    })
}

/// `fields` with what every result has.
fn print(kind: &str, same: bool, fields: &Value) -> anyhow::Result<Answer> {
    let answer = answer(same);
    let mut out = json!({"version": 1, "kind": kind, "answer": answer.name()});
    if let (Some(out), Some(fields)) = (out.as_object_mut(), fields.as_object()) {
        out.extend(fields.clone());
    }
    println!("{out}");
    Ok(answer)
}

fn answer(same: bool) -> Answer {
    if same { Answer::Yes } else { Answer::No }
}
