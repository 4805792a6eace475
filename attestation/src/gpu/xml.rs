//! A reader of the small part of XML 1.0 that reference manifests use.
//!
//! Elements, attributes, text, comments, the five predefined entities and
//! character references; names in ASCII. A document type, a processing
//! instruction, a CDATA section, another entity, or an `xml:` attribute is
//! refused: what cannot be said cannot be misread. Every limit is fixed before
//! anything is stored, and each byte is looked at a fixed number of times.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// The largest manifest that is read; those seen have 18 to 26 thousand bytes.
pub const MAX_BYTES: usize = 512 * 1024;
const MAX_DEPTH: usize = 16;
const MAX_NODES: usize = 16 * 1024;
const MAX_ATTRIBUTES: usize = 64;
const MAX_NAMESPACES: usize = 32;
const MAX_NAME: usize = 128;

/// Why a text is not in the subset.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manifest, byte {at}: expected {expected}")]
pub(crate) struct XmlError {
    /// Where, in the text with its line ends normalised.
    pub(crate) at: usize,
    /// What would have been right.
    pub(crate) expected: &'static str,
}

/// A document: its nodes in the order of the text.
#[derive(Debug)]
pub(crate) struct Document<'a> {
    pub(crate) nodes: Vec<Node<'a>>,
}

#[derive(Debug)]
pub(crate) enum Node<'a> {
    Start(Element<'a>),
    Text(Cow<'a, str>),
    End,
}

/// An element's start tag.
#[derive(Debug)]
pub(crate) struct Element<'a> {
    /// The name as written, prefix included.
    pub(crate) name: &'a str,
    pub(crate) local: &'a str,
    pub(crate) namespace: &'a str,
    /// The namespaces declared here: prefix ("" for the default) and URI, sorted.
    pub(crate) declared: Vec<(&'a str, &'a str)>,
    /// Sorted by namespace, then local name: the canonical order.
    pub(crate) attributes: Vec<Attribute<'a>>,
    pub(crate) parent: Option<usize>,
    /// The index of the matching [`Node::End`].
    pub(crate) end: usize,
}

#[derive(Debug)]
pub(crate) struct Attribute<'a> {
    pub(crate) name: &'a str,
    pub(crate) local: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) value: Cow<'a, str>,
}

/// The text of `bytes` with line ends normalised (XML 1.0, section 2.11).
pub(crate) fn text(bytes: &[u8]) -> Result<Cow<'_, str>, XmlError> {
    let wrong = |at, expected| XmlError { at, expected };
    if bytes.len() > MAX_BYTES {
        return Err(wrong(MAX_BYTES, "at most 524288 bytes"));
    }
    let text =
        core::str::from_utf8(bytes).map_err(|error| wrong(error.valid_up_to(), "UTF-8 text"))?;
    let forbidden = |c: char| matches!(c, '\0'..='\x08' | '\x0b' | '\x0c' | '\x0e'..='\x1f' | '\u{fffe}' | '\u{ffff}');
    if let Some(at) = text.find(forbidden) {
        return Err(wrong(at, "characters that XML 1.0 allows"));
    }
    if !text.contains('\r') {
        return Ok(Cow::Borrowed(text));
    }
    Ok(Cow::Owned(text.replace("\r\n", "\n").replace('\r', "\n")))
}

impl<'a> Document<'a> {
    /// Reads a whole document.
    pub(crate) fn parse(text: &'a str) -> Result<Self, XmlError> {
        let mut reader = Parser {
            rest: text,
            length: text.len(),
            nodes: Vec::new(),
            open: Vec::new(),
            scope: BTreeMap::new(),
        };
        reader.declaration()?;
        while !reader.rest.is_empty() {
            reader.node()?;
        }
        match reader.nodes.is_empty() || !reader.open.is_empty() {
            true => Err(reader.wrong("the end of the root element")),
            false => Ok(Self { nodes: reader.nodes }),
        }
    }

