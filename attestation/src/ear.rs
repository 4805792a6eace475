//! Attestation results as a signed token: EAR as a JWT (draft-ietf-rats-ear-03
//! and the veraison 2023 profile that Trustee and others read).
//!
//! Format: docs/formats/ear.md. Header and claims are the superset that
//! OpenBao, Vault, SPIFFE and Trustee accept: ES256, `kid`, `typ` and nothing
//! else in the header; both naming dialects in each submodule. A relying party
//! must not decide on a status alone: `casemate_decision` repeats ours as flat text.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};

use crate::appraise::{Appraisal, Hardware, Outcome};
use crate::boundary::{Boundary, Risk};
use crate::crypto::{PublicKey, Scheme, sha256};
use crate::time::UnixTime;

/// The longest token that is read.
pub const MAX_TOKEN_BYTES: usize = 64 * 1024;
/// The submodule that the CPU and its host are judged in.
pub const CPU: &str = "cpu0";
const IETF_PROFILE: &str = "tag:ietf.org,2026:rats/ear#03";
const VERAISON_PROFILE: &str = "tag:github.com,2023:veraison/ear";

/// Which names the claims of a submodule have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Both; readers ignore what they do not know.
    #[default]
    Both,
    /// The IETF draft's, with underscores.
    Ietf,
    /// The veraison 2023 profile's, with dots.
    Veraison,
}

/// What a token says beside the appraisal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EarContext<'a> {
    /// `iss`: the verifier, an https URL.
    pub issuer: &'a str,
    /// `sub`: the sandbox, a SPIFFE id.
    pub subject: &'a str,
    /// `aud`: exactly one relying party.
    pub audience: &'a str,
    /// `jti`: unique for the issuer.
    pub token_id: &'a str,
    /// `iat` and `nbf`.
    pub issued_at: UnixTime,
    /// `exp` is so much later; at most 300.
    pub lifetime_seconds: u64,
    /// `eat_nonce`: the challenge that the evidence answered.
    pub nonce: &'a [u8],
    /// The Ed25519 key that the evidence binds: `cnf` and `tee-pubkey`.
    pub identity_key: &'a [u8; 32],
    /// The risk class that was asked for.
    pub risk: Risk,
    /// SHA-256 of the attestation bundle.
    pub bundle: [u8; 32],
    /// The task for which the sandbox was admitted.
    pub task: &'a str,
    /// Which names to use.
    pub dialect: Dialect,
}

/// The four tiers of AR4SI, best first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Nothing is said.
    None,
    /// As it should be.
    Affirming,
    /// Usable with care.
    Warning,
    /// Not to be relied on.
    Contraindicated,
}

/// Why a token is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("attestation result, {field}: expected {expected}, got {actual}")]
pub struct EarError {
    /// The part at fault.
    pub field: &'static str,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub actual: String,
}

/// The claims of a token for `appraisal`.
pub fn claims(appraisal: &Appraisal, context: &EarContext<'_>) -> Value {
    let lifetime = context.lifetime_seconds.min(300);
    let status = status(appraisal);
    let jwk = jwk(context.identity_key);
    let mut claims = json!({
        "iss": context.issuer,
        "sub": context.subject,
        "aud": context.audience,
        "jti": context.token_id,
        "iat": context.issued_at.0,
        "nbf": context.issued_at.0,
        "exp": context.issued_at.plus_seconds(lifetime).0,
        "eat_nonce": URL_SAFE_NO_PAD.encode(context.nonce),
        "eat_profile": profile(context.dialect),
        "cnf": { "jkt": thumbprint(context.identity_key) },
        "tee-pubkey": jwk,
        "submods": submodules(appraisal, context),
        "casemate_decision": decision(appraisal, context.risk),
        "urn:casemate:claims:v1": ours(appraisal, context),
    });
    if let Value::Object(map) = &mut claims {
        status_names(context.dialect, |name| {
            // The veraison profile has no overall status.
            if name == "ear_status" {
                map.insert(name.to_owned(), status.name().into());
            }
        });
    }
    claims
}

