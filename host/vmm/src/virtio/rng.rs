//! Entropy device (virtio 1.2, 5.4): fills the guest's buffers from the kernel's generator.

use super::queue::Broken;
use super::{Device, Event, F_EVENT_IDX, Rings};

/// Largest piece given at once; the driver asks for 64 bytes.
const PIECE: usize = 256;

/// The device has no state.
pub(crate) struct Rng;

impl Device for Rng {
    fn id(&self) -> u16 {
        4
    }

    fn class(&self) -> [u8; 3] {
        [0xff, 0, 0]
    }

    fn features(&self) -> u64 {
        F_EVENT_IDX
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![64]
    }

    fn config(&self) -> Vec<u8> {
        Vec::new()
    }

    fn process(&mut self, _: Event, rings: &mut Rings<'_>) -> Result<(), Broken> {
        while let Some(mut chain) = rings.pop(0)? {
            let mut bytes = [0; PIECE];
            // No entropy, no bytes: the guest's driver asks again.
            let length = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
                .unwrap_or(0);
            let written = chain.write(rings.memory(), bytes.get(..length).unwrap_or_default())?;
            rings.push(0, &chain, u32::try_from(written).unwrap_or(0))?;
        }
        Ok(())
    }

    fn reset(&mut self) {}
}
