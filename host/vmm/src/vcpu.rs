//! One CPU of the guest: runs it, answers its exits, obeys the gate.

use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{VcpuExit, VcpuFd};

use crate::convert::Converter;
use crate::exit::Exit;
use crate::gate::Gate;
use crate::pci::Bus;
use crate::ports::{self, Wish};
use crate::serial::Serial;

/// What all CPUs of a machine share.
pub(crate) struct Board {
    pub(crate) bus: Bus,
    pub(crate) serial: Mutex<Serial>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) converter: Converter,
}

/// Runs until the machine ends.
pub(crate) fn run(mut cpu: VcpuFd, id: u8, board: &Board) {
    while board.gate.pass() {
        if let Some(exit) = turn(&mut cpu, id, board) {
            return board.gate.end(exit);
        }
    }
}

/// Enters the guest once. An exit that ends the machine is returned.
fn turn(cpu: &mut VcpuFd, id: u8, board: &Board) -> Option<Exit> {
    let fault = |detail: String| Some(Exit::Kvm { vcpu: id, detail });
    match cpu.run() {
        Ok(VcpuExit::IoOut(port, bytes)) => wish(ports::write(&mut serial(board), port, bytes)),
        Ok(VcpuExit::IoIn(port, to)) => {
            ports::read(&serial(board), port, to);
            None
        }
        Ok(VcpuExit::MmioRead(address, to)) => {
            board.bus.read(address, to);
            None
        }
        Ok(VcpuExit::MmioWrite(address, from)) => {
            board.bus.write(address, from);
            None
        }
        Ok(VcpuExit::Hypercall(call)) => {
            *call.ret = board.converter.hypercall(call.nr, &call.args);
            None
        }
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen) => None,
        Ok(VcpuExit::Shutdown) => Some(Exit::TripleFault { vcpu: id }),
        Ok(VcpuExit::FailEntry(reason, _)) => fault(format!("entry refused: {reason:#x}")),
        Ok(VcpuExit::InternalError) => fault("an instruction that KVM cannot emulate".into()),
        Ok(other) => fault(format!("unexpected exit: {other:?}")),
        Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
        Err(error) => fault(format!("KVM_RUN: {error}")),
    }
}

fn wish(wish: Wish) -> Option<Exit> {
    match wish {
        Wish::Nothing => None,
        Wish::Reset => Some(Exit::Reset),
        Wish::PowerOff => Some(Exit::Shutdown),
    }
}

fn serial(board: &Board) -> std::sync::MutexGuard<'_, Serial> {
    board.serial.lock().unwrap_or_else(PoisonError::into_inner)
}
