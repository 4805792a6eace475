//! Certificates, attestation bundles and the gateway's policies, kept by digest
//! for receipts and audits.

use std::io;
use std::path::{Path, PathBuf};

use casemate_ledger::{Identity, text};
use tokio::fs;

/// Stores the certificate chain and the bundle of `caller`.
pub(crate) async fn keep(
    state_dir: &Path,
    caller: &Identity,
    chain: &[Vec<u8>],
    bundle: &[u8],
) -> io::Result<()> {
    write_once(&bundle_path(state_dir, &caller.claims.bundle), bundle).await?;
    let leaf = chain.first().map_or(&[][..], Vec::as_slice);
    write_once(&certificate_path(state_dir, &caller.digest), leaf).await
}

/// Stores a file of the gateway's policy under its digest, and returns that.
pub(crate) async fn keep_policy(state_dir: &Path, file: &[u8]) -> io::Result<[u8; 32]> {
    let digest = casemate_ledger::digest(file);
    write_once(&state_dir.join("policies").join(text::hex(&digest)), file).await?;
    Ok(digest)
}

/// The bundle with that digest.
pub(crate) async fn bundle(state_dir: &Path, digest: &[u8; 32]) -> io::Result<Vec<u8>> {
    fs::read(bundle_path(state_dir, digest)).await
}

/// The certificate with that digest, in DER.
pub(crate) async fn certificate(state_dir: &Path, digest: &[u8; 32]) -> io::Result<Vec<u8>> {
    fs::read(certificate_path(state_dir, digest)).await
}

fn bundle_path(state_dir: &Path, digest: &[u8; 32]) -> PathBuf {
    state_dir.join("bundles").join(text::hex(digest))
}

fn certificate_path(state_dir: &Path, digest: &[u8; 32]) -> PathBuf {
    state_dir.join("certificates").join(text::hex(digest))
}

async fn write_once(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::try_exists(path).await? {
        return Ok(());
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).await?;
    let part = path.with_extension("part");
    fs::write(&part, bytes).await?;
    fs::File::open(&part).await?.sync_all().await?;
    fs::rename(&part, path).await
}