    /// The element at `index`.
    pub(crate) fn element(&self, index: usize) -> Option<&Element<'a>> {
        match self.nodes.get(index) {
            Some(Node::Start(element)) => Some(element),
            _ => None,
        }
    }

    /// Every element of the document, with its index.
    pub(crate) fn elements(&self) -> impl Iterator<Item = (usize, &Element<'a>)> {
        self.nodes.iter().enumerate().filter_map(|(index, node)| match node {
            Node::Start(element) => Some((index, element)),
            _ => None,
        })
    }

    /// The child elements of the element at `index`.
    pub(crate) fn children(&self, index: usize) -> impl Iterator<Item = (usize, &Element<'a>)> {
        let end = self.element(index).map_or(index, |element| element.end);
        let mut at = index.saturating_add(1);
        core::iter::from_fn(move || {
            while at < end {
                let here = at;
                at = at.saturating_add(1);
                if let Some(element) = self.element(here) {
                    at = element.end.saturating_add(1);
                    return Some((here, element));
                }
            }
            None
        })
    }

    /// The text directly inside the element at `index`, which has no child elements.
    pub(crate) fn text_of(&self, index: usize) -> Option<String> {
        let element = self.element(index)?;
        let inside = self.nodes.get(index.saturating_add(1)..element.end)?;
        inside
            .iter()
            .map(|node| match node {
                Node::Text(text) => Some(text.as_ref()),
                _ => None,
            })
            .collect()
    }

    /// Whether all text directly inside the element at `index` is white space.
    pub(crate) fn only_elements(&self, index: usize) -> bool {
        let Some(element) = self.element(index) else { return false };
        let mut at = index.saturating_add(1);
        while at < element.end {
            match self.nodes.get(at) {
                Some(Node::Text(text)) if !text.bytes().all(is_space) => return false,
                Some(Node::Start(child)) => at = child.end,
                _ => (),
            }
            at = at.saturating_add(1);
        }
        true
    }
}

impl<'a> Element<'a> {
    /// Whether this is `local` in `namespace`.
    pub(crate) fn is(&self, namespace: &str, local: &str) -> bool {
        self.namespace == namespace && self.local == local
    }

    /// The value of the attribute `local` in `namespace` ("" for none).
    pub(crate) fn attribute(&self, namespace: &str, local: &str) -> Option<&str> {
        let key = (namespace, local);
        let at =
            self.attributes.binary_search_by(|one| (one.namespace, one.local).cmp(&key)).ok()?;
        self.attributes.get(at).map(|one| one.value.as_ref())
    }
}

