//! The TCG event log of a confidential machine (CCEL), replayed to registers.
//!
//! Formats: TCG PC Client Platform Firmware Profile 1.06, section 10.2 (crypto
//! agile log); UEFI 2.10, section 38.4.1 (confidential computing events);
//! docs/formats/event-log.md. A log is only a claim. Its digests are believed
//! once they replay to registers that a TEE signed, and an event's data only
//! once its hash is the event's digest.

use crate::crypto::Sha384;
use crate::error::{Reason, VerifyError};
use crate::wire::{ParseError, Reader, hex};

/// A parsed log. The events borrow from its bytes.
#[derive(Debug, Clone)]
pub struct EventLog<'a> {
    /// The measured and unmeasured events, without the Spec ID event.
    pub events: Vec<Event<'a>>,
}

/// One event of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event<'a> {
    /// The register it was measured into: 0 is MRTD, 1 to 4 are RTMR0 to RTMR3.
    pub register: u32,
    /// The type, a TCG constant.
    pub kind: u32,
    /// The SHA-384 digest that was extended.
    pub digest: [u8; 48],
    /// What the event says happened. Not covered by the replay.
    pub data: &'a [u8],
}

/// The run-time registers that a log replays to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rtmrs(pub [[u8; 48]; 4]);

/// An event log that replays to registers a TEE signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventLogClaims {
    /// The registers that the log replays to.
    pub rtmrs: Rtmrs,
    /// The events in order.
    pub events: Vec<MeasuredEvent>,
}

/// One event of a log whose replay was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeasuredEvent {
    /// The RTMR it was measured into, if it was one.
    pub rtmr: Option<usize>,
    /// The type, a TCG constant.
    pub kind: u32,
    /// The digest that was extended.
    pub digest: [u8; 48],
    /// The event's data, if its SHA-384 is the digest; else it proves nothing.
    pub data: Option<Vec<u8>>,
}

/// The largest log that is read.
pub const MAX_LOG_BYTES: usize = 1024 * 1024;
/// The most events that are read.
pub const MAX_EVENTS: usize = 4096;
/// EV_NO_ACTION: information only, not extended.
pub const EV_NO_ACTION: u32 = 3;

impl<'a> EventLog<'a> {
    /// Reads a log out of the memory that holds it; it ends at the first entry
    /// of zeros or ones, or with the memory.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, VerifyError> {
        if bytes.len() > MAX_LOG_BYTES {
            let expected = format!("at most {MAX_LOG_BYTES} bytes");
            return Err(VerifyError::new(Reason::Limit, "event log", expected, bytes.len()));
        }
        let mut reader = Reader::new(bytes);
        let algorithms = spec_id_event(&mut reader).map_err(malformed)?;
        let mut events = Vec::new();
        while !at_end(reader.peek()) {
            if events.len() >= MAX_EVENTS {
                let expected = format!("at most {MAX_EVENTS} events");
                return Err(VerifyError::new(Reason::Limit, "event log", expected, "more"));
            }
            events.push(event(&mut reader, &algorithms).map_err(malformed)?);
        }
        Ok(Self { events })
    }

    /// The registers after every event was extended: SHA-384(register | digest).
    pub fn replay(&self) -> Rtmrs {
        let mut rtmrs = [[0; 48]; 4];
        for event in self.events.iter().filter(|event| event.kind != EV_NO_ACTION) {
            if let Some(rtmr) = event.rtmr().and_then(|index| rtmrs.get_mut(index)) {
                *rtmr = extend(rtmr, &event.digest);
            }
        }
        Rtmrs(rtmrs)
    }
}

impl Rtmrs {
    /// Compares with the registers that a TEE signed.
    ///
    /// A workload may extend RTMR3 without writing to this log, so that a log
    /// which measures nothing into RTMR3 says nothing of it.
    pub fn check(&self, signed: &[[u8; 48]; 4]) -> Result<(), VerifyError> {
        for (index, (replayed, signed)) in self.0.iter().zip(signed).enumerate() {
            let silent = index == APPLICATION && *replayed == [0; 48];
            if replayed != signed && !silent {
                let field = format!("rtmr{index}");
                let (expected, actual) = (hex(signed), hex(replayed));
                return Err(VerifyError::new(Reason::EventLog, field, expected, actual));
            }
        }
        Ok(())
    }
}

impl EventLogClaims {
    /// What `log` says; its replay is compared elsewhere.
    pub(crate) fn of(log: &EventLog<'_>) -> Self {
        let events = log.events.iter().map(|event| MeasuredEvent {
            rtmr: event.rtmr(),
            kind: event.kind,
            digest: event.digest,
            data: event.data_is_measured().then(|| event.data.to_vec()),
        });
        Self { rtmrs: log.replay(), events: events.collect() }
    }
}

