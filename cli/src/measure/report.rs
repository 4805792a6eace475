//! The results of `casemate measure`, for people and as JSON
//! (docs/formats/measurement.md).

use casemate_attestation::measure::snp::{Explanation, Variant};
use casemate_attestation::measure::tdx::{PageOrder, Tdvf};
use serde_json::{Value, json};

use crate::Answer;
use crate::output::Said;

/// A launch digest; with what was observed and, where that is another one, what
/// was found out about it.
pub(crate) fn launch(
    digest: &[u8; 48],
    observed: Option<(&[u8; 48], Option<&Explanation>)>,
    as_json: bool,
) -> Said {
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
    let mut lines = vec![hex::encode(digest)];
    match observed {
        None => {}
        Some((_, None)) => lines.push("the observed digest is this one".to_owned()),
        Some((_, Some(found))) => {
            let tried = found.tried;
            lines.push(format!("the observed digest is another one; {tried} launches tried"));
            lines.extend(found.differences.iter().map(|difference| format!("  {difference}")));
        }
    }
    people(&lines, same)
}

/// The MRTD of a firmware in both page orders.
pub(crate) fn mrtd(tdvf: &Tdvf<'_>, observed: Option<&[u8; 48]>, as_json: bool) -> Said {
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
    let line = |order: PageOrder| format!("{:<9} {}", order.name(), hex::encode(tdvf.mrtd(order)));
    let mut lines: Vec<_> = PageOrder::ALL.into_iter().map(line).collect();
    if tdvf.absent_bytes() > 0 {
        let absent = tdvf.absent_bytes();
        lines.push(format!(
            "the image is the code alone: {absent:#x} bytes before it are not measured"
        ));
    }
    match (observed, order) {
        (None, _) => {}
        (_, Some(order)) => lines
            .push(format!("the observed MRTD is this firmware's, pages added {}", order.name())),
        (_, None) => {
            lines.push("the observed MRTD is another firmware's, or another page order".to_owned())
        }
    }
    people(&lines, same)
}

/// Run-time registers, the first being RTMR0 where there are four; `observed` are as many,
/// or none.
pub(crate) fn registers(registers: &[[u8; 48]], observed: &[[u8; 48]], as_json: bool) -> Said {
    let name = |index: usize| match registers.len() {
        1 => "register".to_owned(),
        _ => format!("rtmr{index}"),
    };
    let pairs = registers.iter().zip(observed).enumerate();
    let differences: Vec<String> = pairs
        .filter(|(_, (expected, actual))| expected != actual)
        .map(|(index, (expected, actual))| {
            let (expected, actual) = (hex::encode(expected), hex::encode(actual));
            format!("{}: expected {expected}, observed {actual}", name(index))
        })
        .collect();
    let same = differences.is_empty();
    let digests: Vec<_> = registers.iter().map(hex::encode).collect();
    if as_json {
        let observed: Vec<_> = observed.iter().map(hex::encode).collect();
        let observed = (!observed.is_empty())
            .then(|| json!({"digests": observed, "same": same, "differences": differences}));
        return print("rtmr", same, &json!({"rtmrs": digests, "observed": observed}));
    }
    let line = |(index, digest): (usize, &String)| match registers.len() {
        1 => digest.clone(),
        _ => format!("{} {digest}", name(index)),
    };
    let mut lines: Vec<_> = digests.iter().enumerate().map(line).collect();
    if !observed.is_empty() {
        let word = if same { "these" } else { "others" };
        lines.push(format!("the observed registers are {word}"));
        lines.extend(differences.iter().map(|difference| format!("  {difference}")));
    }
    people(&lines, same)
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
fn print(kind: &str, same: bool, fields: &Value) -> Said {
    let answer = answer(same);
    let mut out = json!({"version": 1, "kind": kind, "answer": answer.name()});
    if let (Some(out), Some(fields)) = (out.as_object_mut(), fields.as_object()) {
        out.extend(fields.clone());
    }
    Said::json(&out, answer)
}

fn people(lines: &[String], same: bool) -> Said {
    let text = lines.iter().map(|line| format!("{line}\n")).collect();
    Said { text, answer: answer(same) }
}

fn answer(same: bool) -> Answer {
    if same { Answer::Yes } else { Answer::No }
}
