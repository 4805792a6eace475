//! Signed reference manifests of model devices. The text is written in
//! canonical form, so that the model needs no canonicaliser of its own.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use casemate_attestation::UnixTime;
use casemate_attestation::crypto::sha384;
use casemate_attestation::gpu::{DeviceKind, Source};
use casemate_attestation::wire::hex;

use super::certificate::{Authority, CertificateSpec, Key};
use super::{DeviceSpec, report};
use crate::ModelError;

const NAMESPACES: &str = concat!(
    r#"xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd""#,
    r#" xmlns:ns0="http://standards.iso.org/iso/19770/-2/2015/schema.xsd""#,
    r#" xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384""#,
);
const TCG: &str = concat!(
    r#"xmlns:ns1="https://trustedcomputinggroup.org/resource/"#,
    r#"tcg-reference-integrity-manifest-rim-information-model/""#,
);
const SIGNER: &str = "Model manifest signer";

/// A manifest for `source` of a device, signed at `from` and good until `until`.
pub(super) fn signed(
    spec: &DeviceSpec,
    source: Source,
    authorities: [&Authority; 3],
    from: UnixTime,
    until: UnixTime,
) -> Result<Vec<u8>, ModelError> {
    let [issuer, above, root] = authorities;
    let key = Key::generate()?;
    let signer = CertificateSpec {
        serial: vec![7],
        subject: SIGNER,
        key: &key,
        not_before: from,
        not_after: until,
        ca: false,
        extensions: vec![],
    };
    let signer = signer.sign(&issuer.name, &issuer.key)?;
    let (start, content) = (root_tag(spec, source), content(spec, source));
    let digest = sha384(format!("{start}{content}</SoftwareIdentity>").as_bytes());
    let info = signed_info(&STANDARD.encode(digest));
    // In canonical form SignedInfo carries every namespace in scope.
    let scope = concat_namespaces();
    let canonical = info.replacen("<ds:SignedInfo>", &format!("<ds:SignedInfo {scope}>"), 1);
    let signature = STANDARD.encode(key.sign_fixed(canonical.as_bytes())?);
    let certificates: String = [&signer, &issuer.der, &above.der, &root.der]
        .map(|der| format!("<ds:X509Certificate>{}</ds:X509Certificate>", STANDARD.encode(der)))
        .concat();
    let signature = format!(
        "<ds:Signature xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\">{info}\
         <ds:SignatureValue>{signature}</ds:SignatureValue><ds:KeyInfo><ds:X509Data>{certificates}\
         </ds:X509Data></ds:KeyInfo></ds:Signature>"
    );
    Ok(format!("{start}{content}{signature}</SoftwareIdentity>").into_bytes())
}

fn root_tag(spec: &DeviceSpec, source: Source) -> String {
    let (chip, name) = (&spec.chip, source.name());
    format!(
        "<SoftwareIdentity {NAMESPACES} corpus=\"false\" name=\"{chip}\" patch=\"false\" \
         supplemental=\"false\" tagId=\"model-{name}\" tagVersion=\"0\" version=\"1.0\">"
    )
}

fn content(spec: &DeviceSpec, source: Source) -> String {
    let edition = if spec.kind == DeviceKind::Switch { "SWITCH" } else { "GPU" };
    let version = match source {
        Source::Driver => &spec.driver_version,
        Source::Vbios | Source::Bios => &spec.firmware_version,
    };
    let chip = &spec.chip;
    let resources: String =
        (0..report::blocks(spec.kind)).map(|index| resource(spec, source, index)).collect();
    format!(
        "<ns0:Entity name=\"Casemate software model\" role=\"softwareCreator tagCreator\">\
         </ns0:Entity><ns0:Meta {TCG} PayloadType=\"direct\" colloquialVersion=\"{version}\" \
         edition=\"{edition}\" product=\"{chip}\" revision=\"r1\" ns1:BindingSpec=\"RIMIM\" \
         ns1:BindingSpecVersion=\"1.01\" ns1:FirmwareManufacturerId=\"59999\"></ns0:Meta>\
         <ns0:Payload>{resources}</ns0:Payload>"
    )
}

fn resource(spec: &DeviceSpec, source: Source, index: u8) -> String {
    let driver = matches!(index, 7 | 21..=40);
    let active = match source {
        Source::Driver => driver,
        Source::Vbios => report::is_measured(spec.kind, index) && !driver,
        Source::Bios => true,
    };
    let plain = DeviceSpec { devtools: false, ..spec.clone() };
    let value = if active { report::measurement(&plain, index) } else { [0; 48] };
    let (name, value) = (if active { "True" } else { "False" }, hex(&value));
    format!(
        "<ns0:Resource active=\"{name}\" alternatives=\"1\" index=\"{index}\" \
         name=\"Measurement_{index}\" size=\"48\" type=\"Measurement\" ns2:Hash0=\"{value}\">\
         </ns0:Resource>"
    )
}

fn signed_info(digest: &str) -> String {
    let c14n = "http://www.w3.org/2006/12/xml-c14n11";
    let more = "http://www.w3.org/2001/04/xmldsig-more#";
    format!(
        "<ds:SignedInfo><ds:CanonicalizationMethod Algorithm=\"{c14n}\"></ds:CanonicalizationMethod>\
         <ds:SignatureMethod Algorithm=\"{more}ecdsa-sha384\"></ds:SignatureMethod>\
         <ds:Reference URI=\"\"><ds:Transforms>\
         <ds:Transform Algorithm=\"http://www.w3.org/2000/09/xmldsig#enveloped-signature\">\
         </ds:Transform><ds:Transform Algorithm=\"{c14n}\"></ds:Transform></ds:Transforms>\
         <ds:DigestMethod Algorithm=\"{more}sha384\"></ds:DigestMethod>\
         <ds:DigestValue>{digest}</ds:DigestValue></ds:Reference></ds:SignedInfo>"
    )
}

/// The namespaces in scope at the signature, sorted by prefix.
fn concat_namespaces() -> String {
    NAMESPACES.replacen(
        " xmlns:ns0",
        " xmlns:ds=\"http://www.w3.org/2000/09/xmldsig#\" xmlns:ns0",
        1,
    )
}
