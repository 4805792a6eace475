//! Who is connected to whom: every device that a member names must itself be
//! a verified member, and every member must be named by all.
//!
//! A device names its peers by PDI, and a PDI is the serial number of a boot
//! ROM certificate, so topology and certificates meet in one value. Hopper's
//! protected-PCIe mode leaves NVLink unencrypted: the switches see the data,
//! and a switch that is not verified must not be among them.

use std::collections::BTreeSet;

use super::code::{Code, Finding};
use super::facts::{DeviceKind, Facts};
use super::opaque::{Mode, Pdi};

/// What is wrong with a set of devices as one machine. The facts must be those
/// of devices without findings.
pub fn check_topology(devices: &[&Facts]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let gpus = members(devices, DeviceKind::Gpu, &mut findings);
    let switches = members(devices, DeviceKind::Switch, &mut findings);
    let modes: BTreeSet<_> = devices.iter().filter_map(|device| device.mode).collect();
    if modes.len() > 1 {
        let names: Vec<_> = modes.iter().map(|mode| mode.name()).collect();
        findings.push(Finding::new(Code::ModeMixed, "modes", "one mode", names.join(", ")));
    }
    let fabric = !switches.is_empty() || modes.contains(&Mode::Ppcie);
    if fabric {
        for device in devices {
            let others = if device.kind == DeviceKind::Gpu { &switches } else { &gpus };
            findings.extend(peers(device, others));
            findings.extend(unlocked(device));
        }
    }
    findings
}

/// The identities of all devices of one kind, each once.
fn members(devices: &[&Facts], kind: DeviceKind, findings: &mut Vec<Finding>) -> BTreeSet<Pdi> {
    let mut members = BTreeSet::new();
    for device in devices.iter().filter(|device| device.kind == kind) {
        match device.pdi {
            Some(pdi) if members.insert(pdi) => (),
            Some(pdi) => {
                let field = format!("{} {pdi}", kind.name());
                findings.push(Finding::new(Code::DeviceDuplicate, field, "once", "twice"));
            }
            None => {
                let field = format!("identity of a {}", kind.name());
                findings.push(Finding::new(Code::DeviceForeign, field, "a PDI", "none"));
            }
        }
    }
    members
}

/// Compares the peers that a device names with those that there are.
fn peers(device: &Facts, others: &BTreeSet<Pdi>) -> Vec<Finding> {
    let named: BTreeSet<_> = device.peers.iter().copied().collect();
    let field = format!("peers of {} {}", device.kind.name(), name(device.pdi));
    let mut findings = Vec::new();
    if let Some(stranger) = named.difference(others).next() {
        let expected = "verified members alone";
        let actual = stranger.to_string();
        findings.push(Finding::new(Code::TopologyUnknownMember, field.clone(), expected, actual));
    }
    if let Some(missing) = others.difference(&named).next() {
        let actual = format!("all but {missing}");
        findings.push(Finding::new(Code::TopologyMissingMember, field.clone(), "all", actual));
    }
    if named.is_empty() && others.is_empty() {
        let actual = "none";
        findings.push(Finding::new(Code::TopologyMissingMember, field, "at least one", actual));
    }
    findings
}

fn unlocked(device: &Facts) -> Option<Finding> {
    if device.kind == DeviceKind::Gpu || device.locked == Some(true) {
        return None;
    }
    let field = format!("lock of switch {}", name(device.pdi));
    let actual = if device.locked.is_some() { "unlocked" } else { "not reported" };
    Some(Finding::new(Code::SwitchUnlocked, field, "locked", actual))
}

fn name(pdi: Option<Pdi>) -> String {
    pdi.map_or_else(|| "(none)".to_owned(), |pdi| pdi.to_string())
}
