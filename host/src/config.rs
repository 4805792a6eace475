//! The host's one configuration file. Unknown keys are errors.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// What host.toml says. An example with every field is in docs/formats/host-config.md.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// The name under which this host is enrolled at verifiers.
    pub name: String,
    /// Where the signing key and the machines' run folders live.
    pub state: PathBuf,
    /// Where the guest's services are.
    #[serde(default)]
    pub services: Services,
    /// The software model of the AMD PSP, if it is offered to guests.
    #[serde(default)]
    pub psp_model: Option<PspModelConfig>,
    /// The synthetic issuer of NVIDIA devices, if such are offered to guests.
    #[serde(default)]
    pub gpu_model: Option<GpuModelConfig>,
    /// Our own monitor.
    #[serde(default)]
    pub vmm: VmmConfig,
    /// The control group (cgroup v2) below which each machine's process gets one of its own.
    #[serde(default)]
    pub cgroup: Option<PathBuf>,
    /// The gateway that answers for machines; without one they live while this program does.
    #[serde(default)]
    pub lease: Option<LeaseConfig>,
    /// The most that one machine may be given.
    #[serde(default)]
    pub limits: Limits,
}

/// Addresses to which the host relays bytes that it cannot read.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Services {
    /// The verifier; without it the guest is refused the service.
    pub verifier: Option<Address>,
    /// The gateway; without it the guest is refused the service.
    pub gateway: Option<Address>,
}

/// The dead man's lease (docs/formats/host-lease.md).
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseConfig {
    /// The gateway's `host_socket`.
    pub socket: PathBuf,
    /// A machine is paused when there was no answer for this long.
    #[serde(default = "default_lease")]
    pub seconds: u64,
    /// And destroyed when there is none for this long after that.
    #[serde(default = "default_grace")]
    pub grace_seconds: u64,
}

fn default_lease() -> u64 {
    10
}

fn default_grace() -> u64 {
    60
}

/// The backend `vmm`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmmConfig {
    /// The program; by default `casemate-vmm` beside the running one.
    pub program: Option<PathBuf>,
}

/// The model's keys on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PspModelConfig {
    /// The folder with the model's locally made root, chain and key; made if absent.
    pub folder: PathBuf,
    /// The product line whose formats it follows.
    #[serde(default)]
    pub product: ModelProduct,
}

/// The model devices of every machine, and the issuer's keys on disk.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuModelConfig {
    /// The folder with the issuer's locally made root keys; made if absent.
    pub folder: PathBuf,
    /// What devices a machine has.
    #[serde(default)]
    pub devices: ModelDevices,
}

/// The sets of devices that the model can be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelDevices {
    /// One Hopper GPU passed through alone.
    #[default]
    Gpu,
    /// Eight Hopper GPUs and four NVSwitches in protected-PCIe mode.
    Hgx,
}

/// The product lines that the model can follow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ModelProduct {
    /// EPYC 7003.
    Milan,
    /// EPYC 9004.
    #[default]
    Genoa,
}

/// The most that one machine may be given, whatever its specification says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Virtual CPUs.
    pub vcpus: u32,
    /// Guest memory.
    pub memory_mib: u32,
    /// The longest life of a machine.
    pub wall_seconds: u64,
    /// The longest wait for a guest's first words.
    pub boot_seconds: u64,
    /// How much of the guest's console is kept on disk.
    pub console_kib: u64,
}

/// A service's address: `tcp:HOST:PORT` or `unix:/path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// Host name or number, and port.
    Tcp(String),
    /// A unix socket's path.
    Unix(PathBuf),
}

/// Why the configuration is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with its line.
        reason: String,
    },
    /// A field has a value that cannot be.
    #[error("{field}: expected {expected}, got {actual:?}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it may be.
        expected: &'static str,
        /// What it is.
        actual: String,
    },
}

