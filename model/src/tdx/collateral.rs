//! Collateral as Intel's provisioning service would serve it.

use casemate_attestation::UnixTime;
use casemate_attestation::tdx::{Collateral, TcbStatus};
use casemate_attestation::wire::hex;

use super::{PCK_CA_SERIAL, PCK_SERIAL, Role, TCB_SIGNING_SERIAL, TdxModel, certificate};
use crate::ModelError;

/// What a set of collateral says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollateralSpec {
    /// When every part of it was issued.
    pub issued: UnixTime,
    /// When every part of it is due for renewal.
    pub next_update: UnixTime,
    /// tcbEvaluationDataNumber.
    pub evaluation_number: u32,
    /// The id in the TCB info; `TDX` is right.
    pub tcb_info_id: String,
    /// The id in the QE identity; `TD_QE` is right.
    pub qe_identity_id: String,
    /// The platform family; the model's own is right.
    pub fmspc: [u8; 6],
    /// The provisioning enclave's id; the model's own is right.
    pub pceid: [u8; 2],
    /// The levels of the platform, in this order.
    pub platform: Vec<PlatformLevel>,
    /// The levels of each major version of the TDX module.
    pub modules: Vec<ModuleLevels>,
    /// The levels of the QE.
    pub qe: Vec<Level<u16>>,
    /// Put the PCK certificate on its CA's list.
    pub revoke_pck: bool,
    /// Put the PCK CA on the root's list.
    pub revoke_pck_ca: bool,
    /// Put the TCB signer on the root's list.
    pub revoke_tcb_signing: bool,
}

/// A level: what must be reached, and what it comes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Level<T> {
    /// What must be reached.
    pub tcb: T,
    /// The level's date, RFC 3339.
    pub date: String,
    /// The level's status.
    pub status: TcbStatus,
    /// The advisories that apply.
    pub advisories: Vec<String>,
}

/// A level of the platform: SGX components, PCE SVN, TDX components.
pub type PlatformLevel = Level<([u8; 16], u16, [u8; 16])>;

/// The levels of one major version of the TDX module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleLevels {
    /// The major version, from 1 on.
    pub version: u8,
    /// Its levels.
    pub levels: Vec<Level<u16>>,
}

impl<T> Level<T> {
    /// A level without advisories.
    pub fn new(tcb: T, date: &str, status: TcbStatus) -> Self {
        Self { tcb, date: date.to_owned(), status, advisories: vec![] }
    }

    /// The level with `advisory` added.
    #[must_use]
    pub fn advisory(mut self, advisory: &str) -> Self {
        self.advisories.push(advisory.to_owned());
        self
    }

    fn verdict(&self) -> String {
        let Self { date, status, advisories, .. } = self;
        let list = match advisories.as_slice() {
            [] => String::new(),
            some => format!(",\"advisoryIDs\":[\"{}\"]", some.join("\",\"")),
        };
        format!("\"tcbDate\":\"{date}\",\"tcbStatus\":\"{status}\"{list}")
    }
}

impl CollateralSpec {
    /// A set issued at `issued`, valid for 30 days, with an up-to-date level,
    /// an outdated one and a revoked one of everything.
    pub fn new(model: &TdxModel, issued: UnixTime) -> Self {
        use TcbStatus::{OutOfDate, Revoked, UpToDate};
        let config = model.config();
        let lower = |by: u8| config.tcb.components.map(|svn| svn.saturating_sub(by));
        let tdx = |svn: u8| {
            let mut components = [0; 16];
            (components[0], components[2]) = (svn, svn);
            components
        };
        let dates = ["2025-08-13T00:00:00Z", "2023-02-15T00:00:00Z", "2021-01-01T00:00:00Z"];
        let [new, old, oldest] = dates;
        let svns = |high: u16, low: u16| {
            vec![
                Level::new(high, new, UpToDate),
                Level::new(low, old, OutOfDate).advisory("INTEL-SA-09001"),
                Level::new(0, oldest, Revoked),
            ]
        };
        Self {
            issued,
            next_update: issued.plus_seconds(30 * 86_400),
            evaluation_number: 20,
            tcb_info_id: "TDX".to_owned(),
            qe_identity_id: "TD_QE".to_owned(),
            fmspc: config.fmspc,
            pceid: config.pceid,
            platform: vec![
                Level::new((config.tcb.components, 13, tdx(5)), new, UpToDate),
                Level::new((lower(2), 11, tdx(3)), old, OutOfDate).advisory("INTEL-SA-09002"),
                Level::new(([0; 16], 5, tdx(1)), oldest, Revoked).advisory("INTEL-SA-09003"),
            ],
            modules: vec![ModuleLevels { version: 1, levels: svns(4, 2) }],
            qe: svns(6, 4),
            revoke_pck: false,
            revoke_pck_ca: false,
            revoke_tcb_signing: false,
        }
    }
}

impl TdxModel {
    /// The collateral that `spec` describes, signed.
    pub fn collateral(&self, spec: &CollateralSpec) -> Result<Collateral, ModelError> {
        self.collateral_of(spec, &tcb_info(spec), &qe_identity(spec))
    }

