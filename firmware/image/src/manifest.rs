//! The manifest: what an image is made of. Format: docs/formats/image-manifest.md.

use std::fs;
use std::path::Path;

use casemate_attestation::host_claim::{LaunchDigests, hex32};
use serde::{Deserialize, Serialize};

use crate::launch::BootFiles;
use crate::pin::KernelPin;
use crate::{BuildError, CMDLINE, INITRD, KERNEL, MANIFEST};

/// Everything that a builder knows of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// The format's version, 1.
    pub version: u32,
    /// The image's name in reference values and results.
    pub label: String,
    /// SHA-256 of kernel, initramfs and command line.
    pub files: LaunchDigests,
    /// The SEV-SNP launch digest for each number of vCPUs.
    pub snp: Vec<SnpLaunch>,
    /// The package that the kernel and its modules come from.
    pub kernel: KernelPin,
    /// The files in the initramfs, in its order.
    pub content: Vec<Content>,
}

/// What an SEV-SNP launch of the plain page list measures to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnpLaunch {
    /// How many vCPUs.
    pub vcpus: u32,
    /// The launch digest, 96 hex digits.
    pub measurement: String,
}

/// The launch digests of `image` with 1 to `max_vcpus` vCPUs.
pub(crate) fn snp_launches(image: &Image, max_vcpus: u32) -> Result<Vec<SnpLaunch>, BuildError> {
    (1..=max_vcpus)
        .map(|vcpus| {
            let measurement = hex::encode(image.files().snp_measurement(vcpus)?);
            Ok(SnpLaunch { vcpus, measurement })
        })
        .collect()
}

/// One file of the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Where it lies.
    pub path: String,
    /// Its permission bits in octal.
    pub mode: String,
    /// Its size.
    pub size: u64,
    /// Its SHA-256.
    #[serde(with = "hex32")]
    pub sha256: [u8; 32],
}

/// An image's three boot files, read whole.
#[derive(Debug, Clone)]
pub struct Image {
    /// The bzImage.
    pub kernel: Vec<u8>,
    /// The initramfs.
    pub initrd: Vec<u8>,
    /// The command line.
    pub cmdline: String,
}

impl Manifest {
    /// Reads the manifest in `folder`.
    pub fn read(folder: &Path) -> Result<Self, BuildError> {
        let path = folder.join(MANIFEST);
        let text = fs::read_to_string(&path).map_err(|e| BuildError::io("read", &path, e))?;
        let manifest: Self = toml::from_str(&text).map_err(|error| BuildError::Manifest {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        if manifest.version != 1 {
            return Err(BuildError::Manifest {
                path,
                reason: format!("version: expected 1, got {}", manifest.version),
            });
        }
        Ok(manifest)
    }

    /// What a verifier needs to know this image (docs/formats/policy.md).
    ///
    /// The image enforces two properties itself: it has its own kernel, and it
    /// has no driver for a network card.
    pub fn reference_values(&self) -> String {
        let measurements: Vec<_> =
            self.snp.iter().map(|launch| format!("    \"{}\",\n", launch.measurement)).collect();
        format!(
            "[[image]]\nlabel = \"{}\"\nproperties = [\"own_kernel\", \"mediated\"]\n\
             snp_measurements = [\n{}]\n\n\
             [[image.launch]]\nkernel = \"{}\"\ninitrd = \"{}\"\ncmdline = \"{}\"\n",
            self.label,
            measurements.concat(),
            hex::encode(self.files.kernel),
            hex::encode(self.files.initrd),
            hex::encode(self.files.cmdline),
        )
    }

    /// Compares the files in `folder` with this manifest.
    pub fn check(&self, folder: &Path) -> Result<(), BuildError> {
        let actual = Image::read(folder)?.files().digests();
        let pairs = [
            (KERNEL, self.files.kernel, actual.kernel),
            (INITRD, self.files.initrd, actual.initrd),
            (CMDLINE, self.files.cmdline, actual.cmdline),
        ];
        for (file, expected, actual) in pairs {
            if expected != actual {
                return Err(BuildError::FileDigest {
                    file,
                    expected: hex::encode(expected),
                    actual: hex::encode(actual),
                });
            }
        }
        Ok(())
    }
}

impl Image {
    /// Reads the boot files in `folder` as they are; whether they are the
    /// right ones is for the verifier to say.
    pub fn read(folder: &Path) -> Result<Self, BuildError> {
        let read = |name: &str, limit: u64| {
            let path = folder.join(name);
            let size = fs::metadata(&path).map_err(|e| BuildError::io("read", &path, e))?.len();
            if size > limit {
                return Err(BuildError::TooLarge { path, expected: limit, actual: size });
            }
            fs::read(&path).map_err(|e| BuildError::io("read", &path, e))
        };
        let cmdline = String::from_utf8(read(CMDLINE, MAX_CMDLINE)?)
            .ok()
            .filter(|text| text.bytes().all(|byte| matches!(byte, b' '..=b'~')))
            .ok_or(BuildError::CommandLine)?;
        Ok(Self { kernel: read(KERNEL, MAX_FILE)?, initrd: read(INITRD, MAX_FILE)?, cmdline })
    }

    /// The files as the page list takes them.
    pub fn files(&self) -> BootFiles<'_> {
        BootFiles { kernel: &self.kernel, initrd: &self.initrd, cmdline: &self.cmdline }
    }
}

const MAX_FILE: u64 = 1 << 30;
// COMMAND_LINE_SIZE of x86 Linux, its NUL included.
const MAX_CMDLINE: u64 = 2047;
