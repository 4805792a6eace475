//! The bit fields of a report (AMD 56860 tables 9, 23 and 24).

use crate::error::{Reason, VerifyError};

/// POLICY: what the guest's owner allowed at launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestPolicy(pub u64);

/// PLATFORM_INFO: how the host is set up. Bits nobody has named are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlatformInfo(pub u64);

/// KEY_INFO: which key was asked to sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyInfo {
    /// AUTHOR_KEY_EN: AUTHOR_KEY_DIGEST means something.
    pub author_key: bool,
    /// MASK_CHIP_KEY: the firmware was told not to sign.
    pub mask_chip_key: bool,
    /// SIGNING_KEY.
    pub signing_key: SigningKey,
}

/// SIGNING_KEY: the kind of key that signed a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SigningKey {
    /// The chip's own key.
    Vcek,
    /// A key that AMD derived for a cloud provider.
    Vlek,
    /// None: the report is not signed.
    None,
}

impl GuestPolicy {
    /// Minimum ABI, minor number.
    pub fn abi_minor(self) -> u8 {
        self.0.to_le_bytes()[0]
    }
    /// Minimum ABI, major number.
    pub fn abi_major(self) -> u8 {
        self.0.to_le_bytes()[1]
    }
    /// The guest may run with SMT.
    pub fn smt_allowed(self) -> bool {
        bit(self.0, 16)
    }
    /// Bit 17, which must be one.
    pub fn reserved_one(self) -> bool {
        bit(self.0, 17)
    }
    /// The guest may be bound to a migration agent.
    pub fn migrate_ma_allowed(self) -> bool {
        bit(self.0, 18)
    }
    /// The host may debug the guest: it can read and write its memory.
    pub fn debug_allowed(self) -> bool {
        bit(self.0, 19)
    }
    /// The guest may run on one socket only.
    pub fn single_socket(self) -> bool {
        bit(self.0, 20)
    }
    /// The guest may use CXL devices or memory.
    pub fn cxl_allowed(self) -> bool {
        bit(self.0, 21)
    }
    /// The guest needs AES 256 XTS for its memory.
    pub fn aes_256_xts_required(self) -> bool {
        bit(self.0, 22)
    }
    /// RAPL must be off.
    pub fn rapl_off_required(self) -> bool {
        bit(self.0, 23)
    }
    /// Ciphertext hiding must be on.
    pub fn ciphertext_hiding_required(self) -> bool {
        bit(self.0, 24)
    }
    /// Pages of the guest may not be swapped.
    pub fn page_swap_disabled(self) -> bool {
        bit(self.0, 25)
    }
    /// Bits 63:26, which must be zero.
    pub fn reserved_zero(self) -> u64 {
        self.0 >> 26
    }
}

impl PlatformInfo {
    /// SMT is on.
    pub fn smt(self) -> bool {
        bit(self.0, 0)
    }
    /// Transparent memory encryption is on.
    pub fn tsme(self) -> bool {
        bit(self.0, 1)
    }
    /// ECC memory is used.
    pub fn ecc(self) -> bool {
        bit(self.0, 2)
    }
    /// RAPL is off.
    pub fn rapl_off(self) -> bool {
        bit(self.0, 3)
    }
    /// Ciphertext hiding is on.
    pub fn ciphertext_hiding(self) -> bool {
        bit(self.0, 4)
    }
    /// The firmware has checked that no memory is aliased (CVE-2024-21944).
    pub fn alias_check_complete(self) -> bool {
        bit(self.0, 5)
    }
    /// Trusted I/O is on.
    pub fn tio(self) -> bool {
        bit(self.0, 7)
    }
    /// Bits without a name; real Turin machines set bit 6.
    pub fn unknown(self) -> u64 {
        self.0 & !0b1011_1111
    }
}

impl KeyInfo {
    /// Reads KEY_INFO; reserved bits and values are refused.
    pub(super) fn read(raw: u32) -> Result<Self, VerifyError> {
        if raw >> 5 != 0 {
            return Err(VerifyError::new(
                Reason::Reserved,
                "KEY_INFO bits 31:5",
                "zero",
                format!("{raw:#x}"),
            ));
        }
        let signing_key = match raw >> 2 {
            0 => SigningKey::Vcek,
            1 => SigningKey::Vlek,
            7 => SigningKey::None,
            other => {
                return Err(VerifyError::new(
                    Reason::SigningKey,
                    "SIGNING_KEY",
                    "0 (VCEK), 1 (VLEK) or 7 (none)",
                    other,
                ));
            }
        };
        let raw = u64::from(raw);
        Ok(Self { author_key: bit(raw, 0), mask_chip_key: bit(raw, 1), signing_key })
    }
}

impl SigningKey {
    /// The key's name, as certificates have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
            Self::None => "none",
        }
    }
}

impl core::fmt::Display for SigningKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(self.name())
    }
}

fn bit(value: u64, index: u32) -> bool {
    value >> index & 1 == 1
}
