//! Packet headers and credit (virtio 1.2, 5.10.6).

use crate::bytes::{low_u32, put, u16_at, u32_at, u64_at, wide};

/// Length of a header.
pub(crate) const HEADER: usize = 44;
/// The host's context id.
pub(crate) const HOST: u64 = 2;
/// The only type of socket here.
pub(crate) const STREAM: u16 = 1;
/// `flags` of a shutdown: the sender takes no more, the sender sends no more.
pub(crate) const NO_RECEIVE: u32 = 1;
pub(crate) const NO_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Request,
    Response,
    Reset,
    Shutdown,
    Data,
    CreditUpdate,
    CreditRequest,
}

/// A header without the context ids, which are always the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) guest_port: u32,
    pub(crate) host_port: u32,
    pub(crate) op: Op,
    pub(crate) length: u32,
    pub(crate) flags: u32,
    pub(crate) credit: Credit,
}

/// What one side says about its buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Credit {
    /// Bytes it can hold.
    pub(crate) space: u32,
    /// Bytes that have left its buffer since the start, modulo 2^32.
    pub(crate) forwarded: u32,
}

impl Credit {
    /// How much may be sent to it when `sent` bytes have been, modulo 2^32. A peer that claims
    /// to have forwarded what it never got gets nothing.
    pub(crate) fn room(self, sent: u32) -> u32 {
        self.space.saturating_sub(sent.wrapping_sub(self.forwarded))
    }
}

impl Op {
    const ALL: [(u16, Self); 7] = [
        (1, Self::Request),
        (2, Self::Response),
        (3, Self::Reset),
        (4, Self::Shutdown),
        (5, Self::Data),
        (6, Self::CreditUpdate),
        (7, Self::CreditRequest),
    ];

    fn code(self) -> u16 {
        Self::ALL.iter().find(|(_, op)| *op == self).map(|(code, _)| *code).unwrap_or_default()
    }
}

impl Header {
    /// Reads a header of the guest's. `None`: not for us, not a stream, or no operation.
    pub(crate) fn from_guest(raw: &[u8; HEADER], guest: u64) -> Option<Self> {
        let ids = (u64_at(raw, 0)?, u64_at(raw, 8)?, u16_at(raw, 28)?);
        if ids != (guest, HOST, STREAM) {
            return None;
        }
        let code = u16_at(raw, 30)?;
        let (_, op) = *Op::ALL.iter().find(|(known, _)| *known == code)?;
        Some(Self {
            guest_port: u32_at(raw, 16)?,
            host_port: u32_at(raw, 20)?,
            op,
            length: u32_at(raw, 24)?,
            flags: u32_at(raw, 32)?,
            credit: Credit { space: u32_at(raw, 36)?, forwarded: u32_at(raw, 40)? },
        })
    }

    /// The header as the guest reads it.
    pub(crate) fn to_guest(self, guest: u64) -> [u8; HEADER] {
        let mut raw = [0; HEADER];
        put(&mut raw, 0, &HOST.to_le_bytes());
        put(&mut raw, 8, &guest.to_le_bytes());
        for (at, word) in [
            (16, self.host_port),
            (20, self.guest_port),
            (24, self.length),
            (32, self.flags),
            (36, self.credit.space),
            (40, self.credit.forwarded),
        ] {
            put(&mut raw, at, &word.to_le_bytes());
        }
        put(&mut raw, 28, &STREAM.to_le_bytes());
        put(&mut raw, 30, &self.op.code().to_le_bytes());
        raw
    }
}

/// A length that is known to be small.
pub(crate) fn short(length: usize) -> u32 {
    low_u32(wide(length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_our_packets_are_read() {
        let header = Header {
            guest_port: 7,
            host_port: 9,
            op: Op::Data,
            length: 3,
            flags: 0,
            credit: Credit { space: 4096, forwarded: 5 },
        };
        let mut raw = header.to_guest(3);
        assert_eq!(Header::from_guest(&raw, 3), None, "our own, turned back");
        put(&mut raw, 0, &3_u64.to_le_bytes());
        put(&mut raw, 8, &HOST.to_le_bytes());
        let read = Header::from_guest(&raw, 3).unwrap();
        assert_eq!((read.guest_port, read.host_port, read.op), (9, 7, Op::Data));
        for (at, byte) in [(0, 4), (8, 3), (28, 2), (30, 0), (30, 8), (31, 1)] {
            let mut bad = raw;
            bad[at] = byte;
            assert_eq!(Header::from_guest(&bad, 3), None, "byte {at}");
        }
    }

    proptest! {
        /// Credit never lets more out than the peer can hold, wherever the counters stand.
        #[test]
        fn room_is_what_is_left(space: u32, start: u32, held: u32, lie: u32) {
            let honest = Credit { space, forwarded: start };
            let room = honest.room(start.wrapping_add(held));
            prop_assert_eq!(u64::from(room), u64::from(space).saturating_sub(u64::from(held)));
            let liar = Credit { space, forwarded: lie };
            prop_assert!(liar.room(start) <= space);
        }
    }
}
