//! What a program loses before untrusted code runs in its process.
//!
//! Two parts. The steps ([`filter`], [`privileges`], [`sys`]) are shared with
//! the guest, which confines its workload with them. [`tool`] is the whole way
//! of a gateway's tool server: another user, own name spaces, a read-only view
//! of few files, limits, no privilege, a system call filter.

pub mod filter;
pub mod privileges;
mod step;
pub mod sys;
pub mod tool;
mod view;

pub use step::{StepError, step};
