//! What the fuzz targets drive: the queue walk and the vsock device, on memory that the input
//! writes as a guest would. Compiled for them alone.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use super::queue::{Broken, Geometry, Queue};
use super::vsock::Vsock;
use super::{Device, Event, Rings};
use crate::memory::Memory;
use crate::poll::{Poll, Registrar};

const MEMORY: u64 = 1 << 20;

/// Takes bytes off the front of the input; what is missing is zero.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or_default()
    }

    fn short(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    fn word(&mut self) -> u32 {
        u32::from(self.short()) | u32::from(self.short()) << 16
    }
}

/// Any memory, any ring: the walk ends, and a chain never has more than its descriptors say.
pub fn queue(bytes: &[u8]) {
    let mut input = Input(bytes);
    let Ok(memory) = Memory::new(MEMORY) else { return };
    let shape = Geometry {
        size: 1_u16.checked_shl(u32::from(input.byte() % 17)).unwrap_or(input.short()),
        descriptors: u64::from(input.word() & 0x1f_ffff),
        available: u64::from(input.word() & 0x1f_ffff),
        used: u64::from(input.word() & 0x1f_ffff),
    };
    let Ok(mut queue) = Queue::new(shape, input.byte() & 1 == 1, &memory) else { return };
    for _ in 0..16 {
        let at = u64::from(input.word());
        let length = usize::from(input.byte());
        let _ = memory.write(at & 0xf_ffff, input.take(length));
        if let Err(error) = drain(&mut queue, &memory, usize::from(shape.size)) {
            assert!(!error.to_string().is_empty(), "a broken queue has a reason");
            return;
        }
    }
}

fn drain(queue: &mut Queue, memory: &Memory, size: usize) -> Result<(), Broken> {
    let mut bytes = [0; 512];
    for number in 0.. {
        let Some(mut chain) = queue.pop(memory)? else { break };
        assert!(number < 0x1_0000, "a ring that never empties");
        let (readable, writable) = (chain.readable(), chain.writable());
        let most = u64::try_from(size).unwrap_or(u64::MAX).saturating_mul(u64::from(u32::MAX));
        assert!(readable.saturating_add(writable) <= most, "more than its descriptors");
        let read = chain.read(memory, &mut bytes)?;
        assert!(u64::try_from(read).unwrap_or(u64::MAX) <= readable, "read beyond the chain");
        let written = chain.write(memory, &bytes)?;
        assert!(u64::try_from(written).unwrap_or(u64::MAX) <= writable, "wrote beyond the chain");
        queue.push(memory, &chain, 1)?;
        queue.wants_interrupt(memory)?;
    }
    Ok(())
}

/// Sockets of this process, made once.
struct Sockets {
    path: PathBuf,
    device: UnixListener,
    service: UnixListener,
}

thread_local! {
    static SOCKETS: RefCell<Option<Sockets>> = const { RefCell::new(None) };
}

const SIZE: u16 = 16;
const RX: usize = 0;
const TX: usize = 1;

/// Packets of any content in chains of any shape, and host programs that come and go: the
/// device stays, or says what is broken and starts anew.
pub fn vsock(bytes: &[u8]) {
    SOCKETS.with_borrow_mut(|sockets| {
        if sockets.is_none() {
            *sockets = Sockets::new().ok();
        }
        if let Some(sockets) = sockets {
            play(bytes, sockets);
        }
    });
}

impl Sockets {
    fn new() -> std::io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("casemate-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let path = folder.join("v");
        let bind = |name: &str| {
            let _ = std::fs::remove_file(folder.join(name));
            UnixListener::bind(folder.join(name))
        };
        let (device, service) = (bind("v")?, bind("v_80")?);
        service.set_nonblocking(true)?;
        Ok(Self { path, device, service })
    }
}

/// One guest's life.
struct Play<'a> {
    memory: Memory,
    queues: Vec<Option<Queue>>,
    device: Vsock,
    sockets: &'a Sockets,
    streams: Vec<UnixStream>,
    offered: [u16; 3],
}

fn play(bytes: &[u8], sockets: &Sockets) {
    let (Ok(memory), Ok(poll)) = (Memory::new(MEMORY), Poll::new()) else { return };
    let Ok(listener) = sockets.device.try_clone() else { return };
    let registrar = Registrar::new(Arc::new(poll), 0);
    let Ok(device) = Vsock::new(3, sockets.path.clone(), listener, vec![80], registrar) else {
        return;
    };
    let queues = (0..3).map(|index| Queue::new(shape(index), false, &memory).ok()).collect();
    let (streams, offered) = (Vec::new(), [0; 3]);
    let mut play = Play { memory, queues, device, sockets, streams, offered };
    let mut input = Input(bytes);
    for _ in 0..64 {
        if input.0.is_empty() {
            break;
        }
        play.act(&mut input);
        while let Ok((stream, _)) = play.sockets.service.accept() {
            let _ = stream.set_nonblocking(true);
            play.streams.push(stream);
        }
    }
}

