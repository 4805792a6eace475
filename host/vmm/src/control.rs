//! The control socket: one JSON object a line, one answer a line.
//! Format: docs/formats/vmm-control.md.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use crate::bytes::{narrow, wide};
use crate::exit::Exit;
use crate::poll::Poll;
use crate::status::VmStatus;
use crate::warden::{CONTROL, Request};

/// The listening socket and its peers.
pub(crate) struct Control {
    listener: UnixListener,
    peers: [Option<Peer>; PEERS],
}

struct Peer {
    stream: UnixStream,
    line: Vec<u8>,
}

/// Peers at once; more are turned away.
const PEERS: usize = 8;
/// Longest request.
const LINE_MAX: usize = 1024;

impl Control {
    /// Serves on a socket that is already bound.
    pub(crate) fn new(listener: UnixListener, poll: &Poll) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        poll.add(listener.as_fd(), CONTROL)?;
        Ok(Self { listener, peers: [const { None }; PEERS] })
    }

    /// A file of ours is ready: `number` is that of the listener or of a peer.
    pub(crate) fn ready(
        &mut self,
        number: u64,
        poll: &Poll,
        answer: &mut dyn FnMut(Request) -> VmStatus,
    ) {
        match number.checked_sub(CONTROL + 1) {
            None => self.accept(poll),
            Some(index) => self.talk(narrow(index), answer),
        }
    }

    /// Tells every peer why the machine ended.
    pub(crate) fn announce(&mut self, exit: &Exit) {
        let mut text = serde_json::to_vec(&serde_json::json!({ "exit": exit })).unwrap_or_default();
        text.push(b'\n');
        for peer in self.peers.iter_mut().flatten() {
            // A peer that does not read misses it; the process's own output has it too.
            let _ = peer.stream.write_all(&text);
        }
    }

    fn accept(&mut self, poll: &Poll) {
        while let Ok((stream, _)) = self.listener.accept() {
            let free = (0u64..).zip(&mut self.peers).find(|(_, peer)| peer.is_none());
            let Some((number, place)) = free else { continue };
            let number = CONTROL + 1 + number;
            if stream.set_nonblocking(true).is_ok() && poll.add(stream.as_fd(), number).is_ok() {
                *place = Some(Peer { stream, line: Vec::new() });
            }
        }
    }

    fn talk(&mut self, index: usize, answer: &mut dyn FnMut(Request) -> VmStatus) {
        let Some(place) = self.peers.get_mut(index) else { return };
        let stays = place.as_mut().is_some_and(|peer| peer.talk(answer));
        if !stays {
            *place = None;
        }
    }
}

impl Peer {
    /// Reads and answers what is there. False when the peer is to go.
    fn talk(&mut self, answer: &mut dyn FnMut(Request) -> VmStatus) -> bool {
        let mut bytes = [0; 256];
        loop {
            let length = match self.stream.read(&mut bytes) {
                Ok(0) => return false,
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            };
            for byte in bytes.get(..length).unwrap_or_default() {
                if *byte != b'\n' {
                    self.line.push(*byte);
                } else if !self.reply(answer) {
                    return false;
                }
            }
            if wide(self.line.len()) > wide(LINE_MAX) {
                return false;
            }
        }
    }

    fn reply(&mut self, answer: &mut dyn FnMut(Request) -> VmStatus) -> bool {
        let line = std::mem::take(&mut self.line);
        let text = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => serde_json::to_string(&answer(request)),
            Err(error) => serde_json::to_string(&serde_json::json!({
                "ok": false,
                "error": format!("not a request: {error}"),
            })),
        };
        let Ok(mut text) = text else { return false };
        text.push('\n');
        self.stream.write_all(text.as_bytes()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> VmStatus {
        let state = "running".into();
        VmStatus { ok: true, state, uptime_ms: 1, cpu_ms: 2, ..VmStatus::default() }
    }

    fn peer() -> (Peer, UnixStream) {
        let (stream, other) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        (Peer { stream, line: Vec::new() }, other)
    }

    #[test]
    fn requests_are_answered_line_by_line() {
        let (mut peer, mut other) = peer();
        other.write_all(b"{\"op\":\"renew\",\"seconds\":3}\n{\"op\":\"stat").unwrap();
        let mut heard = Vec::new();
        assert!(peer.talk(&mut |request| {
            heard.push(request);
            answer()
        }));
        other.write_all(b"us\"}\nnonsense\n").unwrap();
        assert!(peer.talk(&mut |request| {
            heard.push(request);
            answer()
        }));
        assert_eq!(heard, [Request::Renew { seconds: 3 }, Request::Status {}]);
        drop(peer);
        let mut text = String::new();
        other.read_to_string(&mut text).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines[0], r#"{"ok":true,"state":"running","uptime_ms":1,"cpu_ms":2}"#);
        assert!(lines[2].contains("not a request"));
    }

    #[test]
    fn a_peer_that_never_ends_its_line_is_dropped() {
        let (mut peer, mut other) = peer();
        other.write_all(&[b'x'; LINE_MAX + 1]).unwrap();
        assert!(!peer.talk(&mut |_| answer()));
        for bad in [r#"{"op":"status","x":1}"#, r#"{"op":"renew"}"#, r#"{"op":"fly"}"#] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
    }
}
