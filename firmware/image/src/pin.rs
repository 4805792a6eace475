//! The kernel package that is pinned, from kernel.toml beside this crate.

use serde::{Deserialize, Serialize};

use crate::BuildError;

/// One exact Debian kernel package and what is taken from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelPin {
    /// The archive's suite.
    pub suite: String,
    /// The suite's component.
    pub component: String,
    /// The package.
    pub package: String,
    /// Its version.
    pub version: String,
    /// The kernel's release (`uname -r`).
    pub release: String,
    /// SHA-256 of the package file, in hex.
    pub sha256: String,
    /// Size of the package file.
    pub size: u64,
    /// The modules to load, without what they depend on.
    pub modules: Vec<String>,
}

impl KernelPin {
    /// The pin that this version of the crate was released with.
    pub fn released() -> Result<Self, BuildError> {
        toml::from_str(include_str!("../kernel.toml"))
            .map_err(|error| BuildError::Pin { reason: error.to_string() })
    }

    /// The package's file name in a cache.
    pub(crate) fn file_name(&self) -> String {
        format!("{}_{}_amd64.deb", self.package, self.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_released_pin_is_complete() {
        let pin = KernelPin::released().unwrap();
        assert_eq!(pin.sha256.len(), 64);
        assert_eq!(pin.package, format!("linux-image-{}", pin.release));
    }
}
