//! The status of a trusted computing base, and how several become one.
//!
//! Source: Intel SGX and TDX PCS API v4 (`tcbStatus`); the arithmetic is that
//! of Intel's Quote Verification Library (`convergeTcbStatusWith…`,
//! `checkForRelaunch`).

use serde::{Deserialize, Serialize};

/// What Intel's collateral says of a platform, a TDX module or a QE.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TcbStatus {
    /// Nothing is known to be missing.
    UpToDate,
    /// Software on the platform must defend itself against known attacks.
    #[serde(rename = "SWHardeningNeeded")]
    SwHardeningNeeded,
    /// The platform must be configured otherwise.
    ConfigurationNeeded,
    /// Both of the above.
    #[serde(rename = "ConfigurationAndSWHardeningNeeded")]
    ConfigurationAndSwHardeningNeeded,
    /// Updates against known attacks are missing.
    OutOfDate,
    /// Updates are missing, and the platform must be configured otherwise.
    OutOfDateConfigurationNeeded,
    /// The platform was updated after the TD was launched: launch it anew.
    #[serde(rename = "TDRelaunchAdvised")]
    TdRelaunchAdvised,
    /// As above, and the platform must be configured otherwise.
    #[serde(rename = "TDRelaunchAdvisedConfigurationNeeded")]
    TdRelaunchAdvisedConfigurationNeeded,
    /// The keys of this level are no longer to be believed.
    Revoked,
    /// The collateral has no level that this evidence reaches.
    #[serde(rename = "TcbNotSupported")]
    NotSupported,
}

impl TcbStatus {
    /// Every status, in the order of the type.
    pub const ALL: [Self; 10] = [
        Self::UpToDate,
        Self::SwHardeningNeeded,
        Self::ConfigurationNeeded,
        Self::ConfigurationAndSwHardeningNeeded,
        Self::OutOfDate,
        Self::OutOfDateConfigurationNeeded,
        Self::TdRelaunchAdvised,
        Self::TdRelaunchAdvisedConfigurationNeeded,
        Self::Revoked,
        Self::NotSupported,
    ];

    /// Intel's spelling.
    pub fn name(self) -> &'static str {
        match self {
            Self::UpToDate => "UpToDate",
            Self::SwHardeningNeeded => "SWHardeningNeeded",
            Self::ConfigurationNeeded => "ConfigurationNeeded",
            Self::ConfigurationAndSwHardeningNeeded => "ConfigurationAndSWHardeningNeeded",
            Self::OutOfDate => "OutOfDate",
            Self::OutOfDateConfigurationNeeded => "OutOfDateConfigurationNeeded",
            Self::TdRelaunchAdvised => "TDRelaunchAdvised",
            Self::TdRelaunchAdvisedConfigurationNeeded => "TDRelaunchAdvisedConfigurationNeeded",
            Self::Revoked => "Revoked",
            Self::NotSupported => "TcbNotSupported",
        }
    }

    /// This platform status, lowered by that of a component (module or QE).
    pub fn converge(self, component: Self) -> Self {
        match (component, self) {
            (_, Self::Revoked | Self::NotSupported) => self,
            (Self::Revoked | Self::NotSupported, _) => component,
            (Self::OutOfDate, Self::UpToDate | Self::SwHardeningNeeded) => Self::OutOfDate,
            (
                Self::OutOfDate,
                Self::ConfigurationNeeded | Self::ConfigurationAndSwHardeningNeeded,
            ) => Self::OutOfDateConfigurationNeeded,
            _ => self,
        }
    }

    /// Whether no policy may accept this: its keys are not to be believed.
    pub fn is_never_acceptable(self) -> bool {
        matches!(self, Self::Revoked | Self::NotSupported)
    }

    /// Whether updates are missing.
    pub fn is_out_of_date(self) -> bool {
        matches!(self, Self::OutOfDate | Self::OutOfDateConfigurationNeeded)
    }

    /// Whether the platform must be configured otherwise.
    pub fn needs_configuration(self) -> bool {
        matches!(
            self,
            Self::ConfigurationNeeded
                | Self::ConfigurationAndSwHardeningNeeded
                | Self::OutOfDateConfigurationNeeded
                | Self::TdRelaunchAdvisedConfigurationNeeded
        )
    }

    /// Whether this comes of several, and so stands in no collateral.
    pub(super) fn is_computed(self) -> bool {
        matches!(
            self,
            Self::TdRelaunchAdvised
                | Self::TdRelaunchAdvisedConfigurationNeeded
                | Self::NotSupported
        )
    }
}

impl core::fmt::Display for TcbStatus {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_never_improves_a_status() {
        for platform in TcbStatus::ALL {
            assert_eq!(platform.converge(TcbStatus::UpToDate), platform);
            assert!(platform.converge(TcbStatus::Revoked) >= TcbStatus::Revoked);
            let lowered = platform.converge(TcbStatus::OutOfDate);
            assert!(lowered >= platform, "{platform} became {lowered}");
            assert_ne!(lowered, TcbStatus::UpToDate);
        }
    }

    #[test]
    fn names_read_back_unless_computed() {
        use super::super::tcb_info::{IsvSvn, Judged, PlatformTcb};
        fn read<T: Judged>(name: &str) -> Option<TcbStatus> {
            TcbStatus::deserialize_collateral::<T, _>(&serde_json::json!(name)).ok()
        }
        let of_software = [TcbStatus::UpToDate, TcbStatus::OutOfDate, TcbStatus::Revoked];
        for status in TcbStatus::ALL {
            let platform = read::<PlatformTcb>(status.name());
            assert_eq!(platform, (!status.is_computed()).then_some(status));
            let software = read::<IsvSvn>(status.name());
            assert_eq!(software, of_software.contains(&status).then_some(status));
        }
        assert_eq!(read::<PlatformTcb>("uptodate"), None);
    }
}
