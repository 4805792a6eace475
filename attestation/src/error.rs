//! Why evidence was refused: one stable code per reason.

use crate::wire::ParseError;

/// Evidence that did not verify: which rule, in which field, and how.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {field}: expected {expected}, got {actual}", reason.code())]
pub struct VerifyError {
    /// The rule that was broken.
    pub reason: Reason,
    /// The field or object at fault.
    pub field: String,
    /// What would have been accepted.
    pub expected: String,
    /// What was there.
    pub actual: String,
}

impl VerifyError {
    /// The refusal for `reason`: `field` is not `expected`.
    pub fn new(
        reason: Reason,
        field: impl Into<String>,
        expected: impl Into<String>,
        actual: impl core::fmt::Display,
    ) -> Self {
        Self { reason, field: field.into(), expected: expected.into(), actual: actual.to_string() }
    }
}

impl ParseError {
    /// This parse error as a refusal for `reason`.
    pub fn because(self, reason: Reason) -> VerifyError {
        VerifyError {
            reason,
            field: self.field.to_owned(),
            expected: self.expected,
            actual: self.actual,
        }
    }
}

/// Writes the enum and its table from one list, so that neither can lack a row.
macro_rules! reasons {
    ($($variant:ident, $code:literal, $class:literal, $meaning:literal;)*) => {
        /// A rule that evidence can break. The codes are stable: scripts and
        /// relying parties may match on them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        pub enum Reason {
            $(#[doc = $meaning] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The stable machine-readable code.
            pub fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// The class that the code belongs to; often the code itself.
            pub fn class(self) -> &'static str {
                match self { $(Self::$variant => $class,)* }
            }

            /// What the reason means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning,)* }
            }
        }
    };
}

reasons! {
    // Any evidence.
    Unsupported, "unsupported", "unsupported", "The evidence is of a kind that this verifier does not verify.";
    Limit, "limit", "length", "An input is larger than the limit for its kind.";
    Length, "length", "length", "The evidence or one of its parts has the wrong length.";
    TrailingBytes, "trailing-bytes", "trailing", "Bytes that are not zero follow the evidence.";
    Version, "version", "version", "The format's version is not one that is known.";
    Reserved, "reserved", "reserved", "A field that must be zero is not.";
    Malformed, "malformed", "malformed", "A structure is not well-formed.";
    SignatureAlgorithm, "signature-algorithm", "signature-algorithm", "The evidence names a signature algorithm that is not accepted.";
    Signature, "signature", "signature", "The signature over the evidence does not verify.";
    SignatureEncoding, "signature-encoding", "signature", "The signature is not encoded the one permitted way.";
    // Certificates and revocation.
    CertMalformed, "cert-malformed", "cert-malformed", "A certificate is not well-formed X.509.";
    CertMissing, "cert-missing", "chain", "A certificate that is needed was neither sent nor supplied.";
    CertAlgorithm, "cert-algorithm", "cert-algorithm", "A certificate's key or signature algorithm is not the one its profile demands.";
    CertExtension, "cert-extension", "cert-extension", "A certificate's extensions are not those of its profile.";
    CertValidity, "cert-validity", "cert-validity", "A certificate is not valid at the time of verification.";
    CertSignature, "cert-signature", "chain", "A certificate is not signed by its issuer's key.";
    Chain, "chain", "chain", "The certificates do not lead to a trust anchor.";
    Revoked, "revoked", "revoked", "A certificate is on its issuer's revocation list.";
    CrlMalformed, "crl-malformed", "crl-malformed", "A revocation list is not well-formed.";
    CrlStale, "crl-stale", "crl-stale", "A revocation list is not current at the time of verification.";
    CrlSignature, "crl-signature", "crl-signature", "A revocation list is not signed by its issuer.";
    CrlIssuer, "crl-issuer", "crl-signature", "A revocation list is of another issuer than the certificate.";
    // SEV-SNP.
    Unsigned, "unsigned", "unsigned", "The firmware was told not to sign the report.";
    SigningKey, "signing-key", "signing-key", "The report names another kind of key than the certificate is for.";
    Product, "product", "product", "Report, certificate and root are not of one product line.";
    ChipId, "chip-id", "chip-id", "The report's chip is not the certificate's chip.";
    ChipIdMasked, "chip-id-masked", "chip-id", "The chip id is masked although a chip key signed.";
    Tcb, "tcb", "tcb", "The certificate's TCB is not the report's REPORTED_TCB.";
    CertTable, "cert-table", "cert-table", "The certificate table of an extended report is not well-formed.";
    IdBlock, "id-block", "id-block", "The ID block or its authentication does not hold.";
    // Azure's HCL wrapper.
    HclBinding, "hcl-binding", "hcl-binding", "The report does not carry the digest of the runtime data.";
    HclQuote, "hcl-quote", "hcl-quote", "The vTPM quote does not verify under the attested key.";
    // TDX.
    TeeType, "tee-type", "tee-type", "The quote is of another TEE type.";
    BodyType, "body-type", "body-type", "The quote's body type and size do not agree.";
    QeVendor, "qe-vendor", "qe-vendor", "The quoting enclave's vendor is not Intel.";
    CertData, "cert-data", "cert-data", "The quote's certification data is not of an accepted kind.";
    QeBinding, "qe-binding", "qe-binding", "The QE report does not carry the attestation key's digest.";
    QeReportSignature, "qe-report-signature", "signature", "The QE report is not signed by the PCK.";
    QeIdentity, "qe-identity", "qe-identity", "The QE is not the one that the QE identity describes.";
    PckCertificate, "pck-certificate", "pck-certificate", "The PCK certificate's SGX extension is not well-formed, or the role is another's.";
    CollateralMissing, "collateral-missing", "collateral-missing", "Collateral that is needed was neither sent nor supplied.";
    CollateralMalformed, "collateral-malformed", "collateral-malformed", "Collateral is not well-formed.";
    CollateralKind, "collateral-kind", "collateral-kind", "Collateral is of another kind or version than needed.";
    CollateralSignature, "collateral-signature", "collateral-signature", "Collateral is not signed by the TCB signer.";
    CollateralStale, "collateral-stale", "collateral-stale", "Collateral is not current at the time of verification.";
    CollateralRollback, "collateral-rollback", "tcb-eval", "Collateral or a revocation list is older than one seen before.";
    Fmspc, "fmspc", "fmspc", "The TCB info is for another platform family.";
    PceId, "pceid", "pceid", "The TCB info is for another provisioning enclave.";
    TdxModule, "tdx-module", "tdx-module", "The TDX module is not one that the TCB info knows.";
    EventLog, "event-log", "event-log", "The event log does not replay to the measured registers.";
    // NVIDIA.
    GpuReport, "gpu-report", "gpu-report", "The SPDM report is not well-formed.";
    // The host's claim.
    HostUnknown, "host-unknown", "host-unknown", "The host that signed is not enrolled.";
    HostClaim, "host-claim", "host-claim", "The host's claim is not well-formed or not signed by its key.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_plain() {
        let codes: std::collections::BTreeSet<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for reason in Reason::ALL {
            assert!(
                reason.code().bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
                "{reason:?}"
            );
            assert!(reason.meaning().ends_with('.'), "{reason:?}");
        }
    }
}