/// The token of `claims`; `sign` is the act of the P-256 key `key_id`, and
/// returns `r | s` of 32 bytes each over SHA-256.
pub fn sign(claims: &Value, key_id: &str, sign: impl FnOnce(&[u8]) -> [u8; 64]) -> String {
    let header = json!({ "alg": "ES256", "kid": key_id, "typ": "JWT" });
    let encode = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", encode(&header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// Checks a token's form, signature, issuer, audience and times, and returns
/// its claims.
pub fn verify(
    token: &str,
    key: &PublicKey,
    issuer: &str,
    audience: &str,
    now: UnixTime,
) -> Result<Value, EarError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(wrong("size", format!("at most {MAX_TOKEN_BYTES} bytes"), token.len()));
    }
    let mut parts = token.split('.');
    let (Some(header), Some(payload), Some(signature), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(wrong("form", "three parts", "another number"));
    };
    let header = decode_json("header", header)?;
    expect_text("header, alg", &header, "alg", "ES256")?;
    let signed = token.rsplit_once('.').map_or("", |(signed, _)| signed);
    if !key.verify(Scheme::EcdsaP256Sha256Raw, signed.as_bytes(), &decode("signature", signature)?)
    {
        return Err(wrong("signature", "one by the issuer's key", "one that does not verify"));
    }
    let claims = decode_json("claims", payload)?;
    expect_text("iss", &claims, "iss", issuer)?;
    expect_text("aud", &claims, "aud", audience)?;
    let time = |name: &'static str| {
        claims
            .get(name)
            .and_then(Value::as_u64)
            .ok_or_else(|| wrong(name, "whole seconds", "something else"))
    };
    if now.0 < time("nbf")? || now.0 >= time("exp")? {
        return Err(wrong("exp", format!("a token valid at {now}"), "one that is not"));
    }
    Ok(claims)
}

/// The SHA-256 thumbprint (RFC 7638) of an Ed25519 key.
pub fn thumbprint(key: &[u8; 32]) -> String {
    // RFC 8037 2: crv, kty, x in this order, without white space.
    let x = URL_SAFE_NO_PAD.encode(key);
    let canonical = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#);
    URL_SAFE_NO_PAD.encode(sha256(canonical.as_bytes()))
}

impl Tier {
    /// The tier's name in JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        }
    }

    /// The tier of a claim's value (draft-ietf-rats-ar4si, section 2.3).
    fn of(value: i8) -> Self {
        match value {
            -1..=1 => Self::None,
            -32..=-2 | 2..=31 => Self::Affirming,
            -96..=-33 | 32..=95 => Self::Warning,
            _ => Self::Contraindicated,
        }
    }
}

/// The status of an appraisal: no better than its worst claim.
pub fn status(appraisal: &Appraisal) -> Tier {
    if appraisal.failures().next().is_some() {
        return Tier::Contraindicated;
    }
    vector(appraisal).iter().map(|(_, value)| Tier::of(*value)).max().unwrap_or(Tier::None)
}

