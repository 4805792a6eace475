//! What separates a workload from the world, and how much of it a risk needs.
//!
//! A boundary class is a name for people; a policy asks for [`Properties`].
//! Below [`Boundary::Tee`] a class is the host's signed word and nothing more.

use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Serialize};

/// The five boundary classes, weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Boundary {
    /// A process on the host.
    #[serde(rename = "same-host")]
    SameHost,
    /// A process in namespaces of the host's kernel.
    #[serde(rename = "container")]
    Container,
    /// A virtual machine with a kernel of its own.
    #[serde(rename = "microvm")]
    MicroVm,
    /// A virtual machine whose devices are isolated by an IOMMU.
    #[serde(rename = "microvm+vfio")]
    MicroVmVfio,
    /// A virtual machine whose memory the operator cannot read (SEV-SNP, TDX).
    #[serde(rename = "tee")]
    Tee,
}

/// How much harm a workload could do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Risk {
    /// Read-only, low privilege, easily reversed.
    Low,
    /// Touches real systems through narrow, predefined paths.
    Medium,
    /// Arbitrary execution, credentials, customer data or money.
    High,
}

/// One fact about a boundary that a policy may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Property {
    /// The workload runs on a kernel that no other workload shares.
    OwnKernel,
    /// The CPU's virtualisation separates guest from host (not an emulator).
    HardwareVirtualization,
    /// No device can reach memory that is not its own.
    DeviceIsolation,
    /// The only way out is the gateway.
    Mediated,
    /// Evidence of the machine was verified against a fresh nonce.
    AttestedFresh,
    /// The operator of the host cannot read the machine's memory.
    OperatorExcluded,
    /// The machine cannot be debugged from outside.
    DebugOff,
    /// Every GPU runs in confidential-computing mode.
    GpuConfidential,
}

/// A set of [`Property`], kept sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Properties(std::collections::BTreeSet<Property>);

impl Boundary {
    /// Every class, weakest first.
    pub const ALL: [Self; 5] =
        [Self::SameHost, Self::Container, Self::MicroVm, Self::MicroVmVfio, Self::Tee];

    /// The class's name as policies, claims and receipts write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::SameHost => "same-host",
            Self::Container => "container",
            Self::MicroVm => "microvm",
            Self::MicroVmVfio => "microvm+vfio",
            Self::Tee => "tee",
        }
    }
}

impl Risk {
    /// The class's name as policies, grants and receipts write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
        }
    }
}

impl Property {
    /// Every property, in the order of the type.
    pub const ALL: [Self; 8] = [
        Self::OwnKernel,
        Self::HardwareVirtualization,
        Self::DeviceIsolation,
        Self::Mediated,
        Self::AttestedFresh,
        Self::OperatorExcluded,
        Self::DebugOff,
        Self::GpuConfidential,
    ];

    /// The property's name as policies, claims and receipts write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::OwnKernel => "own_kernel",
            Self::HardwareVirtualization => "hardware_virtualization",
            Self::DeviceIsolation => "device_isolation",
            Self::Mediated => "mediated",
            Self::AttestedFresh => "attested_fresh",
            Self::OperatorExcluded => "operator_excluded",
            Self::DebugOff => "debug_off",
            Self::GpuConfidential => "gpu_confidential",
        }
    }
}

impl Properties {
    /// Whether `property` is in the set.
    pub fn contains(&self, property: Property) -> bool {
        self.0.contains(&property)
    }

    /// Adds `property`.
    pub fn insert(&mut self, property: Property) {
        self.0.insert(property);
    }

    /// Takes `property` out.
    pub fn remove(&mut self, property: Property) {
        self.0.remove(&property);
    }

    /// The properties in order.
    pub fn iter(&self) -> impl Iterator<Item = Property> + '_ {
        self.0.iter().copied()
    }

    /// Those of `required` that this set lacks.
    pub fn missing(&self, required: &Self) -> Self {
        Self(required.0.difference(&self.0).copied().collect())
    }

    /// Whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Property> for Properties {
    fn from_iter<I: IntoIterator<Item = Property>>(iter: I) -> Self {
        Self(iter.into_iter().collect())
    }
}

impl fmt::Display for Properties {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.iter().map(Property::name).collect();
        write!(f, "{{{}}}", names.join(", "))
    }
}

impl fmt::Display for Boundary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Risk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Property {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is none of the known ones.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected one of {expected}, got {actual:?}")]
pub struct UnknownName {
    /// What was being named.
    pub field: &'static str,
    /// The names that exist.
    pub expected: String,
    /// The name that was given.
    pub actual: String,
}

impl FromStr for Boundary {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name("boundary", &Self::ALL, Self::name, name)
    }
}

impl FromStr for Risk {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name("risk", &[Self::Low, Self::Medium, Self::High], Self::name, name)
    }
}

impl FromStr for Property {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Self, UnknownName> {
        by_name("property", &Self::ALL, Self::name, name)
    }
}

fn by_name<T: Copy>(
    field: &'static str,
    all: &[T],
    name_of: fn(T) -> &'static str,
    name: &str,
) -> Result<T, UnknownName> {
    all.iter().copied().find(|&one| name_of(one) == name).ok_or_else(|| UnknownName {
        field,
        expected: all.iter().map(|&one| name_of(one)).collect::<Vec<_>>().join(", "),
        actual: name.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_ordered_and_named() {
        assert!(Boundary::ALL.windows(2).all(|pair| pair[0] < pair[1]));
        for class in Boundary::ALL {
            assert_eq!(class.name().parse(), Ok(class));
        }
        let error = "vm".parse::<Boundary>().unwrap_err();
        assert!(error.to_string().contains("same-host, container, microvm"), "{error}");
    }

    #[test]
    fn missing_names_exactly_what_lacks() {
        let have: Properties = [Property::OwnKernel, Property::Mediated].into_iter().collect();
        let want: Properties =
            [Property::OwnKernel, Property::OperatorExcluded].into_iter().collect();
        assert_eq!(have.missing(&want).to_string(), "{operator_excluded}");
    }
}
