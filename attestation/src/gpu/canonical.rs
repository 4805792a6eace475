//! Canonical XML 1.1 (W3C REC-xml-c14n11-20080502), inclusive, without
//! comments, of one element and what is inside it.
//!
//! The subset that [`super::xml`] reads has no `xml:` attribute and no
//! processing instruction, so that version 1.0 and 1.1 give the same bytes.

use std::collections::BTreeMap;

use super::xml::{Document, Element, Node};

/// The canonical bytes of the element at `apex`, leaving out the element at
/// `without`. Namespaces declared around `apex` are declared on it.
pub(crate) fn canonical(document: &Document<'_>, apex: usize, without: Option<usize>) -> Vec<u8> {
    let Some(element) = document.element(apex) else { return Vec::new() };
    let mut writer = Writer { out: Vec::new(), scope: BTreeMap::new(), open: Vec::new() };
    let around = in_scope(document, element);
    writer.start(element, &around);
    let mut at = apex.saturating_add(1);
    while at <= element.end {
        match document.nodes.get(at) {
            Some(Node::Start(child)) if without == Some(at) => at = child.end,
            Some(Node::Start(child)) => writer.start(child, &child.declared),
            Some(Node::Text(text)) => writer.escaped(text, text_reference),
            Some(Node::End) => writer.end(),
            None => break,
        }
        at = at.saturating_add(1);
    }
    writer.out
}

/// Every namespace in scope at `element`, by prefix.
fn in_scope<'a>(document: &Document<'a>, element: &Element<'a>) -> Vec<(&'a str, &'a str)> {
    let mut scope: BTreeMap<_, _> = element.declared.iter().copied().collect();
    let mut parent = element.parent;
    while let Some(above) = parent.and_then(|index| document.element(index)) {
        for (prefix, uri) in &above.declared {
            scope.entry(*prefix).or_insert(*uri);
        }
        parent = above.parent;
    }
    scope.into_iter().collect()
}

struct Writer<'d> {
    out: Vec<u8>,
    /// What each prefix is bound to in the output so far, innermost last.
    scope: BTreeMap<&'d str, Vec<&'d str>>,
    open: Vec<(&'d str, Vec<&'d str>)>,
}

impl<'d> Writer<'d> {
    fn start(&mut self, element: &Element<'d>, declared: &[(&'d str, &'d str)]) {
        self.out.push(b'<');
        self.out.extend(element.name.as_bytes());
        let mut rendered = Vec::new();
        for (prefix, uri) in declared {
            let bound = self.scope.entry(prefix).or_default();
            if bound.last() != Some(uri) {
                bound.push(uri);
                rendered.push(*prefix);
                self.namespace(prefix, uri);
            }
        }
        for attribute in &element.attributes {
            self.attribute(attribute.name, &attribute.value);
        }
        self.out.push(b'>');
        self.open.push((element.name, rendered));
    }

    fn end(&mut self) {
        let Some((name, rendered)) = self.open.pop() else { return };
        for prefix in rendered {
            self.scope.entry(prefix).or_default().pop();
        }
        self.out.extend(b"</");
        self.out.extend(name.as_bytes());
        self.out.push(b'>');
    }

    fn namespace(&mut self, prefix: &str, uri: &str) {
        let colon = if prefix.is_empty() { "" } else { ":" };
        self.attribute(&format!("xmlns{colon}{prefix}"), uri);
    }

    fn attribute(&mut self, name: &str, value: &str) {
        self.out.push(b' ');
        self.out.extend(name.as_bytes());
        self.out.extend(b"=\"");
        self.escaped(value, attribute_reference);
        self.out.push(b'"');
    }

    fn escaped(&mut self, text: &str, reference: fn(u8) -> Option<&'static str>) {
        for byte in text.bytes() {
            match reference(byte) {
                Some(reference) => self.out.extend(reference.as_bytes()),
                None => self.out.push(byte),
            }
        }
    }
}

fn text_reference(byte: u8) -> Option<&'static str> {
    match byte {
        b'&' => Some("&amp;"),
        b'<' => Some("&lt;"),
        b'>' => Some("&gt;"),
        b'\r' => Some("&#xD;"),
        _ => None,
    }
}

