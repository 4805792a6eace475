//! Measurements against reference values.

use std::collections::BTreeMap;

use super::code::{Code, Finding, Source};
use super::report::Report;
use super::rim::{Manifest, Reference};
use crate::wire;

/// Index 35 measures the video decoder 0; its value means nothing while the
/// decoder is off (NVIDIA attestation-sdk, gpu evidence comparison).
const NVDEC0_INDEX: u8 = 35;

/// One index whose measurement is no reference value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// The index, as manifests count.
    pub index: u8,
    /// The manifest that names the index.
    pub source: Source,
    /// What would have been accepted.
    pub references: Vec<[u8; 48]>,
    /// What was measured, if it was.
    pub measured: Option<[u8; 48]>,
}

/// The outcome of a comparison. All indexes are manifest indexes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Comparison {
    /// How many indexes were compared.
    pub compared: usize,
    /// Active indexes that were left out because the report says they mean nothing.
    pub skipped: Vec<u8>,
    /// Indexes that are not as they should be.
    pub mismatches: Vec<Mismatch>,
    /// Measurements other than zero that no active reference covers.
    pub uncovered: Vec<u8>,
    /// Indexes that two manifests claim.
    pub conflicts: Vec<u8>,
}

impl Comparison {
    /// Compares a report with the manifests that there are.
    pub(crate) fn new(
        report: &Report<'_>,
        nvdec0: Option<bool>,
        manifests: &[(Source, &Manifest)],
    ) -> Self {
        let mut out = Self::default();
        let mut active: BTreeMap<u8, (Source, &Reference)> = BTreeMap::new();
        for (source, manifest) in manifests {
            for (index, reference) in manifest.references.iter().filter(|(_, one)| one.active) {
                match active.entry(*index) {
                    std::collections::btree_map::Entry::Occupied(_) => out.conflicts.push(*index),
                    std::collections::btree_map::Entry::Vacant(free) => {
                        free.insert((*source, reference));
                    }
                }
            }
        }
        for (index, (source, reference)) in &active {
            if *index == NVDEC0_INDEX && nvdec0 == Some(false) {
                out.skipped.push(*index);
            } else {
                out.compare(report, *index, *source, reference);
            }
        }
        let measured = report.measurements.iter().filter(|one| one.value != [0; 48]);
        out.uncovered =
            measured.map(|one| one.index).filter(|index| !active.contains_key(index)).collect();
        out
    }

    fn compare(&mut self, report: &Report<'_>, index: u8, source: Source, reference: &Reference) {
        self.compared = self.compared.saturating_add(1);
        let measured = report.measurement(index).copied();
        if !measured.is_some_and(|value| reference.alternatives.contains(&value)) {
            let references = reference.alternatives.clone();
            self.mismatches.push(Mismatch { index, source, references, measured });
        }
    }

    /// What is wrong: a finding for each conflict and each mismatch, naming its index.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let conflict = |index: &u8| {
            let field = format!("index {index}");
            Finding::new(Code::RimIndexConflict, field, "active in one manifest", "active in two")
        };
        let mismatch = |one: &Mismatch| {
            let field = format!("{} index {}", one.source.name(), one.index);
            let expected: Vec<_> = one.references.iter().map(|value| wire::hex(value)).collect();
            let actual = one.measured.map_or("no measurement".into(), |value| wire::hex(&value));
            Finding::new(Code::MeasurementMismatch, field, expected.join(" or "), actual)
        };
        let conflicts = self.conflicts.iter().map(conflict);
        conflicts.chain(self.mismatches.iter().map(mismatch)).collect()
    }
}
