//! Keeping a model's root keys in a directory, and naming its roots.

use std::path::Path;

use casemate_attestation::UnixTime;

use super::certificate::Key;
use super::{GpuModel, der};
use crate::ModelError;
use crate::files::{io, read, write};

const KEYS: [&str; 2] = ["device-root.pkcs8", "manifest-root.pkcs8"];

impl GpuModel {
    /// An issuer under the root keys kept in `directory`, or under new ones that
    /// are then kept there. Anchors pin the roots' keys; all below is made anew.
    pub fn load_or_create(directory: &Path, from: UnixTime) -> Result<Self, ModelError> {
        let [device, manifest] = KEYS.map(|name| directory.join(name));
        if device.exists() && manifest.exists() {
            let keys = [Key::from_pkcs8(&read(&device)?)?, Key::from_pkcs8(&read(&manifest)?)?];
            return Self::with_roots(keys, from);
        }
        std::fs::create_dir_all(directory).map_err(|error| io(directory, error))?;
        let model = Self::new(from)?;
        write(&device, &model.device_root.key.to_pkcs8()?)?;
        write(&manifest, &model.manifest_root.key.to_pkcs8()?)?;
        Ok(model)
    }

    /// The issuer's roots as an entry of docs/formats/trust-anchors.md.
    pub fn anchor_toml(&self, label: &str) -> String {
        format!(
            "[[nvidia]]\nlabel = {label:?}\nkind = \"model\"\ndevice_root_pem = \"\"\"\n{}\"\"\"\n\
             rim_root_pem = \"\"\"\n{}\"\"\"\n",
            der::pem("CERTIFICATE", &self.device_root.der),
            der::pem("CERTIFICATE", &self.manifest_root.der),
        )
    }
}
