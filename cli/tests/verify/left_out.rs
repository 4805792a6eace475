//! What in a directory is not judged: it is named, and where it may be evidence or an
//! endorsement the answer is not yes.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use casemate_attestation::{EndorsementKind, Evidence, EvidenceItem, EvidenceKind};
use casemate_model::tdx::CollateralSpec;

use crate::machine::{
    AT, Machine, START, block, psp, snp_machine, tdx_machine, tdx_machine_of_model,
};

/// A file's name and content; exit code and reason code.
type Case<'a> = (&'a str, &'a [u8], (i32, Option<&'a str>));

#[test]
fn a_revocation_list_is_never_passed_over() {
    let list = Machine::revoking();
    let text = block("X509 CRL", &list);
    let with = |before: &[u8]| [before, &text].concat();
    let (base64, hex) = (STANDARD.encode(&list), hex::encode(&list));
    let cut = &list[..list.len() - 1];
    let mut renamed = list.clone();
    let name = list.windows(9).position(|window| window == b"ARK-Milan").unwrap();
    renamed[name] ^= 1;
    let (no, unknown) = (|code: &'static str| (1, Some(code)), (2, None));
    let cases: [Case<'_>; 14] = [
        ("crl.der", &list, no("revoked")),
        ("crl.pem", &text, no("revoked")),
        ("crl", &with(b"\xef\xbb\xbf"), no("revoked")),
        ("crl.der", cut, no("crl-malformed")),
        ("crl.der", &[&list[..], b"\n"].concat(), no("crl-malformed")),
        ("crl.pem", &with(b"# the list of AMD\n"), no("crl-malformed")),
        (
            "crl.txt",
            &with(b"Certificate Revocation List (CRL):\r\n    Version 2\r\n"),
            no("crl-malformed"),
        ),
        ("one/two/crl.der", &list, no("revoked")),
        ("one/two/three/crl.der", &list, unknown),
        ("crl", base64.as_bytes(), unknown),
        ("crl", hex.as_bytes(), unknown),
        ("crl.der", b"", unknown),
        ("crl.der", b"<html>not found</html>", unknown),
        ("crl.der", &renamed, unknown),
    ];
    for (name, bytes, (code, reason)) in cases {
        let machine = Machine::affirmed();
        machine.put(name, bytes);
        let (actual, said) = machine.judged();
        assert_eq!((actual, said["code"].as_str()), (code, reason), "{name}: {said}");
        let matters = |one: &Value| one["matters"] == json!(true);
        let left_out = said["left_out"].as_array().unwrap();
        assert_eq!(left_out.iter().any(matters), reason.is_none(), "{name}: {said}");
    }
}

/// Whatever byte of a list is damaged, the machine that it revokes is not affirmed.
#[test]
fn no_damage_to_a_list_hides_it() {
    let machine = Machine::affirmed();
    let list = Machine::revoking();
    for at in (0..list.len()).step_by(7) {
        let mut damaged = list.clone();
        damaged[at] ^= 0x41;
        machine.put("crl.der", &damaged);
        let (code, said) = machine.judged();
        assert_ne!(code, 0, "byte {at}: {said}");
    }
}

#[test]
fn notes_beside_evidence_are_harmless_and_named() {
    let machine = Machine::affirmed();
    machine.put("README.md", b"# A machine\n\nKeys as of May.\n");
    machine.put("meta.json", b"{\"report\": \"report.bin\"}\n");
    machine.put(".gitignore", b"*.tmp\n");
    machine.put("nonce.bin", &[7; 32]);
    let (code, said) = machine.judged();
    assert_eq!((code, &said["answer"]), (0, &json!("yes")), "{said}");
    let left_out = said["left_out"].as_array().unwrap();
    let names: Vec<_> = left_out.iter().map(|one| one["name"].as_str().unwrap()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(left_out.iter().all(|one| one["matters"] == json!(false)), "{said}");
}

#[test]
fn people_are_told_what_was_left_out() {
    let machine = Machine::affirmed();
    machine.put("crl.der", b"");
    let flags = machine.yes_flags();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let output = machine.run(&[&machine.path("")], &flags, b"");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("crl.der: named as an endorsement"), "{text}");
    assert!(text.contains("low        could not tell") && !text.contains("affirmed"), "{text}");
    assert!(text.contains("judged     at 2026-06-09T10:13:20Z (as --at says)"), "{text}");
    // Nor is a bundle written, which would forget it.
    let bundle = machine.beside("bundle.cbor");
    let output =
        machine.run(&[&machine.path("")], &[&flags[..], &["--bundle", &bundle]].concat(), b"");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--bundle: expected nothing left out"), "{said}");
    assert!(!Path::new(&bundle).exists());
}

#[test]
fn the_state_learns_nothing_from_what_is_no_yes() {
    let machine = Machine::affirmed();
    let list = psp().crl(&[], START, START.plus_seconds(365 * 86_400)).unwrap();
    machine.put("crl.der", &list);
    machine.put("more.der", b"");
    let state = machine.beside("state.json");
    let flags = [machine.yes_flags(), vec!["--state".to_owned(), state.clone()]].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let (code, said) = machine.json(&[&machine.path("")], &flags);
    assert_eq!((code, Path::new(&state).exists()), (2, false), "{said}");
    std::fs::remove_file(machine.path("more.der")).unwrap();
    let (code, said) = machine.json(&[&machine.path("")], &flags);
    assert_eq!((code, Path::new(&state).exists()), (0, true), "{said}");
}

#[test]
fn what_is_neither_file_nor_folder_is_left_out() {
    let machine = Machine::affirmed();
    std::os::unix::fs::symlink("/nowhere/crl.der", machine.path("link")).unwrap();
    let (code, said) = machine.judged();
    assert_eq!((code, &said["left_out"][0]["matters"]), (2, &json!(true)), "{said}");
}

#[test]
fn an_endorsement_that_does_not_read_is_refused_by_name() {
    // A certificate, given by name and found in the directory.
    let machine = Machine::affirmed();
    let vek = psp().vek_der();
    for damaged in [&vek[..vek.len() - 1], &[vek, b"\n"].concat(), b"-----BEGIN CERTIFICATE-----"] {
        machine.put("vek.der", damaged);
        for paths in [vec![machine.path("")], machine.files()] {
            let paths: Vec<&Path> = paths.iter().map(|path| path.as_path()).collect();
            let (code, said) = machine.json(&paths, &[]);
            assert_eq!((code, &said["code"]), (1, &json!("cert-malformed")), "{said}");
            assert!(said["reason"].as_str().unwrap().contains("vek.der"), "{said}");
        }
    }
    // A list beside collateral that is whole without it.
    let machine = tdx_machine();
    let list = std::fs::read(machine.path("pck.crl")).unwrap();
    machine.put("pck2.crl", &list[..list.len() - 1]);
    let (code, said) = machine.json(&[&machine.path("")], &[]);
    assert_eq!((code, &said["code"]), (1, &json!("crl-malformed")), "{said}");
    assert!(said["reason"].as_str().unwrap().contains("pck2.crl"), "{said}");
}

/// A certificate that was not needed takes nothing from a machine but the yes.
#[test]
fn a_certificate_that_does_not_read_is_named() {
    let machine = Machine::affirmed();
    machine.put("other.pem", b"# of another machine\n-----BEGIN CERTIFICATE-----\nAA\n");
    let (code, said) = machine.judged();
    assert_eq!((code, &said["code"]), (2, &Value::Null), "{said}");
    assert_eq!(said["left_out"][0]["matters"], json!(true), "{said}");
}

/// The code of a TDX machine's answer, or that something that matters was left out.
fn refused_or_left_out(machine: &Machine) -> Option<String> {
    let (code, said) = machine.json(&[&machine.path("")], &[]);
    assert_ne!(code, 0, "{said}");
    let left_out = said.get("left_out").and_then(Value::as_array).unwrap();
    let matters = left_out.iter().any(|one| one.get("matters") == Some(&json!(true)));
    let reason = said.get("code").and_then(Value::as_str).map(str::to_owned);
    reason.or(matters.then(|| "left out".to_owned()))
}

/// Whatever its name, whatever it lies beside.
#[test]
fn a_list_of_intels_that_revokes_is_never_passed_over() {
    let (tdx, machine) = tdx_machine_of_model();
    let revoking = |change: fn(&mut CollateralSpec)| {
        let mut spec = CollateralSpec::new(&tdx, START);
        change(&mut spec);
        tdx.collateral(&spec).unwrap()
    };
    let pck = revoking(|spec| spec.revoke_pck = true).pck_crls.remove(0);
    let root = revoking(|spec| spec.revoke_pck_ca = true).root_crl;
    assert_eq!(refused_or_left_out(&machine), None);
    for list in [&pck, &root] {
        for name in ["aa.crl", "zz.crl"] {
            machine.put(name, list);
            assert_eq!(refused_or_left_out(&machine).as_deref(), Some("revoked"), "{name}");
            std::fs::remove_file(machine.path(name)).unwrap();
        }
    }
    // Of a damaged one, whatever byte it is, one cannot know what it says.
    for list in [&pck, &root] {
        for at in (0..list.len()).step_by(11) {
            let mut damaged = list.clone();
            damaged[at] ^= 0x41;
            machine.put("aa.crl", &damaged);
            assert!(refused_or_left_out(&machine).is_some(), "byte {at}");
        }
    }
    // Beside collateral in one piece, and in an envelope.
    let whole = revoking(|_| ()).encode();
    for file in ["tcb_info.json", "qe_identity.json", "chain.pem", "root.crl", "pck.crl", "aa.crl"]
    {
        std::fs::remove_file(machine.path(file)).unwrap();
    }
    machine.put("collateral.cbor", &whole);
    assert_eq!(refused_or_left_out(&machine), None);
    machine.put("pck.crl", &pck);
    assert_eq!(refused_or_left_out(&machine).as_deref(), Some("revoked"));
    let quote = std::fs::read(machine.path("quote.bin")).unwrap();
    for file in ["collateral.cbor", "pck.crl", "quote.bin"] {
        std::fs::remove_file(machine.path(file)).unwrap();
    }
    for (list, wanted) in [(&pck[..], "revoked"), (&pck[1..], "crl-malformed")] {
        let endorsements = vec![
            (EndorsementKind::TdxCollateral, whole.clone()),
            (EndorsementKind::Crl, list.to_vec()),
        ];
        let kind = EvidenceKind::TdxQuote;
        let item = EvidenceItem { kind, evidence: quote.clone(), endorsements };
        machine.put("envelope.cbor", &Evidence { items: vec![item] }.encode());
        assert_eq!(refused_or_left_out(&machine).as_deref(), Some(wanted));
    }
}

#[test]
fn what_is_read_has_a_limit_altogether() {
    let machine = Machine::affirmed();
    for number in 0..5 {
        machine.put(&format!("{number}.log"), &vec![b'x'; 16 * 1024 * 1024]);
    }
    let (code, said) = machine.judged();
    assert_eq!((code, &said["code"]), (2, &json!("input")), "{said}");
    assert!(said["reason"].as_str().unwrap().contains("bytes in all"), "{said}");
    (0..5).for_each(|number| std::fs::remove_file(machine.path(&format!("{number}.log"))).unwrap());
    machine.put("large.log", &vec![b'x'; 16 * 1024 * 1024 + 1]);
    let (code, said) = machine.judged();
    assert_eq!((code, &said["left_out"][0]["matters"]), (2, &json!(true)), "{said}");
}

#[test]
fn an_empty_array_is_no_evidence() {
    let machine = Machine::affirmed();
    machine.put("gpus.json", b"[]");
    let (code, said) = machine.judged();
    assert_eq!((code, said["left_out"].as_array().unwrap().len()), (0, 1), "{said}");
}

#[test]
fn what_a_run_writes_does_not_spoil_the_next() {
    let machine = Machine::affirmed();
    let state = machine.path("state.json").to_str().unwrap().to_owned();
    let flags = [machine.yes_flags(), vec!["--state".to_owned(), state]].concat();
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for _ in 0..2 {
        let (code, said) = machine.json(&[&machine.path("")], &flags);
        assert_eq!(code, 0, "{said}");
    }
    let bundle = machine.path("bundle.cbor");
    let flags = [&flags[..2], &["--bundle", bundle.to_str().unwrap()]].concat();
    let (code, said) = machine.json(&[&machine.path("")], &flags);
    assert_eq!((code, &said["code"], bundle.exists()), (2, &json!("input"), false), "{said}");
}

#[test]
fn lists_of_one_file_are_all_read() {
    let machine = tdx_machine();
    let lists = ["root.crl", "pck.crl"].map(|name| {
        let list = std::fs::read(machine.path(name)).unwrap();
        std::fs::remove_file(machine.path(name)).unwrap();
        block("X509 CRL", &list)
    });
    machine.put("lists.pem", &lists.concat());
    let (code, said) = machine.json(&[&machine.path("")], &[]);
    assert_eq!((code, &said["code"]), (2, &Value::Null), "{said}");
}

#[test]
fn the_part_that_is_missing_is_named() {
    for (file, part) in [
        ("tcb_info.json", "TCB info"),
        ("qe_identity.json", "QE identity"),
        ("chain.pem", "TCB signing chain"),
        ("root.crl", "root CRL"),
        ("pck.crl", "PCK CRL"),
    ] {
        let machine = tdx_machine();
        std::fs::remove_file(machine.path(file)).unwrap();
        let (code, said) = machine.json(&[&machine.path("")], &[]);
        assert_eq!((code, &said["code"]), (2, &json!("collateral-missing")), "{said}");
        assert!(said["reason"].as_str().unwrap().contains(part), "{said}");
    }
}

#[test]
fn a_name_cannot_write_on_the_terminal() {
    let machine = snp_machine();
    let name = "a\x1b[2J\ncasemate: all good";
    machine.put(name, b"a note");
    let path = machine.path(name);
    // Left out, and named as what it is not.
    for (paths, flags) in [
        ([machine.path("")], &["--at", AT][..]),
        ([path.clone()], &["--at", AT]),
        ([path], &["--at", AT, "--json"]),
    ] {
        let paths: Vec<&Path> = paths.iter().map(|path| path.as_path()).collect();
        let output = machine.command(&paths, flags).output().unwrap();
        for text in [&output.stdout, &output.stderr] {
            let text = String::from_utf8(text.clone()).unwrap();
            assert!(!text.contains('\x1b'), "{text:?}");
            assert!(!text.contains("\ncasemate: all good"), "{text:?}");
        }
    }
}
