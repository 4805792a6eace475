use std::io::{BufRead, BufReader, Write};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::poll::Poll;
use crate::virtio::testing::Driver;

struct Bench {
    driver: Driver,
    device: Vsock,
    folder: tempfile::TempDir,
}

fn bench() -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v");
    let listener = UnixListener::bind(&path).unwrap();
    let poll = Registrar::new(Arc::new(Poll::new().unwrap()), 0);
    let device = Vsock::new(3, path, listener, vec![80], poll).unwrap();
    Bench { driver: Driver::new(3), device, folder }
}

fn header(op: Op, length: usize, credit: Credit) -> [u8; HEADER] {
    let header = Header {
        guest_port: 80,
        host_port: 1000,
        op,
        length: packet::short(length),
        flags: 3,
        credit,
    };
    // Ports are swapped by the direction: this is a packet from guest port 1000 to host port 80.
    let mut raw = header.to_guest(2);
    raw[..8].copy_from_slice(&3_u64.to_le_bytes());
    raw
}

const PLENTY: Credit = Credit { space: 1 << 20, forwarded: 0 };

impl Bench {
    fn send(&mut self, parts: &[&[u8]]) {
        self.driver.offer(TX, parts, &[]);
        self.work();
    }

    fn work(&mut self) {
        self.device.process(Event::Start, &mut self.driver.rings()).unwrap();
        for index in 1..=u32::try_from(SEATS).unwrap() {
            self.device.process(Event::Host(index), &mut self.driver.rings()).unwrap();
        }
    }

    fn room(&mut self, chains: usize) {
        for _ in 0..chains {
            self.driver.offer(RX, &[], &[44, 4000]);
        }
    }

    /// Operations and data that the guest got.
    fn heard(&mut self) -> Vec<(u16, Vec<u8>)> {
        let chains = self.driver.used(RX);
        let read = |raw: Vec<u8>| {
            let length = usize::try_from(crate::bytes::u32_at(&raw, 24).unwrap()).unwrap();
            (crate::bytes::u16_at(&raw, 30).unwrap(), raw[HEADER..HEADER + length].to_vec())
        };
        chains.into_iter().map(read).collect()
    }

    /// A connection from the guest to port 80.
    fn connected(&mut self) -> UnixStream {
        let service = UnixListener::bind(self.folder.path().join("v_80")).unwrap();
        self.room(8);
        self.send(&[&header(Op::Request, 0, PLENTY)]);
        let (stream, _) = service.accept().unwrap();
        assert_eq!(self.heard(), [(2, vec![])]);
        stream
    }
}

#[test]
fn a_guest_reaches_only_what_is_listed_and_there() {
    let mut bench = bench();
    bench.room(4);
    bench.send(&[&header(Op::Request, 0, PLENTY)]);
    assert_eq!(bench.heard(), [(3, vec![])], "listed, but nobody listens");
    let _other = UnixListener::bind(bench.folder.path().join("v_81")).unwrap();
    let mut raw = header(Op::Request, 0, PLENTY);
    raw[20] = 81;
    bench.send(&[&raw]);
    assert_eq!(bench.heard(), [(3, vec![])], "somebody listens, but it is not listed");
}

#[test]
fn data_flows_both_ways_and_ends_cleanly() {
    let mut bench = bench();
    let mut host = bench.connected();
    bench.send(&[
        &header(Op::Data, 5, PLENTY)[..20],
        &header(Op::Data, 5, PLENTY)[20..],
        b"he",
        b"",
        b"llo",
    ]);
    let mut text = [0; 5];
    host.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    host.write_all(b"answer").unwrap();
    bench.work();
    assert_eq!(bench.heard(), [(5, b"answer".to_vec())]);
    bench.send(&[&header(Op::Shutdown, 0, PLENTY)]);
    assert_eq!(host.read(&mut text).unwrap(), 0);
    assert_eq!(bench.heard(), [(3, vec![])]);
    assert!(bench.device.seats.iter().all(|seat| matches!(seat, Seat::Free)));
}

#[test]
fn a_host_program_connects_into_the_guest() {
    let mut bench = bench();
    bench.room(8);
    let mut host = UnixStream::connect(bench.folder.path().join("v")).unwrap();
    host.write_all(b"CONNECT 80\n").unwrap();
    bench.work();
    assert_eq!(bench.heard(), [(1, vec![])]);
    let mut raw = header(Op::Response, 0, PLENTY);
    raw[16..20].copy_from_slice(&80_u32.to_le_bytes());
    raw[20..24].copy_from_slice(&FIRST_HOST_PORT.to_le_bytes());
    bench.send(&[&raw]);
    let mut line = String::new();
    BufReader::new(&host).read_line(&mut line).unwrap();
    assert_eq!(line, format!("OK {FIRST_HOST_PORT}\n"));
}

#[test]
fn bad_greetings_are_closed() {
    let mut bench = bench();
    for text in
        ["CONNECT x\n", "HELLO\n", "CONNECT 99999999999\n", "CONNECT 4294967295          \n"]
    {
        let mut host = UnixStream::connect(bench.folder.path().join("v")).unwrap();
        host.write_all(text.as_bytes()).unwrap();
        bench.work();
        assert!(!matches!(host.read(&mut [0]), Ok(1)), "{text}");
    }
    assert!(bench.device.seats.iter().all(|seat| matches!(seat, Seat::Free)));
}

#[test]
fn nothing_is_read_that_the_guest_has_no_room_for() {
    let mut bench = bench();
    let mut host = bench.connected();
    bench.send(&[&header(Op::CreditUpdate, 0, Credit { space: 10, forwarded: 0 })]);
    host.write_all(b"0123456789abcdef").unwrap();
    bench.work();
    assert_eq!(bench.heard(), [(5, b"0123456789".to_vec())]);
    bench.send(&[&header(Op::CreditUpdate, 0, Credit { space: 10, forwarded: 4 })]);
    assert_eq!(bench.heard(), [(5, b"abcd".to_vec())]);
}

#[test]
fn a_guest_that_sends_beyond_its_credit_is_cut_off() {
    let mut bench = bench();
    let _host = bench.connected(); // never reads
    let piece = vec![7; 60_000];
    for _ in 0..20 {
        bench.send(&[&header(Op::Data, piece.len(), PLENTY), &piece]);
    }
    assert!(bench.heard().iter().any(|(op, _)| *op == 3));
}

#[test]
fn a_length_beyond_the_chain_breaks_the_queue() {
    let mut bench = bench();
    bench.connected();
    bench.driver.offer(TX, &[&header(Op::Data, 9, PLENTY), b"12345678"], &[]);
    assert!(bench.device.process(Event::Queue(TX), &mut bench.driver.rings()).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Any packets in any order: no panic, and memory stays bounded.
    #[test]
    fn a_hostile_guest_is_survived(
        packets in proptest::collection::vec((0u16..9, 0usize..300, 0u32..6, any::<[u32; 2]>(), 0u32..3), 1..40)
    ) {
        let mut bench = bench();
        let _service = UnixListener::bind(bench.folder.path().join("v_80")).unwrap();
        for (op, length, flags, [space, forwarded], port) in packets {
            bench.room(1);
            let mut raw = header(Op::Data, length, Credit { space, forwarded });
            raw[30..32].copy_from_slice(&op.to_le_bytes());
            raw[32..36].copy_from_slice(&flags.to_le_bytes());
            raw[16..20].copy_from_slice(&(1000 + port).to_le_bytes());
            bench.send(&[&raw, &vec![1; length]]);
            bench.driver.used(RX);
            prop_assert!(bench.device.resets.len() <= RESETS_MAX);
        }
    }
}