    /// As [`Self::collateral`], with the two signed JSON objects as given.
    pub fn collateral_of(
        &self,
        spec: &CollateralSpec,
        tcb_info: &str,
        qe_identity: &str,
    ) -> Result<Collateral, ModelError> {
        let signed = |member: &str, body: &str| -> Result<Vec<u8>, ModelError> {
            let signature = hex(&self.key(Role::TcbSigning)?.sign(body.as_bytes())?);
            Ok(format!("{{\"{member}\":{body},\"signature\":\"{signature}\"}}").into_bytes())
        };
        let pck_revoked = if spec.revoke_pck { &[PCK_SERIAL][..] } else { &[] };
        let by_root =
            [(spec.revoke_pck_ca, PCK_CA_SERIAL), (spec.revoke_tcb_signing, TCB_SIGNING_SERIAL)];
        let by_root = by_root.into_iter().filter(|(revoked, _)| *revoked);
        let ca_revoked: Vec<u8> = by_root.map(|(_, serial)| serial).collect();
        let (from, to) = (spec.issued, spec.next_update);
        let (root, pck_ca) = (self.key(Role::Root)?, self.key(Role::PckCa)?);
        Ok(Collateral {
            tcb_info: signed("tcbInfo", tcb_info)?,
            qe_identity: signed("enclaveIdentity", qe_identity)?,
            tcb_signing_chain: self.tcb_signing_chain(),
            root_crl: certificate::crl(certificate::ROOT, root, &ca_revoked, from, to)?,
            pck_crls: vec![certificate::crl(certificate::PCK_CA, pck_ca, pck_revoked, from, to)?],
        })
    }
}

/// The body of the TCB info that `spec` describes.
pub(super) fn tcb_info(spec: &CollateralSpec) -> String {
    let zeros = "00".repeat(48);
    let signer = format!(
        "\"mrsigner\":\"{zeros}\",\"attributes\":\"0000000000000000\",\
         \"attributesMask\":\"FFFFFFFFFFFFFFFF\""
    );
    let modules: Vec<_> = spec
        .modules
        .iter()
        .map(|module| {
            let levels = svn_levels(&module.levels);
            format!("{{\"id\":\"TDX_{:02X}\",{signer},\"tcbLevels\":[{levels}]}}", module.version)
        })
        .collect();
    let components = |svns: &[u8; 16]| svns.map(|svn| format!("{{\"svn\":{svn}}}")).join(",");
    let levels: Vec<_> = spec
        .platform
        .iter()
        .map(|level| {
            let (sgx, pcesvn, tdx) = &level.tcb;
            format!(
                "{{\"tcb\":{{\"sgxtcbcomponents\":[{}],\"pcesvn\":{pcesvn},\
                 \"tdxtcbcomponents\":[{}]}},{}}}",
                components(sgx),
                components(tdx),
                level.verdict()
            )
        })
        .collect();
    format!(
        "{{\"id\":\"{}\",\"version\":3,{},\"fmspc\":\"{}\",\"pceId\":\"{}\",\"tcbType\":0,\
         \"tcbEvaluationDataNumber\":{},\"tdxModule\":{{{signer}}},\
         \"tdxModuleIdentities\":[{}],\"tcbLevels\":[{}]}}",
        spec.tcb_info_id,
        window(spec),
        hex(&spec.fmspc),
        hex(&spec.pceid),
        spec.evaluation_number,
        modules.join(","),
        levels.join(",")
    )
}

/// The body of the QE identity that `spec` describes.
pub(super) fn qe_identity(spec: &CollateralSpec) -> String {
    format!(
        "{{\"id\":\"{}\",\"version\":2,{},\"tcbEvaluationDataNumber\":{},\
         \"miscselect\":\"00000000\",\"miscselectMask\":\"FFFFFFFF\",\
         \"attributes\":\"11000000000000000000000000000000\",\
         \"attributesMask\":\"FBFFFFFFFFFFFFFF0000000000000000\",\
         \"mrsigner\":\"{}\",\"isvprodid\":2,\"tcbLevels\":[{}]}}",
        spec.qe_identity_id,
        window(spec),
        spec.evaluation_number,
        hex(&super::quote::MODEL_QE_SIGNER),
        svn_levels(&spec.qe)
    )
}

fn svn_levels(levels: &[Level<u16>]) -> String {
    let level = |level: &Level<u16>| {
        format!("{{\"tcb\":{{\"isvsvn\":{}}},{}}}", level.tcb, level.verdict())
    };
    levels.iter().map(level).collect::<Vec<_>>().join(",")
}

fn window(spec: &CollateralSpec) -> String {
    let rfc3339 = |time: UnixTime| crate::der::rfc3339(time.0);
    format!(
        "\"issueDate\":\"{}\",\"nextUpdate\":\"{}\"",
        rfc3339(spec.issued),
        rfc3339(spec.next_update)
    )
}