/// The trustworthiness vector: what each value says is in docs/formats/ear.md.
fn vector(appraisal: &Appraisal) -> Vec<(&'static str, i8)> {
    let outcome = |rules: &[&str]| {
        appraisal.checks().iter().find(|check| rules.contains(&check.rule)).map(|c| c.outcome)
    };
    let hardware = appraisal.hardware();
    let mut out = Vec::new();
    let elsewhere = outcome(&["snp.csp"]) == Some(Outcome::Fail);
    match outcome(&["snp.chip", "tdx.platform"]) {
        _ if elsewhere => out.push(("instance-identity", 97)),
        Some(Outcome::Pass) if hardware == Hardware::Genuine => out.push(("instance-identity", 2)),
        Some(Outcome::Fail) => out.push(("instance-identity", 97)),
        _ => {}
    }
    match outcome(&["snp.debug", "tdx.debug"]) {
        Some(Outcome::Fail) => out.push(("configuration", 96)),
        Some(_) if hardware == Hardware::Genuine => out.push(("configuration", 2)),
        _ => {}
    }
    match (appraisal.image(), hardware) {
        (Some(_), Hardware::Genuine) => out.push(("executables", 3)),
        (None, Hardware::Genuine | Hardware::Model) => out.push(("executables", 33)),
        _ => {}
    }
    // A model is no claim about hardware: the value stays away, unaffirmed.
    if hardware == Hardware::Genuine {
        out.push(("hardware", hardware_value(appraisal)));
    }
    out.push((
        "runtime-opaque",
        match appraisal.boundary() {
            Boundary::Tee => 2,
            Boundary::MicroVm | Boundary::MicroVmVfio => 32,
            Boundary::SameHost | Boundary::Container => 96,
        },
    ));
    out
}

/// What is said of genuine hardware: its TCB is refused, or it is one that the
/// policy accepts for a while although something better is there or an attack is
/// known, or all is well.
fn hardware_value(appraisal: &Appraisal) -> i8 {
    let refused = appraisal.failures().any(|check| is_of_the_tcb(check.rule));
    // A TDX status below UpToDate that the policy accepts is still a warning.
    let status = appraisal.checks().iter().find(|check| check.rule == "tdx.tcb-status");
    let weak = status.is_some_and(|check| !check.actual.starts_with("UpToDate"));
    match (refused, weak || !appraisal.known_attacks().is_empty()) {
        (true, _) => 96,
        (false, true) => 32,
        (false, false) => 2,
    }
}

/// Whether `rule` is about how sound the hardware's own software is.
fn is_of_the_tcb(rule: &str) -> bool {
    const OTHERS: [&str; 6] = [
        "snp.generation",
        "tdx.generation",
        "tdx.sgx-components",
        "tdx.pcesvn",
        "tdx.qe-isvsvn",
        "snp.firmware-version",
    ];
    rule.contains("tcb") || OTHERS.contains(&rule)
}

/// The CPU and every device that was judged with it.
fn submodules(appraisal: &Appraisal, context: &EarContext<'_>) -> Map<String, Value> {
    let mut out = Map::new();
    out.insert(CPU.to_owned(), submodule(appraisal, context));
    for device in appraisal.devices() {
        let tier = match (device.accepted, device.hardware) {
            (false, _) => Tier::Contraindicated,
            // As with the CPU, a model is no claim about hardware.
            (true, Hardware::Genuine) => Tier::Affirming,
            (true, _) => Tier::None,
        };
        let mut claims = device.claims.clone();
        status_names(context.dialect, |name| {
            claims.insert(name.to_owned(), tier.name().into());
        });
        out.insert(device.name.clone(), Value::Object(claims));
    }
    out
}

fn submodule(appraisal: &Appraisal, context: &EarContext<'_>) -> Value {
    let status = status(appraisal);
    let vector: Map<String, Value> = vector(appraisal)
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.into()))
        .collect();
    let evidence = json!({
        "measurement": appraisal.measurement().map(crate::wire::hex),
        "image": appraisal.image(),
        "host": appraisal.host(),
        "anchor": appraisal.anchor().map(|anchor| anchor.label.as_str()),
        // Where Trustee's KBS looks for the guest's key.
        "runtime_data_claims": { "tee-pubkey": jwk(context.identity_key) },
    });
    let mut out = Map::new();
    status_names(context.dialect, |name| {
        out.insert(name.to_owned(), status.name().into());
    });
    if context.dialect != Dialect::Veraison {
        out.insert("ear_trustworthiness_vector".to_owned(), Value::Object(vector.clone()));
        out.insert("ear_appraisal_policy_ids".to_owned(), json!([appraisal.policy()]));
        out.insert("ear_veraison_annotated_evidence".to_owned(), evidence.clone());
    }
    if context.dialect != Dialect::Ietf {
        out.insert("ear.trustworthiness-vector".to_owned(), Value::Object(vector));
        out.insert("ear.appraisal-policy-id".to_owned(), appraisal.policy().into());
        out.insert("ear.veraison.annotated-evidence".to_owned(), evidence);
    }
    Value::Object(out)
}

