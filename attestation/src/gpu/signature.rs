//! The one form of XML signature that a reference manifest may have.
//!
//! Enveloped, over the whole document, made by the leaf of the X509Data chain
//! (W3C xmldsig-core1, sections 4 and 6.6.4). The form is matched word for
//! word: there is no transform engine to attack and no choice of key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::code::{Code, Finding};
use super::xml::Document;

const DSIG: &str = "http://www.w3.org/2000/09/xmldsig#";
const C14N: &str = "http://www.w3.org/2006/12/xml-c14n11";
const ECDSA_SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#ecdsa-sha384";
const SHA384: &str = "http://www.w3.org/2001/04/xmldsig-more#sha384";
const ENVELOPED: &str = "http://www.w3.org/2000/09/xmldsig#enveloped-signature";
/// More than a chain ever has; its length is checked with the chain.
const MAX_CERTIFICATES: usize = 8;

/// A signature's parts. Nothing is verified yet.
#[derive(Debug)]
pub(crate) struct Signature {
    /// The Signature element, which the digest leaves out.
    pub(crate) element: usize,
    /// The SignedInfo element, which is signed.
    pub(crate) signed_info: usize,
    /// SHA-384 of the canonical document.
    pub(crate) digest: [u8; 48],
    /// ECDSA P-384, r then s.
    pub(crate) value: Vec<u8>,
    /// The certificates in DER, signer first.
    pub(crate) certificates: Vec<Vec<u8>>,
}

impl Signature {
    /// Finds the signature in `document` and matches its form.
    pub(crate) fn find(document: &Document<'_>) -> Result<Self, Finding> {
        let matcher = Matcher { document };
        let mut found =
            document.elements().filter(|(_, e)| e.namespace == DSIG && e.local == "Signature");
        let (element, parent) = match (found.next(), found.next()) {
            (Some((index, element)), None) => (index, element.parent),
            (None, _) => return Err(wrong("Signature", "one", "none")),
            _ => return Err(wrong("Signature", "one", "several")),
        };
        if parent != Some(0) {
            return Err(wrong("Signature", "a child of the root element", "deeper inside"));
        }
        matcher.attributes(element, "Signature", &[])?;
        let [signed_info, value, key_info] =
            matcher.children(element, "Signature", ["SignedInfo", "SignatureValue", "KeyInfo"])?;
        let digest = matcher.signed_info(signed_info)?;
        matcher.attributes(value, "SignatureValue", &[])?;
        let value = matcher.base64(value, "SignatureValue")?;
        let certificates = matcher.certificates(key_info)?;
        Ok(Self { element, signed_info, digest, value, certificates })
    }
}

struct Matcher<'d, 'a> {
    document: &'d Document<'a>,
}

impl Matcher<'_, '_> {
    /// Matches SignedInfo and gives the DigestValue.
    fn signed_info(&self, index: usize) -> Result<[u8; 48], Finding> {
        self.attributes(index, "SignedInfo", &[])?;
        let names = ["CanonicalizationMethod", "SignatureMethod", "Reference"];
        let [canonicalization, method, reference] = self.children(index, "SignedInfo", names)?;
        self.algorithm(canonicalization, "CanonicalizationMethod", C14N)?;
        self.algorithm(method, "SignatureMethod", ECDSA_SHA384)?;
        self.attributes(reference, "Reference", &[("URI", "")])?;
        let names = ["Transforms", "DigestMethod", "DigestValue"];
        let [transforms, digest, value] = self.children(reference, "Reference", names)?;
        self.attributes(transforms, "Transforms", &[])?;
        let [first, second] =
            self.children(transforms, "Transforms", ["Transform", "Transform"])?;
        self.algorithm(first, "Transform", ENVELOPED)?;
        self.algorithm(second, "Transform", C14N)?;
        self.algorithm(digest, "DigestMethod", SHA384)?;
        self.attributes(value, "DigestValue", &[])?;
        let digest = self.base64(value, "DigestValue")?;
        let length = digest.len().to_string();
        digest.try_into().map_err(|_| wrong("DigestValue", "48 bytes", length))
    }

    /// Matches KeyInfo, which holds certificates and nothing that could name another key.
    fn certificates(&self, index: usize) -> Result<Vec<Vec<u8>>, Finding> {
        self.attributes(index, "KeyInfo", &[])?;
        let [x509_data] = self.children(index, "KeyInfo", ["X509Data"])?;
        self.attributes(x509_data, "X509Data", &[])?;
        if !self.document.only_elements(x509_data) {
            return Err(wrong("X509Data", "certificates alone", "text"));
        }
        let mut certificates = Vec::new();
        for (at, element) in self.document.children(x509_data) {
            if !element.is(DSIG, "X509Certificate") || certificates.len() >= MAX_CERTIFICATES {
                return Err(wrong("X509Data", "up to 8 X509Certificate alone", element.name));
            }
            self.attributes(at, "X509Certificate", &[])?;
            certificates.push(self.base64(at, "X509Certificate")?);
        }
        Ok(certificates)
    }

    /// The child elements, which must be exactly `names` in this order.
    fn children<const N: usize>(
        &self,
        index: usize,
        field: &'static str,
        names: [&str; N],
    ) -> Result<[usize; N], Finding> {
        let found: Vec<_> = self.document.children(index).take(N.saturating_add(1)).collect();
        let as_named = found.len() == N
            && found.iter().zip(names).all(|((_, element), name)| element.is(DSIG, name));
        let indexes: Vec<_> = found.iter().map(|(at, _)| *at).collect();
        match indexes.try_into() {
            Ok(indexes) if as_named && self.document.only_elements(index) => Ok(indexes),
            _ => {
                let actual: Vec<_> = found.iter().map(|(_, element)| element.name).collect();
                Err(wrong(field, names.join(", "), actual.join(", ")))
            }
        }
    }

    /// Matches an element that is its Algorithm and nothing else.
    fn algorithm(&self, index: usize, field: &'static str, uri: &str) -> Result<(), Finding> {
        let empty: [&str; 0] = [];
        self.attributes(index, field, &[("Algorithm", uri)])?;
        self.children(index, field, empty).map(|_| ())
    }

    fn attributes(
        &self,
        index: usize,
        field: &'static str,
        expected: &[(&str, &str)],
    ) -> Result<(), Finding> {
        let Some(element) = self.document.element(index) else {
            return Err(wrong(field, "an element", "none"));
        };
        let actual = element.attributes.iter().map(|a| (a.name, a.value.as_ref()));
        if actual.clone().eq(expected.iter().copied()) {
            return Ok(());
        }
        let show = |(name, value): (&str, &str)| format!("{name}={value:?}");
        let expected: Vec<_> = expected.iter().copied().map(show).collect();
        let actual: Vec<_> = actual.map(show).collect();
        Err(wrong(field, format!("[{}]", expected.join(" ")), format!("[{}]", actual.join(" "))))
    }

    fn base64(&self, index: usize, field: &'static str) -> Result<Vec<u8>, Finding> {
        let text = self.document.text_of(index).ok_or_else(|| wrong(field, "text", "elements"))?;
        let digits: String = text.split_ascii_whitespace().collect();
        STANDARD.decode(digits).map_err(|error| wrong(field, "base64", error.to_string()))
    }
}

fn wrong(field: &str, expected: impl Into<String>, actual: impl Into<String>) -> Finding {
    Finding::new(Code::RimSignatureProfile, field, expected, actual)
}
