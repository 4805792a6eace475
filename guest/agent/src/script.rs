//! What the agent does, as a TOML file: steps, one after the other.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The whole script.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// The MCP server's unix socket.
    pub socket: String,
    /// The protocol era that the client speaks.
    #[serde(default)]
    pub protocol: Protocol,
    /// The steps.
    #[serde(default, rename = "step")]
    pub steps: Vec<Step>,
}

/// The protocol eras of MCP.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// 2025-11-25, with its handshake.
    Legacy,
    /// 2026-07-28.
    Modern,
    /// Asks the server, as most clients do.
    #[default]
    Auto,
}

/// One of the ways to an MCP server. A text that begins with `$` is the value
/// of that environment variable.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Server {
    /// Lines over a unix socket.
    Socket(String),
    /// Streamable HTTP.
    Url(String),
    /// A program that is started and spoken to over its standard streams.
    Command(Vec<String>),
}

/// One step.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Step {
    /// Lists the tools.
    List,
    /// Calls a tool.
    Call {
        /// The tool.
        tool: String,
        /// Its arguments.
        #[serde(default)]
        arguments: Map<String, Value>,
        /// How often.
        #[serde(default = "once")]
        times: u32,
        /// Seconds between two calls.
        #[serde(default)]
        pause_s: f64,
        /// Whether the first call that fails ends the step.
        #[serde(default)]
        until_error: bool,
    },
    /// Waits.
    Sleep {
        /// How long.
        seconds: f64,
    },
    /// Leaves the server and goes to another, or to the same by another way.
    Connect {
        /// Which.
        to: Server,
    },
    /// Reads an inherited file descriptor to its end and prints only how much came.
    ReadFd {
        /// Its number.
        fd: u32,
    },
    /// Prints a line.
    Say {
        /// The text.
        text: String,
    },
}

fn once() -> u32 {
    1
}

impl Script {
    /// Reads a script's text.
    pub fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_read_in_order() {
        let script = Script::parse(
            "socket = \"/run/mcp.sock\"\n\
             step = [{ do = \"list\" }, { do = \"call\", tool = \"t\", times = 2 },\n\
             { do = \"connect\", to = { url = \"$URL\" } }]",
        )
        .unwrap();
        assert_eq!(script.steps[2], Step::Connect { to: Server::Url("$URL".into()) });
        assert!(matches!(&script.steps[1], Step::Call { times: 2, until_error: false, .. }));
    }

    #[test]
    fn unknown_keys_are_refused() {
        for text in [
            "socket = \"s\"\nsteps = []",
            "socket = \"s\"\nstep = [{ do = \"connect\", to = { fd = \"3\" } }]",
            "socket = \"s\"\nstep = [{ do = \"fly\" }]",
        ] {
            assert!(Script::parse(text).is_err(), "{text}");
        }
    }
}
