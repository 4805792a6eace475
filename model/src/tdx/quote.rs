//! Quotes as the TDX module and the quoting enclave would make them.

use casemate_attestation::crypto::sha256;
use casemate_attestation::tdx::{BodyKind, TdAttributes, TdReport, TdReport15, TdReport15Ex};

use super::{Role, TdxModel};
use crate::ModelError;

/// The signer of the model's quoting enclave. Not Intel's.
pub(super) const MODEL_QE_SIGNER: [u8; 32] = [0x51; 32];
/// The vendor id that every quoting enclave of this kind writes.
const QE_VENDOR: [u8; 16] = [
    0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07,
];

/// What a quote says. Every field may be changed before signing.
#[derive(Debug, Clone)]
pub struct QuoteSpec {
    /// The version, 4 or 5.
    pub version: u16,
    /// The form of the report.
    pub body: BodyKind,
    /// The report.
    pub report: TdReport,
    /// The quoting enclave.
    pub qe: QeSpec,
    /// What the QE binds beside the key.
    pub auth_data: Vec<u8>,
    /// The type of the inner certification data; 5 is right.
    pub certification_type: u16,
    /// The PCK chain, if not the model's own.
    pub pck_chain: Option<Vec<u8>>,
    /// Who signs the QE report; the PCK is right.
    pub qe_report_by: Role,
    /// Who signs the quote; the attestation key is right.
    pub quote_by: Role,
    /// Whose key the QE report is about; the attestation key is right.
    pub bound: Role,
}

/// What the quoting enclave's report says.
#[derive(Debug, Clone)]
pub struct QeSpec {
    /// MISCSELECT.
    pub miscselect: u32,
    /// ATTRIBUTES.
    pub attributes: [u8; 16],
    /// MRSIGNER.
    pub mrsigner: [u8; 32],
    /// ISVPRODID.
    pub isvprodid: u16,
    /// ISVSVN.
    pub isvsvn: u16,
}

impl QuoteSpec {
    /// A quote that the model's own collateral finds up to date.
    pub fn new(body: BodyKind, report_data: [u8; 64]) -> Self {
        Self {
            version: if body == BodyKind::Td10 { 4 } else { 5 },
            body,
            report: report(body, report_data),
            qe: QeSpec {
                miscselect: 0,
                attributes: [0x15, 0, 0, 0, 0, 0, 0, 0, 0xe7, 0, 0, 0, 0, 0, 0, 0],
                mrsigner: MODEL_QE_SIGNER,
                isvprodid: 2,
                isvsvn: 6,
            },
            auth_data: (0..32).collect(),
            certification_type: 5,
            pck_chain: None,
            qe_report_by: Role::Pck,
            quote_by: Role::Attestation,
            bound: Role::Attestation,
        }
    }
}

/// A report of form `kind` with plain contents and a current TCB.
pub fn report(kind: BodyKind, report_data: [u8; 64]) -> TdReport {
    let mut tee_tcb_svn = [0; 16];
    (tee_tcb_svn[0], tee_tcb_svn[1], tee_tcb_svn[2]) = (4, 1, 5);
    TdReport {
        tee_tcb_svn,
        mrseam: [0x5e; 48],
        mrsignerseam: [0; 48],
        seamattributes: [0; 8],
        tdattributes: TdAttributes::SEPT_VE_DISABLE,
        xfam: 0x600e7,
        mrtd: [0x4d; 48],
        mrconfigid: [0; 48],
        mrowner: [0; 48],
        mrownerconfig: [0; 48],
        rtmrs: [[0xa0; 48], [0xa1; 48], [0xa2; 48], [0; 48]],
        report_data,
        td15: (kind >= BodyKind::Td15)
            .then_some(TdReport15 { tee_tcb_svn_2: tee_tcb_svn, mrservicetd: [0; 48] }),
        td15_ex: (kind >= BodyKind::Td15Ex).then_some(TdReport15Ex {
            vmid: 0,
            td_id: [7; 32],
            dev_info: [0; 48],
            init_service_td_hash: [0; 48],
            init_service_td_attributes: [0; 8],
            init_cpu_svn: [0; 16],
            init_tee_tcb_svn: [0; 16],
            init_tee_fmspc: [0; 12],
            cur_service_td_hash: [0; 48],
            cur_service_td_attributes: [0; 8],
        }),
    }
}

