//! PID 1 inside the sandbox: attests, receives secrets, runs the agent, signs its tool calls.
//!
//! It believes only what was measured into the launch; everything from the
//! host is input to be checked. The identity key is made here, bound into the
//! evidence, and dies with the machine. Evidence is collected and forwarded,
//! never judged here. The agent talks to a local socket; it sees neither key
//! nor credential nor network. If the wire, a service or the workload ends,
//! the machine is powered off: there is no degraded mode.
//!
//! Start reading at [`boot`]; each of its steps is one module.

pub mod attest;
pub mod boot;
pub mod certificate;
pub mod config;
pub mod console;
pub mod evidence;
pub mod gateway;
pub mod host;
pub mod http;
pub mod identity;
pub mod kernel;
pub mod mount;
pub mod port;
pub mod power;
pub mod release;
pub mod tls;
pub mod workload;