fn attribute_reference(byte: u8) -> Option<&'static str> {
    match byte {
        b'&' => Some("&amp;"),
        b'<' => Some("&lt;"),
        b'"' => Some("&quot;"),
        b'\t' => Some("&#x9;"),
        b'\n' => Some("&#xA;"),
        b'\r' => Some("&#xD;"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> String {
        let document = Document::parse(text).unwrap();
        String::from_utf8(canonical(&document, 0, None)).unwrap()
    }

    #[test]
    fn canonical_forms_of_the_recommendation() {
        // Section 3.3, start and end tags, with what the subset allows of it.
        let text = "<doc xmlns:b='http://b'><e1   /><e2   ></e2><e3   name = \"elem3\"   id=\"elem3\"   />\
            <e5 a:attr='out' b:attr='sorted' attr2='all' attr='I am' xmlns:b='http://www.ietf.org' \
            xmlns:a='http://www.w3.org' xmlns='http://example.org'/><e6 xmlns='http://x' xmlns:a='http://www.w3.org'>\
            <e7 xmlns='http://www.ietf.org'><e8 xmlns='http://x' xmlns:b='http://b'><e9 xmlns='http://x' xmlns:a='http://www.ietf.org'/>\
            </e8></e7></e6></doc>";
        let expected = "<doc xmlns:b=\"http://b\"><e1></e1><e2></e2><e3 id=\"elem3\" name=\"elem3\"></e3>\
            <e5 xmlns=\"http://example.org\" xmlns:a=\"http://www.w3.org\" xmlns:b=\"http://www.ietf.org\" \
            attr=\"I am\" attr2=\"all\" b:attr=\"sorted\" a:attr=\"out\"></e5>\
            <e6 xmlns=\"http://x\" xmlns:a=\"http://www.w3.org\"><e7 xmlns=\"http://www.ietf.org\"><e8 xmlns=\"http://x\">\
            <e9 xmlns:a=\"http://www.ietf.org\"></e9></e8></e7></e6></doc>";
        assert_eq!(whole(text), expected);
    }

    #[test]
    fn characters_are_written_the_one_way() {
        let text =
            "<doc a='&quot;&#9;&#10;&#13;&gt;\n&lt;' >&#x20AC;&#13;&gt;\"<!-- gone -->&amp;</doc>";
        let expected = "<doc a=\"&quot;&#x9;&#xA;&#xD;> &lt;\">€&#xD;&gt;\"&amp;</doc>";
        assert_eq!(whole(text), expected);
    }

    #[test]
    fn an_inner_element_carries_what_is_in_scope() {
        let document =
            Document::parse("<a xmlns='u:1' xmlns:p='u:2'><p:b xmlns:q='u:3'><c/>x</p:b>y</a>")
                .unwrap();
        let inner = canonical(&document, 1, None);
        let expected = "<p:b xmlns=\"u:1\" xmlns:p=\"u:2\" xmlns:q=\"u:3\"><c></c>x</p:b>";
        assert_eq!(String::from_utf8(inner).unwrap(), expected);
        let without = canonical(&document, 0, Some(1));
        let expected = "<a xmlns=\"u:1\" xmlns:p=\"u:2\">y</a>";
        assert_eq!(String::from_utf8(without).unwrap(), expected);
    }

    /// Texts of a hostile kind, about as long as `n` says, all within the limits.
    fn hostile(n: usize) -> Vec<(&'static str, String)> {
        let element = |inside: String| format!("<a xmlns:p='u:1'>{inside}</a>");
        let many: String = (0..32).map(|at| format!(" xmlns:n{at}='u:{at}'")).collect();
        let names: String = (0..64).map(|at| format!(" b{}='&amp;'", 63 - at)).collect();
        let deep = |inside: &str| {
            let open: String = (0..14).map(|_| format!("<b{many}>")).collect();
            format!("{open}{inside}{}", "</b>".repeat(14))
        };
        vec![
            ("elements", element("<b/>".repeat(n))),
            ("nested", element("<b><b><b><b></b></b></b></b>".repeat(n / 4))),
            ("text and comments", element("x<!-- - -->".repeat(n))),
            ("references", element("&#x10FFFF;&amp;".repeat(n))),
            ("a long value", format!("<a b='{}'/>", "&lt;\n".repeat(n))),
            ("namespaces in every element", element(deep("<p:c/>").repeat(n / 128))),
            ("namespaces around", element(deep(&"<n1:c n2:d=''/>".repeat(n)))),
            ("attributes", element(format!("<b{names}/>").repeat(n / 64))),
            ("an unfinished comment", format!("<a>{}", "<!-".repeat(n))),
            ("an unfinished reference", format!("<a>{}", "&#x1".repeat(n))),
        ]
    }

    /// The least time that reading and writing takes, of some tries.
    fn least(text: &str) -> std::time::Duration {
        let once = || {
            let start = std::time::Instant::now();
            if let Ok(document) = Document::parse(text) {
                let last = document.elements().map(|(at, _)| at).last().unwrap();
                assert!(!canonical(&document, 0, Some(last)).is_empty());
                canonical(&document, last, None);
            }
            start.elapsed()
        };
        (0..5).map(|_| once()).min().unwrap()
    }

    #[test]
    fn twice_the_hostile_text_takes_no_more_than_about_twice_the_time() {
        for ((name, small), (_, large)) in hostile(2_000).into_iter().zip(hostile(4_000)) {
            // A busy machine may slow one measurement, but hardly ten pairs of them.
            let linear = (0..10).any(|_| least(&large) < least(&small) * 3);
            assert!(linear, "{name}: {} and {} bytes", small.len(), large.len());
        }
    }

    #[test]
    fn hostile_texts_within_the_limits_are_read() {
        for (name, text) in hostile(7_000).into_iter().filter(|(name, _)| !name.contains("unfin")) {
            assert!(Document::parse(&text).is_ok(), "{name}: {:?}", Document::parse(&text).err());
        }
    }
}
