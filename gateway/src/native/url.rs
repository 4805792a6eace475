//! A URL as this gateway reads it: much less than RFC 3986 allows, so that no
//! two readers can disagree about where a request goes.

use super::Breach;

/// The parts of `https://host[:port]/path[?query]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Url {
    /// Lower-case letters, digits, dots and hyphens.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The segments of the path; none is empty, `.` or `..`.
    pub(crate) segments: Vec<String>,
    /// Whether the path ends with a slash.
    pub(crate) slash: bool,
    /// Names and decoded values.
    pub(crate) query: Vec<(String, String)>,
}

const MAX_URL_BYTES: usize = 4096;
const MAX_PARTS: usize = 64;

impl Url {
    /// Reads `text`, or names what cannot stand there.
    pub(crate) fn parse(text: &str) -> Result<Self, Breach> {
        if text.len() > MAX_URL_BYTES {
            return Err(wrong("at most 4096 bytes", text.len()));
        }
        if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(wrong("printable ASCII", odd.escape_unicode()));
        }
        let rest = text.strip_prefix("https://").ok_or_else(|| wrong("https://", text))?;
        let end = rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(end);
        let (host, port) = authority_parts(authority)?;
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let (segments, slash) = path_parts(path)?;
        let query = query.map_or(Ok(Vec::new()), query_parts)?;
        Ok(Self { host: host.to_owned(), port, segments, slash, query })
    }

    /// The request's target, written anew from what was understood.
    pub(crate) fn target(&self) -> String {
        let mut target = String::new();
        for segment in &self.segments {
            target.push('/');
            target.push_str(segment);
        }
        if self.slash || target.is_empty() {
            target.push('/');
        }
        for (at, (name, value)) in self.query.iter().enumerate() {
            target.push(if at == 0 { '?' } else { '&' });
            target.push_str(name);
            target.push('=');
            value.bytes().for_each(|byte| push_escaped(&mut target, byte));
        }
        target
    }
}

fn authority_parts(authority: &str) -> Result<(&str, u16), Breach> {
    let (host, port) = match authority.split_once(':') {
        Some((host, digits)) => {
            let plain = !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
            let port = digits.parse().ok().filter(|_| plain);
            (host, port.ok_or_else(|| wrong("a port from 1 to 65535", digits))?)
        }
        None => (authority, 443),
    };
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.len() > 253 || !host.split('.').all(label) {
        return Err(wrong("a lower-case host name without user, escapes or a last dot", host));
    }
    Ok((host, port))
}

fn path_parts(path: &str) -> Result<(Vec<String>, bool), Breach> {
    let Some(inner) = path.strip_prefix('/') else {
        return if path.is_empty() { Ok((Vec::new(), true)) } else { Err(wrong("a path", path)) };
    };
    let slash = inner.ends_with('/') || inner.is_empty();
    let inner = inner.strip_suffix('/').unwrap_or(inner);
    if inner.is_empty() {
        return if path == "/" {
            Ok((Vec::new(), true))
        } else {
            Err(wrong("no empty segment", path))
        };
    }
    let segments: Vec<String> = inner.split('/').map(str::to_owned).collect();
    let fits = |segment: &String| {
        !segment.is_empty()
            && !segment.bytes().all(|b| b == b'.')
            && segment.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~:@,".contains(&b))
    };
    match segments.iter().find(|segment| !fits(segment)) {
        Some(odd) => Err(wrong("segments of A-Z a-z 0-9 - . _ ~ : @ , alone, none of dots", odd)),
        None if segments.len() > MAX_PARTS => Err(wrong("at most 64 segments", segments.len())),
        None => Ok((segments, slash)),
    }
}

