//! TDX collateral as it travels: bytes from Intel's PCS, one bundle.
//!
//! Format: docs/formats/tdx-collateral.md.

use ciborium::Value;

use crate::cbor::{CborError, Fields, Map};

/// Intel's collateral for one platform family, as received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collateral {
    /// The TCB info response: `{"tcbInfo":…,"signature":"…"}`.
    pub tcb_info: Vec<u8>,
    /// The QE identity response: `{"enclaveIdentity":…,"signature":"…"}`.
    pub qe_identity: Vec<u8>,
    /// The TCB signing certificates, PEM; the root may follow.
    pub tcb_signing_chain: Vec<u8>,
    /// The CRL of the root, DER or PEM.
    pub root_crl: Vec<u8>,
    /// The CRLs of the PCK CAs that may be met, each DER or PEM.
    pub pck_crls: Vec<Vec<u8>>,
}

/// The largest bundle that is read.
pub const MAX_COLLATERAL_BYTES: usize = 1024 * 1024;
const MAX_PCK_CRLS: usize = 4;
const WHAT: &str = "TDX collateral";

impl Collateral {
    /// The bundle's one encoding.
    pub fn encode(&self) -> Vec<u8> {
        let crls = self.pck_crls.iter().cloned().map(Value::Bytes).collect();
        Map::new()
            .set(1, 1)
            .bytes(2, &self.tcb_info)
            .bytes(3, &self.qe_identity)
            .bytes(4, &self.tcb_signing_chain)
            .bytes(5, &self.root_crl)
            .set(6, Value::Array(crls))
            .encode()
    }

    /// Reads a bundle; nothing in it is believed yet.
    pub fn decode(bytes: &[u8]) -> Result<Self, CborError> {
        let mut fields = Fields::decode(WHAT, bytes, MAX_COLLATERAL_BYTES)?;
        fields.version(1, 1)?;
        let (tcb_info, qe_identity) = (fields.bytes(2)?, fields.bytes(3)?);
        let (tcb_signing_chain, root_crl) = (fields.bytes(4)?, fields.bytes(5)?);
        let crls = fields.items(6)?;
        if crls.len() > MAX_PCK_CRLS {
            return Err(fields.wrong(6, "at most 4 CRLs"));
        }
        let pck_crls = crls
            .into_iter()
            .map(|crl| crl.into_bytes().map_err(|_| fields.wrong(6, "byte strings")))
            .collect::<Result<_, _>>()?;
        fields.end()?;
        Ok(Self { tcb_info, qe_identity, tcb_signing_chain, root_crl, pck_crls })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundle_reads_back() {
        let collateral = Collateral {
            tcb_info: vec![1],
            qe_identity: vec![2],
            tcb_signing_chain: vec![3],
            root_crl: vec![4],
            pck_crls: vec![vec![5], vec![6]],
        };
        assert_eq!(Collateral::decode(&collateral.encode()), Ok(collateral.clone()));
        let many = Collateral { pck_crls: vec![vec![]; 5], ..collateral };
        assert!(Collateral::decode(&many.encode()).is_err());
    }
}
