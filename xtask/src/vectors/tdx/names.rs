//! Names that others use for rules on TDX evidence, beside those that hold for
//! any evidence (`super::super::names`).

/// Another name, and the codes and rules that it stands for.
pub(in super::super) const ALIASES: &[(&str, &[&str])] = &[
    ("att-key-type", &["signature-algorithm"]),
    ("attestation-key-type", &["signature-algorithm"]),
    ("cert-extension", &["pck-certificate"]),
    // The TCB signer's place has a certificate of another role.
    ("chain", &["collateral-signature"]),
    ("collateral-expired", &["collateral-stale"]),
    ("collateral-format", &["collateral-malformed"]),
    ("collateral-not-yet-valid", &["collateral-stale"]),
    ("collateral-version", &["collateral-kind"]),
    ("crl-missing", &["collateral-missing", "crl-issuer"]),
    ("crl-not-yet-valid", &["collateral-stale", "crl-stale"]),
    ("crl-required", &["collateral-missing", "crl-issuer"]),
    ("fmspc-mismatch", &["fmspc"]),
    ("key-type", &["signature-algorithm"]),
    ("missing-collateral", &["collateral-missing"]),
    ("missing-crl", &["collateral-missing", "crl-issuer"]),
    ("mrservicetd", &["service-td"]),
    ("mrtd", &["measurement"]),
    ("out-of-date", &["tcb-status"]),
    ("pceid-mismatch", &["pceid"]),
    ("pck-certificate", &["cert-extension"]),
    ("perfmon", &["profiling"]),
    ("qe-svn", &["qe-isvsvn"]),
    ("reserved-attr", &["reserved"]),
    ("servtd-ext", &["service-td"]),
    ("tcb-eval-number", &["tcb-eval"]),
    ("tcb-evaluation-data-number", &["tcb-eval"]),
    ("td-attributes", &["attributes"]),
    ("unknown-status", &["collateral-malformed"]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aliases_are_sorted_and_name_each_once() {
        assert!(ALIASES.is_sorted_by(|a, b| a.0 < b.0));
    }
}
