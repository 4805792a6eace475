//! Files of no kind: whether one may yet be more than a note that lies beside evidence.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::kind::{begins, is_der, is_text};

/// No certificate, list or evidence is so short; nonces, report data and digests are.
const MAX_TOKEN_BYTES: usize = 128;
/// A word so long that begins as DER does in base64 or hex is no accident.
const MIN_WORD: usize = 40;
/// Parts of names that say that a file is an endorsement, whatever became of it.
const ENDORSEMENT_NAMES: [&str; 8] = ["der", "crl", "pem", "crt", "cer", "p7b", "p7c", "arl"];
/// What systems leave in folders: Apple's .DS_Store and AppleDouble.
const LEFT_BY_SYSTEMS: [&[u8]; 2] = [b"\0\0\0\x01Bud1", b"\0\x05\x16\x07\0\x02\0\0"];
/// An SNP ID authentication (AMD 56860, SEV-SNP firmware ABI, ID authentication
/// information structure), which is checked at launch.
const ID_AUTH_BYTES: usize = 4096;

/// Why a file that is of no kind may matter, if so.
pub(super) fn doubt(path: &Path, bytes: &[u8]) -> Option<String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    if LEFT_BY_SYSTEMS.iter().any(|magic| bytes.starts_with(magic)) {
        return None;
    }
    if is_named(&name) {
        return Some(format!("named as an endorsement, and reads as none: {}", begins(bytes)));
    }
    if bytes.trim_ascii().is_empty() {
        // Placeholders and locks are empty by nature.
        let by_nature = name.starts_with('.') || name.ends_with(".lock");
        return (!by_nature).then(|| "empty".to_owned());
    }
    if !is_text(bytes) {
        let long = bytes.len() > MAX_TOKEN_BYTES || is_der(bytes);
        let matters = long && !is_id_auth(bytes);
        return matters.then(|| format!("binary of no kind that is known here: {}", begins(bytes)));
    }
    let text = String::from_utf8_lossy(bytes);
    let upper = text.to_ascii_uppercase();
    if ["-----BEGIN ", "BEGIN X509 CRL", "BEGIN CERTIFICATE"]
        .iter()
        .any(|word| upper.contains(word))
    {
        return Some("text with PEM of another kind, or not at the start of a line".to_owned());
    }
    let names = ["tcbInfo", "enclaveIdentity", "hcl_report", "tpm_quote", "td_quote"];
    let has = |name: &str| text.contains(&format!("\"{name}\""));
    let list = text.trim_start().starts_with('[') && has("evidence");
    if list || names.into_iter().any(has) {
        return Some("JSON with the names of evidence or collateral, and reads as none".to_owned());
    }
    let hidden =
        holds_der(&text) || decoded(bytes).is_some_and(|inner| super::kind::is_known(&inner));
    hidden.then(|| "evidence or endorsements in base64 or hex: expected the bytes".to_owned())
}

/// Whether any part of `name` between its dots is that of an endorsement.
fn is_named(name: &str) -> bool {
    name.split('.').any(|part| ENDORSEMENT_NAMES.contains(&part))
}

fn is_id_auth(bytes: &[u8]) -> bool {
    let reserved = bytes.get(8..0x40).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
    bytes.len() == ID_AUTH_BYTES && bytes.starts_with(&[1, 0, 0, 0]) && reserved
}

/// Whether a word of `text`, or one of its lines as dumps write bytes, begins as DER does.
fn holds_der(text: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || "+/-_".contains(c);
    let begins_base64 =
        |word: &str| ["MIG", "MIH", "MII", "MIM"].iter().any(|start| word.starts_with(start));
    let begins_hex =
        |word: &str| ["3081", "3082", "3083"].iter().any(|start| word.starts_with(start));
    let is_hex = |word: &str| word.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut words = text.split(|c| !is_word(c)).filter(|word| word.len() >= MIN_WORD);
    if words.any(|word| begins_base64(word) || begins_hex(word) && is_hex(word)) {
        return true;
    }
    text.lines().any(|line| {
        // What a dump counts its lines with goes before a colon or two blanks.
        let starts = [0].into_iter().chain(line.find(": ").map(|at| at.saturating_add(2)));
        let starts = starts.chain(line.find("  ").map(|at| at.saturating_add(2)));
        starts.filter_map(|at| line.get(at..)).any(|line| {
            let packed = line.replace("0x", "").replace("\\x", "");
            let packed: String =
                packed.chars().filter(|c| !c.is_whitespace() && !":,;{[\"'".contains(*c)).collect();
            let digits = packed.bytes().take_while(u8::is_ascii_hexdigit).count();
            digits >= 8 && begins_hex(&packed.to_lowercase())
                || packed.len() >= MIN_WORD && begins_base64(&packed)
        })
    })
}

