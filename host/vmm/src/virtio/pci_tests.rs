use proptest::prelude::*;

use super::*;
use crate::pci::msix::tests::Sent;
use crate::virtio::rng::Rng;

fn device() -> (VirtioPci, Memory, Arc<Sent>) {
    let memory = Memory::new(1 << 20).unwrap();
    let sent = Arc::new(Sent::default());
    let bar = Window { bar: 0, base: 0xe010_0000, length: BAR_LEN };
    let doorbell = EventFd::new(0).unwrap();
    (VirtioPci::new(Box::new(Rng), memory.clone(), &bar, sent.clone(), doorbell), memory, sent)
}

fn write(device: &VirtioPci, at: u64, value: u32) {
    device.write_bar(0, at, &value.to_le_bytes());
}

fn read(device: &VirtioPci, at: u64) -> u32 {
    let mut word = [0; 4];
    device.read_bar(0, at, &mut word);
    u32::from_le_bytes(word)
}

fn negotiate(device: &VirtioPci) {
    write(device, 0x14, 3);
    write(device, 0x08, 1);
    write(device, 0x0c, 1);
    write(device, 0x14, 11);
}

/// The walk that a driver makes, from reset to the first interrupt.
#[test]
fn an_honest_driver_gets_its_random_bytes() {
    let (device, memory, sent) = device();
    device.write_config(0x40 + 16 * 4 + 4 + 2, &[0, 0x80]); // after four virtio capabilities
    write(&device, MSIX_TABLE + 16, 0xfee0_0000);
    write(&device, MSIX_TABLE + 24, 0x51);
    write(&device, MSIX_TABLE + 28, 0);
    negotiate(&device);
    assert_eq!(read(&device, 0x14) & 0xff, 11);
    for (at, value) in
        [(0x16, 0), (0x18, 8), (0x1a, 1), (0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000), (0x1c, 1)]
    {
        write(&device, at, value);
    }
    write(&device, 0x14, 15);
    let mut descriptor = 0x8000_u64.to_le_bytes().to_vec();
    descriptor.extend([64, 0, 0, 0, 2, 0, 0, 0]);
    memory.write(0x1000, &descriptor).unwrap();
    memory.write(0x2000, &[0, 0, 1, 0, 0, 0]).unwrap();
    assert!(!device.service(Event::Queue(0)));
    let mut bytes = [0; 64];
    memory.read(0x8000, &mut bytes).unwrap();
    assert_ne!(bytes, [0; 64]);
    assert_eq!(memory.load_u16(0x3002), Ok(1));
    assert_eq!(sent.0.lock().unwrap().as_slice(), [(0xfee0_0000, 0x51)]);
    assert_eq!(read(&device, ISR) & 0xff, 1);
    assert_eq!(read(&device, ISR) & 0xff, 0);
}

#[test]
fn features_that_were_not_offered_are_not_taken() {
    let (device, ..) = device();
    write(&device, 0x14, 3);
    write(&device, 0x0c, 1 << 5);
    write(&device, 0x08, 1);
    write(&device, 0x0c, 1);
    write(&device, 0x14, 15);
    assert_eq!(read(&device, 0x14) & 0xff, 3);
}

#[test]
fn a_broken_queue_asks_for_reset_and_comes_back_after_it() {
    let (device, memory, _) = device();
    negotiate(&device);
    for (at, value) in
        [(0x18, 8), (0x20, 0x1000), (0x28, 0x2000), (0x30, 0x3000), (0x1c, 1), (0x14, 15)]
    {
        write(&device, at, value);
    }
    memory.store_u16(0x2002, 9).unwrap();
    device.service(Event::Queue(0));
    assert_eq!(read(&device, 0x14) & 0xff, 15 | u32::from(NEEDS_RESET));
    memory.store_u16(0x2002, 1).unwrap();
    device.service(Event::Queue(0));
    assert_eq!(memory.load_u16(0x3002), Ok(0), "a stopped device does not touch memory");
    write(&device, 0x14, 0);
    assert_eq!(read(&device, 0x14) & 0xff, 0);
}

proptest! {
    /// Any registers in any order, with any memory behind the rings.
    #[test]
    fn a_hostile_driver_is_survived(
        ring in proptest::collection::vec(any::<u8>(), 4096),
        steps in proptest::collection::vec((0u64..0x40, 0usize..5, any::<u64>()), 1..200),
    ) {
        let (device, memory, _) = device();
        memory.write(0x1000, &ring).unwrap();
        negotiate(&device);
        for (at, width, value) in steps {
            let width = [1, 2, 4, 8, 3][width];
            // Half of the time something useful, so that deep states are reached.
            let value = if value % 2 == 0 { value >> 32 & 0xf00f } else { value };
            device.write_bar(0, at, &value.to_le_bytes()[..width]);
            device.write_bar(0, MSIX_TABLE + at, &value.to_le_bytes()[..width]);
            device.write_config(usize::try_from(at * 4).unwrap(), &value.to_le_bytes()[..width]);
            let mut to = [0; 8];
            device.read_bar(0, at, &mut to[..width]);
            device.service(Event::Queue(0));
        }
    }
}
