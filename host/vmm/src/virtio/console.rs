//! Console device with several ports (virtio 1.2, 5.3).
//!
//! Port 0 is the guest's console: output only, limited. Each further port has a
//! name and a unix socket on the host, which takes one connection at a time:
//! what QEMU calls a virtserialport with a socket chardev.

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use super::queue::{Broken, Chain};
use super::{Device, Event, F_EVENT_IDX, Rings};
use crate::bytes::{low_u32, u16_at, u32_at, wide};
use crate::poll::Registrar;

/// A named port and its listening socket, opened before the jail closes.
pub(crate) struct Port {
    pub(crate) name: String,
    pub(crate) listener: UnixListener,
}

/// The device.
pub(crate) struct Console {
    out: Box<dyn Write + Send>,
    left: u64,
    ports: Vec<Line>,
    /// Messages that wait for a place in the control queue; bounded, see [`CONTROL_MAX`].
    control: Vec<Vec<u8>>,
    poll: Registrar,
}

/// One named port.
struct Line {
    name: String,
    listener: UnixListener,
    stream: Option<UnixStream>,
    /// The guest has opened its end.
    guest_open: bool,
    /// Bytes of the guest that the socket has not taken yet.
    unsent: Vec<u8>,
    /// A chain of the guest's that was partly copied into `unsent`.
    held: Option<Chain>,
}

const F_MULTIPORT: u64 = 1 << 1;
const CONTROL_IN: usize = 2;
const CONTROL_OUT: usize = 3;
/// A guest that asks for more answers than it makes room for gets no more.
const CONTROL_MAX: usize = 64;
/// Bytes copied at once between guest and socket.
const PIECE: usize = 32 << 10;

const DEVICE_READY: u16 = 0;
const DEVICE_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

impl Console {
    /// A console that passes on at most `limit` bytes of output, and named ports.
    pub(crate) fn new(
        out: Box<dyn Write + Send>,
        limit: u64,
        ports: Vec<Port>,
        poll: Registrar,
    ) -> std::io::Result<Self> {
        let mut lines = Vec::new();
        for (index, port) in ports.into_iter().enumerate() {
            port.listener.set_nonblocking(true)?;
            poll.add(port.listener.as_fd(), listener_token(index))?;
            lines.push(Line {
                name: port.name,
                listener: port.listener,
                stream: None,
                guest_open: false,
                unsent: Vec::new(),
                held: None,
            });
        }
        Ok(Self { out, left: limit, ports: lines, control: Vec::new(), poll })
    }

    fn tell(&mut self, port: usize, event: u16, value: u16, text: &str) {
        if self.control.len() >= CONTROL_MAX {
            return;
        }
        let mut message = low_u32(wide(port)).to_le_bytes().to_vec();
        message.extend(event.to_le_bytes());
        message.extend(value.to_le_bytes());
        message.extend(text.as_bytes());
        self.control.push(message);
    }

    /// Messages from the guest about ports.
    fn hear(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        while let Some(mut chain) = rings.pop(CONTROL_OUT)? {
            let mut message = [0; 8];
            let length = chain.read(rings.memory(), &mut message)?;
            rings.push(CONTROL_OUT, &chain, 0)?;
            let message = message.get(..length).unwrap_or_default();
            let port =
                u32_at(message, 0).map_or(usize::MAX, |port| crate::bytes::narrow(port.into()));
            if let (Some(event), Some(value)) = (u16_at(message, 4), u16_at(message, 6)) {
                self.answer(port, event, value);
            }
        }
        Ok(())
    }

    fn answer(&mut self, port: usize, event: u16, value: u16) {
        let line = port.checked_sub(1);
        match event {
            DEVICE_READY if value == 1 => {
                for port in 0..=self.ports.len() {
                    self.tell(port, DEVICE_ADD, 1, "");
                }
            }
            PORT_READY if value == 1 && port == 0 => {
                self.tell(0, CONSOLE_PORT, 1, "");
                self.tell(0, PORT_OPEN, 1, "");
            }
            PORT_READY if value == 1 => {
                let Some(line) = line.and_then(|line| self.ports.get(line)) else { return };
                let (name, open) = (line.name.clone(), line.stream.is_some());
                self.tell(port, PORT_NAME, 1, &name);
                self.tell(port, PORT_OPEN, open.into(), "");
            }
            PORT_OPEN => {
                if let Some(line) = line.and_then(|line| self.ports.get_mut(line)) {
                    line.guest_open = value == 1;
                }
            }
            _ => {}
        }
    }

    fn speak(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        while !self.control.is_empty() {
            let Some(mut chain) = rings.pop(CONTROL_IN)? else { return Ok(()) };
            let message = self.control.remove(0);
            let written = chain.write(rings.memory(), &message)?;
            rings.push(CONTROL_IN, &chain, u32::try_from(written).unwrap_or(0))?;
        }
        Ok(())
    }

    /// Output of the console itself.
    fn print(&mut self, rings: &mut Rings<'_>) -> Result<(), Broken> {
        while let Some(mut chain) = rings.pop(1)? {
            let mut bytes = [0; 1024];
            while self.left > 0 {
                let length = chain.read(rings.memory(), &mut bytes)?;
                if length == 0 {
                    break;
                }
                let allowed = usize::try_from(self.left).unwrap_or(usize::MAX).min(length);
                self.left -= wide(allowed);
                // A console that cannot be written to is no reason to stop a machine.
                let _ = self.out.write_all(bytes.get(..allowed).unwrap_or_default());
            }
            rings.push(1, &chain, 0)?;
        }
        let _ = self.out.flush();
        Ok(())
    }