/// What the whole of `text` says in base64 or hex, however it is broken into words.
fn decoded(text: &[u8]) -> Option<Vec<u8>> {
    let text = text.strip_prefix(super::kind::BYTE_ORDER_MARK).unwrap_or(text);
    let is_mark = |byte: &u8| !byte.is_ascii_whitespace() && !b":\"'".contains(byte);
    let word: Vec<u8> = text.iter().copied().filter(is_mark).collect();
    let digits = word.strip_prefix(b"0x").unwrap_or(&word);
    let digits = digits.get(..digits.len() & !1).unwrap_or_default();
    // What is cut short is decoded as far as it goes.
    let bare = word.split(|byte| *byte == b'=').next().unwrap_or_default();
    let bare = bare.get(..bare.len() & !3).unwrap_or_default();
    hex::decode(digits)
        .or_else(|_| STANDARD_NO_PAD.decode(bare))
        .or_else(|_| URL_SAFE_NO_PAD.decode(bare))
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_harmless_and_what_may_be_more_is_not() {
        let note = |name: &str, bytes: &[u8]| doubt(Path::new(name), bytes);
        let store = [b"\0\0\0\x01Bud1".as_slice(), &[7; 500]].concat();
        let apple_double = [&[0, 5, 22, 7, 0, 2, 0, 0][..], &[7; 500]].concat();
        let id_auth = [&[1, 0, 0, 0, 1, 0, 0, 0][..], &[0; 56], &[9; 4032]].concat();
        let json = br#"{"report": "report.bin", "vek": "vek.der", "chip_id": "00ff"}"#;
        for (name, bytes) in [
            ("README.md", &b"# A machine\n\nMade of MIIC, see -----.\n"[..]),
            ("meta.json", json),
            (".gitignore", b"*.bin\n"),
            (".gitkeep", b""),
            ("inblob", &[7; 64]),
            ("SHA256", b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad\n"),
            ("state.json.lock", b""),
            (".DS_Store", &store),
            ("._pck.crl", &apple_double),
            ("id_auth.bin", &id_auth),
            ("notiz", b"gr\xf6\xdfer als sonst\n"),
        ] {
            assert_eq!(note(name, bytes), None, "{name}");
        }
        let der = [&[0x30, 0x82, 2, 0][..], &[7; 512]].concat();
        let base64 = STANDARD_NO_PAD.encode(&der);
        let lines: Vec<_> = base64.as_bytes().chunks(64).map(<[u8]>::to_vec).collect();
        let quoted = format!("{{\"crl\": \"{base64}\"}}");
        let titled = format!("# the list\n{base64}\n");
        let pair: Vec<_> = der.iter().map(|byte| format!("{byte:02x}")).collect();
        let spaced = pair.join(" ");
        let dump = format!("00000000: {}", pair.join(""));
        let c_array = format!("unsigned char crl[] = {{\n  0x{}\n}};", pair.join(", 0x"));
        for (name, bytes) in [
            ("crl.txt", &der[..20]),
            ("note", &base64.as_bytes()[..401]),
            ("note", &lines.join(&b"\r\n"[..])),
            ("note", hex::encode(&der).as_bytes()),
            ("crl.der", b"<html>404</html>"),
            ("note", b""),
            ("key", b"-----BEGIN PRIVATE KEY-----"),
            ("note", b"it says \"-----BEGIN X509 CRL-----\""),
            ("blob", &[7; 129]),
            ("crl.der.1", b"<html>404</html>"),
            (".crl", b"<html>404</html>"),
            ("note", b"\n"),
            ("trust.crl.lock", b""),
            ("note", quoted.as_bytes()),
            ("note", titled.as_bytes()),
            ("note", dump.as_bytes()),
            ("note", c_array.as_bytes()),
            ("note", spaced.as_bytes()),
            ("note", &hex::encode(&der).as_bytes()[..401]),
            ("note", b"---- BEGIN X509 CRL ----\nMIIB"),
            ("note", b"-----begin x509 crl-----\nmiib"),
            ("collateral", b"\xef\xbb\xbf{\"tcbInfo\":"),
            ("gpus", b"[{\"evidence\":"),
        ] {
            assert!(note(name, bytes).is_some(), "{name} {bytes:?}");
        }
    }
}
