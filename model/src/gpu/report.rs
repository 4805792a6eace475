//! The SPDM report of a model device: request and response of SPDM 1.1.

use casemate_attestation::crypto::sha384;
use casemate_attestation::gpu::{DeviceKind, Mode, Pdi, field};

use super::DeviceSpec;

/// The blocks of a GPU and of a switch.
pub(super) fn blocks(kind: DeviceKind) -> u8 {
    match kind {
        DeviceKind::Gpu => 64,
        DeviceKind::Switch => 31,
    }
}

/// The measurement at a manifest's `index`. Developer tools change what the
/// driver measures of itself.
pub(super) fn measurement(spec: &DeviceSpec, index: u8) -> [u8; 48] {
    let driver = matches!(index, 7 | 21..=40);
    let version = if driver { &spec.driver_version } else { &spec.firmware_version };
    let tools = if driver && index == 22 && spec.devtools { "devtools" } else { "" };
    sha384(format!("{} {version} {index} {tools}", spec.chip).as_bytes())
}

/// Whether the device measures anything at `index`.
pub(super) fn is_measured(kind: DeviceKind, index: u8) -> bool {
    match kind {
        DeviceKind::Gpu => matches!(index, 0..=12 | 21..=40),
        DeviceKind::Switch => true,
    }
}

/// Request and response up to the signature.
pub(super) fn unsigned(spec: &DeviceSpec, nonce: &[u8; 32], fwid: &[u8; 48]) -> Vec<u8> {
    let blocks = blocks(spec.kind);
    let record = u32::from(blocks).saturating_mul(55).to_le_bytes();
    let mut out = vec![0x11, 0xe0, 1, 0xff];
    out.extend(nonce);
    out.push(0);
    out.extend([0x11, 0x60, 0, 0, blocks]);
    out.extend(record.iter().take(3));
    for index in 0..blocks {
        let value = if is_measured(spec.kind, index) { measurement(spec, index) } else { [0; 48] };
        out.extend([index.saturating_add(1), 1, 51, 0, 1, 48, 0]);
        out.extend(value);
    }
    out.extend(sha384(nonce).iter().take(32));
    let opaque = opaque(spec, fwid);
    out.extend(u16::try_from(opaque.len()).unwrap_or(u16::MAX).to_le_bytes());
    out.extend(opaque);
    out
}

fn opaque(spec: &DeviceSpec, fwid: &[u8; 48]) -> Vec<u8> {
    match spec.kind {
        DeviceKind::Gpu => gpu(spec, fwid),
        DeviceKind::Switch => switch(spec),
    }
}

fn gpu(spec: &DeviceSpec, fwid: &[u8; 48]) -> Vec<u8> {
    let mode: u16 = match spec.mode {
        Mode::Spt => 0,
        Mode::Mpt => 1,
        Mode::Ppcie => 2,
        Mode::Unknown(flag) => flag,
    };
    let reversed = |pdi: &Pdi| pdi.0.iter().rev().copied().collect::<Vec<_>>();
    let mut peers: Vec<u8> = spec.peers.iter().take(18).flat_map(reversed).collect();
    peers.resize(18 * 8, 0);
    let driver = format!("{}\0", spec.driver_version);
    let chip = format!("{}\0", spec.chip);
    fields(&[
        (field::DRIVER_VERSION, driver.as_bytes()),
        (field::VBIOS_VERSION, &firmware(&spec.firmware_version)),
        (field::NVDEC0_STATUS, &[0xaa]),
        (field::CHIP_SKU, b"000\0"),
        (field::PROJECT, b"MODEL\0"),
        (field::PROJECT_SKU, b"0000\0"),
        (field::FWID, fwid),
        (field::SWITCH_PDI, &peers),
        (field::OPAQUE_DATA_VERSION, &[1, 0]),
        (field::CHIP_INFO, chip.as_bytes()),
        (field::FEATURE_FLAG, &mode.to_le_bytes()),
    ])
}

fn switch(spec: &DeviceSpec) -> Vec<u8> {
    let mut peers: Vec<u8> = spec.peers.iter().take(8).flat_map(|pdi| pdi.0).collect();
    peers.resize(128, 0);
    fields(&[
        (field::VBIOS_VERSION, spec.firmware_version.as_bytes()),
        (field::SWITCH_PDI, &spec.pdi.0),
        (field::LOCK_SWITCH_STATUS, &[u8::from(spec.locked), 0]),
        (field::SWITCH_GPU_PDIS, &peers),
    ])
}

fn fields(list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, value) in list {
        out.extend(kind.to_le_bytes());
        out.extend(u16::try_from(value.len()).unwrap_or(u16::MAX).to_le_bytes());
        out.extend(*value);
    }
    out
}

/// `96.00.9F.00.01` as the eight bytes of the report.
fn firmware(version: &str) -> [u8; 8] {
    let mut parts = version.split('.').map(|part| u8::from_str_radix(part, 16).unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    let (b3, b2, b1, b0, b4) = (next(), next(), next(), next(), next());
    [b0, b1, b2, b3, b4, 0, 0, 0]
}
