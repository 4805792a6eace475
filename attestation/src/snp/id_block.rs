//! The ID block and its authentication (AMD 56860 tables 75 and 77): what the
//! guest's owner signed, so that firmware launches nothing else.

use super::flags::GuestPolicy;
use super::report::Report;
use crate::crypto::{PublicKey, Scheme, sha384};
use crate::error::{Reason, VerifyError};
use crate::wire::{ParseError, Reader, hex};

/// The size of an ID block.
pub const ID_BLOCK_BYTES: usize = 96;
/// The size of an ID authentication page.
pub const ID_AUTH_BYTES: usize = 4096;
const KEY_BYTES: usize = 0x404;
const SIGNATURE_BYTES: usize = 512;
const P384: u32 = 2;

/// An ID block whose signatures verify, and that a report was launched with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdBlock {
    /// The launch digest that the owner allows.
    pub measurement: [u8; 48],
    /// FAMILY_ID.
    pub family_id: [u8; 16],
    /// IMAGE_ID.
    pub image_id: [u8; 16],
    /// GUEST_SVN.
    pub guest_svn: u32,
    /// The guest policy that the owner allows.
    pub guest_policy: GuestPolicy,
    /// SHA-384 of the ID key, as the report carries it.
    pub id_key_digest: [u8; 48],
    /// SHA-384 of the author's key, if one vouches for the ID key.
    pub author_key_digest: Option<[u8; 48]>,
}

impl IdBlock {
    /// Reads `block`, checks the signatures in `auth`, and compares both with
    /// the verified `report`.
    pub fn verify(block: &[u8], auth: &[u8], report: &Report) -> Result<Self, VerifyError> {
        if block.len() != ID_BLOCK_BYTES {
            return Err(wrong("ID block", format!("{ID_BLOCK_BYTES} bytes"), block.len()));
        }
        if auth.len() != ID_AUTH_BYTES {
            return Err(wrong("ID auth", format!("{ID_AUTH_BYTES} bytes"), auth.len()));
        }
        let mut id = Self::read(block).map_err(because)?;
        let auth = Auth::read(auth, report.key_info.author_key).map_err(because)?;
        check(auth.id_key, block, &auth.block_signature, "ID block signature")?;
        id.id_key_digest = sha384(auth.id_key);
        if let Some((key, signature)) = auth.author {
            check(key, auth.id_key, &signature, "ID key signature")?;
            id.author_key_digest = Some(sha384(key));
        }
        id.compare(report)?;
        Ok(id)
    }

    fn read(block: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new(block);
        let measurement = r.array("ID block, LD")?;
        let family_id = r.array("ID block, FAMILY_ID")?;
        let image_id = r.array("ID block, IMAGE_ID")?;
        match r.u32_le("ID block, VERSION")? {
            1 => {}
            other => return Err(ParseError::new("ID block, VERSION", "1", other)),
        }
        let id = Self {
            measurement,
            family_id,
            image_id,
            guest_svn: r.u32_le("ID block, GUEST_SVN")?,
            guest_policy: GuestPolicy(r.u64_le("ID block, POLICY")?),
            id_key_digest: [0; 48],
            author_key_digest: None,
        };
        r.end("ID block")?;
        Ok(id)
    }

    fn compare(&self, report: &Report) -> Result<(), VerifyError> {
        let author = report.key_info.author_key.then_some(report.author_key_digest);
        let pairs: [(&str, Vec<u8>, Vec<u8>); 7] = [
            ("MEASUREMENT", self.measurement.to_vec(), report.measurement.to_vec()),
            ("FAMILY_ID", self.family_id.to_vec(), report.family_id.to_vec()),
            ("IMAGE_ID", self.image_id.to_vec(), report.image_id.to_vec()),
            ("GUEST_SVN", be(self.guest_svn.into()), be(report.guest_svn.into())),
            ("POLICY", be(self.guest_policy.0), be(report.guest_policy.0)),
            ("ID_KEY_DIGEST", self.id_key_digest.to_vec(), report.id_key_digest.to_vec()),
            (
                "AUTHOR_KEY_DIGEST",
                self.author_key_digest.unwrap_or([0; 48]).to_vec(),
                author.unwrap_or([0; 48]).to_vec(),
            ),
        ];
        for (field, expected, actual) in pairs {
            if expected != actual {
                let expected = format!("the ID block's {}", hex(&expected));
                return Err(wrong(field, expected, hex(&actual)));
            }
        }
        Ok(())
    }
}