fn query_parts(query: &str) -> Result<Vec<(String, String)>, Breach> {
    let parts = query.split('&').map(|part| {
        let (name, value) = part.split_once('=').ok_or_else(|| wrong("name=value", part))?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
        if name.is_empty() || !name.bytes().all(plain) {
            return Err(wrong("a plain parameter name", name));
        }
        Ok((name.to_owned(), decode(value)?))
    });
    let parts = parts.collect::<Result<Vec<_>, _>>()?;
    let mut names: Vec<&str> = parts.iter().map(|(name, _)| name.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    if names.len() != parts.len() || parts.len() > MAX_PARTS {
        return Err(wrong("at most 64 parameters, each once", query));
    }
    Ok(parts)
}

/// Percent-decoding (RFC 3986, 2.1) to text without control characters.
fn decode(text: &str) -> Result<String, Breach> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits = [rest.next().unwrap_or(0), rest.next().unwrap_or(0)];
                let hex = std::str::from_utf8(&digits)
                    .ok()
                    .filter(|_| digits.iter().all(u8::is_ascii_hexdigit));
                let value = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
                value.ok_or_else(|| wrong("two hex digits after %", text))?
            }
            b'#' | b'+' | b'\\' => return Err(wrong("escaped #, + and \\", text)),
            byte => byte,
        });
    }
    match String::from_utf8(bytes) {
        Ok(value) if !value.chars().any(char::is_control) => Ok(value),
        _ => Err(wrong("UTF-8 without control characters", text)),
    }
}

fn push_escaped(out: &mut String, byte: u8) {
    if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
        out.push(char::from(byte));
    } else {
        out.push_str(&format!("%{byte:02X}"));
    }
}

fn wrong(expected: &str, actual: impl ToString) -> Breach {
    let actual: String = actual.to_string().chars().take(80).collect();
    Breach::reach("http/url", expected, actual)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_url_is_read_and_written_anew() {
        for (text, host, port, target) in [
            ("https://api.example.com/v1/users/7", "api.example.com", 443, "/v1/users/7"),
            ("https://api.example.com", "api.example.com", 443, "/"),
            ("https://api.example.com:8443/", "api.example.com", 8443, "/"),
            ("https://a.b/x/?q=a%20b&n=%C3%A9", "a.b", 443, "/x/?q=a%20b&n=%C3%A9"),
            ("https://a.b?q=%2e%2E%2f", "a.b", 443, "/?q=..%2F"),
        ] {
            let url = Url::parse(text).unwrap();
            assert_eq!((url.host.as_str(), url.port, url.target().as_str()), (host, port, target));
        }
    }

    #[test]
    fn tricks_are_not_urls_here() {
        for text in [
            "",
            "http://a.b/",
            "HTTPS://a.b/",
            "https:a.b",
            "https:///a.b",
            "//a.b/",
            "file:///etc/passwd",
            "https://user@a.b/",
            "https://user:pw@a.b/",
            "https://a.b@evil/",
            "https://a.b:443@evil/",
            "https://A.b/",
            "https://a.b./",
            "https://.a.b/",
            "https://a..b/",
            "https://-a.b/",
            "https://a_b.c/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://::1/",
            "https://%61.b/",
            "https://a.b%2eevil/",
            "https://\u{ff41}.b/",
            "https://a\u{3002}b/",
            "https://\u{430}.b/",
            "https://a.b\\@evil/",
            "https://a.b\\.evil/",
            "https://a.b:0/",
            "https://a.b:0443/",
            "https://a.b:99999/",
            "https://a.b:/",
            "https://a.b:44a/",
            "https://a.b/../x",
            "https://a.b/x/..",
            "https://a.b/./x",
            "https://a.b/%2e%2e/x",
            "https://a.b/x%2fy",
            "https://a.b/%252e",
            "https://a.b/x%5cy",
            "https://a.b/x\\y",
            "https://a.b//x",
            "https://a.b/x//",
            "https://a.b/...",
            "https://a.b/x;y",
            "https://a.b/x#f",
            "https://a.b/?q=%",
            "https://a.b/?q=%0d%0aHost:x",
            "https://a.b/?q=%00",
            "https://a.b/?q=%ff",
            "https://a.b/?q=1&q=2",
            "https://a.b/?q",
            "https://a.b/?q=a+b",
            "https://a.b/?q=x#f",
            "https://a.b/ x",
            "https://a.b/\tx",
            "https://a.b/\r\nHost: evil",
            " https://a.b/",
            "https://a.b/\u{0}",
            "https://",
        ] {
            assert!(Url::parse(text).is_err(), "{text:?}");
        }
    }

    /// These read as names; that they are on no list is what refuses them.
    #[test]
    fn numbers_are_names_and_no_name_on_a_list() {
        for host in
            ["127.0.0.1", "0x7f000001", "2130706433", "0177.0.0.1", "127.1", "xn--e1awd7f.com"]
        {
            assert_eq!(Url::parse(&format!("https://{host}/")).unwrap().host, host);
        }
    }
}
