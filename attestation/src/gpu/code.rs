//! The stable codes of everything that can be wrong with device evidence.

use core::fmt;

/// Writes the enum and its names from one list, so that neither can lack a row.
macro_rules! codes {
    ($($variant:ident, $name:literal, $meaning:literal;)*) => {
        /// Why device evidence is not believed, or not accepted. The names are
        /// stable: results, receipts and scripts carry them. Checks run in the
        /// order of the list.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        impl Code {
            /// Every code, in the order of the list.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// What it means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

codes! {
    ReportTruncated, "REPORT_TRUNCATED", "The report ends inside a field.";
    SpdmVersion, "SPDM_VERSION", "A message is not SPDM 1.1.";
    SpdmRequestCode, "SPDM_REQUEST_CODE", "The request is not a signed GET_MEASUREMENTS.";
    SpdmResponseCode, "SPDM_RESPONSE_CODE", "The response is not MEASUREMENTS.";
    NoMeasurements, "NO_MEASUREMENTS", "The response holds no measurement.";
    MeasurementRecord, "MEASUREMENT_RECORD", "A measurement block has another layout.";
    MeasurementSpec, "MEASUREMENT_SPEC", "A measurement is not in DMTF form.";
    MeasurementIndex, "MEASUREMENT_INDEX", "A measurement has a reserved index.";
    DuplicateMeasurement, "DUPLICATE_MEASUREMENT", "An index is measured twice.";
    OpaqueData, "OPAQUE_DATA", "The opaque data does not parse.";
    DuplicateOpaqueField, "DUPLICATE_OPAQUE_FIELD", "An opaque field is there twice.";
    OpaqueVersion, "OPAQUE_VERSION", "The opaque data has an unknown version.";
    TrailingData, "TRAILING_DATA", "Bytes other than zero follow the signature.";
    ChainParse, "CHAIN_PARSE", "A device certificate does not parse or is out of profile.";
    ChainLength, "CHAIN_LENGTH", "The device chain has another length.";
    ChainRoot, "CHAIN_ROOT", "The device chain ends at a key that is not pinned.";
    ChainName, "CHAIN_NAME", "A device certificate's issuer is not the next subject.";
    ChainSignature, "CHAIN_SIGNATURE", "A device certificate's signature is wrong.";
    ChainNotCa, "CHAIN_NOT_CA", "A device issuer may not issue.";
    ChainExpired, "CHAIN_EXPIRED", "A device certificate has expired.";
    ChainNotYetValid, "CHAIN_NOT_YET_VALID", "A device certificate is not valid yet.";
    ReportSignature, "REPORT_SIGNATURE", "The leaf key did not sign the report.";
    NonceMismatch, "NONCE_MISMATCH", "The report answers another nonce.";
    FwidMismatch, "FWID_MISMATCH", "The certified firmware is not the reported one.";
    ChipMismatch, "CHIP_MISMATCH", "The reported chip is not the certified one.";
    RimXml, "RIM_XML", "The manifest is outside the XML subset.";
    RimSignatureProfile, "RIM_SIGNATURE_PROFILE", "The signature is outside the profile.";
    RimChainLength, "RIM_CHAIN_LENGTH", "The signer's chain has another length.";
    RimChainRoot, "RIM_CHAIN_ROOT", "The signer's chain ends at a key that is not pinned.";
    RimChainName, "RIM_CHAIN_NAME", "A signer's issuer is not the next subject.";
    RimChainSignature, "RIM_CHAIN_SIGNATURE", "A signer's certificate is forged.";
    RimChainNotCa, "RIM_CHAIN_NOT_CA", "A signer's issuer may not issue.";
    RimChainExpired, "RIM_CHAIN_EXPIRED", "A signer's certificate has expired.";
    RimChainNotYetValid, "RIM_CHAIN_NOT_YET_VALID", "A signer is not valid yet.";
    RimDigest, "RIM_DIGEST", "The manifest is not the text that was signed.";
    RimSignature, "RIM_SIGNATURE", "The manifest's signature is wrong.";
    RimSchema, "RIM_SCHEMA", "The manifest has another structure.";
    RimDuplicateIndex, "RIM_DUPLICATE_INDEX", "The manifest names an index twice.";
    RimVersion, "RIM_VERSION", "The manifest is for another version.";
    RimProduct, "RIM_PRODUCT", "The manifest is for another chip.";
    RimIndexConflict, "RIM_INDEX_CONFLICT", "Two manifests claim one index.";
    MeasurementMismatch, "MEASUREMENT_MISMATCH", "A measurement is no reference value.";
    OcspParse, "OCSP_PARSE", "The OCSP response does not parse or is out of profile.";
    OcspCertId, "OCSP_CERT_ID", "The OCSP response is about another certificate.";
    OcspResponder, "OCSP_RESPONDER", "The issuer did not authorise the OCSP responder.";
    OcspSignature, "OCSP_SIGNATURE", "The OCSP response's signature is wrong.";
    OcspNotYetValid, "OCSP_NOT_YET_VALID", "The OCSP response is from the future.";
    OcspStale, "OCSP_STALE", "The OCSP response is too old.";
    OcspRevoked, "OCSP_REVOKED", "The certificate is revoked or on hold.";
    OcspUnknown, "OCSP_UNKNOWN", "The responder does not know the certificate.";
    OcspAbsent, "OCSP_ABSENT", "No OCSP response came for the certificate.";
    ReferenceMissing, "REFERENCE_MISSING", "No manifest came for a component.";
    FwidAbsent, "FWID_ABSENT", "The report does not name its firmware.";
    Uncovered, "UNCOVERED", "A measurement has no reference value.";
    ModeNotAllowed, "MODE_NOT_ALLOWED", "The policy does not allow the device's mode.";
    ModeMixed, "MODE_MIXED", "The machine's GPUs are in different modes.";
    DriverNotAllowed, "DRIVER_NOT_ALLOWED", "The policy does not allow the version.";
    ReferenceNotAllowed, "REFERENCE_NOT_ALLOWED", "The policy does not list the manifest.";
    InventoryMissing, "INVENTORY_MISSING", "The guest did not list its devices.";
    DeviceUnattested, "DEVICE_UNATTESTED", "The guest has a device without evidence.";
    CcOff, "CC_OFF", "A device is not in confidential mode.";
    DevTools, "DEV_TOOLS", "A device is in developer mode.";
    DeviceMissing, "DEVICE_MISSING", "A required device is not there.";
    DeviceExtra, "DEVICE_EXTRA", "There is a device more than required.";
    DeviceForeign, "DEVICE_FOREIGN", "A device is not one of the listed ones.";
    DeviceDuplicate, "DEVICE_DUPLICATE", "One device is there twice.";
    DevicesUnbound, "DEVICES_UNBOUND", "The CPU evidence binds other device evidence.";
    TopologyUnknownMember, "TOPOLOGY_UNKNOWN_MEMBER", "A member names a stranger.";
    TopologyMissingMember, "TOPOLOGY_MISSING_MEMBER", "A member is not named by all.";
    SwitchUnlocked, "SWITCH_UNLOCKED", "A switch may still be reconfigured.";
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which reference manifest, and so which part of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// The GPU driver.
    Driver,
    /// The GPU's firmware.
    Vbios,
    /// The switch's firmware.
    Bios,
}

impl Source {
    /// The name in findings.
    pub fn name(self) -> &'static str {
        match self {
            Self::Driver => "driver",
            Self::Vbios => "vbios",
            Self::Bios => "bios",
        }
    }
}

/// One thing that is wrong, with what was expected and what there was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub code: Code,
    /// The manifest that is concerned, if one is.
    pub source: Option<Source>,
    /// The field or the certificate that is concerned.
    pub field: String,
    /// What would have been right.
    pub expected: String,
    /// What there was.
    pub actual: String,
}

impl Finding {
    /// A finding about the device itself.
    pub fn new(
        code: Code,
        field: impl Into<String>,
        expected: impl Into<String>,
        actual: impl Into<String>,
    ) -> Self {
        let (field, expected, actual) = (field.into(), expected.into(), actual.into());
        Self { code, source: None, field, expected, actual }
    }

    /// The same finding about a manifest.
    #[must_use]
    pub fn of(mut self, source: Source) -> Self {
        self.source = Some(source);
        self
    }

    /// The stable name, with the manifest in front: `driver:RIM_DIGEST`.
    pub fn name(&self) -> String {
        match self.source {
            Some(source) => format!("{}:{}", source.name(), self.code),
            None => self.code.name().to_owned(),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { field, expected, actual, .. } = self;
        write!(f, "{}: {field}: expected {expected}, got {actual}", self.name())
    }
}

impl std::error::Error for Finding {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_plain() {
        let names: std::collections::BTreeSet<_> = Code::ALL.iter().map(|c| c.name()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        for name in names {
            assert!(name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'), "{name}");
        }
    }
}
