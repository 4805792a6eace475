//! Products and their TCB versions (AMD 56860 table 3; AMD 57230 for Turin).

use core::fmt;

/// A line of EPYC processors that shares one root key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Product {
    /// Third generation.
    Milan,
    /// Fourth generation, Bergamo and Siena too.
    Genoa,
    /// Fifth generation.
    Turin,
}

impl Product {
    /// Every product line.
    pub const ALL: [Self; 3] = [Self::Milan, Self::Genoa, Self::Turin];

    /// The name in certificates and in AMD's key distribution service.
    pub fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }

    /// The product line called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|product| product.name() == name)
    }

    /// The product line of a combined CPUID family and model.
    pub fn from_cpuid(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x11) => Some(Self::Turin),
            _ => None,
        }
    }

    /// How many bytes of CHIP_ID and HWID name a chip.
    pub fn chip_id_bytes(self) -> usize {
        match self {
            Self::Milan | Self::Genoa => 64,
            Self::Turin => 8,
        }
    }
}

impl fmt::Display for Product {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A TCB_VERSION as it lies in a report; its layout depends on the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TcbVersion(pub [u8; 8]);

/// The components of a TCB version. There is no order on the whole: use
/// [`Tcb::at_least`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tcb {
    /// FMC firmware; Turin only, zero elsewhere.
    pub fmc: u8,
    /// The security processor's boot loader.
    pub bootloader: u8,
    /// The security processor's operating system.
    pub tee: u8,
    /// The SNP firmware.
    pub snp: u8,
    /// The lowest microcode patch level of all cores.
    pub microcode: u8,
}

impl TcbVersion {
    /// The components, or `None` when a reserved byte is not zero.
    pub fn components(self, product: Product) -> Option<Tcb> {
        match (product, self.0) {
            (Product::Milan | Product::Genoa, [bootloader, tee, 0, 0, 0, 0, snp, microcode]) => {
                Some(Tcb { fmc: 0, bootloader, tee, snp, microcode })
            }
            (Product::Turin, [fmc, bootloader, tee, snp, 0, 0, 0, microcode]) => {
                Some(Tcb { fmc, bootloader, tee, snp, microcode })
            }
            _ => None,
        }
    }
}

impl Tcb {
    /// The bytes as a report of `product` carries them.
    pub fn to_version(self, product: Product) -> TcbVersion {
        let Self { fmc, bootloader, tee, snp, microcode } = self;
        TcbVersion(match product {
            Product::Milan | Product::Genoa => [bootloader, tee, 0, 0, 0, 0, snp, microcode],
            Product::Turin => [fmc, bootloader, tee, snp, 0, 0, 0, microcode],
        })
    }

    /// Whether every component is at least that of `floor`.
    pub fn at_least(&self, floor: &Self) -> bool {
        self.fmc >= floor.fmc
            && self.bootloader >= floor.bootloader
            && self.tee >= floor.tee
            && self.snp >= floor.snp
            && self.microcode >= floor.microcode
    }
}

impl fmt::Display for Tcb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { fmc, bootloader, tee, snp, microcode } = self;
        write!(f, "fmc {fmc}, bootloader {bootloader}, tee {tee}, snp {snp}, microcode {microcode}")
    }
}

impl fmt::Display for TcbVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crate::wire::hex(&self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_differ_by_product() {
        let tcb = Tcb { fmc: 0, bootloader: 4, tee: 1, snp: 24, microcode: 219 };
        for product in Product::ALL {
            assert_eq!(tcb.to_version(product).components(product), Some(tcb));
        }
        assert_eq!(tcb.to_version(Product::Milan).components(Product::Turin), None);
    }

    #[test]
    fn order_is_by_component() {
        let low = Tcb { snp: 8, microcode: 200, ..Tcb::default() };
        let high = Tcb { snp: 9, microcode: 100, ..Tcb::default() };
        assert!(!low.at_least(&high) && !high.at_least(&low) && low.at_least(&low));
    }

    #[test]
    fn products_by_cpuid() {
        assert_eq!(Product::from_cpuid(0x19, 0x01), Some(Product::Milan));
        assert_eq!(Product::from_cpuid(0x19, 0xa0), Some(Product::Genoa));
        assert_eq!(Product::from_cpuid(0x1a, 0x02), Some(Product::Turin));
        assert_eq!(Product::from_cpuid(0x1a, 0x50), None);
        assert_eq!(Product::from_cpuid(0x17, 0x01), None);
    }
}
