//! A model of the AMD Platform Security Processor: ARK, ASK and VCEK in the
//! real extension set and algorithms, and reports signed by the VCEK.

mod certificate;
mod report;
mod store;

pub use certificate::{CertSpec, CrlFault, CrlSpec, Issuer, SubjectKey};
pub use report::ReportFields;

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, RsaKeyPair,
};
use casemate_attestation::UnixTime;
use casemate_attestation::crypto::sha512;
use casemate_attestation::snp::table::{self, TableEntry};
use casemate_attestation::snp::{Product, REPORT_BYTES, SIGNED_BYTES, Tcb};

use crate::ModelError;
use crate::der;

/// What a model says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PspConfig {
    /// The product line whose formats it follows.
    pub product: Product,
    /// The TCB that its key is for, and that its reports carry.
    pub tcb: Tcb,
    /// The kind of endorsement key.
    pub kind: VekKind,
    /// When its certificates begin to be valid; they end 7 years later.
    pub not_before: UnixTime,
}

/// The kind of a model's endorsement key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VekKind {
    /// A chip's own.
    Vcek,
    /// A provider's, with its CSP id.
    Vlek(String),
}

/// The model: three keys, their certificates, and a chip id.
pub struct PspModel {
    config: PspConfig,
    ark: RsaKeyPair,
    ask: RsaKeyPair,
    vek: EcdsaKeyPair,
    ark_der: Vec<u8>,
    ask_der: Vec<u8>,
    vek_der: Vec<u8>,
    chip_id: [u8; 64],
}

const YEAR: u64 = 365 * 86_400;

impl PspConfig {
    /// A Milan with a current TCB, whose certificates begin at `not_before`.
    pub fn milan(not_before: UnixTime) -> Self {
        Self {
            product: Product::Milan,
            tcb: Tcb { fmc: 0, bootloader: 4, tee: 0, snp: 24, microcode: 219 },
            kind: VekKind::Vcek,
            not_before,
        }
    }
}