impl HostConfig {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::from_toml(&text).map_err(|error| match error {
            ConfigError::Malformed { reason, .. } => {
                ConfigError::Malformed { path: path.to_owned(), reason }
            }
            other => other,
        })
    }

    /// Reads and checks the text of such a file.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text).map_err(|error| ConfigError::Malformed {
            path: PathBuf::from("host.toml"),
            reason: error.to_string(),
        })?;
        let known = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
        if config.name.is_empty() || config.name.len() > 64 || !config.name.bytes().all(known) {
            return Err(ConfigError::Field {
                field: "name",
                expected: "1 to 64 of a-z, 0-9, '-', '.', '_'",
                actual: config.name,
            });
        }
        if let Some(parent) = config.cgroup.as_ref().filter(|parent| !parent.is_absolute()) {
            return Err(ConfigError::Field {
                field: "cgroup",
                expected: "an absolute path",
                actual: parent.display().to_string(),
            });
        }
        config.lease.as_ref().map_or(Ok(()), LeaseConfig::check)?;
        Ok(config)
    }
}

impl LeaseConfig {
    fn check(&self) -> Result<(), ConfigError> {
        let field = |field, expected, actual| Err(ConfigError::Field { field, expected, actual });
        // The address of a unix socket holds no more (Linux, unix(7)).
        if !self.socket.is_absolute() || self.socket.as_os_str().len() > 107 {
            let expected = "an absolute path of at most 107 bytes";
            return field("lease.socket", expected, self.socket.display().to_string());
        }
        if !(1..=600).contains(&self.seconds) {
            return field("lease.seconds", "1 to 600", self.seconds.to_string());
        }
        if !(1..=3600).contains(&self.grace_seconds) {
            return field("lease.grace_seconds", "1 to 3600", self.grace_seconds.to_string());
        }
        Ok(())
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            vcpus: 4,
            memory_mib: 4096,
            wall_seconds: 24 * 3600,
            boot_seconds: 300,
            console_kib: 1024,
        }
    }
}

impl FromStr for Address {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text.split_once(':') {
            Some(("unix", path)) if path.starts_with('/') => Ok(Self::Unix(path.into())),
            Some(("tcp", address))
                if address.rsplit_once(':').is_some_and(|(host, port)| {
                    !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
                }) =>
            {
                Ok(Self::Tcp(address.to_owned()))
            }
            _ => Err(ConfigError::Field {
                field: "address",
                expected: "tcp:HOST:PORT or unix:/absolute/path",
                actual: text.to_owned(),
            }),
        }
    }
}

impl<'de> Deserialize<'de> for Address {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "tcp:{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_configuration_has_defaults() {
        let config = HostConfig::from_toml("name = \"h1\"\nstate = \"/var/lib/x\"").unwrap();
        assert_eq!(config.limits, Limits::default());
        assert!(config.services.verifier.is_none());
    }

    #[test]
    fn unknown_keys_and_bad_fields_are_named() {
        for (line, named) in [
            ("colour = 1", "colour"),
            ("[services]\nverifyer = \"tcp:a:1\"", "verifyer"),
            ("[services]\nverifier = \"http://a\"", "tcp:HOST:PORT"),
            ("[services]\nverifier = \"tcp:a:0\"", "tcp:HOST:PORT"),
            ("[limits]\nvcpu = 1", "vcpu"),
            ("[lease]\nsocket = \"hosts.sock\"", "lease.socket"),
            ("[lease]\nsocket = \"/s\"\nseconds = 0", "lease.seconds"),
            ("[lease]\nsocket = \"/s\"\ngrace_seconds = 0", "lease.grace_seconds"),
            ("[lease]\nseconds = 10", "socket"),
        ] {
            let text = format!("name = \"h1\"\nstate = \"/s\"\n{line}\n");
            let error = HostConfig::from_toml(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(HostConfig::from_toml("name = \"H 1\"\nstate = \"/s\"").is_err());
    }
}
