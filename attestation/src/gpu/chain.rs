//! Certificate chains of fixed length under pinned root keys, for devices and
//! for the signers of reference manifests.
//!
//! Leaf first, root last; every key is P-384 and every signature
//! ecdsa-with-SHA384. The root's *key* is pinned: NVIDIA has issued more than
//! one certificate for it.

use crate::anchors::Anchor;
use crate::crypto::{KeyKind, Scheme};
use crate::error::VerifyError;
use crate::time::UnixTime;
use crate::x509::{BASIC_CONSTRAINTS, Certificate, KEY_USAGE, KeyUsage};

use super::code::{Code, Finding};
use super::memo::{Link, Memo};
use super::roots::Root;

/// How long a chain is, and how its faults are called.
#[derive(Debug)]
pub(crate) struct Profile {
    pub(crate) length: usize,
    /// The first certificate whose signature may be remembered: below it,
    /// certificates are one device's own and would only fill the memory.
    pub(crate) shared_from: usize,
    /// The code for a certificate outside the profile.
    pub(crate) malformed: Code,
    wrong_length: Code,
    root: Code,
    name: Code,
    signature: Code,
    not_ca: Code,
    expired: Code,
    not_yet: Code,
}

/// Leaf, boot ROM, provisioner, chip identity, root.
pub(crate) const DEVICE: Profile = Profile {
    length: 5,
    shared_from: 2,
    malformed: Code::ChainParse,
    wrong_length: Code::ChainLength,
    root: Code::ChainRoot,
    name: Code::ChainName,
    signature: Code::ChainSignature,
    not_ca: Code::ChainNotCa,
    expired: Code::ChainExpired,
    not_yet: Code::ChainNotYetValid,
};

/// Signer, two reference value authorities, root.
pub(crate) const MANIFEST: Profile = Profile {
    length: 4,
    shared_from: 0,
    malformed: Code::RimSignatureProfile,
    wrong_length: Code::RimChainLength,
    root: Code::RimChainRoot,
    name: Code::RimChainName,
    signature: Code::RimChainSignature,
    not_ca: Code::RimChainNotCa,
    expired: Code::RimChainExpired,
    not_yet: Code::RimChainNotYetValid,
};

/// Checks everything about a chain but its dates, and names its anchor.
pub(crate) fn check<'r>(
    profile: &Profile,
    chain: &[Certificate],
    roots: &'r [Root],
    memo: &Memo,
) -> Result<&'r Anchor, Finding> {
    if chain.len() != profile.length {
        let expected = format!("{} certificates", profile.length);
        return Err(Finding::new(profile.wrong_length, "chain", expected, chain.len().to_string()));
    }
    let anchor = anchor(profile, chain, roots)?;
    let mut links = Vec::new();
    for (below, pair) in chain.windows(2).enumerate() {
        let [certificate, issuer] = pair else { continue };
        let link = link(profile, below, certificate, issuer, memo)?;
        if below >= profile.shared_from {
            links.extend(link);
        }
    }
    if let Some(leaf) = chain.first() {
        leaf_may_sign(leaf).map_err(|error| because(profile.malformed, error))?;
    }
    // Only now does the root vouch for all of them.
    if !links.is_empty() {
        memo.keep(&links);
    }
    Ok(anchor)
}

/// Checks that every certificate is valid at `now`.
pub(crate) fn check_dates(
    profile: &Profile,
    chain: &[Certificate],
    now: UnixTime,
) -> Result<(), Finding> {
    for certificate in chain {
        let code = match now {
            now if now < certificate.not_before() => profile.not_yet,
            now if now > certificate.not_after() => profile.expired,
            _ => continue,
        };
        let expected = format!("{} to {}", certificate.not_before(), certificate.not_after());
        return Err(Finding::new(code, name_of(certificate), expected, now.to_string()));
    }
    Ok(())
}

/// The name that findings give a certificate.
pub(crate) fn name_of(certificate: &Certificate) -> String {
    format!("certificate {}", certificate.subject().common_name)
}

