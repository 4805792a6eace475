//! The only way from a sandbox to the world: signed calls in, receipts out.
//!
//! Authenticate, decide, reserve, log, execute, log, answer: in that order, for
//! every call. `decide` is a pure function of grant, call and time. Deny is the
//! default. The decision is on disk before the tool runs; a crash leaves an
//! open call, to which the next start gives the outcome `unknown`. Revocation
//! takes effect at the next decision: there is no cached permission.
//!
//! Start reading at `decide/mod.rs`; everything else exists to feed it or to
//! obey it. The way of one call is `call.rs`, top to bottom.

mod admin;
mod admit;
mod approve;
mod artefacts;
mod call;
mod catalogue;
mod clock;
mod config;
mod decide;
mod envelope;
mod execute;
mod grant_file;
mod hosts;
mod inflight;
mod journal;
mod keys;
mod listing;
mod metrics;
mod native;
mod net;
mod overview;
mod policy;
mod receipts;
mod schema;
mod secrets;
mod service;
mod session;
mod spans;
mod state;
mod stops;
mod sync;
mod tls;
mod upstream;
mod wake;
mod witnesses;

pub use admin::{AdminError, Client, Command, Reply};
pub use approve::Waiting;
pub use casemate_confine::tool::main_if_asked as confine_if_asked;
pub use catalogue::CatalogueError;
pub use config::{
    Approver, Config, ConfigError, Confine, Confinement, Issuer, Listen, RemoteConfig, RulesConfig,
    Tool, Upstream,
};
pub use decide::{LoopLimits, RulesAgain, RulesError};
pub use grant_file::{GrantFileError, grant_from_toml, sign_grant};
pub use keys::{KeyError, SigningKey};
pub use native::files::FilesConfig;
pub use native::http::{HttpConfig, HttpRule, Kind};
pub use native::sql::SqlConfig;
pub use net::Network;
pub use overview::{BudgetLeft, GrantSummary, LogEntry, OpenBreaker, StatusReport};
pub use secrets::SecretError;
pub use service::{Error, Gateway, Public, init, run};
pub use spans::CollectorUrl;
pub use stops::Stopped;
pub use tls::TlsError;
pub use upstream::UpstreamError;
