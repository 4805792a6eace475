use proptest::prelude::*;

use super::*;
use crate::bytes::{low_u8, low_u32};

const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;

fn shape(size: u16) -> Geometry {
    Geometry { size, descriptors: DESC, available: AVAIL, used: USED }
}

fn memory() -> Memory {
    Memory::new(1 << 20).unwrap()
}

fn describe(memory: &Memory, index: u16, address: u64, length: u32, flags: u16, next: u16) {
    let mut raw = address.to_le_bytes().to_vec();
    raw.extend(length.to_le_bytes());
    raw.extend(flags.to_le_bytes());
    raw.extend(next.to_le_bytes());
    memory.write(DESC + 16 * u64::from(index), &raw).unwrap();
}

fn offer(memory: &Memory, size: u16, number: u16, head: u16) {
    let at = AVAIL + 4 + 2 * u64::from(number % size);
    memory.write(at, &head.to_le_bytes()).unwrap();
    memory.store_u16(AVAIL + 2, number.wrapping_add(1)).unwrap();
}

/// Ring arithmetic over every value: places stay inside, and no count is off by one.
#[test]
fn arithmetic_holds_for_every_index() {
    for shift in 0..16 {
        let size = 1u16 << shift;
        for number in 0..=u16::MAX {
            assert_eq!(u32::from(slot(number, size)), u32::from(number) % u32::from(size));
        }
    }
    for next in [0, 1, 255, 32767, 32768, 65535u16] {
        for ahead in 0..=u16::MAX {
            let found = waiting(next.wrapping_add(ahead), next, 256);
            assert_eq!(found, (ahead <= 256).then_some(ahead));
        }
    }
}

/// An event is crossed exactly when it lies in [old, new), counted around the circle.
#[test]
fn crossing_is_exact_around_the_circle() {
    for old in [0u16, 1, 32767, 65530, 65535] {
        for steps in (0..=u16::MAX).step_by(97).chain([0, 1, 2, 65534, 65535]) {
            let new = old.wrapping_add(steps);
            for offset in (0..=u16::MAX).step_by(61).chain([steps.wrapping_sub(1), steps]) {
                let event = old.wrapping_add(offset);
                assert_eq!(crossed(event, new, old), offset < steps, "{event} {new} {old}");
            }
        }
    }
}

#[test]
fn a_chain_is_read_and_written_across_its_parts() {
    let memory = memory();
    describe(&memory, 3, 0x8000, 3, NEXT, 1);
    describe(&memory, 1, 0x9000, 0, NEXT, 2);
    describe(&memory, 2, 0xa000, 4, NEXT, 0);
    describe(&memory, 0, 0xb000, 2, WRITE, 0);
    memory.write(0x8000, b"abc").unwrap();
    memory.write(0xa000, b"defg").unwrap();
    offer(&memory, 4, 0, 3);
    let mut queue = Queue::new(shape(4), false, &memory).unwrap();
    let mut chain = queue.pop(&memory).unwrap().unwrap();
    assert_eq!((chain.readable(), chain.writable()), (7, 2));
    let mut text = [0; 5];
    assert_eq!(chain.read(&memory, &mut text), Ok(5));
    assert_eq!(&text, b"abcde");
    assert_eq!(chain.read(&memory, &mut text), Ok(2));
    assert_eq!(chain.write(&memory, b"xyz"), Ok(2));
    queue.push(&memory, &chain, 2).unwrap();
    assert_eq!(memory.load_u16(USED + 2), Ok(1));
    assert_eq!(queue.wants_interrupt(&memory), Ok(true));
    assert_eq!(queue.wants_interrupt(&memory), Ok(false));
    assert_eq!(queue.pop(&memory), Ok(None));
}

