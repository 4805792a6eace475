//! A report's fields and their layout (AMD 56860 table 23).

use casemate_attestation::snp::{Product, REPORT_BYTES, Tcb};

use super::{PspConfig, VekKind};

/// Every field of a report. [`super::PspModel::fields`] gives a sound set.
#[derive(Debug, Clone)]
#[expect(
    missing_docs,
    reason = "the fields are the format's, documented in attestation::snp::Report"
)]
pub struct ReportFields {
    pub version: u32,
    pub guest_svn: u32,
    pub guest_policy: u64,
    pub family_id: [u8; 16],
    pub image_id: [u8; 16],
    pub vmpl: u32,
    pub signature_algo: u32,
    pub current_tcb: [u8; 8],
    pub platform_info: u64,
    pub key_info: u32,
    pub report_data: [u8; 64],
    pub measurement: [u8; 48],
    pub host_data: [u8; 32],
    pub id_key_digest: [u8; 48],
    pub author_key_digest: [u8; 48],
    pub report_id: [u8; 32],
    pub report_id_ma: [u8; 32],
    pub reported_tcb: [u8; 8],
    pub cpuid: [u8; 3],
    pub chip_id: [u8; 64],
    pub committed_tcb: [u8; 8],
    /// Build, minor, major.
    pub current_version: [u8; 3],
    /// Build, minor, major.
    pub committed_version: [u8; 3],
    pub launch_tcb: [u8; 8],
    pub launch_mitigations: u64,
    pub current_mitigations: u64,
}

impl ReportFields {
    pub(super) fn new(config: &PspConfig, chip_id: [u8; 64]) -> Self {
        let tcb = |tcb: Tcb| tcb.to_version(config.product).0;
        let vlek = matches!(config.kind, VekKind::Vlek(_));
        Self {
            version: 5,
            guest_svn: 0,
            guest_policy: 0x3_0000,
            family_id: [0; 16],
            image_id: [0; 16],
            vmpl: 0,
            signature_algo: 1,
            current_tcb: tcb(config.tcb),
            platform_info: 0x25,
            key_info: u32::from(vlek) << 2,
            report_data: [0; 64],
            measurement: [0; 48],
            host_data: [0; 32],
            id_key_digest: [0; 48],
            author_key_digest: [0; 48],
            report_id: [0x11; 32],
            report_id_ma: [0xff; 32],
            reported_tcb: tcb(config.tcb),
            cpuid: match config.product {
                Product::Milan => [0x19, 0x01, 0x01],
                Product::Genoa => [0x19, 0x11, 0x01],
                Product::Turin => [0x1a, 0x02, 0x01],
            },
            chip_id,
            committed_tcb: tcb(config.tcb),
            current_version: [40, 55, 1],
            committed_version: [40, 55, 1],
            launch_tcb: tcb(config.tcb),
            launch_mitigations: 0,
            current_mitigations: 0,
        }
    }

    /// The report's bytes, its signature zero.
    pub fn encode(&self) -> [u8; REPORT_BYTES] {
        let fields: [(usize, &[u8]); 26] = [
            (0x000, &self.version.to_le_bytes()),
            (0x004, &self.guest_svn.to_le_bytes()),
            (0x008, &self.guest_policy.to_le_bytes()),
            (0x010, &self.family_id),
            (0x020, &self.image_id),
            (0x030, &self.vmpl.to_le_bytes()),
            (0x034, &self.signature_algo.to_le_bytes()),
            (0x038, &self.current_tcb),
            (0x040, &self.platform_info.to_le_bytes()),
            (0x048, &self.key_info.to_le_bytes()),
            (0x050, &self.report_data),
            (0x090, &self.measurement),
            (0x0c0, &self.host_data),
            (0x0e0, &self.id_key_digest),
            (0x110, &self.author_key_digest),
            (0x140, &self.report_id),
            (0x160, &self.report_id_ma),
            (0x180, &self.reported_tcb),
            (0x188, if self.version < 3 { &[0; 3] } else { &self.cpuid }),
            (0x1a0, &self.chip_id),
            (0x1e0, &self.committed_tcb),
            (0x1e8, &self.current_version),
            (0x1ec, &self.committed_version),
            (0x1f0, &self.launch_tcb),
            (0x1f8, &self.launch_mitigations.to_le_bytes()),
            (0x200, &self.current_mitigations.to_le_bytes()),
        ];
        let mut out = [0; REPORT_BYTES];
        for (at, bytes) in fields {
            for (place, byte) in out.iter_mut().skip(at).zip(bytes) {
                *place = *byte;
            }
        }
        out
    }
}
