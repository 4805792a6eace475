//! A model of Intel's TDX issuers: SGX root, PCK CA, PCK, TCB signer and
//! quoting enclave, in the real formats, under a root made here.

mod certificate;
mod collateral;
mod quote;

pub use collateral::{CollateralSpec, Level, ModuleLevels, PlatformLevel};
pub use quote::{QeSpec, QuoteSpec, report};

use casemate_attestation::UnixTime;
use casemate_attestation::tdx::PckTcb;

use crate::ModelError;
use crate::der;
use certificate::{Key, Spec};

/// What a model's platform says it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdxConfig {
    /// The platform family.
    pub fmspc: [u8; 6],
    /// The provisioning enclave's id.
    pub pceid: [u8; 2],
    /// The platform's id.
    pub ppid: [u8; 16],
    /// The SVNs that its key is for.
    pub tcb: PckTcb,
    /// When its certificates begin to be valid; they end 20 years later.
    pub not_before: UnixTime,
    /// What is wrong with the certificate of one role, if anything.
    pub flaw: Option<(Role, Flaw)>,
}

/// A way in which a certificate may stray from Intel's profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// Its keyUsage has these bits, digitalSignature being the highest.
    KeyUsage(u8),
    /// It is for a key on P-384, which signs nothing.
    P384Key,
}

/// The keys of a model, by role. Tests sign with the wrong one on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The root of everything.
    Root,
    /// Issues PCK certificates.
    PckCa,
    /// The platform's certification key.
    Pck,
    /// Signs collateral.
    TcbSigning,
    /// The quoting enclave's key.
    Attestation,
    /// A key that nobody vouches for.
    Rogue,
}

/// The model: its keys and their certificates.
pub struct TdxModel {
    config: TdxConfig,
    keys: [(Role, Key); 6],
    root: Vec<u8>,
    pck_ca: Vec<u8>,
    pck: Vec<u8>,
    tcb_signing: Vec<u8>,
}

/// Serial numbers, which revocation lists name.
const ROOT_SERIAL: u8 = 1;
const PCK_CA_SERIAL: u8 = 2;
const TCB_SIGNING_SERIAL: u8 = 3;
const PCK_SERIAL: u8 = 4;
const TWENTY_YEARS: u64 = 20 * 365 * 86_400;

impl TdxConfig {
    /// A platform whose certificates begin at `not_before`.
    pub fn new(not_before: UnixTime) -> Self {
        Self {
            fmspc: [0xca, 0x5e, 0, 0, 0, 0],
            pceid: [0, 0],
            ppid: [1; 16],
            tcb: PckTcb {
                components: [5, 5, 2, 2, 3, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0, 0],
                pcesvn: 13,
            },
            not_before,
            flaw: None,
        }
    }
}

impl TdxModel {
    /// A model with new keys.
    pub fn generate(config: TdxConfig) -> Result<Self, ModelError> {
        let keys = [
            (Role::Root, Key::generate()?),
            (Role::PckCa, Key::generate()?),
            (Role::Pck, Key::generate()?),
            (Role::TcbSigning, Key::generate()?),
            (Role::Attestation, Key::generate()?),
            (Role::Rogue, Key::generate()?),
        ];
        let mut model =
            Self { config, keys, root: vec![], pck_ca: vec![], pck: vec![], tcb_signing: vec![] };
        model.root = model.certificate(Role::Root)?;
        model.pck_ca = model.certificate(Role::PckCa)?;
        model.tcb_signing = model.certificate(Role::TcbSigning)?;
        model.pck = model.certificate(Role::Pck)?;
        Ok(model)
    }

    /// The root certificate, DER: what a verifier must trust, as a model.
    pub fn root(&self) -> &[u8] {
        &self.root
    }

    /// The root as a trust anchor (docs/formats/trust-anchors.md).
    pub fn anchor_toml(&self, label: &str) -> String {
        format!(
            "[[intel]]\nlabel = {label:?}\nkind = \"model\"\nroot_pem = \"\"\"\n{}\"\"\"\n",
            der::pem("CERTIFICATE", &self.root),
        )
    }

    /// What the platform says it is.
    pub fn config(&self) -> &TdxConfig {
        &self.config
    }

    /// The chain that quotes carry, PEM, leaf first.
    pub fn pck_chain(&self) -> Vec<u8> {
        self.chain(&[&self.pck, &self.pck_ca, &self.root])
    }

    /// The TCB signer's chain, PEM.
    pub fn tcb_signing_chain(&self) -> Vec<u8> {
        self.chain(&[&self.tcb_signing, &self.root])
    }

    fn chain(&self, certificates: &[&[u8]]) -> Vec<u8> {
        certificates.iter().flat_map(|der| der::pem("CERTIFICATE", der).into_bytes()).collect()
    }

    fn certificate(&self, role: Role) -> Result<Vec<u8>, ModelError> {
        let sgx = || certificate::sgx_extension(&self.config);
        let (serial, subject, ca, sgx_extension, issuer) = match role {
            Role::Root => (ROOT_SERIAL, certificate::ROOT, Some(1), None, Role::Root),
            Role::PckCa => (PCK_CA_SERIAL, certificate::PCK_CA, Some(0), None, Role::Root),
            Role::Pck => (PCK_SERIAL, certificate::PCK, None, Some(sgx()), Role::PckCa),
            _ => (TCB_SIGNING_SERIAL, certificate::TCB_SIGNING, None, None, Role::Root),
        };
        let issuer_name =
            if issuer == Role::Root { certificate::ROOT } else { certificate::PCK_CA };
        let not_before = self.config.not_before;
        let not_after = not_before.plus_seconds(TWENTY_YEARS);
        let key = self.key(role)?;
        let flaw = self.config.flaw.filter(|(of, _)| *of == role).map(|(_, flaw)| flaw);
        Spec { serial, subject, key, not_before, not_after, ca, sgx_extension, flaw }
            .sign(issuer_name, self.key(issuer)?)
    }

    fn key(&self, role: Role) -> Result<&Key, ModelError> {
        let key = self.keys.iter().find(|(known, _)| *known == role);
        key.map(|(_, key)| key).ok_or(ModelError::Stored { field: "key", expected: "one a role" })
    }
}
