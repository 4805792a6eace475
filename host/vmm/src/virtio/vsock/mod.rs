//! Sockets between guest and host (virtio 1.2, 5.10), as hybrid unix sockets.
//!
//! The guest connects to context 2, port p: we connect to the unix socket
//! `<path>_p`, if p is on the list. The host connects to `<path>` and says
//! `CONNECT p\n`: we connect to the guest's port p and answer `OK n\n`. These are
//! the words that Firecracker and cloud-hypervisor use.
//!
//! Memory is bounded: at most 64 connections of 64 KiB each, which the guest can
//! fill only by sending what a host program does not read.

mod connection;
mod packet;

use std::io::{ErrorKind, Read};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use super::queue::{Broken, Chain};
use super::{Device, Event, F_EVENT_IDX, Rings};
use crate::bytes::{low_u32, narrow, wide};
use crate::poll::Registrar;
use connection::{Connection, Key, Phase};
use packet::{Credit, HEADER, Header, Op};

/// The device.
pub(crate) struct Vsock {
    guest: u64,
    path: PathBuf,
    listener: UnixListener,
    may_reach: Vec<u32>,
    poll: Registrar,
    seats: [Seat; SEATS],
    /// Keys that get a reset: refused requests and strays.
    resets: Vec<Key>,
    next_host_port: u32,
    /// Where the search for the next speaker begins: nobody is heard twice before all are once.
    turn: usize,
}

/// A place for a connection.
enum Seat {
    Free,
    /// A host program that has not yet said which port it wants.
    Greeting(UnixStream, Vec<u8>),
    Taken(Box<Connection>),
}

const SEATS: usize = 64;
const RX: usize = 0;
const TX: usize = 1;
const LISTENER: u32 = 0;
/// Resets that wait for a place; further strays are ignored.
const RESETS_MAX: usize = 64;
/// Longest greeting: "CONNECT 4294967295\n".
const GREETING_MAX: usize = 19;
/// Host ports that we give to connections from the host's side start here.
const FIRST_HOST_PORT: u32 = 1 << 30;
/// Data of one packet, both ways: what Linux uses at most.
const DATA_MAX: usize = 64 << 10;

impl Vsock {
    pub(crate) fn new(
        cid: u32,
        path: PathBuf,
        listener: UnixListener,
        may_reach: Vec<u32>,
        poll: Registrar,
    ) -> std::io::Result<Self> {
        listener.set_nonblocking(true)?;
        poll.add(listener.as_fd(), LISTENER)?;
        Ok(Self {
            guest: cid.into(),
            path,
            listener,
            may_reach,
            poll,
            seats: [const { Seat::Free }; SEATS],
            resets: Vec::new(),
            next_host_port: FIRST_HOST_PORT,
            turn: 0,
        })
    }