impl Event<'_> {
    /// The RTMR that the event was measured into, if it is one.
    pub fn rtmr(&self) -> Option<usize> {
        match self.register {
            1..=4 => usize::try_from(self.register.saturating_sub(1)).ok(),
            _ => None,
        }
    }

    /// Whether the event's data is what was measured: some event types hash
    /// their data whole, others (boot applications, command lines) do not.
    pub fn data_is_measured(&self) -> bool {
        crate::crypto::sha384(self.data) == self.digest
    }
}

/// The run-time register after `digest` was extended into it.
pub fn extend(register: &[u8; 48], digest: &[u8; 48]) -> [u8; 48] {
    let mut hash = Sha384::default();
    hash.update(register);
    hash.update(digest);
    hash.finish()
}

/// Section 10.2.1: the first entry has the old form and lists the algorithms.
fn spec_id_event(reader: &mut Reader<'_>) -> Result<Vec<(u16, usize)>, ParseError> {
    reader.u32_le("first event, register")?;
    let kind = reader.u32_le("first event, type")?;
    if kind != EV_NO_ACTION {
        return Err(ParseError::new("first event, type", "3 (EV_NO_ACTION)", kind));
    }
    reader.slice("first event, SHA-1 digest", 20)?;
    let size = reader.length_le("first event, size")?;
    let mut event = reader.sub("first event", size)?;
    let signature: [u8; 16] = event.array("Spec ID signature")?;
    if &signature != b"Spec ID Event03\0" {
        return Err(ParseError::new("Spec ID signature", "Spec ID Event03", hex(&signature)));
    }
    event.slice("Spec ID, platform class and version", 8)?;
    let count = event.u32_le("Spec ID, number of algorithms")?;
    if !(1..=MAX_ALGORITHMS).contains(&count) {
        return Err(ParseError::new("Spec ID, number of algorithms", "1 to 8", count));
    }
    let mut algorithms = Vec::new();
    for _ in 0..count {
        let id = event.u16_le("Spec ID, algorithm")?;
        algorithms.push((id, usize::from(event.u16_le("Spec ID, digest size")?)));
    }
    let vendor_size = event.u8("Spec ID, vendor data size")?;
    event.slice("Spec ID, vendor data", usize::from(vendor_size))?;
    event.end("first event")?;
    match algorithms.iter().find(|(id, _)| *id == TPM_ALG_SHA384) {
        Some((_, 48)) => Ok(algorithms),
        other => {
            let expected = "SHA-384 (0x0c) of 48 bytes";
            Err(ParseError::new("Spec ID, algorithms", expected, format_args!("{other:?}")))
        }
    }
}

/// Section 10.2.2, TCG_PCR_EVENT2 (UEFI: CC_EVENT, the same layout).
fn event<'a>(
    reader: &mut Reader<'a>,
    algorithms: &[(u16, usize)],
) -> Result<Event<'a>, ParseError> {
    let register = reader.u32_le("event, register")?;
    let kind = reader.u32_le("event, type")?;
    let count = reader.u32_le("event, number of digests")?;
    if !(1..=MAX_ALGORITHMS).contains(&count) {
        return Err(ParseError::new("event, number of digests", "1 to 8", count));
    }
    let mut sha384 = None;
    for _ in 0..count {
        let id = reader.u16_le("event, digest algorithm")?;
        let Some((_, size)) = algorithms.iter().find(|(known, _)| *known == id) else {
            let expected = "an algorithm of the Spec ID event";
            return Err(ParseError::new("event, digest algorithm", expected, id));
        };
        let digest = reader.slice("event, digest", *size)?;
        if id == TPM_ALG_SHA384 && sha384.replace(digest).is_some() {
            return Err(ParseError::new("event, digests", "one of SHA-384", "two"));
        }
    }
    let size = reader.length_le("event, data size")?;
    let data = reader.slice("event, data", size)?;
    let digest = sha384
        .and_then(|digest| digest.try_into().ok())
        .ok_or_else(|| ParseError::new("event, digests", "one of SHA-384", "none"))?;
    Ok(Event { register, kind, digest, data })
}

/// The rest of the memory behind a log holds zeros or ones.
fn at_end(rest: &[u8]) -> bool {
    match rest.first_chunk::<4>() {
        None => rest.iter().all(|byte| *byte == 0),
        Some([0xff, 0xff, 0xff, 0xff]) => true,
        // Register 0, type 0, no digests: no event looks like this.
        Some(_) => rest.iter().take(12).all(|byte| *byte == 0),
    }
}

fn malformed(error: ParseError) -> VerifyError {
    error.because(Reason::Malformed)
}

/// RTMR3 is the workload's own.
const APPLICATION: usize = 3;
/// TCG Algorithm Registry.
const TPM_ALG_SHA384: u16 = 0x0c;
const MAX_ALGORITHMS: u32 = 8;
