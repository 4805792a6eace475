//! Reference manifests: SWID tags (ISO 19770-2:2015) in the TCG RIM form
//! (TCG Reference Integrity Manifest Information Model 1.01), signed by NVIDIA.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::anchors::Anchor;
use crate::crypto::{Scheme, sha256, sha384};
use crate::time::UnixTime;
use crate::wire;
use crate::x509::Certificate;

use super::canonical::canonical;
use super::chain::{self, MANIFEST};
use super::code::{Code, Finding};
use super::memo::Memo;
use super::roots::Roots;
use super::signature::Signature;
use super::xml::{self, Document, Element};

const SWID: &str = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd";
const HASH: &str = "http://www.w3.org/2001/04/xmlenc#sha384";
const TCG: &str = "https://trustedcomputinggroup.org/resource/tcg-reference-integrity-manifest-rim-information-model/";
const MAX_ALTERNATIVES: usize = 32;
const DIGEST_BYTES: usize = 48;

/// One index of a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Whether the index is compared at all.
    pub active: bool,
    /// The values that are accepted.
    pub alternatives: Vec<[u8; DIGEST_BYTES]>,
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// The version it is for: the driver's, or the firmware's with dots.
    pub version: String,
    /// The chip it is for: `GH100`, `GB100`, `LS10`.
    pub product: String,
    /// `GPU` or `SWITCH`.
    pub edition: String,
    /// The manufacturer's number (IANA enterprise number; 5703 is NVIDIA), if it is named.
    pub manufacturer: Option<String>,
    /// The reference values by index.
    pub references: BTreeMap<u8, Reference>,
}

/// A manifest and what is known of its signature. Dates are checked when it is used.
#[derive(Debug)]
pub struct Checked {
    /// SHA-256 of the received bytes; an id alone may name several documents.
    pub sha256: [u8; 32],
    /// The manifest, unless its text cannot be read or is outside the profile.
    pub manifest: Option<Manifest>,
    /// What is wrong with it whatever the time.
    pub findings: Vec<Finding>,
    /// The signer's chain, signer first.
    pub chain: Vec<Certificate>,
    /// The anchor that the chain leads to.
    pub anchor: Option<Anchor>,
}

impl Checked {
    /// Reads and checks a manifest; remembers it if all is right.
    pub(crate) fn new(bytes: &[u8], roots: &Roots, memo: &Memo) -> Arc<Self> {
        let digest = sha256(bytes);
        // The memory may be shared by verifiers with other roots: ask again for ours.
        let ours = |known: &Arc<Self>| {
            let root = known.chain.last().map(Certificate::key);
            roots.manifests.iter().any(|one| Some(&one.key) == root)
        };
        if let Some(known) = memo.manifest(&digest).filter(ours) {
            return known;
        }
        let mut checked = Self {
            sha256: digest,
            manifest: None,
            findings: Vec::new(),
            chain: Vec::new(),
            anchor: None,
        };
        if let Err(finding) = checked.fill(bytes, roots, memo) {
            checked.findings.push(finding);
        }
        let checked = Arc::new(checked);
        if checked.findings.is_empty() {
            memo.keep_manifest(digest, &checked);
        }
        checked
    }

    /// What is wrong with the manifest at `now`, dates included.
    pub fn findings_at(&self, now: UnixTime) -> Vec<Finding> {
        let dates = chain::check_dates(&MANIFEST, &self.chain, now).err();
        let (before, after): (Vec<_>, Vec<_>) =
            self.findings.iter().cloned().partition(|finding| finding.code < Code::RimChainExpired);
        // A chain that is wrong in itself has no dates worth telling.
        let dates = if before.is_empty() { dates } else { None };
        before.into_iter().chain(dates).chain(after).collect()
    }

    /// The last second at which all of the signer's chain is valid.
    pub fn not_after(&self) -> Option<UnixTime> {
        self.chain.iter().map(Certificate::not_after).min()
    }

    /// The findings that end the reading come as the error, the others are kept.
    fn fill(&mut self, bytes: &[u8], roots: &Roots, memo: &Memo) -> Result<(), Finding> {
        let malformed =
            |error: xml::XmlError| Finding::new(Code::RimXml, "manifest", "", "").at(&error);
        let text = xml::text(bytes).map_err(malformed)?;
        let document = Document::parse(&text).map_err(malformed)?;
        let signature = Signature::find(&document)?;
        let parsed: Result<Vec<_>, _> =
            signature.certificates.iter().map(|der| Certificate::parse(der)).collect();
        self.chain = parsed.map_err(|error| chain::because(Code::RimSignatureProfile, error))?;
        match chain::check(&MANIFEST, &self.chain, &roots.manifests, memo) {
            Ok(anchor) => self.anchor = Some(anchor.clone()),
            Err(finding) => self.findings.push(finding),
        }
        self.check_signature(&document, &signature);
        self.manifest = Some(Manifest::read(&document)?);
        Ok(())
    }

    fn check_signature(&mut self, document: &Document<'_>, signature: &Signature) {
        let digest = sha384(&canonical(document, 0, Some(signature.element)));
        if digest != signature.digest {
            self.findings.push(Finding::new(
                Code::RimDigest,
                "digest of the manifest",
                wire::hex(&signature.digest),
                wire::hex(&digest),
            ));
        }
        let signed_info = canonical(document, signature.signed_info, None);
        let scheme = Scheme::EcdsaP384Sha384Raw;
        let signed = self
            .chain
            .first()
            .is_some_and(|leaf| leaf.key().verify(scheme, &signed_info, &signature.value));
        if !signed {
            self.findings.push(Finding::new(
                Code::RimSignature,
                "signature of the manifest",
                "one by the first certificate's key",
                "one that does not verify",
            ));
        }
    }
}

