//! What the lab proves, one function each.

use std::time::{Duration, Instant};

use anyhow::ensure;
use casemate_vmm::{Exit, LeaseSpec};

use crate::machine::{Machine, spec};
use crate::{compare, passthrough, private, product, traffic};

/// A scenario returns a few words about what it measured.
type Scenario = fn(bool) -> anyhow::Result<String>;

/// All scenarios, in order.
pub(crate) const ALL: &[(&str, Scenario)] = &[
    ("boot1", boot1),
    ("boot2", boot2),
    ("pause", pause),
    ("lease", lease),
    ("limits", limits),
    ("kill", kill),
    ("private", private::private),
    ("jail", traffic::jail),
    ("vsock", traffic::vsock),
    ("disk", traffic::disk),
    ("hostile", traffic::hostile),
    ("leaks", traffic::leaks),
    ("vfio", passthrough::vfio),
    ("compare", compare::compare),
    ("demo", product::demo),
    ("cgroup", product::cgroup),
];

fn boot1(_: bool) -> anyhow::Result<String> {
    boot("boot1", 1)
}

fn boot2(_: bool) -> anyhow::Result<String> {
    boot("boot2", 2)
}

/// From nothing to a guest that answers, and to its own power-off.
fn boot(name: &str, vcpus: u8) -> anyhow::Result<String> {
    let mut machine = Machine::start(name, &spec(name, vcpus))?;
    let (cpus, time) = machine.wait_up()?;
    ensure!(cpus == usize::from(vcpus), "the guest sees {cpus} CPUs");
    let (first, second) = (machine.tell("random")?, machine.tell("random")?);
    ensure!(first != second, "the entropy device repeats itself");
    let (own, anonymous) = machine.own_memory()?;
    machine.send("off")?;
    let exit = machine.end()?;
    ensure!(exit == Exit::Shutdown, "{exit:?}");
    Ok(format!(
        "up after {:.2} s, own memory {own} KiB ({anonymous} anonymous)",
        time.as_secs_f64()
    ))
}

/// A paused machine uses no processor time, and goes on where it was.
fn pause(_: bool) -> anyhow::Result<String> {
    let mut machine = Machine::start("pause", &spec("pause", 2))?;
    machine.wait_up()?;
    machine.tell("spin")?;
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    let stopped = machine.ask(r#"{"op":"pause"}"#)?;
    let took = asked.elapsed();
    ensure!(says(&stopped, "state", "paused"), "{stopped}");
    let before = cpu_ms(&mut machine)?;
    std::thread::sleep(Duration::from_secs(1));
    let used = cpu_ms(&mut machine)? - before;
    ensure!(used < 100, "{used} ms of processor time while paused");
    machine.ask(r#"{"op":"run"}"#)?;
    ensure!(machine.tell("echo again")? == "again", "the guest did not go on");
    machine.ask(r#"{"op":"destroy"}"#)?;
    let last = machine.hear()?;
    ensure!(last == r#"{"exit":{"reason":"destroyed"}}"#, "{last}");
    ensure!(machine.end()? == Exit::Destroyed);
    Ok(format!("two spinning CPUs stood after {took:.0?}, {used} ms used in 1 s of pause"))
}

/// The lease ends a machine that spins, with nobody at the control socket.
fn lease(_: bool) -> anyhow::Result<String> {
    let mut terms = spec("lease", 2);
    terms.lease = Some(LeaseSpec { seconds: 600, grace_seconds: 2 });
    let mut machine = Machine::start("lease", &terms)?;
    machine.wait_up()?;
    machine.tell("spin")?;
    machine.ask(r#"{"op":"renew","seconds":1}"#)?;
    std::thread::sleep(Duration::from_millis(2000));
    let state = machine.ask(r#"{"op":"status"}"#)?;
    ensure!(says(&state, "state", "lease-expired"), "{state}");
    let refused = machine.ask(r#"{"op":"run"}"#)?;
    ensure!(refused.get("ok") == Some(&false.into()), "an expired machine ran: {refused}");
    machine.ask(r#"{"op":"renew","seconds":1}"#)?;
    ensure!(machine.tell("echo renewed")? == "renewed", "renewal did not wake the guest");
    // One that was paused before it ran out is renewed, and stays paused.
    machine.ask(r#"{"op":"pause"}"#)?;
    machine.ask(r#"{"op":"renew","seconds":1}"#)?;
    std::thread::sleep(Duration::from_millis(2000));
    let state = machine.ask(r#"{"op":"status"}"#)?;
    ensure!(says(&state, "state", "lease-expired"), "{state}");
    let state = machine.ask(r#"{"op":"renew","seconds":600}"#)?;
    ensure!(says(&state, "state", "paused"), "a renewal undid a pause: {state}");
    machine.ask(r#"{"op":"run"}"#)?;
    ensure!(machine.tell("echo again")? == "again", "the guest did not go on");
    machine.ask(r#"{"op":"renew","seconds":1}"#)?;
    machine.hang_up();
    let exit = machine.end()?;
    ensure!(exit == Exit::LeaseExpired, "{exit:?}");
    Ok("paused, renewed, and destroyed with nobody listening".into())
}

fn limits(_: bool) -> anyhow::Result<String> {
    let mut terms = spec("limits", 1);
    terms.control = None;
    terms.limits.cpu_seconds = Some(3);
    let mut machine = Machine::start("limits", &terms)?;
    let exit = machine.end()?;
    ensure!(exit == Exit::CpuLimit, "{exit:?}");
    terms.limits.cpu_seconds = None;
    terms.limits.wall_seconds = Some(2);
    let mut machine = Machine::start("limits", &terms)?;
    let exit = machine.end()?;
    ensure!(exit == Exit::WallLimit, "{exit:?}");
    Ok(format!("wall limit of 2 s after {:.1} s", machine.started.elapsed().as_secs_f64()))
}

/// A killed monitor takes its machine with it: nothing is left but its sockets, which the
/// next one replaces.
fn kill(_: bool) -> anyhow::Result<String> {
    for _ in 0..2 {
        let mut machine = Machine::start("kill", &spec("kill", 1))?;
        machine.wait_up()?;
        machine.child.kill()?;
        machine.child.wait()?;
    }
    Ok("started again over the dead one's sockets".into())
}

fn cpu_ms(machine: &mut Machine) -> anyhow::Result<u64> {
    let state = machine.ask(r#"{"op":"status"}"#)?;
    state.get("cpu_ms").and_then(|ms| ms.as_u64()).ok_or_else(|| anyhow::anyhow!("{state}"))
}

fn says(answer: &serde_json::Value, key: &str, word: &str) -> bool {
    answer.get(key).is_some_and(|value| value == word)
}
