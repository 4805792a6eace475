//! The door for clients that start their server as a program: `mcp`, which
//! joins its standard input and output with the port's socket. It is this same
//! binary under another name, and knows nothing that its caller does not.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The program's name in the port's directory.
pub const PROGRAM: &str = "mcp";

/// The program's whole life: joins until the port closes the connection.
pub fn main(socket: Option<&str>) -> ExitCode {
    let default = || Path::new(crate::workload::PORT_DIRECTORY).join(super::SOCKET);
    let path = socket.map_or_else(default, PathBuf::from);
    match UnixStream::connect(&path).and_then(join) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}: {error}", path.display());
            ExitCode::FAILURE
        }
    }
}

fn join(mut stream: UnixStream) -> std::io::Result<()> {
    let mut up = stream.try_clone()?;
    // Ends with the process: reading standard input cannot be cut short.
    std::thread::spawn(move || {
        let _ = pass(&mut std::io::stdin().lock(), &mut up);
        let _ = up.shutdown(Shutdown::Write);
    });
    pass(&mut stream, &mut std::io::stdout().lock())
}

fn pass(from: &mut impl Read, to: &mut impl Write) -> std::io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            length => to.write_all(buffer.get(..length).unwrap_or_default())?,
        }
        to.flush()?;
    }
}