impl PspModel {
    /// A model with new keys. Two RSA keys of 4096 bits take some seconds:
    /// keep them with [`PspModel::load_or_create`].
    pub fn generate(config: PspConfig) -> Result<Self, ModelError> {
        let [ark, ask] = [certificate::new_rsa()?, certificate::new_rsa()?];
        let vek = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING)
            .map_err(|_| ModelError::Crypto { what: "generating a P-384 key" })?;
        Self::issue(config, ark, ask, vek)
    }

    /// The same roots with another configuration: a new endorsement key's
    /// certificate under the keys of this model.
    pub fn reissue(&self, config: PspConfig) -> Result<Self, ModelError> {
        let [ark, ask, vek] = self.private_keys()?;
        Self::issue(
            config,
            certificate::rsa_from(&ark)?,
            certificate::rsa_from(&ask)?,
            certificate::p384_from(&vek)?,
        )
    }

    fn issue(
        config: PspConfig,
        ark: RsaKeyPair,
        ask: RsaKeyPair,
        vek: EcdsaKeyPair,
    ) -> Result<Self, ModelError> {
        let chip_id = chip_id(config.product, vek.public_key().as_ref());
        let product = config.product.name();
        let ark_der = CertSpec::ca(&format!("ARK-{product}"), config.not_before, &ark)
            .sign(&Issuer { name: &format!("ARK-{product}"), key: &ark })?;
        let ask_name = ask_name(&config);
        let ask_der = CertSpec::ca(&ask_name, config.not_before, &ask)
            .sign(&Issuer { name: &format!("ARK-{product}"), key: &ark })?;
        let vek_der = CertSpec::vek(&config, &chip_id, vek.public_key().as_ref())
            .sign(&Issuer { name: &ask_name, key: &ask })?;
        Ok(Self { config, ark, ask, vek, ark_der, ask_der, vek_der, chip_id })
    }

    /// What the model says it is.
    pub fn config(&self) -> &PspConfig {
        &self.config
    }

    /// The root certificate.
    pub fn ark_der(&self) -> &[u8] {
        &self.ark_der
    }

    /// The signing CA's certificate (ASK, or ASVK for a VLEK).
    pub fn ask_der(&self) -> &[u8] {
        &self.ask_der
    }

    /// The endorsement key's certificate.
    pub fn vek_der(&self) -> &[u8] {
        &self.vek_der
    }

    /// The model's CHIP_ID.
    pub fn chip_id(&self) -> &[u8; 64] {
        &self.chip_id
    }

    /// The signing CA as an issuer, to make certificates that differ.
    pub fn ask(&self) -> Issuer<'_> {
        Issuer { name: "", key: &self.ask }
    }

    /// The root as an issuer.
    pub fn ark(&self) -> Issuer<'_> {
        Issuer { name: "", key: &self.ark }
    }

    /// The endorsement key's public point, uncompressed.
    pub fn vek_point(&self) -> &[u8] {
        self.vek.public_key().as_ref()
    }

    /// The certificate table of an extended report (GHCB 4.1.8.1).
    pub fn cert_table(&self) -> Vec<u8> {
        let vek = match self.config.kind {
            VekKind::Vcek => TableEntry::Vcek,
            VekKind::Vlek(_) => TableEntry::Vlek,
        };
        table::build(&[
            (vek, &self.vek_der),
            (TableEntry::Ask, &self.ask_der),
            (TableEntry::Ark, &self.ark_der),
        ])
    }

    /// The `[[amd]]` entry that an operator adds to believe this model.
    pub fn anchor_toml(&self, label: &str) -> String {
        let ca = if matches!(self.config.kind, VekKind::Vcek) { "ask_pem" } else { "asvk_pem" };
        format!(
            "[[amd]]\nlabel = {label:?}\nkind = \"model\"\nproduct = \"{}\"\nark_pem = \"\"\"\n{}\"\"\"\n{ca} = \"\"\"\n{}\"\"\"\n",
            self.config.product,
            der::pem("CERTIFICATE", &self.ark_der),
            der::pem("CERTIFICATE", &self.ask_der),
        )
    }

    /// A signed report with this report data and launch digest.
    pub fn report(
        &self,
        report_data: &[u8; 64],
        measurement: &[u8; 48],
    ) -> Result<[u8; REPORT_BYTES], ModelError> {
        let mut fields = self.fields();
        fields.report_data = *report_data;
        fields.measurement = *measurement;
        self.sign(fields.encode())
    }

    /// The fields of a sound report of this model, to change before signing.
    pub fn fields(&self) -> ReportFields {
        ReportFields::new(&self.config, self.chip_id)
    }

    /// Signs the report `bytes`, whatever they say.
    pub fn sign(&self, mut bytes: [u8; REPORT_BYTES]) -> Result<[u8; REPORT_BYTES], ModelError> {
        let (body, rest) = bytes.split_at_mut(SIGNED_BYTES);
        let signature = self
            .vek
            .sign(&SystemRandom::new(), body)
            .map_err(|_| ModelError::Crypto { what: "signing a report" })?;
        let (r, s) = signature.as_ref().split_at(48);
        rest.fill(0);
        for (at, part) in [(0, r), (72, s)] {
            for (place, byte) in rest.iter_mut().skip(at).zip(part.iter().rev()) {
                *place = *byte;
            }
        }
        Ok(bytes)
    }

    /// A revocation list of the root.
    pub fn crl(
        &self,
        revoked: &[&[u8]],
        this_update: UnixTime,
        next_update: UnixTime,
    ) -> Result<Vec<u8>, ModelError> {
        self.crl_of(&CrlSpec { number: &[7], revoked, this_update, next_update, fault: None })
    }

    /// A revocation list signed by the model's root.
    pub fn crl_of(&self, spec: &CrlSpec<'_>) -> Result<Vec<u8>, ModelError> {
        let name = format!("ARK-{}", self.config.product);
        certificate::crl(&Issuer { name: &name, key: &self.ark }, spec)
    }
}

fn ask_name(config: &PspConfig) -> String {
    match config.kind {
        VekKind::Vcek => format!("SEV-{}", config.product),
        VekKind::Vlek(_) => format!("SEV-VLEK-{}", config.product),
    }
}

/// A chip id that follows from the key, so that it is the same after loading.
fn chip_id(product: Product, key: &[u8]) -> [u8; 64] {
    let mut id = sha512(key);
    for byte in id.iter_mut().skip(product.chip_id_bytes()) {
        *byte = 0;
    }
    id
}
