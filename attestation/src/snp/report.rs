//! The ATTESTATION_REPORT: 1184 bytes (AMD 56860 table 23; layout of versions
//! 2 to 5 as docs/formats/snp-report.md lists it).

use super::flags::{GuestPolicy, KeyInfo, PlatformInfo};
use super::tcb::TcbVersion;
use crate::error::{Reason, VerifyError};
use crate::wire::{ParseError, Reader};

/// The size of a report in bytes.
pub const REPORT_BYTES: usize = 0x4a0;
/// The part of it that is signed.
pub const SIGNED_BYTES: usize = 0x2a0;

/// A report's fields, read from bytes that nobody vouches for yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// VERSION: 2 to 5.
    pub version: u32,
    /// GUEST_SVN, from the ID block.
    pub guest_svn: u32,
    /// POLICY: what the guest's owner allowed.
    pub guest_policy: GuestPolicy,
    /// FAMILY_ID, from the ID block.
    pub family_id: [u8; 16],
    /// IMAGE_ID, from the ID block.
    pub image_id: [u8; 16],
    /// VMPL of the requester: 0 to 3, or 0xffff_ffff for the host.
    pub vmpl: u32,
    /// CURRENT_TCB.
    pub current_tcb: TcbVersion,
    /// PLATFORM_INFO.
    pub platform_info: PlatformInfo,
    /// AUTHOR_KEY_EN, MASK_CHIP_KEY and SIGNING_KEY.
    pub key_info: KeyInfo,
    /// REPORT_DATA: chosen by the guest.
    pub report_data: [u8; 64],
    /// MEASUREMENT: the launch digest.
    pub measurement: [u8; 48],
    /// HOST_DATA: chosen by the host at launch.
    pub host_data: [u8; 32],
    /// ID_KEY_DIGEST.
    pub id_key_digest: [u8; 48],
    /// AUTHOR_KEY_DIGEST; means something only when AUTHOR_KEY_EN is set.
    pub author_key_digest: [u8; 48],
    /// REPORT_ID of this guest instance.
    pub report_id: [u8; 32],
    /// REPORT_ID_MA: all ones without a migration agent.
    pub report_id_ma: [u8; 32],
    /// REPORTED_TCB: the TCB whose key signed.
    pub reported_tcb: TcbVersion,
    /// Combined CPUID family, model, and stepping; from version 3 on.
    pub cpuid: Option<[u8; 3]>,
    /// CHIP_ID; zero when masked.
    pub chip_id: [u8; 64],
    /// COMMITTED_TCB: what firmware cannot be rolled back below.
    pub committed_tcb: TcbVersion,
    /// Firmware that runs now: major, minor, build.
    pub current_version: FirmwareVersion,
    /// Firmware that is committed: major, minor, build.
    pub committed_version: FirmwareVersion,
    /// LAUNCH_TCB: CURRENT_TCB when the guest was launched or imported.
    pub launch_tcb: TcbVersion,
    /// LAUNCH_MIT_VECTOR; zero before version 5.
    pub launch_mitigations: u64,
    /// CURRENT_MIT_VECTOR; zero before version 5.
    pub current_mitigations: u64,
    /// `r | s`, big-endian.
    pub signature: [u8; 96],
}

/// A version of the SNP firmware, ordered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FirmwareVersion {
    /// Major number.
    pub major: u8,
    /// Minor number.
    pub minor: u8,
    /// Build number.
    pub build: u8,
}

impl Report {
    /// Reads a report. Fields that must be zero are checked; policy is not.
    pub fn parse(bytes: &[u8]) -> Result<Self, VerifyError> {
        if bytes.len() != REPORT_BYTES {
            return Err(VerifyError::new(
                Reason::Length,
                "ATTESTATION_REPORT",
                format!("{REPORT_BYTES} bytes"),
                format!("{} bytes", bytes.len()),
            ));
        }
        let mut reader = Reader::new(bytes);
        let version = reader.u32_le("VERSION").map_err(short)?;
        if !(2..=5).contains(&version) {
            return Err(VerifyError::new(Reason::Version, "VERSION", "2 to 5", version));
        }
        // SIGNATURE_ALGO stands at 0x34; it comes first because the rest of the
        // layout is only known for this algorithm.
        let mut head = reader.clone();
        head.slice("head", 0x30).map_err(short)?;
        let algorithm = head.u32_le("SIGNATURE_ALGO").map_err(short)?;
        if algorithm != 1 {
            return Err(VerifyError::new(
                Reason::SignatureAlgorithm,
                "SIGNATURE_ALGO",
                "1 (ECDSA P-384 with SHA-384)",
                algorithm,
            ));
        }
        read_body(version, reader)
    }

    /// Whether CHIP_ID is masked.
    pub fn chip_id_is_masked(&self) -> bool {
        self.chip_id == [0; 64]
    }

    /// Whether a migration agent is bound to the guest.
    pub fn has_migration_agent(&self) -> bool {
        self.report_id_ma != [0xff; 32]
    }
}