impl TdxModel {
    /// The quote that `spec` describes, signed.
    pub fn quote(&self, spec: &QuoteSpec) -> Result<Vec<u8>, ModelError> {
        let attestation_key = self.key(Role::Attestation)?.point();
        let mut quote = header(spec);
        quote.extend(encode(&spec.report));
        let signature = self.key(spec.quote_by)?.sign(&quote)?;
        let section = [&signature, attestation_key, &certified(6, &self.qe_data(spec)?)].concat();
        quote.extend(length(&section));
        quote.extend(section);
        Ok(quote)
    }

    /// QE report, its signature, authentication data, PCK chain.
    fn qe_data(&self, spec: &QuoteSpec) -> Result<Vec<u8>, ModelError> {
        let bound = sha256(&[self.key(spec.bound)?.point(), &spec.auth_data].concat());
        let qe_report = qe_report(&spec.qe, &bound);
        let signature = self.key(spec.qe_report_by)?.sign(&qe_report)?;
        let auth_length = u16::try_from(spec.auth_data.len()).unwrap_or(u16::MAX).to_le_bytes();
        let chain = spec.pck_chain.clone().unwrap_or_else(|| self.pck_chain());
        let certified = certified(spec.certification_type, &chain);
        Ok([&qe_report, &signature[..], &auth_length, &spec.auth_data, &certified].concat())
    }
}

fn header(spec: &QuoteSpec) -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(spec.version.to_le_bytes());
    header.extend(2_u16.to_le_bytes());
    header.extend(0x81_u32.to_le_bytes());
    header.extend([0; 4]);
    header.extend(QE_VENDOR);
    header.extend([0; 20]);
    if spec.version >= 5 {
        let kind: u16 = match spec.body {
            BodyKind::Td10 => 2,
            BodyKind::Td15 => 3,
            BodyKind::Td15Ex => 4,
        };
        header.extend(kind.to_le_bytes());
        header.extend(u32::try_from(spec.body.size()).unwrap_or(u32::MAX).to_le_bytes());
    }
    header
}

fn encode(report: &TdReport) -> Vec<u8> {
    let mut out = [
        &report.tee_tcb_svn[..],
        &report.mrseam,
        &report.mrsignerseam,
        &report.seamattributes,
        &report.tdattributes.0.to_le_bytes(),
        &report.xfam.to_le_bytes(),
        &report.mrtd,
        &report.mrconfigid,
        &report.mrowner,
        &report.mrownerconfig,
        &report.rtmrs.concat(),
        &report.report_data,
    ]
    .concat();
    if let Some(td15) = &report.td15 {
        out.extend(td15.tee_tcb_svn_2);
        out.extend(td15.mrservicetd);
    }
    if let Some(ex) = &report.td15_ex {
        let parts: [&[u8]; 10] = [
            &[ex.vmid],
            &ex.td_id,
            &ex.dev_info,
            &ex.init_service_td_hash,
            &ex.init_service_td_attributes,
            &ex.init_cpu_svn,
            &ex.init_tee_tcb_svn,
            &ex.init_tee_fmspc,
            &ex.cur_service_td_hash,
            &ex.cur_service_td_attributes,
        ];
        out.extend(parts.concat());
    }
    out
}

fn qe_report(qe: &QeSpec, bound: &[u8; 32]) -> Vec<u8> {
    [
        &[0; 16][..],
        &qe.miscselect.to_le_bytes(),
        &[0; 28],
        &qe.attributes,
        &[0x9e; 32],
        &[0; 32],
        &qe.mrsigner,
        &[0; 96],
        &qe.isvprodid.to_le_bytes(),
        &qe.isvsvn.to_le_bytes(),
        &[0; 60],
        bound,
        &[0; 32],
    ]
    .concat()
}

fn certified(kind: u16, content: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &length(content), content].concat()
}

fn length(content: &[u8]) -> [u8; 4] {
    u32::try_from(content.len()).unwrap_or(u32::MAX).to_le_bytes()
}