impl Play<'_> {
    fn act(&mut self, input: &mut Input<'_>) {
        match input.byte() % 8 {
            0 | 1 => self.packet(input),
            2 => {
                let length = input.word() & 0x1_ffff;
                self.offer(RX, &[(0x4_0000, length, 2)]);
            }
            3 => {
                let (at, length) = (u64::from(input.word() & 0xf_ffff), usize::from(input.byte()));
                let _ = self.memory.write(at, input.take(length));
            }
            4 => self.work(Event::Host(u32::from(input.byte()))),
            5 => {
                if let Ok(mut stream) = UnixStream::connect(&self.sockets.path) {
                    let length = usize::from(input.byte() % 32);
                    let _ = stream.write_all(input.take(length));
                    let _ = stream.set_nonblocking(true);
                    self.streams.push(stream);
                }
            }
            6 => {
                let length = usize::from(input.byte());
                let bytes = input.take(length);
                if let Some(stream) = self.streams.first_mut() {
                    let _ = stream.read(&mut [0; 4096]);
                    let _ = stream.write(bytes);
                }
            }
            _ => drop(self.streams.pop()),
        }
        self.work(Event::Start);
    }

    /// A packet whose ids are right most of the time, in one to three descriptors.
    fn packet(&mut self, input: &mut Input<'_>) {
        let mut raw = [0_u8; 44];
        let fields = [
            (0, u64::from(3 + (input.byte() & 0x80)).to_le_bytes().to_vec()),
            (8, 2_u64.to_le_bytes().to_vec()),
            (16, u32::from(input.byte() & 3).to_le_bytes().to_vec()),
            (20, u32::from(79 + (input.byte() & 3)).to_le_bytes().to_vec()),
            (28, vec![1, 0, input.byte() & 15, 0]),
            (32, input.word().to_le_bytes().to_vec()),
            (36, input.word().to_le_bytes().to_vec()),
            (40, input.word().to_le_bytes().to_vec()),
        ];
        let length = usize::from(input.byte());
        let said = u32::try_from(length).unwrap_or_default() + u32::from(input.byte() >> 7);
        crate::bytes::put(&mut raw, 24, &said.to_le_bytes());
        for (at, field) in fields {
            crate::bytes::put(&mut raw, at, &field);
        }
        let cut = u32::from(input.byte() % 44);
        let body = input.take(length);
        let _ = self.memory.write(0x2_0000, &raw);
        let _ = self.memory.write(0x2_002c, body);
        let rest = 44 - cut + u32::try_from(body.len()).unwrap_or_default();
        self.offer(TX, &[(0x2_0000, cut, 0), (0x2_0000 + u64::from(cut), rest, 0)]);
    }

    /// A chain of these descriptors: address, length, flags.
    fn offer(&mut self, queue: usize, parts: &[(u64, u32, u16)]) {
        let shape = shape(queue);
        let Some(offered) = self.offered.get_mut(queue) else { return };
        let first = offered.wrapping_mul(2) % SIZE;
        for (number, (address, length, flags)) in (0_u16..).zip(parts) {
            let more = usize::from(number) + 1 < parts.len();
            let mut raw = address.to_le_bytes().to_vec();
            raw.extend(length.to_le_bytes());
            raw.extend((flags | u16::from(more)).to_le_bytes());
            raw.extend(((first + number + 1) % SIZE).to_le_bytes());
            let at = shape.descriptors + 16 * u64::from((first + number) % SIZE);
            let _ = self.memory.write(at, &raw);
        }
        let at = shape.available + 4 + 2 * u64::from(*offered % SIZE);
        let _ = self.memory.write(at, &first.to_le_bytes());
        *offered = offered.wrapping_add(1);
        let _ = self.memory.store_u16(shape.available + 2, *offered);
    }

    /// Lets the device work; one that is broken is reset, as its driver would.
    fn work(&mut self, event: Event) {
        let mut rings = Rings::new(&self.memory, &mut self.queues);
        if self.device.process(event, &mut rings).is_err() {
            self.device.reset();
            let anew = |index| Queue::new(shape(index), false, &self.memory).ok();
            self.queues = (0..3).map(anew).collect();
        }
    }
}

fn shape(index: usize) -> Geometry {
    let base = 0x1_0000 + 0x4000 * crate::bytes::wide(index);
    Geometry { size: SIZE, descriptors: base, available: base + 0x1000, used: base + 0x2000 }
}
