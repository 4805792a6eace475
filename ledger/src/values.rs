//! Small readers and writers that several record payloads share.

use casemate_attestation::cbor::{CborError, Fields, Map};
use casemate_attestation::{Properties, Property};
use ciborium::Value;

use crate::args::Commitment;
use crate::decimal::Decimal;

/// An array of text strings.
pub(crate) fn texts<S: AsRef<str>>(items: impl IntoIterator<Item = S>) -> Value {
    Value::Array(items.into_iter().map(|item| Value::from(item.as_ref())).collect())
}

/// Property names as an array.
pub(crate) fn properties(set: &Properties) -> Value {
    texts(set.iter().map(Property::name))
}

/// The array of text strings under `key`, at most `most`.
pub(crate) fn read_texts(
    fields: &mut Fields,
    key: u64,
    most: usize,
) -> Result<Vec<String>, CborError> {
    let items = fields.items(key)?;
    if items.len() > most {
        return Err(fields.wrong(key, "fewer items"));
    }
    items
        .into_iter()
        .map(|item| item.into_text().map_err(|_| fields.wrong(key, "an array of text strings")))
        .collect()
}

/// The properties under `key`, in the order of the type, each once.
pub(crate) fn read_properties(fields: &mut Fields, key: u64) -> Result<Properties, CborError> {
    let names = read_texts(fields, key, Property::ALL.len())?;
    let set: Properties = names
        .iter()
        .map(|name| name.parse().map_err(|_| fields.wrong(key, "known properties")))
        .collect::<Result<_, _>>()?;
    if !set.iter().map(Property::name).eq(names.iter().map(String::as_str)) {
        return Err(fields.wrong(key, "properties in their order, each once"));
    }
    Ok(set)
}

/// A commitment as the map {1: length, 2: digest}.
pub(crate) fn commitment(commitment: &Commitment) -> Value {
    Map::new().set(1, commitment.length).bytes(2, &commitment.digest).into_value()
}

/// The commitment under `key`, if there is one.
pub(crate) fn optional_commitment(
    fields: &mut Fields,
    key: u64,
) -> Result<Option<Commitment>, CborError> {
    let Some(value) = fields.optional(key) else { return Ok(None) };
    let mut inner = Fields::of("commitment", value)?;
    let commitment = Commitment { length: inner.uint(1)?, digest: inner.array(2)? };
    inner.end()?;
    Ok(Some(commitment))
}

/// The unsigned integer under `key`, if there is one.
pub(crate) fn optional_uint(fields: &mut Fields, key: u64) -> Result<Option<u64>, CborError> {
    optional(fields, key, "an unsigned integer", |value| {
        value.as_integer().and_then(|integer| u64::try_from(integer).ok())
    })
}

/// The text string under `key`, if there is one.
pub(crate) fn optional_text(fields: &mut Fields, key: u64) -> Result<Option<String>, CborError> {
    optional(fields, key, "a text string", |value| value.into_text().ok())
}

/// The digests under `key`, at most 4, or nothing for none.
pub(crate) fn read_digests(fields: &mut Fields, key: u64) -> Result<Vec<[u8; 32]>, CborError> {
    let items = optional_items(fields, key, 4)?.into_iter();
    items
        .map(|item| item.into_bytes().ok().and_then(|bytes| bytes.try_into().ok()))
        .collect::<Option<_>>()
        .ok_or_else(|| fields.wrong(key, "digests of 32 bytes"))
}

/// The text under `key`, if there is one, 1 to `most` bytes long.
pub(crate) fn optional_bounded_text(
    fields: &mut Fields,
    key: u64,
    most: usize,
) -> Result<Option<String>, CborError> {
    optional(fields, key, "a text within the format's length limit", |value| {
        value.into_text().ok().filter(|text| (1..=most).contains(&text.len()))
    })
}

/// The word under `key` that `read` knows, if there is one.
pub(crate) fn optional_name<T>(
    fields: &mut Fields,
    key: u64,
    expected: &'static str,
    read: impl Fn(&str) -> Option<T>,
) -> Result<Option<T>, CborError> {
    optional(fields, key, expected, |value| value.as_text().and_then(&read))
}

/// The byte string of exactly `N` bytes under `key`, if there is one.
pub(crate) fn optional_array<const N: usize>(
    fields: &mut Fields,
    key: u64,
) -> Result<Option<[u8; N]>, CborError> {
    optional(fields, key, "a byte string of the fixed length", |value| {
        value.into_bytes().ok().and_then(|bytes| bytes.try_into().ok())
    })
}

/// The text under `key`, 1 to `most` bytes long, so that no record outgrows its leaf.
pub(crate) fn bounded_text(
    fields: &mut Fields,
    key: u64,
    most: usize,
) -> Result<String, CborError> {
    let text = fields.text(key)?;
    if text.is_empty() || text.len() > most {
        return Err(fields.wrong(key, "a text within the format's length limit"));
    }
    Ok(text)
}

/// The JSON pointer (RFC 6901) under `key`.
pub(crate) fn pointer(fields: &mut Fields, key: u64, most: usize) -> Result<String, CborError> {
    let pointer = fields.text(key)?;
    if !(pointer.is_empty() || pointer.starts_with('/')) || pointer.len() > most {
        return Err(fields.wrong(key, "a JSON pointer of at most 256 bytes"));
    }
    Ok(pointer)
}

/// The decimal that `text` writes in its shortest form, the one that is signed.
pub(crate) fn decimal(text: &str) -> Option<Decimal> {
    text.parse().ok().filter(|decimal: &Decimal| decimal.to_string() == text)
}

/// The decimal under `key`.
pub(crate) fn read_decimal(fields: &mut Fields, key: u64) -> Result<Decimal, CborError> {
    let text = fields.text(key)?;
    decimal(&text).ok_or_else(|| fields.wrong(key, "a decimal in its shortest form"))
}

/// The array under `key`, or nothing for none, at most `most` items.
pub(crate) fn optional_items(
    fields: &mut Fields,
    key: u64,
    most: usize,
) -> Result<Vec<Value>, CborError> {
    let items = match fields.optional(key) {
        None => return Ok(Vec::new()),
        Some(value) => value.into_array().map_err(|_| fields.wrong(key, "an array"))?,
    };
    if items.is_empty() || items.len() > most {
        return Err(fields.wrong(key, "at least one item and no more than the format takes"));
    }
    Ok(items)
}

fn optional<T>(
    fields: &mut Fields,
    key: u64,
    expected: &'static str,
    read: impl FnOnce(Value) -> Option<T>,
) -> Result<Option<T>, CborError> {
    match fields.optional(key) {
        None => Ok(None),
        Some(value) => read(value).map(Some).ok_or_else(|| fields.wrong(key, expected)),
    }
}
