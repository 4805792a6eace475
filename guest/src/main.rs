//! PID 1 inside the sandbox: attests, receives secrets, runs the agent, signs its tool calls.

fn main() {}
