//! The section `[snp]` of an appraisal policy.

use serde::Deserialize;

use super::{HexBytes, HexPrefix};
use crate::snp::{Product, Tcb};
use crate::time::UnixTime;
use crate::x509::CrlNumber;

/// What is asked of an SEV-SNP report.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SnpPolicy {
    /// The lowest report version. Version 2 has no CPUID, so that the
    /// product rests on the certificate alone. Default 3.
    pub min_report_version: u32,
    /// The one privilege level that the report must come from, which names the
    /// layer that asked for it: 0 the firmware, an SVSM or a paravisor, above it
    /// what they let run; a guest without any runs at 0. Default 0. 0 to 3: a
    /// report that the host asked for is never accepted.
    #[serde(deserialize_with = "vmpl")]
    pub vmpl: u32,
    /// Accept a guest that the host may debug. Such a guest never earns the
    /// boundary class tee. Default false.
    pub allow_debug: bool,
    /// Accept a guest that may be bound to a migration agent. Default false.
    pub allow_migration_agent: bool,
    /// Accept a guest that may run with SMT. Default true.
    pub allow_smt: bool,
    /// Accept a platform that has SMT on, whatever the guest policy says. Default true.
    pub allow_platform_smt: bool,
    /// Accept firmware that runs but is not committed yet. Default true.
    pub allow_provisional_firmware: bool,
    /// Ask that the firmware has checked for aliased memory. Default true.
    pub require_alias_check: bool,
    /// Ask for transparent memory encryption. Default false.
    pub require_tsme: bool,
    /// Ask for memory with ECC, which makes flipped bits visible. Default false.
    pub require_ecc: bool,
    /// Accept a platform with trusted I/O (SEV-TIO) on. Default true.
    pub allow_tio: bool,
    /// Ask for ciphertext hiding. Default false.
    pub require_ciphertext_hiding: bool,
    /// The lowest ABI that the guest policy asks of the firmware, `[major, minor]`.
    pub min_abi: Option<[u8; 2]>,
    /// Accept a guest that may use memory behind CXL. Default true.
    pub allow_cxl: bool,
    /// Ask that the guest runs on one socket only. Default false.
    pub require_single_socket: bool,
    /// Ask that the guest policy demands AES-256 XTS for memory. Default false.
    pub require_aes_256_xts: bool,
    /// Ask that RAPL is off and the guest policy demands it: power readings are
    /// a side channel. Default false.
    pub require_rapl_off: bool,
    /// Ask that the guest policy forbids swapping of the guest's pages. Default false.
    pub require_page_swap_off: bool,
    /// Ask that a current revocation list of the root was consulted. Default false.
    pub require_crl: bool,
    /// The lowest CRL number, against older lists that have not run out:
    /// remember the highest one seen. Needs a list when not 0. Default 0.
    pub min_crl_number: CrlNumber,
    /// How old the revocation list may be; none: until it expires. Needs a list.
    pub max_crl_age_days: Option<u32>,
    /// Bits that LAUNCH_MIT_VECTOR and CURRENT_MIT_VECTOR must have. Default 0.
    pub required_mitigations: u64,
    /// The lowest firmware version, `[major, minor, build]`, current and committed.
    pub min_firmware: Option<[u8; 3]>,
    /// The lowest GUEST_SVN. Default 0.
    pub min_guest_svn: u32,
    /// The TCB floors, by product, for REPORTED, COMMITTED and LAUNCH TCB alike.
    pub tcb: Vec<TcbFloor>,
    /// Floors for COMMITTED_TCB alone, beside those of `tcb`.
    pub committed_tcb: Vec<TcbFloor>,
    /// Floors for LAUNCH_TCB alone, beside those of `tcb`.
    pub launch_tcb: Vec<TcbFloor>,
    /// HOST_DATA values to accept; empty: any.
    pub host_data: Vec<HexBytes<32>>,
    /// ID_KEY_DIGEST values to accept; empty: any.
    pub id_key_digests: Vec<HexBytes<48>>,
    /// AUTHOR_KEY_DIGEST values to accept; empty: any.
    pub author_key_digests: Vec<HexBytes<48>>,
    /// FAMILY_ID values to accept; empty: any.
    pub family_ids: Vec<HexBytes<16>>,
    /// IMAGE_ID values to accept; empty: any.
    pub image_ids: Vec<HexBytes<16>>,
    /// Accept a report that a VLEK signed, which names a provider and no chip. Default true.
    pub allow_vlek: bool,
    /// CHIP_ID values to accept, the bytes that name a chip; empty: any.
    pub chip_ids: Vec<HexPrefix>,
    /// CSP ids of VLEK certificates to accept; empty: any.
    pub csp_ids: Vec<String>,
}

