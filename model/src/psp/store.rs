//! Keeping a model's keys and certificates in a directory.

use std::path::Path;

use super::{PspConfig, PspModel, certificate, chip_id};
use crate::ModelError;
use crate::files::{io, read, write};

const KEYS: [&str; 3] = ["ark.pkcs8", "ask.pkcs8", "vek.pkcs8"];
const CERTIFICATES: [&str; 3] = ["ark.der", "ask.der", "vek.der"];

impl PspModel {
    /// The private keys as PKCS#8: ARK, ASK, VEK.
    pub fn private_keys(&self) -> Result<[Vec<u8>; 3], ModelError> {
        Ok([
            certificate::rsa_pkcs8(&self.ark)?,
            certificate::rsa_pkcs8(&self.ask)?,
            certificate::p384_pkcs8(&self.vek)?,
        ])
    }

    /// The model kept in `directory`, or a new one that is then kept there.
    /// Stored certificates that are not of `config` are issued anew under the
    /// stored keys.
    pub fn load_or_create(directory: &Path, config: PspConfig) -> Result<Self, ModelError> {
        if KEYS.iter().all(|name| directory.join(name).exists()) {
            return Self::load(directory, config);
        }
        let model = Self::generate(config)?;
        model.save(directory)?;
        Ok(model)
    }

    fn load(directory: &Path, config: PspConfig) -> Result<Self, ModelError> {
        let [ark, ask, vek] = read_all(directory, KEYS)?;
        let ark = certificate::rsa_from(&ark)?;
        let ask = certificate::rsa_from(&ask)?;
        let vek = certificate::p384_from(&vek)?;
        if !CERTIFICATES.iter().all(|name| directory.join(name).exists()) {
            let model = Self::issue(config, ark, ask, vek)?;
            model.save(directory)?;
            return Ok(model);
        }
        let [ark_der, ask_der, vek_der] = read_all(directory, CERTIFICATES)?;
        use aws_lc_rs::signature::KeyPair as _;
        let chip_id = chip_id(config.product, vek.public_key().as_ref());
        let stored = Self { config, ark, ask, vek, ark_der, ask_der, vek_der, chip_id };
        if stored.certificates_fit() {
            return Ok(stored);
        }
        let model = stored.reissue(stored.config.clone())?;
        model.save(directory)?;
        Ok(model)
    }

    /// Whether the stored certificate is for this product and this TCB.
    fn certificates_fit(&self) -> bool {
        use casemate_attestation::snp::Vek;
        use casemate_attestation::x509::Certificate;
        let vek = Certificate::parse(&self.vek_der).and_then(Vek::parse);
        vek.is_ok_and(|vek| vek.product() == self.config.product && vek.tcb() == self.config.tcb)
    }

    fn save(&self, directory: &Path) -> Result<(), ModelError> {
        std::fs::create_dir_all(directory).map_err(|error| io(directory, error))?;
        let keys = self.private_keys()?;
        let certificates = [&self.ark_der, &self.ask_der, &self.vek_der];
        for (name, bytes) in CERTIFICATES.iter().zip(certificates) {
            write(&directory.join(name), bytes)?;
        }
        for (name, bytes) in KEYS.iter().zip(&keys) {
            write(&directory.join(name), bytes)?;
        }
        Ok(())
    }
}

fn read_all(directory: &Path, names: [&str; 3]) -> Result<[Vec<u8>; 3], ModelError> {
    let read = |name: &str| read(&directory.join(name));
    let [a, b, c] = names;
    Ok([read(a)?, read(b)?, read(c)?])
}
