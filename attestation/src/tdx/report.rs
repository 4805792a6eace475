//! The TD report inside a quote: what the TDX module says of a trust domain.
//!
//! Layout: Intel TDX DCAP Quoting Library API, appendix A.3.2 to A.3.4
//! (TD report 1.0, 1.5 and 1.5 extended).

use crate::error::{Reason, VerifyError};
use crate::wire::{ParseError, Reader};

/// Which form of the TD report a quote carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum BodyKind {
    /// TD report 1.0, 584 bytes.
    Td10,
    /// TD report 1.5, 648 bytes.
    Td15,
    /// TD report 1.5 extended, 885 bytes.
    Td15Ex,
}

/// A TD report. The names are those of the specification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReport {
    /// SVNs at launch: module minor, module major, SEAM loader, then zeros.
    pub tee_tcb_svn: [u8; 16],
    /// Measurement of the TDX module.
    pub mrseam: [u8; 48],
    /// Signer of the TDX module; zero for Intel's.
    pub mrsignerseam: [u8; 48],
    /// Attributes of the TDX module; zero in production.
    pub seamattributes: [u8; 8],
    /// Attributes of the TD.
    pub tdattributes: TdAttributes,
    /// XCR0 and IA32_XSS bits that the TD may use.
    pub xfam: u64,
    /// Measurement of the TD's initial contents.
    pub mrtd: [u8; 48],
    /// Configuration id, chosen at launch.
    pub mrconfigid: [u8; 48],
    /// Owner id, chosen at launch.
    pub mrowner: [u8; 48],
    /// Owner-defined configuration, chosen at launch.
    pub mrownerconfig: [u8; 48],
    /// Measurements extended at run time.
    pub rtmrs: [[u8; 48]; 4],
    /// The 64 bytes the TD chose.
    pub report_data: [u8; 64],
    /// What TD report 1.5 adds.
    pub td15: Option<TdReport15>,
    /// What TD report 1.5 extended adds.
    pub td15_ex: Option<TdReport15Ex>,
}

/// What TD report 1.5 adds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReport15 {
    /// SVNs now, after TD-preserving updates of the module.
    pub tee_tcb_svn_2: [u8; 16],
    /// Measurement of the bound service TDs, or zero.
    pub mrservicetd: [u8; 48],
}

/// What TD report 1.5 extended adds. The service-TD fields are filled only for
/// a TD with the SERVTD_EXT attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TdReport15Ex {
    /// 0 for an unpartitioned TD or its L1, else the partition.
    pub vmid: u8,
    /// The TD's id on its platform.
    pub td_id: [u8; 32],
    /// Hash of the devices attached to the TD.
    pub dev_info: [u8; 48],
    /// Hash of the service TDs at launch.
    pub init_service_td_hash: [u8; 48],
    /// Attributes of the service TDs at launch.
    pub init_service_td_attributes: [u8; 8],
    /// CPUSVN at launch.
    pub init_cpu_svn: [u8; 16],
    /// TEE_TCB_SVN at launch.
    pub init_tee_tcb_svn: [u8; 16],
    /// FMSPC at launch.
    pub init_tee_fmspc: [u8; 12],
    /// Hash of the service TDs now.
    pub cur_service_td_hash: [u8; 48],
    /// Attributes of the service TDs now.
    pub cur_service_td_attributes: [u8; 8],
}

/// TDATTRIBUTES: Intel TDX Module 1.5 ABI, table "TD Attributes".
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TdAttributes(pub u64);

impl BodyKind {
    /// The length of the report in bytes.
    pub const fn size(self) -> usize {
        match self {
            Self::Td10 => 584,
            Self::Td15 => 648,
            Self::Td15Ex => 885,
        }
    }
}

impl TdReport {
    /// Reads a report of form `kind` from exactly its bytes.
    pub fn parse(kind: BodyKind, bytes: &[u8]) -> Result<Self, VerifyError> {
        let report = Self::read(kind, bytes).map_err(|error| error.because(Reason::Length))?;
        report.td15_ex.as_ref().map_or(Ok(()), TdReport15Ex::check)?;
        Ok(report)
    }

    /// The major version of the TDX module at launch.
    pub fn module_version(&self) -> u8 {
        let [_, version, ..] = self.tee_tcb_svn;
        version
    }

    /// The security version of the TDX module at launch.
    pub fn module_isvsvn(&self) -> u8 {
        let [isvsvn, ..] = self.tee_tcb_svn;
        isvsvn
    }

    fn read(kind: BodyKind, bytes: &[u8]) -> Result<Self, ParseError> {
        let mut reader = Reader::new(bytes);
        let mut report = Self::read_td10(&mut reader)?;
        if kind >= BodyKind::Td15 {
            report.td15 = Some(TdReport15 {
                tee_tcb_svn_2: reader.array("tee_tcb_svn_2")?,
                mrservicetd: reader.array("mrservicetd")?,
            });
        }
        if kind >= BodyKind::Td15Ex {
            report.td15_ex = Some(TdReport15Ex::read(&mut reader)?);
        }
        reader.end("TD report")?;
        Ok(report)
    }