/// The parts of an ID authentication page.
struct Auth<'a> {
    block_signature: [u8; 96],
    id_key: &'a [u8],
    /// The author's key and its signature of the ID key, where there is one.
    author: Option<(&'a [u8], [u8; 96])>,
}

impl<'a> Auth<'a> {
    /// Without an author's key (AUTHOR_KEY_EN 0) the firmware does not look at
    /// what is in its place, and builders leave zeros there.
    fn read(auth: &'a [u8], has_author: bool) -> Result<Self, ParseError> {
        let mut r = Reader::new(auth);
        for (field, counts) in [("ID_KEY_ALGO", true), ("AUTH_KEY_ALGO", has_author)] {
            match r.u32_le(field)? {
                1 => {}
                _ if !counts => {}
                other => return Err(ParseError::new(field, "1 (ECDSA P-384, SHA-384)", other)),
            }
        }
        r.zeros("ID auth, reserved at 0x008", 56)?;
        let block_signature = signature(&mut r, "ID_BLOCK_SIG")?;
        let id_key = r.slice("ID_KEY", KEY_BYTES)?;
        r.zeros("ID auth, reserved at 0x644", 60)?;
        let mut vouched = r.sub("ID_KEY_SIG", SIGNATURE_BYTES)?;
        let key = r.slice("AUTHOR_KEY", KEY_BYTES)?;
        let author = match has_author {
            true => Some((key, signature(&mut vouched, "ID_KEY_SIG")?)),
            false => None,
        };
        r.zeros("ID auth, reserved at 0xC84", 892)?;
        r.end("ID auth")?;
        Ok(Self { block_signature, id_key, author })
    }
}

/// r and s of 72 little-endian bytes each, in 512 bytes.
fn signature(r: &mut Reader<'_>, field: &'static str) -> Result<[u8; 96], ParseError> {
    let mut sub = r.sub(field, SIGNATURE_BYTES)?;
    let mut out = [0; 96];
    let (left, right) = out.split_at_mut(48);
    for part in [left, right] {
        part.copy_from_slice(&coordinate(&mut sub, field)?);
    }
    sub.zeros(field, SIGNATURE_BYTES - 144)?;
    Ok(out)
}

/// 72 little-endian bytes of which 48 are used, big-endian.
fn coordinate(r: &mut Reader<'_>, field: &'static str) -> Result<[u8; 48], ParseError> {
    let mut bytes: [u8; 48] = r.array(field)?;
    bytes.reverse();
    r.zeros(field, 24)?;
    Ok(bytes)
}

/// Checks that the key in the structure `key` signed `message`.
fn check(key: &[u8], message: &[u8], signature: &[u8], field: &str) -> Result<(), VerifyError> {
    let point = point(key).map_err(because)?;
    let key = PublicKey::p384(&point).map_err(|e| wrong(field, e.expected, "another key"))?;
    if key.verify(Scheme::EcdsaP384Sha384Raw, message, signature) {
        return Ok(());
    }
    Err(wrong(field, "one that verifies", "one that does not"))
}

/// The public key structure of 0x404 bytes as an uncompressed point.
fn point(key: &[u8]) -> Result<Vec<u8>, ParseError> {
    let mut r = Reader::new(key);
    match r.u32_le("public key, CURVE")? {
        P384 => {}
        other => return Err(ParseError::new("public key, CURVE", "2 (P-384)", other)),
    }
    let mut out = vec![4];
    out.extend(coordinate(&mut r, "public key, QX")?);
    out.extend(coordinate(&mut r, "public key, QY")?);
    r.zeros("public key, reserved", 0x370)?;
    r.end("public key")?;
    Ok(out)
}

fn be(value: u64) -> Vec<u8> {
    value.to_be_bytes().to_vec()
}

fn wrong(field: &str, expected: impl Into<String>, actual: impl core::fmt::Display) -> VerifyError {
    VerifyError::new(Reason::IdBlock, field, expected, actual)
}

fn because(error: ParseError) -> VerifyError {
    error.because(Reason::IdBlock)
}
