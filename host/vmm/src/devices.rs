//! The device thread: waits for doorbells and host files, and lets devices work.

use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

use crate::bytes::{low_u32, narrow, wide};
use crate::gate::Gate;
use crate::poll::Poll;
use crate::virtio::Event;

/// What the device thread wakes.
pub(crate) trait Service: Send + Sync {
    /// Something happened. True when there is more to do at once.
    fn service(&self, event: Event) -> bool;
}

/// A device and the doorbells that wake it: one of its own, then one a queue.
pub(crate) struct Attached {
    pub(crate) device: Arc<dyn Service>,
    pub(crate) doorbells: Vec<EventFd>,
}

/// Numbers from here on are doorbells, below it the device's own files.
pub(crate) const DOORBELL: u32 = 1 << 31;

/// How often the thread looks whether the machine has ended.
const LOOK_MS: u64 = 200;

/// Adds all doorbells to the set.
pub(crate) fn listen(poll: &Poll, devices: &[Attached]) -> std::io::Result<()> {
    for (device, attached) in devices.iter().enumerate() {
        for (bell, doorbell) in attached.doorbells.iter().enumerate() {
            let number = wide(device) << 32 | u64::from(DOORBELL) | wide(bell);
            poll.add(crate::sys::borrow(doorbell), number)?;
        }
    }
    Ok(())
}

/// Runs until the machine ends. What the guest sent before that still goes out.
pub(crate) fn run(poll: &Poll, devices: &[Attached], gate: &Gate) {
    serve(poll, devices, gate);
    for attached in devices {
        attached.device.service(Event::Start);
    }
}

/// Wakes the thread that runs, whatever it waits for.
pub(crate) fn wake(devices: &[Attached]) {
    let _ =
        devices.first().and_then(|attached| attached.doorbells.first()).map(|bell| bell.write(1));
}

fn serve(poll: &Poll, devices: &[Attached], gate: &Gate) {
    while gate.exit().is_none() {
        match poll.wait(Some(LOOK_MS)) {
            Ok(numbers) => {
                let alive = |_: &u64| gate.exit().is_none();
                numbers.into_iter().take_while(alive).for_each(|number| dispatch(devices, number));
            }
            Err(error) => {
                let detail = format!("waiting for devices: {error}");
                return gate.end(crate::exit::Exit::Monitor { detail });
            }
        }
    }
}

fn dispatch(devices: &[Attached], number: u64) {
    let Some(attached) = devices.get(narrow(number >> 32)) else { return };
    let token = low_u32(number);
    let event = match token.checked_sub(DOORBELL) {
        None => Event::Host(token),
        Some(bell) => {
            let bell = narrow(u64::from(bell));
            // Emptying the counter: several rings are one.
            let _ = attached.doorbells.get(bell).map(EventFd::read);
            bell.checked_sub(1).map_or(Event::Start, Event::Queue)
        }
    };
    let more = attached.device.service(event);
    if more {
        let _ = attached.doorbells.first().map(|doorbell| doorbell.write(1));
    }
}