fn ours(appraisal: &Appraisal, context: &EarContext<'_>) -> Value {
    let properties: Vec<_> = appraisal.properties().iter().map(|p| p.name()).collect();
    json!({
        "boundary": appraisal.boundary().name(),
        "properties": properties,
        "hardware": appraisal.hardware().name(),
        "label": appraisal.label(),
        "known_attacks": appraisal.known_attacks(),
        "risk": context.risk.name(),
        "task": context.task,
        "bundle_sha256": crate::wire::hex(&context.bundle),
    })
}

fn decision(appraisal: &Appraisal, risk: Risk) -> String {
    match appraisal.affirmed(risk) {
        Ok(_) => format!("allow-{risk}"),
        Err(_) => "deny".to_owned(),
    }
}

fn status_names(dialect: Dialect, mut each: impl FnMut(&str)) {
    if dialect != Dialect::Veraison {
        each("ear_status");
    }
    if dialect != Dialect::Ietf {
        each("ear.status");
    }
}

fn profile(dialect: Dialect) -> &'static str {
    match dialect {
        Dialect::Both | Dialect::Ietf => IETF_PROFILE,
        Dialect::Veraison => VERAISON_PROFILE,
    }
}

fn jwk(key: &[u8; 32]) -> Value {
    json!({ "kty": "OKP", "crv": "Ed25519", "x": URL_SAFE_NO_PAD.encode(key) })
}

fn decode(field: &'static str, text: &str) -> Result<Vec<u8>, EarError> {
    URL_SAFE_NO_PAD.decode(text).map_err(|error| wrong(field, "base64url, no padding", error))
}

fn decode_json(field: &'static str, text: &str) -> Result<Value, EarError> {
    serde_json::from_slice(&decode(field, text)?).map_err(|error| wrong(field, "JSON", error))
}

fn expect_text(
    field: &'static str,
    object: &Value,
    key: &str,
    expected: &str,
) -> Result<(), EarError> {
    match object.get(key).and_then(Value::as_str) {
        Some(actual) if actual == expected => Ok(()),
        actual => Err(wrong(field, expected, actual.unwrap_or("none"))),
    }
}

fn wrong(
    field: &'static str,
    expected: impl Into<String>,
    actual: impl core::fmt::Display,
) -> EarError {
    EarError { field, expected: expected.into(), actual: actual.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        // RFC 8037 appendix A.3.
        let key = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
        let expected = "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k";
        assert_eq!(thumbprint(&key.try_into().unwrap()), expected);
    }

    #[test]
    fn tiers_are_the_bands_of_the_draft() {
        assert_eq!(Tier::of(0), Tier::None);
        assert_eq!(Tier::of(3), Tier::Affirming);
        assert_eq!(Tier::of(33), Tier::Warning);
        assert_eq!(Tier::of(97), Tier::Contraindicated);
        assert_eq!(Tier::of(-128), Tier::Contraindicated);
    }

    #[test]
    fn tokens_of_another_form_are_refused() {
        let mut point = vec![4];
        point.extend(
            crate::wire::unhex(
                "6b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
                 4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5",
            )
            .unwrap(),
        );
        let key = PublicKey::p256(&point).unwrap();
        let token = sign(&json!({ "iss": "i" }), "k", |_| [1; 64]);
        for bad in ["", "a.b", "a.b.c.d", "e30.e30.AAAA", token.as_str()] {
            assert!(verify(bad, &key, "i", "a", UnixTime(1)).is_err(), "{bad}");
        }
    }
}
