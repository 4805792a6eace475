//! What a refusal may be called: our stable codes, their classes, and the
//! names that others use for the same rule.

use casemate_attestation::Reason;

/// Another name, and the codes and rules that it stands for.
const ALIASES: &[(&str, &[&str])] = &[
    ("advisory", &["advisories"]),
    ("alias-check-not-complete", &["alias-check"]),
    ("author-key-digest", &["author-key"]),
    // Of a list.
    ("cert-algorithm", &["crl-signature"]),
    ("cert-chain", &["cert-signature", "chain", "cert-issuer"]),
    ("cert-expired", &["cert-validity"]),
    ("cert-not-yet-valid", &["cert-validity"]),
    ("cert-table", &["cert-malformed", "crl-malformed"]),
    ("certificate-table", &["cert-table", "cert-malformed", "crl-malformed"]),
    // A chain that is upside down starts with a certificate of another role.
    ("chain", &["pck-certificate"]),
    ("chip-id", &["chip"]),
    ("committed-tcb", &["tcb-order"]),
    ("crl-algorithm", &["crl-signature"]),
    ("crl-expired", &["crl-stale", "collateral-stale"]),
    ("crl-missing", &["crl"]),
    ("crl-not-yet-valid", &["crl-stale", "collateral-stale"]),
    ("crl-number", &["crl"]),
    ("crl-required", &["crl"]),
    ("crl-rollback", &["crl", "collateral-rollback"]),
    ("crl-stale", &["collateral-stale"]),
    ("crl-too-old", &["crl-age"]),
    ("csp-id", &["csp"]),
    ("current-mit-vector", &["current-mitigations"]),
    ("current-mitigation", &["current-mitigations"]),
    ("current-mitigation-vector", &["current-mitigations"]),
    ("current-tcb", &["tcb-order"]),
    ("cxl-allow", &["cxl"]),
    // A TD that may be profiled is as open as one that may be debugged.
    ("debug", &["profiling"]),
    ("debug-policy", &["debug"]),
    ("duplicate-extension", &["cert-extension"]),
    ("ecc-en", &["ecc"]),
    ("evaluation-number", &["tcb-eval"]),
    ("expired", &["cert-validity"]),
    ("firmware", &["firmware-version"]),
    ("hwid", &["chip-id", "chip-id-masked", "chip"]),
    ("id-block", &["id-key"]),
    ("id-key-digest", &["id-key"]),
    ("launch-digest", &["measurement"]),
    ("launch-mit-vector", &["launch-mitigations"]),
    ("launch-mitigation", &["launch-mitigations"]),
    ("launch-mitigation-vector", &["launch-mitigations"]),
    ("launch-tcb", &["tcb-order"]),
    ("malformed", &["cert-malformed", "crl-malformed", "cert-table"]),
    ("mask-chip-key", &["unsigned"]),
    ("masked-chip-id", &["chip-id-masked"]),
    ("mem-aes-256-xts", &["aes-256-xts"]),
    ("migrate-ma", &["migration-agent"]),
    ("migration", &["migration-agent", "migratable"]),
    ("minimum-tcb", &["reported-tcb", "committed-tcb", "launch-tcb"]),
    ("missing-crl", &["crl"]),
    ("mit-vector", &["launch-mitigations", "current-mitigations"]),
    ("mitigation", &["launch-mitigations", "current-mitigations"]),
    ("mitigation-vector", &["launch-mitigations", "current-mitigations"]),
    ("mitigations", &["launch-mitigations", "current-mitigations"]),
    ("mr-seam", &["mrseam"]),
    ("nonce", &["report-data"]),
    ("not-yet-valid", &["cert-validity"]),
    ("page-swap-disable", &["page-swap"]),
    ("pce-id", &["pceid"]),
    ("ppid", &["platform"]),
    ("product-line", &["product"]),
    ("product-mismatch", &["product"]),
    ("provisional", &["provisional-firmware"]),
    ("rapl-dis", &["rapl"]),
    ("report-version", &["version"]),
    ("report-version<3", &["version"]),
    ("reported-tcb", &["tcb-order"]),
    ("rollback", &["crl", "tcb-eval", "collateral-rollback"]),
    ("sept-ve-disable", &["sept-ve"]),
    ("sept-ve-not-disabled", &["sept-ve"]),
    ("service-td-present", &["service-td"]),
    ("sev-tio", &["tio"]),
    ("smt-en", &["platform-smt"]),
    ("tcb", &["committed-tcb", "launch-tcb", "reported-tcb", "tcb-order"]),
    ("tcb-evaluation", &["tcb-eval"]),
    ("tcb-minimum", &["reported-tcb", "committed-tcb", "launch-tcb"]),
    ("tcb-mismatch", &["tcb"]),
    ("tcb-regression", &["tcb-order"]),
    ("tcb-rollback", &["tcb-eval", "collateral-rollback"]),
    ("tio-en", &["tio"]),
    ("trailing", &["length", "trailing-bytes"]),
    ("trailing-bytes", &["length"]),
    ("untrusted-root", &["cert-signature", "chain"]),
    ("vmpl-not-0", &["vmpl"]),
];

/// Whether `class` is a name of the refusal for `reason`.
pub(super) fn names_reason(class: &str, reason: Reason) -> bool {
    [reason.code(), reason.class()].contains(&class) || stands_for(class, reason.code())
}

/// Whether `class` is a name of the rule `rule`, given without its evidence.
pub(super) fn names_rule(class: &str, rule: &str) -> bool {
    class == rule || stands_for(class, rule)
}

fn stands_for(class: &str, code: &str) -> bool {
    ALIASES
        .iter()
        .chain(super::tdx::ALIASES)
        .any(|(name, codes)| *name == class && codes.contains(&code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_for_its_own_refusals_only() {
        assert!(names_reason("signature", Reason::SignatureEncoding));
        assert!(names_reason("signature-encoding", Reason::SignatureEncoding));
        assert!(!names_reason("signature-encoding", Reason::Signature));
        assert!(names_reason("chain", Reason::PckCertificate));
        assert!(!names_reason("pck-certificate", Reason::Chain));
        assert!(names_reason("pck-certificate", Reason::CertExtension));
        assert!(names_reason("crl-missing", Reason::CollateralMissing));
        assert!(names_rule("out-of-date", "tcb-status") && !names_rule("qe-svn", "pcesvn"));
        assert!(names_rule("minimum-tcb", "launch-tcb") && names_rule("smt", "smt"));
        // Part of a name is not the name.
        assert!(!names_rule("platform-smt", "smt") && !names_rule("platform", "platform-smt"));
    }

    #[test]
    fn aliases_are_sorted_and_name_each_once() {
        assert!(ALIASES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
