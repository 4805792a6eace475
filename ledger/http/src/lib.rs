//! The log and its witnesses over HTTP.
//!
//! [`serve_log`] gives a published log to anybody (C2SP tlog-tiles);
//! [`serve_witness`] is a small witness (C2SP tlog-witness); [`add_checkpoint`]
//! asks one; [`serve_page`] is a page of numbers for this host. What is served is public and signed, so that it is plain HTTP:
//! put a proxy with TLS before it where that is wanted. Every wait and every
//! size is bounded.

#![forbid(unsafe_code)]

mod client;
mod log;
mod page;
mod server;
mod witness;

pub use client::{Answer, ClientError, Prefix, add_checkpoint};
pub use log::serve_log;
pub use page::serve_page;
pub use witness::serve_witness;
