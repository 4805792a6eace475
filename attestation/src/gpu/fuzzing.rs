//! What the fuzz targets check of readers that are private: invariants that
//! hold for every input, and a second canonicaliser to compare with.
//! Only there when fuzzing.

use std::collections::BTreeMap;

use crate::anchors::{Anchor, AnchorKind};
use crate::time::UnixTime;
use crate::x509::certificates_from_pem;

use super::canonical::canonical as canonicalised;
use super::chain::{DEVICE, check, check_dates};
use super::device::CHAIN_LIMITS;
use super::fwid;
use super::memo::Memo;
use super::roots::Root;
use super::xml::{self, Document, Node};

type Scope = BTreeMap<String, String>;

/// A device's chain in PEM, checked under its own last certificate, so that the
/// checks after the root's are reached.
pub fn chain(bytes: &[u8]) {
    let Ok(chain) = certificates_from_pem(bytes, CHAIN_LIMITS) else { return };
    let Some(last) = chain.last() else { return };
    let anchor = Anchor { label: "fuzz".to_owned(), kind: AnchorKind::Model };
    let roots = [Root { anchor, key: last.key().clone() }];
    let memo = Memo::default();
    if check(&DEVICE, &chain, &roots, &memo).is_ok() {
        assert_eq!(chain.len(), DEVICE.length);
        assert!(check(&DEVICE, &chain, &[], &memo).is_err(), "accepted without a root");
        assert!(check(&DEVICE, &chain, &roots, &memo).is_ok(), "what was remembered differs");
    }
    let _ = check_dates(&DEVICE, &chain, UnixTime(1_790_000_000));
    let _ = chain.first().map(fwid::certified);
}

/// A text: what parses, written in canonical form and parsed again, is the same
/// document and has the same canonical form.
pub fn xml(bytes: &[u8]) {
    let Ok(text) = xml::text(bytes) else { return };
    let Ok(document) = Document::parse(&text) else { return };
    let first = canonicalised(&document, 0, None);
    let again = core::str::from_utf8(&first).map(Document::parse);
    let Ok(Ok(again)) = again else { panic!("canonical form refused: {again:?}") };
    assert_eq!(canonicalised(&again, 0, None), first);
    let outline = |document: &Document<'_>| format!("{:?}", outline(document));
    assert_eq!(outline(&document), outline(&again));
}

/// Any element of a text, with any element left out: the canonical form is what
/// the recommendation's rules give when they are followed one by one.
pub fn canonical(apex: u16, without: u16, bytes: &[u8]) {
    let Ok(text) = xml::text(bytes) else { return };
    let Ok(document) = Document::parse(&text) else { return };
    let elements: Vec<_> = document.elements().map(|(index, _)| index).collect();
    let choose = |at: u16| elements.get(usize::from(at).checked_rem(elements.len())?).copied();
    let Some(apex) = choose(apex) else { return };
    let without = choose(without).filter(|index| *index != apex);
    let fast = canonicalised(&document, apex, without);
    let mut around = Scope::new();
    declared_around(&document, apex, &mut around);
    let slow = by_the_rules(&document, apex, without, &around, &Scope::new());
    assert_eq!(String::from_utf8_lossy(&fast), slow);
    // Inside, an element may have more namespaces in scope than one may declare.
    if let Ok(again) = Document::parse(&slow) {
        assert_eq!(canonicalised(&again, 0, None), fast, "not idempotent");
    } else {
        assert_ne!(apex, 0, "canonical form refused");
    }
}

/// Elements with namespaces, attributes and text; no prefix, no declaration.
fn outline<'d>(document: &'d Document<'_>) -> Vec<(&'d str, String)> {
    let mut out: Vec<(&str, String)> = Vec::new();
    for node in &document.nodes {
        match (node, out.last_mut()) {
            (Node::Start(element), _) => {
                let attributes: Vec<_> =
                    element.attributes.iter().map(|a| (a.namespace, a.local, &a.value)).collect();
                out.push((
                    "start",
                    format!("{} {} {attributes:?}", element.namespace, element.local),
                ));
            }
            (Node::End, _) => out.push(("end", String::new())),
            // A comment parts two texts, and is gone in the canonical form.
            (Node::Text(text), Some(("text", before))) => before.push_str(text),
            (Node::Text(text), _) => out.push(("text", text.to_string())),
        }
    }
    out
}

/// The namespaces declared by what is around the element.
fn declared_around(document: &Document<'_>, index: usize, scope: &mut Scope) {
    let parent = document.element(index).and_then(|element| element.parent);
    if let Some(parent) = parent {
        declared_around(document, parent, scope);
        declare(document, parent, scope);
    }
}

fn declare(document: &Document<'_>, index: usize, scope: &mut Scope) {
    for (prefix, uri) in document.element(index).into_iter().flat_map(|one| &one.declared) {
        scope.insert((*prefix).to_owned(), (*uri).to_owned());
    }
}

/// Canonical XML 1.1, section 2.3, by recursion and with every scope in full.
fn by_the_rules(
    document: &Document<'_>,
    index: usize,
    without: Option<usize>,
    around: &Scope,
    rendered: &Scope,
) -> String {
    let Some(element) = document.element(index) else { return String::new() };
    let mut scope = around.clone();
    declare(document, index, &mut scope);
    let mut out = format!("<{}", element.name);
    for (prefix, uri) in scope.iter().filter(|(prefix, uri)| rendered.get(*prefix) != Some(*uri)) {
        let name = if prefix.is_empty() { "xmlns".to_owned() } else { format!("xmlns:{prefix}") };
        out += &format!(" {name}=\"{}\"", uri.replace('&', "&amp;"));
    }
    for attribute in &element.attributes {
        out += &format!(" {}=\"{}\"", attribute.name, of_attribute(&attribute.value));
    }
    out.push('>');
    let mut at = index.saturating_add(1);
    while at < element.end {
        match document.nodes.get(at) {
            Some(Node::Start(child)) => {
                if without != Some(at) {
                    out += &by_the_rules(document, at, without, &scope, &scope);
                }
                at = child.end;
            }
            Some(Node::Text(text)) => out += &of_text(text),
            _ => (),
        }
        at = at.saturating_add(1);
    }
    out + "</" + element.name + ">"
}

fn of_text(text: &str) -> String {
    let text = text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    text.replace('\r', "&#xD;")
}

fn of_attribute(value: &str) -> String {
    let value = value.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;");
    value.replace('\t', "&#x9;").replace('\n', "&#xA;").replace('\r', "&#xD;")
}
