//! Builds the one measured image and its reference values.
