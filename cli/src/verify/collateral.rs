//! Intel's collateral, which comes in parts: TCB infos of several platform
//! families, QE identities, signing chains, revocation lists.

use anyhow::ensure;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use casemate_attestation::tdx::Collateral;
use casemate_attestation::x509::{Crl, PemLimits, crls_der_or_pem, der_or_pem};
use casemate_attestation::{EndorsementKind, UnixTime};

type Endorsement = (EndorsementKind, Vec<u8>);

/// The signed JSON that was given, every part of it kept.
#[derive(Default)]
pub(crate) struct Parts {
    tcb_infos: Vec<Vec<u8>>,
    qe_identities: Vec<Vec<u8>>,
}

/// A folder of every family that Intel has, with some history, stays below it.
const MAX_BUNDLES: usize = 64;
const TCB_SIGNING: &str = "Intel SGX TCB Signing";
const ROOT_CA: &str = "Intel SGX Root CA";
/// How the common names of the CAs begin that issue PCK certificates.
const PCK_CAS: &str = "Intel SGX PCK ";

impl Parts {
    /// Keeps `bytes` if they are one of Intel's two signed objects; which one,
    /// its own keys say.
    pub(crate) fn take(&mut self, bytes: Vec<u8>) -> bool {
        let has = |key: &str| bytes.windows(key.len()).any(|window| window == key.as_bytes());
        if !bytes.trim_ascii_start().starts_with(b"{") {
            return false;
        }
        let part = match (has("\"tcbInfo\""), has("\"enclaveIdentity\"")) {
            (true, _) => &mut self.tcb_infos,
            (false, true) => &mut self.qe_identities,
            (false, false) => return false,
        };
        if !part.contains(&bytes) {
            part.push(bytes);
        }
        true
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tcb_infos.is_empty() && self.qe_identities.is_empty()
    }

    /// One bundle for each way to put the parts together: which of them is for
    /// the quote's platform, and is current, the library finds out.
    pub(crate) fn bundles(
        self,
        others: &[Endorsement],
        now: UnixTime,
    ) -> anyhow::Result<Vec<Endorsement>> {
        let lists = lists(others);
        let root_crl = newest(&lists, |name| name == ROOT_CA, now).pop().unwrap_or_default();
        let pck_crls = newest(&lists, |name| name.starts_with(PCK_CAS), now);
        let chains = signing_chains(others);
        let unsigned = root_crl.is_empty() && pck_crls.is_empty() && chains.is_empty();
        if unsigned && self.is_empty() {
            return Ok(Vec::new());
        }
        let (chains, tcb_infos) = (or_empty(chains), or_empty(self.tcb_infos));
        let identities = or_empty(self.qe_identities);
        let count = tcb_infos.len().saturating_mul(identities.len()) * chains.len();
        ensure!(
            count <= MAX_BUNDLES,
            "TDX collateral: expected at most {MAX_BUNDLES} ways to put {} TCB infos, {} QE \
             identities and {} signing chains together, got {count}; give those of one date",
            tcb_infos.len(),
            identities.len(),
            chains.len(),
        );
        let mut bundles = Vec::new();
        for tcb_info in &tcb_infos {
            for (qe_identity, tcb_signing_chain) in
                identities.iter().flat_map(|one| chains.iter().map(move |chain| (one, chain)))
            {
                let collateral = Collateral {
                    tcb_info: tcb_info.clone(),
                    qe_identity: qe_identity.clone(),
                    tcb_signing_chain: tcb_signing_chain.clone(),
                    root_crl: root_crl.clone(),
                    pck_crls: pck_crls.clone(),
                };
                bundles.push((EndorsementKind::TdxCollateral, collateral.encode()));
            }
        }
        Ok(bundles)
    }
}

/// A part that is missing is left empty, which the library refuses by name.
fn or_empty(parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    if parts.is_empty() { vec![vec![]] } else { parts }
}

/// The chains that a TCB signer is in: no other certificate can stand in for it.
fn signing_chains(others: &[Endorsement]) -> Vec<Vec<u8>> {
    let mut out: Vec<Vec<u8>> = Vec::new();
    for (_, bytes) in others.iter().filter(|(kind, _)| *kind == EndorsementKind::CertificateChain) {
        let signs = der_or_pem(bytes, PemLimits::CHAIN)
            .is_ok_and(|chain| chain.iter().any(|one| one.subject().common_name == TCB_SIGNING));
        let chain = if bytes.first() == Some(&0x30) { pem(bytes) } else { bytes.clone() };
        if signs && !out.contains(&chain) {
            out.push(chain);
        }
    }
    out
}

fn pem(der: &[u8]) -> Vec<u8> {
    let base64 = STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n").into_bytes()
}

/// Every revocation list, as it came and as it reads. One that does not read is refused
/// by name elsewhere.
fn lists(others: &[Endorsement]) -> Vec<(Vec<u8>, Crl)> {
    let of_kind = others.iter().filter(|(kind, _)| *kind == EndorsementKind::Crl);
    let each = of_kind.flat_map(|(_, bytes)| blocks(bytes));
    each.filter_map(|bytes| {
        let crl = crls_der_or_pem(&bytes).ok()?.pop()?;
        Some((bytes, crl))
    })
    .collect()
}

/// The lists of a file: Intel's collateral takes them one by one.
fn blocks(bytes: &[u8]) -> Vec<Vec<u8>> {
    let text = std::str::from_utf8(bytes).unwrap_or_default();
    let blocks = text.split_inclusive("-----END X509 CRL-----").map(str::trim);
    let blocks: Vec<_> = blocks.filter(|block| !block.is_empty()).map(Vec::from).collect();
    if blocks.len() > 1 { blocks } else { vec![bytes.to_vec()] }
}

/// Of the lists of each issuer that `wanted` names, the newest that was made by
/// `now`.
fn newest(lists: &[(Vec<u8>, Crl)], wanted: impl Fn(&str) -> bool, now: UnixTime) -> Vec<Vec<u8>> {
    let mut best: Vec<&(Vec<u8>, Crl)> = Vec::new();
    // A list of the future is better than none: then the refusal says so.
    let rank = |crl: &Crl| (crl.this_update() <= now, crl.this_update());
    for one in lists.iter().filter(|(_, crl)| wanted(&crl.issuer().common_name)) {
        match best.iter_mut().find(|(_, known)| known.issuer().der == one.1.issuer().der) {
            Some(known) if rank(&known.1) < rank(&one.1) => *known = one,
            Some(_) => {}
            None => best.push(one),
        }
    }
    best.into_iter().map(|(bytes, _)| bytes.clone()).collect()
}