impl Finding {
    fn at(mut self, error: &xml::XmlError) -> Self {
        self.field = format!("manifest, byte {}", error.at);
        self.expected = error.expected.to_owned();
        self.actual = "something else".to_owned();
        self
    }
}

impl Manifest {
    /// The names of the manifest's component and chip, for people.
    pub fn describe(&self) -> String {
        format!("{} {} {}", self.edition, self.product, self.version)
    }

    fn read(document: &Document<'_>) -> Result<Self, Finding> {
        let root = document.element(0).filter(|root| root.is(SWID, "SoftwareIdentity"));
        if root.is_none() || !document.only_elements(0) {
            return Err(schema("root element", "SoftwareIdentity with elements alone", "another"));
        }
        let known = ["Entity", "Meta", "Payload"];
        let mut found: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, element) in document.children(0) {
            match known.iter().find(|name| element.is(SWID, name)) {
                Some(name) => found.entry(name).or_default().push(index),
                None if element.local == "Signature" => (),
                None => return Err(schema("SoftwareIdentity", known.join(", "), element.name)),
            }
        }
        let one = |name: &'static str| match found.get(name).map(Vec::as_slice) {
            Some([index]) => Ok(*index),
            other => Err(schema(name, "one", other.map_or(0, <[_]>::len).to_string())),
        };
        one("Entity")?;
        let meta = document.element(one("Meta")?);
        let meta = meta.ok_or_else(|| schema("Meta", "an element", "none"))?;
        let word = |name: &'static str| word(meta, "", name);
        Ok(Self {
            version: word("colloquialVersion")?,
            product: word("product")?,
            edition: word("edition")?,
            manufacturer: self::word(meta, TCG, "FirmwareManufacturerId").ok(),
            references: references(document, one("Payload")?)?,
        })
    }
}

fn references(document: &Document<'_>, payload: usize) -> Result<BTreeMap<u8, Reference>, Finding> {
    if !document.only_elements(payload) {
        return Err(schema("Payload", "Resource elements alone", "text"));
    }
    let mut references = BTreeMap::new();
    for (index, resource) in document.children(payload) {
        if !resource.is(SWID, "Resource") || document.children(index).next().is_some() {
            return Err(schema("Payload", "empty Resource elements alone", resource.name));
        }
        let (index, reference) = reference(resource)?;
        if references.insert(index, reference).is_some() {
            let field = format!("Resource {index}");
            return Err(Finding::new(Code::RimDuplicateIndex, field, "once", "twice"));
        }
    }
    if references.is_empty() {
        return Err(schema("Payload", "at least one Resource", "none"));
    }
    Ok(references)
}

fn reference(resource: &Element<'_>) -> Result<(u8, Reference), Finding> {
    let kind = word(resource, "", "type")?;
    if kind != "Measurement" {
        return Err(schema("Resource type", "Measurement", kind));
    }
    let index = number(resource, "index")?;
    let index =
        u8::try_from(index).map_err(|_| schema("Resource index", "0 to 255", index.to_string()))?;
    let size = number(resource, "size")?;
    if size != DIGEST_BYTES {
        return Err(schema("Resource size", "48", size.to_string()));
    }
    let active = match word(resource, "", "active")?.as_str() {
        "True" => true,
        "False" => false,
        other => return Err(schema("Resource active", "True or False", other)),
    };
    let count = number(resource, "alternatives")?;
    let hashes = resource.attributes.iter().filter(|one| one.namespace == HASH).count();
    if count != hashes || count == 0 || count > MAX_ALTERNATIVES {
        let expected = format!("1 to {MAX_ALTERNATIVES}, as many as hashes ({hashes})");
        return Err(schema("Resource alternatives", expected, count.to_string()));
    }
    let alternatives = (0..count).map(|at| hash(resource, at)).collect::<Result<_, _>>()?;
    Ok((index, Reference { active, alternatives }))
}

fn hash(resource: &Element<'_>, at: usize) -> Result<[u8; DIGEST_BYTES], Finding> {
    let text = word(resource, HASH, &format!("Hash{at}"))?;
    wire::unhex_array(&text).ok_or_else(|| schema("Resource hash", "96 hex digits", text))
}

fn number(element: &Element<'_>, name: &'static str) -> Result<usize, Finding> {
    let text = word(element, "", name)?;
    let digits = text.bytes().all(|byte| byte.is_ascii_digit()) && text.len() <= 4;
    match text.parse() {
        Ok(number) if digits => Ok(number),
        _ => Err(schema(name, "a decimal number", text)),
    }
}

fn word(element: &Element<'_>, namespace: &str, name: &str) -> Result<String, Finding> {
    let value = element.attribute(namespace, name);
    let value = value.ok_or_else(|| schema(element.local, format!("attribute {name}"), "none"))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if value.is_empty() || value.len() > 256 || !value.bytes().all(plain) {
        return Err(schema(name, "a word of ASCII letters and digits", "another value"));
    }
    Ok(value.to_owned())
}

fn schema(field: &str, expected: impl Into<String>, actual: impl Into<String>) -> Finding {
    Finding::new(Code::RimSchema, field, expected, actual)
}