struct Parser<'a> {
    rest: &'a str,
    length: usize,
    nodes: Vec<Node<'a>>,
    open: Vec<usize>,
    /// The URIs bound to each prefix, innermost last.
    scope: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Parser<'a> {
    fn wrong(&self, expected: &'static str) -> XmlError {
        XmlError { at: self.length.saturating_sub(self.rest.len()), expected }
    }

    fn eat(&mut self, prefix: &str) -> bool {
        match self.rest.strip_prefix(prefix) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    fn expect(&mut self, prefix: &'static str) -> Result<(), XmlError> {
        if self.eat(prefix) { Ok(()) } else { Err(self.wrong(prefix)) }
    }

    /// The text up to `end`, which is consumed too.
    fn until(&mut self, end: &'static str) -> Result<&'a str, XmlError> {
        let (before, after) = self.rest.split_once(end).ok_or_else(|| self.wrong(end))?;
        self.rest = after;
        Ok(before)
    }

    fn space(&mut self) -> bool {
        let trimmed = self.rest.trim_start_matches([' ', '\t', '\n']);
        let found = trimmed.len() != self.rest.len();
        self.rest = trimmed;
        found
    }

    /// The XML declaration, which may only say what is the case anyway.
    fn declaration(&mut self) -> Result<(), XmlError> {
        const SAME: [&str; 6] = [
            r#"<?xml version="1.0" encoding="UTF-8"?>"#,
            r#"<?xml version="1.0" encoding="utf-8"?>"#,
            r#"<?xml version="1.0"?>"#,
            "<?xml version='1.0' encoding='UTF-8'?>",
            "<?xml version='1.0' encoding='utf-8'?>",
            "<?xml version='1.0'?>",
        ];
        let eaten = SAME.iter().any(|declaration| self.eat(declaration));
        if !eaten && self.rest.starts_with("<?") {
            return Err(self.wrong("no declaration but one of XML 1.0 in UTF-8"));
        }
        Ok(())
    }

    fn node(&mut self) -> Result<(), XmlError> {
        if self.nodes.len() >= MAX_NODES {
            return Err(self.wrong("at most 16384 nodes"));
        }
        if self.eat("<!--") {
            return self.comment();
        }
        if self.eat("</") {
            return self.end_tag();
        }
        if self.rest.starts_with("<!") || self.rest.starts_with("<?") {
            return Err(self.wrong("no document type, CDATA section or processing instruction"));
        }
        if self.eat("<") { self.start_tag() } else { self.characters() }
    }

    fn comment(&mut self) -> Result<(), XmlError> {
        self.until("--")?;
        self.expect(">")
    }

    fn characters(&mut self) -> Result<(), XmlError> {
        let end = self.rest.find('<').unwrap_or(self.rest.len());
        let (raw, rest) = self.rest.split_at(end);
        if raw.contains("]]>") {
            return Err(self.wrong("no ]]> in text"));
        }
        let text = decode(raw, false).ok_or_else(|| self.wrong("a known character reference"))?;
        if self.open.is_empty() {
            if !text.bytes().all(is_space) {
                return Err(self.wrong("no text outside the root element"));
            }
        } else {
            self.nodes.push(Node::Text(text));
        }
        self.rest = rest;
        Ok(())
    }

    fn start_tag(&mut self) -> Result<(), XmlError> {
        if self.open.is_empty() && !self.nodes.is_empty() {
            return Err(self.wrong("one root element"));
        }
        if self.open.len() >= MAX_DEPTH {
            return Err(self.wrong("at most 16 levels of elements"));
        }
        let name = self.name()?;
        let (declared, written) = self.attributes()?;
        for (prefix, uri) in &declared {
            self.scope.entry(prefix).or_default().push(uri);
        }
        let attributes = self.resolve(written)?;
        let (namespace, local) = self.qualified(name, true)?;
        let parent = self.open.last().copied();
        let index = self.nodes.len();
        let element = Element { name, local, namespace, declared, attributes, parent, end: index };
        self.nodes.push(Node::Start(element));
        self.open.push(index);
        if self.eat("/>") {
            return self.close();
        }
        self.expect(">")
    }

    fn end_tag(&mut self) -> Result<(), XmlError> {
        let name = self.name()?;
        self.space();
        self.expect(">")?;
        let open = self.open.last().and_then(|index| self.nodes.get(*index));
        match open {
            Some(Node::Start(element)) if element.name == name => self.close(),
            _ => Err(self.wrong("the end tag of the element that is open")),
        }
    }

    fn close(&mut self) -> Result<(), XmlError> {
        let end = self.nodes.len();
        self.nodes.push(Node::End);
        let Some(index) = self.open.pop() else { return Err(self.wrong("an open element")) };
        if let Some(Node::Start(element)) = self.nodes.get_mut(index) {
            element.end = end;
            for (prefix, _) in &element.declared {
                self.scope.entry(prefix).or_default().pop();
            }
        }
        Ok(())
    }

    fn name(&mut self) -> Result<&'a str, XmlError> {
        let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | ':');
        let end = self.rest.find(|c| !of_name(c)).unwrap_or(self.rest.len());
        let (name, rest) = self.rest.split_at(end);
        let part = |part: &str| part.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let valid = match name.split_once(':') {
            Some((prefix, local)) => part(prefix) && part(local) && !local.contains(':'),
            None => part(name),
        };
        if !valid || name.len() > MAX_NAME {
            return Err(self.wrong("a name in ASCII with at most one colon"));
        }
        self.rest = rest;
        Ok(name)
    }

    /// The namespaces declared in a start tag, and the other attributes as written.
    #[expect(clippy::type_complexity, reason = "two lists, used once")]
    fn attributes(
        &mut self,
    ) -> Result<(Vec<(&'a str, &'a str)>, Vec<(&'a str, Cow<'a, str>)>), XmlError> {
        let (mut declared, mut written) = (Vec::new(), Vec::new());
        while self.space() && !self.rest.starts_with(['>', '/']) {
            let name = self.name()?;
            let raw = self.value()?;
            let prefix = match name.split_once(':') {
                None if name == "xmlns" => Some(""),
                Some(("xmlns", prefix)) => Some(prefix),
                _ => None,
            };
            match prefix {
                Some(prefix) => declared.push((prefix, self.namespace(prefix, raw)?)),
                None => {
                    let value = decode(raw, true).ok_or_else(|| self.wrong("a known reference"))?;
                    written.push((name, value));
                }
            }
            if declared.len() > MAX_NAMESPACES || written.len() > MAX_ATTRIBUTES {
                return Err(self.wrong("at most 32 namespaces and 64 attributes an element"));
            }
        }
        declared.sort_unstable();
        let twice = declared.windows(2).any(|pair| match pair {
            [(a, _), (b, _)] => a == b,
            _ => false,
        });
        if twice { Err(self.wrong("each prefix declared once")) } else { Ok((declared, written)) }
    }

    /// The raw value of an attribute, quotes taken off.
    fn value(&mut self) -> Result<&'a str, XmlError> {
        self.space();
        self.expect("=")?;
        self.space();
        let raw = if self.eat("\"") {
            self.until("\"")?
        } else {
            self.expect("'")?;
            self.until("'")?
        };
        if raw.contains('<') { Err(self.wrong("no < in an attribute")) } else { Ok(raw) }
    }

    /// A namespace URI: absolute and plain, so that comparing bytes is comparing URIs.
    fn namespace(&self, prefix: &str, raw: &'a str) -> Result<&'a str, XmlError> {
        let plain = raw.bytes().all(|byte| byte.is_ascii_graphic() && !b"&\"".contains(&byte));
        let reserved = prefix.starts_with("xml") || raw.starts_with("http://www.w3.org/XML/");
        if !plain || reserved || !raw.contains(':') {
            return Err(self.wrong("a namespace with an absolute, plain URI"));
        }
        Ok(raw)
    }

    /// Attributes with their namespaces, in canonical order, each once.
    fn resolve(
        &self,
        written: Vec<(&'a str, Cow<'a, str>)>,
    ) -> Result<Vec<Attribute<'a>>, XmlError> {
        let mut attributes = Vec::with_capacity(written.len());
        for (name, value) in written {
            let (namespace, local) = self.qualified(name, false)?;
            attributes.push(Attribute { name, local, namespace, value });
        }
        attributes.sort_by_key(|one| (one.namespace, one.local));
        let twice = attributes.windows(2).any(|pair| match pair {
            [a, b] => (a.namespace, a.local) == (b.namespace, b.local),
            _ => false,
        });
        if twice { Err(self.wrong("each attribute once")) } else { Ok(attributes) }
    }

    /// The namespace and local part of a name.
    fn qualified(&self, name: &'a str, element: bool) -> Result<(&'a str, &'a str), XmlError> {
        let (prefix, local) = name.split_once(':').unwrap_or(("", name));
        let bound = self.scope.get(prefix).and_then(|uris| uris.last().copied());
        match (prefix, bound) {
            ("", _) if !element => Ok(("", local)),
            ("", None) => Ok(("", local)),
            (_, Some(uri)) => Ok((uri, local)),
            (_, None) => Err(self.wrong("a prefix that is declared")),
        }
    }
}

