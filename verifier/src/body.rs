//! Request bodies: bounded each, bounded together, read as strict JSON.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http_body_util::BodyExt;
use hyper::body::{Body, Bytes};
use serde::de::DeserializeOwned;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::denial::{Code, Denial};

/// The memory that all request bodies share.
#[derive(Debug, Clone)]
pub(crate) struct BodyMemory(Arc<Semaphore>);

/// One body, and its share of the memory until it is dropped.
pub(crate) struct Read {
    bytes: Vec<u8>,
    share: Vec<OwnedSemaphorePermit>,
}

const UNIT_BYTES: usize = 1024;

impl BodyMemory {
    pub(crate) fn new(mib: usize) -> Self {
        Self(Arc::new(Semaphore::new(mib * 1024 * 1024 / UNIT_BYTES)))
    }

    /// Reads a body of at most `limit` bytes, taking memory as the bytes arrive.
    pub(crate) async fn read<B>(&self, mut body: B, limit: usize) -> Result<Read, Denial>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        let too_large = |actual: u64| {
            let (expected, actual) = (format!("at most {limit} bytes"), format!("{actual} bytes"));
            Denial::new(Code::BodyTooLarge, "body", expected, actual)
        };
        let announced = body.size_hint().lower();
        if announced > u64::try_from(limit).unwrap_or(u64::MAX) {
            return Err(too_large(announced));
        }
        let mut read = Read { bytes: Vec::new(), share: Vec::new() };
        while let Some(frame) = body.frame().await {
            let frame =
                frame.map_err(|_| Denial::field("body", "the announced bytes", "an early end"))?;
            let Ok(data) = frame.into_data() else { continue };
            let total = read.bytes.len() + data.len();
            if total > limit {
                return Err(too_large(u64::try_from(total).unwrap_or(u64::MAX)));
            }
            self.take(&mut read, total)?;
            read.bytes.extend_from_slice(&data);
        }
        Ok(read)
    }

    /// Grows the share of `read` to cover `total` bytes.
    fn take(&self, read: &mut Read, total: usize) -> Result<(), Denial> {
        let held: usize = read.share.iter().map(OwnedSemaphorePermit::num_permits).sum();
        let more = total.div_ceil(UNIT_BYTES).saturating_sub(held);
        if more > 0 {
            let units = u32::try_from(more).unwrap_or(u32::MAX);
            let permit = self.0.clone().try_acquire_many_owned(units).map_err(|_| {
                Denial::new(Code::Busy, "body", "room under limits.body_memory_mib", "none")
            })?;
            read.share.push(permit);
        }
        Ok(())
    }
}

impl Read {
    /// The body as the JSON object `T`: no unknown field, nothing after it.
    pub(crate) fn json<T: DeserializeOwned>(&self) -> Result<T, Denial> {
        serde_json::from_slice(&self.bytes)
            .map_err(|error| Denial::field("body", "the JSON of this route", error.to_string()))
    }
}

/// The bytes of the base64url text in `field`, without padding.
pub(crate) fn decode(field: &str, text: &str, limit: usize) -> Result<Vec<u8>, Denial> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|error| Denial::field(field, "base64url without padding", error.to_string()))?;
    if bytes.len() > limit {
        let actual = format!("{} bytes", bytes.len());
        return Err(Denial::field(field, &format!("at most {limit} bytes"), actual));
    }
    Ok(bytes)
}

/// The `N` bytes of the base64url text in `field`.
pub(crate) fn decode_fixed<const N: usize>(field: &str, text: &str) -> Result<[u8; N], Denial> {
    let bytes = decode(field, text, usize::MAX)?;
    let actual = bytes.len();
    bytes
        .try_into()
        .map_err(|_| Denial::field(field, &format!("{N} bytes"), format!("{actual} bytes")))
}

/// Bytes as the API writes them.
pub(crate) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    fn body(bytes: usize) -> Full<Bytes> {
        Full::new(Bytes::from(vec![b' '; bytes]))
    }

    #[tokio::test]
    async fn one_body_and_all_bodies_are_bounded() {
        let memory = BodyMemory::new(8);
        let denial = memory.read(body(11), 10).await.err().unwrap();
        assert_eq!((denial.status, &*denial.actual), (413, "11 bytes"));
        let held = memory.read(body(5 << 20), 6 << 20).await.unwrap();
        assert_eq!(memory.read(body(5 << 20), 6 << 20).await.err().unwrap().code.as_ref(), "busy");
        drop(held);
        assert!(memory.read(body(5 << 20), 6 << 20).await.is_ok());
    }

    #[test]
    fn base64_is_strict() {
        assert_eq!(decode("f", "AQI", 2).unwrap(), [1, 2]);
        for text in ["AQI=", "AQJ", "A+I", " AQI"] {
            assert_eq!(decode("f", text, 2).unwrap_err().rule.as_ref(), "f", "{text}");
        }
        assert_eq!(decode_fixed::<2>("key", "AQID").unwrap_err().actual.as_ref(), "3 bytes");
    }
}