#[test]
fn every_broken_rule_is_named() {
    let memory = memory();
    let taken = |describe_it: &dyn Fn(&Memory)| {
        describe_it(&memory);
        offer(&memory, 4, 0, 0);
        Queue::new(shape(4), false, &memory).unwrap().pop(&memory).unwrap_err()
    };
    let looped = taken(&|memory| describe(memory, 0, 0x8000, 1, NEXT, 0));
    assert_eq!(looped, Broken::Loop { size: 4 });
    let indirect = taken(&|memory| describe(memory, 0, 0x8000, 16, 4, 0));
    assert_eq!(indirect, Broken::Flags { flags: 4 });
    let outside = taken(&|memory| describe(memory, 0, (1 << 20) - 1, 2, 0, 0));
    assert!(matches!(outside, Broken::Memory(_)));
    let wraps = taken(&|memory| describe(memory, 0, u64::MAX, 2, 0, 0));
    assert!(matches!(wraps, Broken::Memory(_)));
    // Each part is RAM, and the sum is more than any driver asks for at once.
    let large = Memory::new(CHAIN_BYTES).unwrap();
    let all = low_u32(CHAIN_BYTES);
    describe(&large, 0, 0, all, NEXT, 1);
    describe(&large, 1, 0, 1, 0, 0);
    offer(&large, 4, 0, 0);
    let mut queue = Queue::new(shape(4), false, &large).unwrap();
    assert_eq!(queue.pop(&large), Err(Broken::Bytes { most: CHAIN_BYTES }));
    let beyond = taken(&|memory| describe(memory, 0, 0x8000, 1, NEXT, 4));
    assert_eq!(beyond, Broken::Descriptor { index: 4, size: 4 });
    let order = taken(&|memory| {
        describe(memory, 0, 0x8000, 1, NEXT | WRITE, 1);
        describe(memory, 1, 0x8000, 1, 0, 0);
    });
    assert_eq!(order, Broken::Flags { flags: 0 });
    memory.store_u16(AVAIL + 2, 5).unwrap();
    let ahead = Queue::new(shape(4), false, &memory).unwrap().pop(&memory).unwrap_err();
    assert_eq!(ahead, Broken::Index { available: 5, next: 0, size: 4 });
}

#[test]
fn impossible_geometry_is_refused() {
    let memory = memory();
    for bad in [
        Geometry { size: 0, ..shape(4) },
        Geometry { size: 3, ..shape(4) },
        Geometry { descriptors: DESC + 8, ..shape(4) },
        Geometry { available: AVAIL + 1, ..shape(4) },
        Geometry { used: USED + 2, ..shape(4) },
        Geometry { used: (1 << 20) - 16, ..shape(4) },
        Geometry { available: u64::MAX - 1, ..shape(4) },
    ] {
        assert!(matches!(Queue::new(bad, true, &memory), Err(Broken::Geometry { .. })), "{bad:?}");
    }
}

proptest! {
    /// Whatever lies in the rings: no panic, no endless walk, and parts stay in RAM.
    #[test]
    fn any_memory_is_survived(
        ring in proptest::collection::vec(any::<u8>(), 256),
        table in proptest::collection::vec(0u8..4, 16 * 8),
        wild in proptest::collection::vec((0u64..128, any::<u8>()), 0..16),
        event_index: bool,
    ) {
        let memory = memory();
        memory.write(DESC, &table).unwrap();
        memory.write(AVAIL, &ring).unwrap();
        for (at, byte) in wild {
            memory.write(DESC + at, &[byte]).unwrap();
        }
        let mut queue = Queue::new(shape(8), event_index, &memory).unwrap();
        for _ in 0..32 {
            let Ok(Some(mut chain)) = queue.pop(&memory) else { break };
            let mut bytes = vec![0; 64];
            prop_assert!(chain.read(&memory, &mut bytes).is_ok());
            prop_assert!(chain.write(&memory, &bytes).is_ok());
            prop_assert!(queue.push(&memory, &chain, 1).is_ok());
            prop_assert!(queue.wants_interrupt(&memory).is_ok());
        }
    }

    /// What goes in comes out, in any split into parts.
    #[test]
    fn bytes_survive_any_split(
        lengths in proptest::collection::vec(0u32..200, 1..8),
        steps in proptest::collection::vec(1usize..100, 1..40),
    ) {
        let memory = memory();
        let mut expected = Vec::new();
        for (index, length) in (0u16..).zip(&lengths) {
            let last = usize::from(index) + 1 == lengths.len();
            let address = 0x8000 + u64::from(index) * 0x400;
            describe(&memory, index, address, *length, if last { 0 } else { NEXT }, index + 1);
            let bytes: Vec<u8> = (0..*length).map(|n| low_u8(u64::from(n * 7) + u64::from(index))).collect();
            memory.write(address, &bytes).unwrap();
            expected.extend(bytes);
        }
        offer(&memory, 8, 0, 0);
        let mut queue = Queue::new(shape(8), false, &memory).unwrap();
        let mut chain = queue.pop(&memory).unwrap().unwrap();
        let mut found = Vec::new();
        for step in steps.iter().cycle() {
            let mut bytes = vec![0; *step];
            let length = chain.read(&memory, &mut bytes).unwrap();
            found.extend_from_slice(&bytes[..length]);
            if length == 0 { break }
        }
        prop_assert_eq!(found, expected);
    }
}