pub(crate) fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Replaces references; in an attribute white space becomes a space
/// (XML 1.0, section 3.3.3). `None` for a reference that is not known.
fn decode(raw: &str, attribute: bool) -> Option<Cow<'_, str>> {
    let white = |c: char| attribute && matches!(c, '\t' | '\n');
    if !raw.contains(|c| c == '&' || white(c)) {
        return Some(Cow::Borrowed(raw));
    }
    let mut out = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some((before, after)) = rest.split_once('&') {
        out.extend(before.chars().map(|c| if white(c) { ' ' } else { c }));
        // The longest reference is &#x10FFFF; so a missing semicolon is found at once.
        let end = after.bytes().take(9).position(|byte| byte == b';')?;
        let (name, after) = after.split_at(end);
        out.push(reference(name)?);
        rest = after.strip_prefix(';')?;
    }
    out.extend(rest.chars().map(|c| if white(c) { ' ' } else { c }));
    Some(Cow::Owned(out))
}

fn reference(name: &str) -> Option<char> {
    let code = match name {
        "lt" => return Some('<'),
        "gt" => return Some('>'),
        "amp" => return Some('&'),
        "quot" => return Some('"'),
        "apos" => return Some('\''),
        _ => name.strip_prefix('#')?,
    };
    let (digits, radix) = code.strip_prefix('x').map_or((code, 10), |digits| (digits, 16));
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let found = char::from_u32(u32::from_str_radix(digits, radix).ok()?)?;
    let allowed = matches!(found, '\t' | '\n' | '\r' | ' '..='\u{fffd}' | '\u{10000}'..);
    allowed.then_some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> &'static str {
        match Document::parse(text) {
            Ok(document) => panic!("{text}: read as {document:?}"),
            Err(error) => error.expected,
        }
    }

    #[test]
    fn elements_attributes_and_text_are_read() {
        let text =
            "<a xmlns='u:1' xmlns:p='u:2' p:x='1\n2' x='&#x41;&amp;'><!-- c -->t<p:b/>&lt;</a>\n";
        let document = Document::parse(text).unwrap();
        let root = document.element(0).unwrap();
        assert!(root.is("u:1", "a"));
        assert_eq!(root.attribute("u:2", "x"), Some("1 2"));
        assert_eq!(root.attribute("", "x"), Some("A&"));
        let declared = format!("<?xml version='1.0' encoding='UTF-8'?>\n{text}");
        assert!(Document::parse(&declared).is_ok());
        let (child, element) = document.children(0).next().unwrap();
        assert!(element.is("u:2", "b") && element.parent == Some(0));
        assert_eq!(document.text_of(child).as_deref(), Some(""));
        assert!(document.text_of(0).is_none() && !document.only_elements(0));
    }

    #[test]
    fn everything_outside_the_subset_is_refused() {
        // One document a line.
        let documents = r#"

text
<a>
<a></b>
<a/><b/>
<a/>x
</a>
<a
<a b>
<a b=c/>
<!DOCTYPE a><a/>
<?pi?><a/>
<a><?pi?></a>
<a><![CDATA[x]]></a>
<a>]]></a>
<?xml version='1.1'?><a/>
<a>&e;</a>
<a>&#0;</a>
<a>&#xD800;</a>
<a>& </a>
<a>&#99999999;</a>
<a>&#+65;</a>
<a b='1' b='2'/>
<a b='<'/>
<p:a/>
<a p:b='1'/>
<a xmlns='u:1' xmlns='u:1'/>
<a xmlns=''/>
<a xmlns:p=''/>
<a xmlns='rel'/>
<a xmlns='u:"'/>
<a xml:lang='x'/>
<a xmlns:xml='u:1'/>
<a xmlns:xmlns='u:1'/>
<a:b:c/>
<é/>
<a xmlns:p='u:1' xmlns:q='u:1' p:x='1' q:x='2'/>
<a><!-- -- --></a>
<a><!-- ---></a>
<a b='1'c='2'/>
< a/>
<a / >"#;
        documents.lines().for_each(|document| {
            refused(document);
        });
        assert!(text_of_bytes(b"<a>\x01</a>").is_err() && text_of_bytes(b"\xff").is_err());
    }

    fn text_of_bytes(bytes: &[u8]) -> Result<String, XmlError> {
        text(bytes).map(Cow::into_owned)
    }

    #[test]
    fn line_ends_are_normalised() {
        assert_eq!(text_of_bytes(b"a\r\nb\rc\n").unwrap(), "a\nb\nc\n");
    }

    #[test]
    fn hostile_sizes_are_refused_at_once() {
        assert!(refused(&"<a>".repeat(100_000)).contains("levels"));
        assert!(refused(&format!("<a>{}</a>", "<b/>".repeat(100_000))).contains("nodes"));
        let many: String = (0..100_000).map(|n| format!(" a{n}=''")).collect();
        assert!(refused(&format!("<a{many}/>")).contains("64 attributes"));
        let many: String = (0..10_000).map(|n| format!(" xmlns:a{n}='u:1'")).collect();
        assert!(refused(&format!("<a{many}/>")).contains("32 namespaces"));
        assert!(refused(&"a".repeat(MAX_BYTES)).contains("outside"));
        assert!(refused(&format!("<a>{}</a>", "&".repeat(400_000))).contains("reference"));
        assert!(refused(&format!("<{}/>", "a".repeat(400_000))).contains("name"));
        assert!(text(&vec![b' '; MAX_BYTES + 1]).is_err());
    }
}