    /// A unix stream takes a seat; without one it is closed.
    fn seat(&mut self, stream: &UnixStream) -> Option<usize> {
        let free = self.seats.iter().position(|seat| matches!(seat, Seat::Free))?;
        stream.set_nonblocking(true).ok()?;
        self.poll.add(stream.as_fd(), low_u32(wide(free)) + 1).ok()?;
        Some(free)
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if let Some(free) = self.seat(&stream) {
                self.put(free, Seat::Greeting(stream, Vec::new()));
                self.greet(free);
            }
        }
    }

    fn put(&mut self, index: usize, seat: Seat) {
        if let Some(place) = self.seats.get_mut(index) {
            *place = seat;
        }
    }

    /// Reads the wish of a host program, byte by byte: what follows its line is data.
    fn greet(&mut self, index: usize) {
        let Some(Seat::Greeting(stream, line)) = self.seats.get_mut(index) else { return };
        let mut byte = [0];
        let wish = loop {
            match stream.read(&mut byte) {
                Ok(1) if byte == *b"\n" => break port_wish(line),
                Ok(1) if line.len() < GREETING_MAX => line.extend(byte),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                _ => break None,
            }
        };
        let old = self.seats.get_mut(index).map(|seat| std::mem::replace(seat, Seat::Free));
        if let (Some(guest_port), Some(Seat::Greeting(stream, _))) = (wish, old) {
            let host_port = self.next_host_port;
            self.next_host_port = host_port.checked_add(1).unwrap_or(FIRST_HOST_PORT);
            let connection = Connection::asked(Key { guest_port, host_port }, stream);
            self.put(index, Seat::Taken(Box::new(connection)));
        }
    }

    /// Everything that the guest sends.
    fn hear(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        while let Some(mut chain) = rings.pop(TX)? {
            let mut raw = [0; HEADER];
            let length = chain.read(rings.memory(), &mut raw)?;
            if let Some(header) = Header::from_guest(&raw, self.guest).filter(|_| length == HEADER)
            {
                if u64::from(header.length) > chain.readable() {
                    return Err(Broken::Protocol {
                        field: "vsock header: len beyond the chain",
                        actual: header.length.into(),
                    });
                }
                self.obey(&header, &mut chain, rings)?;
            }
            rings.push(TX, &chain, 0)?;
        }
        Ok(())
    }

    fn obey(
        &mut self,
        header: &Header,
        chain: &mut Chain,
        rings: &Rings<'_>,
    ) -> Result<(), Broken> {
        let key = Key { guest_port: header.guest_port, host_port: header.host_port };
        let Some(connection) = self.find(key) else {
            match header.op {
                Op::Request => self.connect(key, header.credit),
                Op::Reset => {}
                _ => self.reset_later(key),
            }
            return Ok(());
        };
        connection.hear(header);
        if header.op == Op::Data && connection.phase == Phase::Open {
            let mut left = narrow(header.length.into());
            let mut bytes = vec![0; left.min(DATA_MAX)];
            while left > 0 && connection.phase == Phase::Open {
                let most = left.min(DATA_MAX);
                let piece = bytes.get_mut(..most).unwrap_or_default();
                chain.read(rings.memory(), piece)?;
                connection.take(piece);
                left -= most;
            }
        }
        Ok(())
    }

    fn find(&mut self, key: Key) -> Option<&mut Connection> {
        self.seats.iter_mut().find_map(|seat| match seat {
            Seat::Taken(connection) if connection.key == key => Some(connection.as_mut()),
            _ => None,
        })
    }

    /// The guest wants a service of the host's: only one that is on the list.
    fn connect(&mut self, key: Key, credit: Credit) {
        let path = self.may_reach.contains(&key.host_port).then(|| self.service(key.host_port));
        let stream = path.and_then(|path| crate::net::connect(&path).ok());
        let seat = stream.as_ref().and_then(|stream| self.seat(stream));
        match (stream, seat) {
            (Some(stream), Some(free)) => {
                let connection = Connection::accepted(key, stream, credit);
                self.put(free, Seat::Taken(Box::new(connection)));
            }
            _ => self.reset_later(key),
        }
    }

    fn service(&self, port: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!("_{port}"));
        name.into()
    }

    fn reset_later(&mut self, key: Key) {
        if self.resets.len() < RESETS_MAX {
            self.resets.push(key);
        }
    }

    /// Everything that we have to say to the guest, as far as it has room.
    fn speak(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        let mut space = Vec::new();
        loop {
            let Some(mut chain) = rings.pop(RX)? else { return Ok(()) };
            let room = narrow(chain.writable()).saturating_sub(HEADER).min(DATA_MAX);
            space.resize(room, 0);
            let Some(header) = self.next_packet(&mut space) else {
                rings.undo_pop(RX);
                return Ok(());
            };
            chain.write(rings.memory(), &header.to_guest(self.guest))?;
            let data = space.get(..narrow(header.length.into())).unwrap_or_default();
            chain.write(rings.memory(), data)?;
            rings.push(RX, &chain, packet::short(HEADER + data.len()))?;
        }
    }

    fn next_packet(&mut self, space: &mut [u8]) -> Option<Header> {
        if let Some(key) = self.resets.pop() {
            return Some(reset(key));
        }
        for step in 0..SEATS {
            let index = (self.turn + step) % SEATS;
            let Some(seat) = self.seats.get_mut(index) else { continue };
            let Seat::Taken(connection) = seat else { continue };
            let header = match connection.phase {
                Phase::Over => Some(reset(connection.key)),
                _ => connection.speak(space),
            };
            if connection.phase == Phase::Over {
                // A last word that was just found is dropped: the reset says it all.
                let key = connection.key;
                *seat = Seat::Free;
                return Some(reset(key));
            }
            if header.is_some() {
                self.turn = (index + 1) % SEATS;
                return header;
            }
        }
        None
    }
}

fn reset(key: Key) -> Header {
    let Key { guest_port, host_port } = key;
    let credit = Credit::default();
    Header { guest_port, host_port, op: Op::Reset, length: 0, flags: 0, credit }
}

/// `CONNECT port`, without the line's end.
fn port_wish(line: &[u8]) -> Option<u32> {
    std::str::from_utf8(line).ok()?.strip_prefix("CONNECT ")?.trim_end().parse().ok()
}

impl Device for Vsock {
    fn id(&self) -> u16 {
        19
    }

    fn class(&self) -> [u8; 3] {
        [0x07, 0x80, 0]
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![256, 256, 16]
    }

    fn config(&self) -> Vec<u8> {
        self.guest.to_le_bytes().to_vec()
    }

    fn process(&mut self, event: Event, rings: &mut Rings<'_>) -> Result<(), Broken> {
        match event {
            Event::Start | Event::Host(LISTENER) => self.accept(),
            Event::Host(token) => {
                let index = narrow(u64::from(token - 1));
                match self.seats.get_mut(index) {
                    Some(Seat::Taken(connection)) => connection.woken(),
                    _ => self.greet(index),
                }
            }
            Event::Queue(_) => {}
        }
        self.hear(rings)?;
        self.speak(rings)
    }

    fn reset(&mut self) {
        self.resets.clear();
        self.seats.fill_with(|| Seat::Free);
    }
}

#[cfg(test)]
mod tests;