impl SnpPolicy {
    /// Two floors for one product and one time: which of them was meant?
    pub(super) fn refuse_doubles(&self) -> Result<(), String> {
        let lists = [
            ("snp.tcb", &self.tcb),
            ("snp.committed_tcb", &self.committed_tcb),
            ("snp.launch_tcb", &self.launch_tcb),
        ];
        for (name, floors) in lists {
            let mut seen = std::collections::BTreeSet::new();
            for floor in floors {
                if !seen.insert((floor.product.name(), floor.since)) {
                    let product = floor.product;
                    return Err(format!(
                        "{name}: expected one floor a product and date, got two for {product}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The lowest TCB of one product line, in every component.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TcbFloor {
    /// The product line.
    #[serde(deserialize_with = "product")]
    pub product: Product,
    /// FMC firmware (Turin). Default 0.
    #[serde(default)]
    pub fmc: u8,
    /// Boot loader. Default 0.
    #[serde(default)]
    pub bootloader: u8,
    /// Security processor's operating system. Default 0.
    #[serde(default)]
    pub tee: u8,
    /// SNP firmware. Default 0.
    #[serde(default)]
    pub snp: u8,
    /// Microcode. Default 0.
    #[serde(default)]
    pub microcode: u8,
    /// From when on the floor holds, so that machines have time to be updated.
    /// Default always.
    #[serde(default = "always", deserialize_with = "super::time")]
    pub since: UnixTime,
}

impl TcbFloor {
    /// The floor as a TCB.
    pub fn tcb(&self) -> Tcb {
        let Self { fmc, bootloader, tee, snp, microcode, .. } = *self;
        Tcb { fmc, bootloader, tee, snp, microcode }
    }
}

impl Default for SnpPolicy {
    fn default() -> Self {
        Self {
            min_report_version: 3,
            vmpl: 0,
            allow_debug: false,
            allow_migration_agent: false,
            allow_smt: true,
            allow_platform_smt: true,
            allow_provisional_firmware: true,
            require_alias_check: true,
            require_tsme: false,
            require_ecc: false,
            allow_tio: true,
            require_ciphertext_hiding: false,
            min_abi: None,
            allow_cxl: true,
            require_single_socket: false,
            require_aes_256_xts: false,
            require_rapl_off: false,
            require_page_swap_off: false,
            require_crl: false,
            min_crl_number: CrlNumber::default(),
            max_crl_age_days: None,
            required_mitigations: 0,
            min_firmware: None,
            min_guest_svn: 0,
            tcb: vec![],
            committed_tcb: vec![],
            launch_tcb: vec![],
            host_data: vec![],
            id_key_digests: vec![],
            author_key_digests: vec![],
            family_ids: vec![],
            image_ids: vec![],
            allow_vlek: true,
            chip_ids: vec![],
            csp_ids: vec![],
        }
    }
}

fn vmpl<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let vmpl = u32::deserialize(deserializer)?;
    if vmpl <= 3 {
        return Ok(vmpl);
    }
    Err(serde::de::Error::custom(format!("expected a VMPL, 0 to 3, got {vmpl}")))
}

fn always() -> UnixTime {
    UnixTime(0)
}

fn product<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Product, D::Error> {
    let name = String::deserialize(deserializer)?;
    Product::from_name(&name).ok_or_else(|| {
        serde::de::Error::custom(format!("expected Milan, Genoa or Turin, got {name:?}"))
    })
}
