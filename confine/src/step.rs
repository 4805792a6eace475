//! One step of a confinement, with its name.

/// A step that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct StepError {
    /// The step.
    pub step: &'static str,
    /// What the kernel said.
    pub source: std::io::Error,
}

/// `result`, with the name of the step that it belongs to.
pub fn step<T, E: Into<std::io::Error>>(
    step: &'static str,
    result: Result<T, E>,
) -> Result<T, StepError> {
    result.map_err(|error| StepError { step, source: error.into() })
}