fn anchor<'r>(
    profile: &Profile,
    chain: &[Certificate],
    roots: &'r [Root],
) -> Result<&'r Anchor, Finding> {
    let root = chain.last();
    let found = roots.iter().find(|one| root.is_some_and(|root| root.key() == &one.key));
    found.map(|one| &one.anchor).ok_or_else(|| {
        let expected: Vec<_> = roots.iter().map(|one| one.anchor.label.as_str()).collect();
        let actual = root.map(|root| root.subject().common_name.clone()).unwrap_or_default();
        let expected = format!("the key of {}", expected.join(" or "));
        Finding::new(profile.root, "root of the chain", expected, format!("a key of {actual:?}"))
    })
}

/// Checks one link; gives what may be remembered if it was not known before.
fn link(
    profile: &Profile,
    below: usize,
    certificate: &Certificate,
    issuer: &Certificate,
    memo: &Memo,
) -> Result<Option<Link>, Finding> {
    if certificate.issuer().der != issuer.subject().der {
        return Err(Finding::new(
            profile.name,
            format!("issuer of {}", name_of(certificate)),
            issuer.subject().common_name.clone(),
            certificate.issuer().common_name.clone(),
        ));
    }
    for one in [certificate, issuer] {
        if one.key().kind() != KeyKind::P384 {
            let actual = format!("{:?}", one.key().kind());
            return Err(Finding::new(profile.malformed, name_of(one), "a P-384 key", actual));
        }
    }
    certificate
        .check_scheme(Scheme::EcdsaP384Sha384Der)
        .and_then(|()| no_unknown_critical(certificate))
        .map_err(|error| because(profile.malformed, error))?;
    let link = Link::certificate(certificate, issuer);
    let known = memo.knows(link);
    if !known {
        certificate
            .check_signature(issuer.key())
            .map_err(|error| because(profile.signature, error))?;
    }
    issuer
        .check_ca()
        .and_then(|()| check_path_length(issuer, below))
        .map_err(|error| because(profile.not_ca, error))?;
    Ok((!known).then_some(link))
}

/// Checks a pathLenConstraint: `below` certificates stand between issuer and leaf.
fn check_path_length(issuer: &Certificate, below: usize) -> Result<(), VerifyError> {
    match issuer.extension(BASIC_CONSTRAINTS) {
        Some([0x30, 6, 1, 1, 0xff, 2, 1, limit]) if usize::from(*limit) < below => {
            Err(VerifyError::new(
                crate::error::Reason::CertExtension,
                format!("pathLenConstraint of {}", issuer.subject().common_name),
                format!("at least {below}"),
                limit,
            ))
        }
        _ => Ok(()),
    }
}

/// Checks that a leaf is for signatures and is no authority.
fn leaf_may_sign(leaf: &Certificate) -> Result<(), VerifyError> {
    let signs = leaf.extension(KEY_USAGE).is_some()
        && leaf.check_key_usage(KeyUsage::DigitalSignature).is_ok();
    // No basicConstraints, or an empty SEQUENCE: cA is FALSE by default.
    let plain = matches!(leaf.extension(BASIC_CONSTRAINTS), None | Some([0x30, 0]));
    if signs && plain {
        return Ok(());
    }
    Err(VerifyError::new(
        crate::error::Reason::CertExtension,
        format!("extensions of {}", leaf.subject().common_name),
        "keyUsage digitalSignature and no authority",
        "others",
    ))
}

fn no_unknown_critical(certificate: &Certificate) -> Result<(), VerifyError> {
    let known = [BASIC_CONSTRAINTS, KEY_USAGE];
    let unknown =
        certificate.extensions().iter().find(|e| e.critical && !known.contains(&e.oid.as_str()));
    match unknown {
        None => Ok(()),
        Some(extension) => Err(VerifyError::new(
            crate::error::Reason::CertExtension,
            format!("critical extensions of {}", certificate.subject().common_name),
            "basicConstraints and keyUsage alone",
            &extension.oid,
        )),
    }
}

pub(crate) fn because(code: Code, error: VerifyError) -> Finding {
    Finding::new(code, error.field, error.expected, error.actual)
}