    fn read_td10(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        Ok(Self {
            tee_tcb_svn: reader.array("tee_tcb_svn")?,
            mrseam: reader.array("mrseam")?,
            mrsignerseam: reader.array("mrsignerseam")?,
            seamattributes: reader.array("seamattributes")?,
            tdattributes: TdAttributes(reader.u64_le("tdattributes")?),
            xfam: reader.u64_le("xfam")?,
            mrtd: reader.array("mrtd")?,
            mrconfigid: reader.array("mrconfigid")?,
            mrowner: reader.array("mrowner")?,
            mrownerconfig: reader.array("mrownerconfig")?,
            rtmrs: [
                reader.array("rtmr0")?,
                reader.array("rtmr1")?,
                reader.array("rtmr2")?,
                reader.array("rtmr3")?,
            ],
            report_data: reader.array("reportdata")?,
            td15: None,
            td15_ex: None,
        })
    }
}

impl TdReport15Ex {
    /// A TD has one L1 and at most three partitions (Intel TDX Module 1.5 TD
    /// Partitioning Architecture): other numbers have no meaning.
    fn check(&self) -> Result<(), VerifyError> {
        if self.vmid <= MAX_VMID {
            return Ok(());
        }
        Err(VerifyError::new(Reason::Reserved, "vmid", format!("0 to {MAX_VMID}"), self.vmid))
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, ParseError> {
        Ok(Self {
            vmid: reader.u8("vmid")?,
            td_id: reader.array("td_id")?,
            dev_info: reader.array("dev_info")?,
            init_service_td_hash: reader.array("init_service_td_hash")?,
            init_service_td_attributes: reader.array("init_service_td_attributes")?,
            init_cpu_svn: reader.array("init_cpu_svn")?,
            init_tee_tcb_svn: reader.array("init_tee_tcb_svn")?,
            init_tee_fmspc: reader.array("init_tee_fmspc")?,
            cur_service_td_hash: reader.array("cur_service_td_hash")?,
            cur_service_td_attributes: reader.array("cur_service_td_attributes")?,
        })
    }
}

impl TdAttributes {
    /// The host can read and change the TD.
    pub const DEBUG: Self = Self(1);
    /// The TD may be profiled: HGS+ (bit 4), PERFPROF (5), PMT (6).
    pub const PROFILING: Self = Self(0b111 << 4);
    /// The TD has extended service-TD fields.
    pub const SERVTD_EXT: Self = Self(1 << 17);
    /// EPT violations on private pages do not reach the guest as #VE.
    pub const SEPT_VE_DISABLE: Self = Self(1 << 28);
    /// The TD may be moved to another platform.
    pub const MIGRATABLE: Self = Self(1 << 29);
    /// Bits that no specification defines.
    pub const RESERVED: Self = Self(!DEFINED);

    /// Whether any bit of `bits` is set.
    pub fn any(self, bits: Self) -> bool {
        self.0 & bits.0 != 0
    }

    /// The bits of `bits` that are set.
    pub fn only(self, bits: Self) -> Self {
        Self(self.0 & bits.0)
    }
}

impl core::fmt::Display for TdAttributes {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}

/// The highest number of a partition.
pub(crate) const MAX_VMID: u8 = 3;
/// DEBUG; profiling; ICSSD, SERVTD_EXT and 18 to 22; LASS to KL; TPA, PERFMON.
const DEFINED: u64 = 1 | 0b111 << 4 | 0x7f << 16 | 0x1f << 27 | 0b11 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_reads_exactly_its_size() {
        for kind in [BodyKind::Td10, BodyKind::Td15, BodyKind::Td15Ex] {
            let mut bytes: Vec<u8> = (0..=250).cycle().take(kind.size()).collect();
            if kind == BodyKind::Td15Ex {
                assert_eq!(TdReport::parse(kind, &bytes).unwrap_err().reason, Reason::Reserved);
                bytes[648] = MAX_VMID;
            }
            let report = TdReport::parse(kind, &bytes).unwrap();
            assert_eq!(report.report_data[..], bytes[520..584]);
            assert_eq!(report.td15.is_some(), kind != BodyKind::Td10);
            if let Some(ex) = &report.td15_ex {
                assert_eq!(ex.cur_service_td_attributes[..], bytes[877..]);
                assert_eq!(ex.td_id[..], bytes[649..681]);
            }
            assert!(TdReport::parse(kind, &bytes[1..]).is_err());
            assert!(TdReport::parse(kind, &[&bytes[..], &[0]].concat()).is_err());
        }
    }

    #[test]
    fn attributes_are_named() {
        let bits = TdAttributes(1 << 1 | 1 << 28);
        assert!(bits.any(TdAttributes::SEPT_VE_DISABLE) && !bits.any(TdAttributes::DEBUG));
        assert_eq!(bits.only(TdAttributes::RESERVED), TdAttributes(2));
    }
}
