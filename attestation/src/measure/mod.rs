//! What a launch must measure to, computed from its inputs.

pub mod ovmf;
pub mod snp;
pub mod tdx;

/// Inputs that cannot be measured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: expected {expected}, got {actual}")]
pub struct MeasureError {
    /// The input at fault.
    pub field: String,
    /// What it must be.
    pub expected: String,
    /// What it is.
    pub actual: String,
}

impl MeasureError {
    /// The error that `field` is not `expected`.
    pub fn new(
        field: impl Into<String>,
        expected: impl Into<String>,
        actual: impl core::fmt::Display,
    ) -> Self {
        Self { field: field.into(), expected: expected.into(), actual: actual.to_string() }
    }
}

impl From<crate::wire::ParseError> for MeasureError {
    fn from(error: crate::wire::ParseError) -> Self {
        Self::new(error.field, error.expected, error.actual)
    }
}
