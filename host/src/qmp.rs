//! QMP, QEMU's control protocol: what was really built, and why it ended.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::backend::Facts;

/// A QMP connection after its handshake.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
    shutdown: Option<String>,
}

/// Why QEMU could not be asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// It took too long.
    #[error("QMP, {command}: no answer within {seconds} s", seconds = PATIENCE.as_secs())]
    Timeout { command: &'static str },
    /// The connection ended.
    #[error("QMP, {command}: the connection ended")]
    Ended { command: &'static str },
    /// The answer is not one.
    #[error("QMP, {command}: expected {expected}, got {actual}")]
    Answer { command: &'static str, expected: &'static str, actual: String },
}

impl Qmp {
    /// Takes the greeting and negotiates nothing.
    pub(crate) async fn start(stream: UnixStream) -> Result<Self, QmpError> {
        let mut qmp = Self { stream: BufReader::new(stream), shutdown: None };
        let greeting = qmp.read("greeting").await?;
        if greeting.get("QMP").is_none() {
            return Err(wrong("greeting", "an object with QMP", &greeting));
        }
        qmp.execute("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// Asks what was built.
    pub(crate) async fn facts(&mut self) -> Result<Facts, QmpError> {
        let version = self.execute("query-version").await?;
        let number = |part: &str| version.pointer(&format!("/qemu/{part}")).and_then(Value::as_u64);
        let version = match (number("major"), number("minor"), number("micro")) {
            (Some(major), Some(minor), Some(micro)) => format!("{major}.{minor}.{micro}"),
            _ => return Err(wrong("query-version", "qemu.major, .minor, .micro", &version)),
        };
        let kvm = self.execute("query-kvm").await?;
        let kvm = kvm
            .get("enabled")
            .and_then(Value::as_bool)
            .ok_or_else(|| wrong("query-kvm", "enabled", &kvm))?;
        let cpus = self.execute("query-cpus-fast").await?;
        let vcpus =
            cpus.as_array().ok_or_else(|| wrong("query-cpus-fast", "an array", &cpus))?.len();
        let buses = self.execute("query-pci").await?;
        if !buses.is_array() {
            return Err(wrong("query-pci", "an array", &buses));
        }
        let mut network_devices = Vec::new();
        find_network(&buses, &mut network_devices);
        Ok(Facts { version, kvm, network_devices, vcpus })
    }

    /// Stops the CPUs: the answer says that they stand (QEMU, QMP reference, `stop`).
    pub(crate) async fn pause(&mut self) -> Result<(), QmpError> {
        self.execute("stop").await.map(drop)
    }

    /// Lets the CPUs go on (QEMU, QMP reference, `cont`).
    pub(crate) async fn resume(&mut self) -> Result<(), QmpError> {
        self.execute("cont").await.map(drop)
    }

    /// Reads events to the connection's end; returns why the guest shut down,
    /// in QMP's words (`guest-shutdown`, `guest-reset`, …), if it did.
    pub(crate) async fn shutdown_reason(mut self) -> Option<String> {
        // No limit in time: the connection ends with QEMU.
        while self.shutdown.is_none() {
            let mut line = Vec::new();
            let mut limited = (&mut self.stream).take(MAX_LINE);
            match limited.read_until(b'\n', &mut line).await {
                Ok(1..) => self.note_event(&serde_json::from_slice(&line).unwrap_or_default()),
                _ => break,
            }
        }
        self.shutdown
    }

    async fn execute(&mut self, command: &'static str) -> Result<Value, QmpError> {
        let request = format!("{}\n", json!({ "execute": command }));
        let sent = timeout(PATIENCE, self.stream.get_mut().write_all(request.as_bytes())).await;
        sent.map_err(|_| QmpError::Timeout { command })?
            .map_err(|_| QmpError::Ended { command })?;
        loop {
            let mut answer = self.read(command).await?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if answer.get("error").is_some() {
                return Err(wrong(command, "return", &answer));
            }
            self.note_event(&answer);
        }
    }

    async fn read(&mut self, command: &'static str) -> Result<Value, QmpError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.stream).take(MAX_LINE);
        let read = timeout(PATIENCE, limited.read_until(b'\n', &mut line)).await;
        match read.map_err(|_| QmpError::Timeout { command })? {
            Ok(1..) => serde_json::from_slice(&line).map_err(|error| QmpError::Answer {
                command,
                expected: "one line of JSON",
                actual: error.to_string(),
            }),
            _ => Err(QmpError::Ended { command }),
        }
    }

    fn note_event(&mut self, message: &Value) {
        if message.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            let reason = message.pointer("/data/reason").and_then(Value::as_str);
            self.shutdown = Some(reason.unwrap_or("unknown").to_owned());
        }
    }
}

/// Every device below `value` whose PCI base class is 2, network (PCI Code
/// and ID Assignment Specification 1.16, section 1.3).
fn find_network(value: &Value, found: &mut Vec<String>) {
    if let Some(class) = value.pointer("/class_info/class").and_then(Value::as_u64)
        && class >> 8 == 2
    {
        let slot = value.get("slot").and_then(Value::as_u64).unwrap_or_default();
        found.push(format!("slot {slot}, class {class:#06x}"));
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| find_network(item, found)),
        Value::Object(fields) => fields.values().for_each(|item| find_network(item, found)),
        _ => {}
    }
}

fn wrong(command: &'static str, expected: &'static str, actual: &Value) -> QmpError {
    let actual = actual.to_string().chars().take(200).collect();
    QmpError::Answer { command, expected, actual }
}

const PATIENCE: Duration = Duration::from_secs(30);
const MAX_LINE: u64 = 256 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_devices_are_found_behind_bridges() {
        let device =
            |slot: u64, class: u64| json!({ "slot": slot, "class_info": { "class": class } });
        let mut bridge = device(1, 0x0604);
        bridge["pci_bridge"] = json!({ "devices": [device(7, 0x0200)] });
        let buses = json!([{ "bus": 0, "devices": [device(0, 0x0600), bridge] }]);
        let mut found = Vec::new();
        find_network(&buses, &mut found);
        assert_eq!(found, ["slot 7, class 0x0200"]);
    }

    #[tokio::test]
    async fn a_backend_that_is_not_qemu_is_refused() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(b"{\"hello\": 1}\n").await.unwrap();
        assert!(matches!(Qmp::start(ours).await, Err(QmpError::Answer { .. })));
    }
}