fn read_body(version: u32, mut r: Reader<'_>) -> Result<Report, VerifyError> {
    let report = Report {
        version,
        guest_svn: r.u32_le("GUEST_SVN").map_err(short)?,
        guest_policy: GuestPolicy(r.u64_le("POLICY").map_err(short)?),
        family_id: r.array("FAMILY_ID").map_err(short)?,
        image_id: r.array("IMAGE_ID").map_err(short)?,
        vmpl: r.u32_le("VMPL").map_err(short)?,
        current_tcb: {
            r.slice("SIGNATURE_ALGO", 4).map_err(short)?;
            tcb(&mut r, "CURRENT_TCB")?
        },
        platform_info: PlatformInfo(r.u64_le("PLATFORM_INFO").map_err(short)?),
        key_info: KeyInfo::read(r.u32_le("KEY_INFO").map_err(short)?)?,
        report_data: {
            r.zeros("reserved at 0x04C", 4).map_err(reserved)?;
            r.array("REPORT_DATA").map_err(short)?
        },
        measurement: r.array("MEASUREMENT").map_err(short)?,
        host_data: r.array("HOST_DATA").map_err(short)?,
        id_key_digest: r.array("ID_KEY_DIGEST").map_err(short)?,
        author_key_digest: r.array("AUTHOR_KEY_DIGEST").map_err(short)?,
        report_id: r.array("REPORT_ID").map_err(short)?,
        report_id_ma: r.array("REPORT_ID_MA").map_err(short)?,
        reported_tcb: tcb(&mut r, "REPORTED_TCB")?,
        cpuid: cpuid(&mut r, version)?,
        chip_id: r.array("CHIP_ID").map_err(short)?,
        committed_tcb: tcb(&mut r, "COMMITTED_TCB")?,
        current_version: firmware(&mut r, "CURRENT_VERSION")?,
        committed_version: firmware(&mut r, "COMMITTED_VERSION")?,
        launch_tcb: tcb(&mut r, "LAUNCH_TCB")?,
        launch_mitigations: mitigations(&mut r, version, "LAUNCH_MIT_VECTOR")?,
        current_mitigations: mitigations(&mut r, version, "CURRENT_MIT_VECTOR")?,
        signature: {
            r.zeros("reserved at 0x208", 152).map_err(reserved)?;
            signature(&mut r)?
        },
    };
    r.zeros("bytes after the signature", 368).map_err(reserved)?;
    r.end("ATTESTATION_REPORT").map_err(short)?;
    Ok(report)
}

fn tcb(r: &mut Reader<'_>, field: &'static str) -> Result<TcbVersion, VerifyError> {
    r.array(field).map(TcbVersion).map_err(short)
}

/// CPUID_FAM_ID, CPUID_MOD_ID, CPUID_STEP and what is reserved after them.
fn cpuid(r: &mut Reader<'_>, version: u32) -> Result<Option<[u8; 3]>, VerifyError> {
    let cpuid = if version < 3 {
        r.zeros("reserved at 0x188", 3).map_err(reserved)?;
        None
    } else {
        Some(r.array("CPUID_FAM_ID, CPUID_MOD_ID, CPUID_STEP").map_err(short)?)
    };
    r.zeros("reserved at 0x18B", 21).map_err(reserved)?;
    Ok(cpuid)
}

fn firmware(r: &mut Reader<'_>, field: &'static str) -> Result<FirmwareVersion, VerifyError> {
    let [build, minor, major] = r.array(field).map_err(short)?;
    r.zeros("reserved after the firmware version", 1).map_err(reserved)?;
    Ok(FirmwareVersion { major, minor, build })
}

/// The mitigation vectors appeared with version 5; their place was reserved.
fn mitigations(r: &mut Reader<'_>, version: u32, field: &'static str) -> Result<u64, VerifyError> {
    if version < 5 {
        r.zeros(field, 8).map_err(reserved)?;
        return Ok(0);
    }
    r.u64_le(field).map_err(short)
}

/// r and s, 72 little-endian bytes each of which 48 are used.
fn signature(r: &mut Reader<'_>) -> Result<[u8; 96], VerifyError> {
    let mut out = [0; 96];
    let (left, right) = out.split_at_mut(48);
    for (part, field) in [(left, "SIGNATURE r"), (right, "SIGNATURE s")] {
        part.copy_from_slice(r.slice(field, 48).map_err(short)?);
        part.reverse();
        r.zeros(field, 24).map_err(|error| error.because(Reason::SignatureEncoding))?;
    }
    Ok(out)
}

fn short(error: ParseError) -> VerifyError {
    error.because(Reason::Length)
}

fn reserved(error: ParseError) -> VerifyError {
    error.because(Reason::Reserved)
}

impl core::fmt::Display for FirmwareVersion {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.build)
    }
}

const _: () = assert!(SIGNED_BYTES + 512 == REPORT_BYTES);