    /// One peer at a time: a second one is turned away.
    fn accept(&mut self, index: usize) {
        let Some(line) = self.ports.get_mut(index) else { return };
        let mut came = false;
        while let Ok((stream, _)) = line.listener.accept() {
            let usable = line.stream.is_none()
                && stream.set_nonblocking(true).is_ok()
                && self.poll.add(stream.as_fd(), stream_token(index)).is_ok();
            if usable {
                line.stream = Some(stream);
                came = true;
            }
        }
        if came {
            self.tell(index + 1, PORT_OPEN, 1, "");
        }
    }

    fn hang_up(&mut self, index: usize) {
        let Some(line) = self.ports.get_mut(index) else { return };
        // Dropping the stream closes it, which also takes it out of the poll set.
        line.stream = None;
        line.unsent.clear();
        self.tell(index + 1, PORT_OPEN, 0, "");
    }

    /// Moves what can be moved on one port, both ways.
    fn pump(&mut self, index: usize, rings: &mut Rings<'_>) -> Result<(), Broken> {
        let Some(line) = self.ports.get_mut(index) else { return Ok(()) };
        let (receive, transmit) = (4 + 2 * index, 5 + 2 * index);
        let alive = line.send(transmit, rings)? && line.receive(receive, rings)?;
        if !alive {
            self.hang_up(index);
        }
        Ok(())
    }
}

/// Whether the peer has hung up and left nothing to read.
fn is_gone(stream: &UnixStream) -> bool {
    let flags = rustix::net::RecvFlags::PEEK | rustix::net::RecvFlags::DONTWAIT;
    matches!(rustix::net::recv(stream, &mut [0u8; 1][..], flags), Ok((0, _)))
}

fn listener_token(index: usize) -> u32 {
    low_u32(wide(index * 2))
}

/// Even tokens are listeners, odd ones streams.
fn stream_token(index: usize) -> u32 {
    low_u32(wide(index * 2 + 1))
}

impl Line {
    /// From the guest to the socket. False when the peer is gone.
    fn send(&mut self, queue: usize, rings: &mut Rings<'_>) -> Result<bool, Broken> {
        loop {
            if !self.flush() {
                return Ok(false);
            }
            if !self.unsent.is_empty() {
                return Ok(true);
            }
            let next = match self.held.take() {
                Some(chain) => Some(chain),
                None => rings.pop(queue)?,
            };
            let Some(mut chain) = next else { return Ok(true) };
            self.unsent.resize(PIECE, 0);
            let length = chain.read(rings.memory(), &mut self.unsent)?;
            self.unsent.truncate(length);
            if chain.readable() == 0 {
                rings.push(queue, &chain, 0)?;
            } else {
                self.held = Some(chain);
            }
        }
    }

    /// Writes what is unsent. Without a peer it is dropped, as on an unplugged cable.
    fn flush(&mut self) -> bool {
        let Some(stream) = &mut self.stream else {
            self.unsent.clear();
            return true;
        };
        while !self.unsent.is_empty() {
            match stream.write(&self.unsent) {
                Ok(0) => return false,
                Ok(length) => drop(self.unsent.drain(..length)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// From the socket to the guest. False when the peer is gone.
    fn receive(&mut self, queue: usize, rings: &mut Rings<'_>) -> Result<bool, Broken> {
        if !self.guest_open {
            return Ok(!self.stream.as_ref().is_some_and(is_gone));
        }
        let mut bytes = vec![0; PIECE];
        loop {
            let Some(stream) = &mut self.stream else { return Ok(true) };
            let Some(mut chain) = rings.pop(queue)? else { return Ok(true) };
            let room = usize::try_from(chain.writable()).unwrap_or(PIECE).min(PIECE);
            let read = stream.read(bytes.get_mut(..room).unwrap_or_default());
            let length = match read {
                Ok(length) if length > 0 => length,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    rings.undo_pop(queue);
                    return Ok(true);
                }
                _ => {
                    rings.undo_pop(queue);
                    return Ok(false);
                }
            };
            let written = chain.write(rings.memory(), bytes.get(..length).unwrap_or_default())?;
            rings.push(queue, &chain, u32::try_from(written).unwrap_or(0))?;
        }
    }
}

impl Device for Console {
    fn id(&self) -> u16 {
        3
    }

    fn class(&self) -> [u8; 3] {
        [0x07, 0x80, 0]
    }

    fn features(&self) -> u64 {
        F_MULTIPORT | F_EVENT_IDX
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![128; 4 + 2 * self.ports.len()]
    }

    fn config(&self) -> Vec<u8> {
        let mut config = vec![0; 4];
        config.extend(low_u32(wide(self.ports.len() + 1)).to_le_bytes());
        config.extend([0; 4]);
        config
    }

    fn process(&mut self, event: Event, rings: &mut Rings<'_>) -> Result<(), Broken> {
        // Edges that came before the guest was ready are gone: look at every listener then.
        for index in 0..self.ports.len() {
            if event == Event::Start || event == Event::Host(listener_token(index)) {
                self.accept(index);
            }
        }
        self.hear(rings)?;
        self.print(rings)?;
        for index in 0..self.ports.len() {
            self.pump(index, rings)?;
        }
        self.speak(rings)
    }

    fn reset(&mut self) {
        self.control.clear();
        for line in &mut self.ports {
            line.guest_open = false;
            line.held = None;
            line.unsent.clear();
        }
    }
}
