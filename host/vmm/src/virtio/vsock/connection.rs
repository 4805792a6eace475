//! One connection: a unix stream on our side, a vsock stream on the guest's.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use super::packet::{Credit, Header, NO_RECEIVE, NO_SEND, Op, short};

/// Bytes that we hold for a host that does not read. The guest must not send more.
pub(crate) const SPACE: u32 = 64 << 10;

/// Both ends' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    pub(crate) guest_port: u32,
    pub(crate) host_port: u32,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// We have asked the guest and wait for its word.
    Asked,
    /// Both sides talk.
    Open,
    /// Nothing more comes: one reset to the guest, and it is forgotten.
    Over,
}

/// What the guest must be told, apart from data.
#[derive(Debug, Clone, Copy, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit: bool,
    credit_request: bool,
    shutdown: bool,
}

pub(crate) struct Connection {
    pub(crate) key: Key,
    pub(crate) phase: Phase,
    stream: UnixStream,
    owed: Owed,
    /// Bytes of the guest's that the stream has not taken.
    unsent: Vec<u8>,
    /// Counted from the guest: come in, and gone on to the stream.
    received: u32,
    forwarded: u32,
    told: u32,
    /// Counted to the guest, and what it says about its buffer.
    sent: u32,
    peer: Credit,
    /// The stream may have something to read.
    readable: bool,
    /// The host's side has ended its sending.
    host_done: bool,
    /// Shutdown flags that the guest has sent.
    guest_done: u32,
}

impl Connection {
    /// The guest asked, and the stream is connected.
    pub(crate) fn accepted(key: Key, stream: UnixStream, peer: Credit) -> Self {
        let mut connection = Self::new(key, Phase::Open, stream);
        connection.peer = peer;
        connection.owed.response = true;
        connection
    }

    /// The host asked; the guest is to be asked.
    pub(crate) fn asked(key: Key, stream: UnixStream) -> Self {
        let mut connection = Self::new(key, Phase::Asked, stream);
        connection.owed.request = true;
        connection
    }

    fn new(key: Key, phase: Phase, stream: UnixStream) -> Self {
        Self {
            key,
            phase,
            stream,
            owed: Owed::default(),
            unsent: Vec::new(),
            received: 0,
            forwarded: 0,
            told: 0,
            sent: 0,
            peer: Credit::default(),
            readable: true,
            host_done: false,
            guest_done: 0,
        }
    }

    /// The stream is ready for something.
    pub(crate) fn woken(&mut self) {
        self.readable = true;
        self.flush();
    }

    /// A packet of the guest's, without its data.
    pub(crate) fn hear(&mut self, header: &Header) {
        self.peer = header.credit;
        match (header.op, self.phase) {
            (Op::Response, Phase::Asked) => self.open(),
            (Op::Data | Op::CreditUpdate, Phase::Open) => {}
            (Op::CreditRequest, Phase::Open) => self.owed.credit = true,
            (Op::Shutdown, Phase::Open) => {
                self.guest_done |= header.flags & (NO_RECEIVE | NO_SEND);
                self.flush();
            }
            // A reset, or a word that does not belong here.
            _ => self.phase = Phase::Over,
        }
    }

    /// The guest has agreed: tell the host's side, in the words of the hybrid protocol.
    fn open(&mut self) {
        self.phase = Phase::Open;
        let text = format!("OK {}\n", self.key.host_port);
        if self.stream.write_all(text.as_bytes()).is_err() {
            self.phase = Phase::Over;
        }
    }

    /// Data of the guest's. More than it had credit for ends the connection.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        self.received = self.received.wrapping_add(short(bytes.len()));
        let held = self.received.wrapping_sub(self.forwarded);
        if held > SPACE || self.guest_done & NO_SEND != 0 {
            self.phase = Phase::Over;
            return;
        }
        let now = if self.unsent.is_empty() { self.pass_on(bytes) } else { 0 };
        self.unsent.extend_from_slice(bytes.get(now..).unwrap_or_default());
        self.settle();
    }

    /// Tries to get rid of what is unsent.
    pub(crate) fn flush(&mut self) {
        if !self.unsent.is_empty() {
            let held = std::mem::take(&mut self.unsent);
            let done = self.pass_on(&held);
            self.unsent = held;
            self.unsent.drain(..done);
            if self.unsent.is_empty() {
                self.unsent = Vec::new();
            }
        }
        self.settle();
    }

    /// Writes to the stream until it would block; says how much went.
    fn pass_on(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => break,
                Ok(length) => done += length,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.phase = Phase::Over;
                    break;
                }
            }
        }
        self.forwarded = self.forwarded.wrapping_add(short(done));
        done
    }

    /// Ends what has nothing more to say, and tells the guest of room before it runs out.
    fn settle(&mut self) {
        if self.forwarded.wrapping_sub(self.told) >= SPACE / 4 {
            self.owed.credit = true;
        }
        if self.guest_done & NO_SEND == 0 || !self.unsent.is_empty() {
            return;
        }
        let _ = self.stream.shutdown(Shutdown::Write);
        if self.guest_done & NO_RECEIVE != 0 || self.host_done {
            self.phase = Phase::Over;
        }
    }

    /// The next packet for the guest, with its data written to `space`; `None` when there is
    /// nothing to say now.
    pub(crate) fn speak(&mut self, space: &mut [u8]) -> Option<Header> {
        let (op, length) = match self.next_word() {
            Some(op) => (op, 0),
            None => (Op::Data, self.read(space)?),
        };
        // The end of the host's data is a word too, found while reading.
        let op = if op == Op::Data && length == 0 { Op::Shutdown } else { op };
        self.told = self.forwarded;
        self.owed.credit = false;
        Some(Header {
            guest_port: self.key.guest_port,
            host_port: self.key.host_port,
            op,
            length,
            flags: if op == Op::Shutdown { NO_SEND } else { 0 },
            credit: Credit { space: SPACE, forwarded: self.forwarded },
        })
    }

    fn next_word(&mut self) -> Option<Op> {
        let owed = &mut self.owed;
        let words = [
            (&mut owed.request, Op::Request),
            (&mut owed.response, Op::Response),
            (&mut owed.credit, Op::CreditUpdate),
            (&mut owed.credit_request, Op::CreditRequest),
            (&mut owed.shutdown, Op::Shutdown),
        ];
        words.into_iter().find_map(|(owes, op)| std::mem::take(owes).then_some(op))
    }

    /// Reads what the guest has room for. Zero bytes are the end of the host's data.
    fn read(&mut self, space: &mut [u8]) -> Option<u32> {
        if self.phase != Phase::Open || self.host_done || !self.readable {
            return None;
        }
        let room = self.peer.room(self.sent);
        if room == 0 || self.guest_done & NO_RECEIVE != 0 {
            // The guest speaks first: with room, or with a reset.
            return None;
        }
        let most = space.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        match self.stream.read(space.get_mut(..most)?) {
            Ok(0) => {
                self.host_done = true;
                self.settle();
                Some(0)
            }
            Ok(length) => {
                self.sent = self.sent.wrapping_add(short(length));
                Some(short(length))
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => None,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                self.readable = false;
                None
            }
            Err(_) => {
                self.phase = Phase::Over;
                None
            }
        }
    }
}
