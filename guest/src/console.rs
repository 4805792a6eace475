//! Lines for people on the machine's console. Never a secret, never unbounded.

use std::io::Write;

/// The longest line that is printed; the rest is cut.
pub const MAX_LINE_BYTES: usize = 400;

/// Prints one line on the console. A console that cannot be written is ignored:
/// nothing that matters depends on it.
pub fn say(line: &str) {
    print("casemate", line);
}

/// Prints one line of the workload's output, marked as such.
pub fn workload_line(line: &str) {
    print("workload", line);
}

fn print(who: &str, line: &str) {
    let text = format!("{who}: {}\n", printable(line));
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// `line` without control characters and no longer than [`MAX_LINE_BYTES`].
fn printable(line: &str) -> String {
    let mut out = String::new();
    for character in line.chars() {
        if out.len() + character.len_utf8() > MAX_LINE_BYTES {
            out.push('…');
            break;
        }
        out.push(if character.is_control() { '\u{fffd}' } else { character });
    }
    out
}

/// Lets through so many bytes a second, and counts what it held back.
#[derive(Debug)]
pub struct Throttle {
    bytes_per_second: u64,
    left: u64,
    second: u64,
    held_back: u64,
}

impl Throttle {
    /// A throttle of `bytes_per_second`, full at the start.
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, left: bytes_per_second, second: 0, held_back: 0 }
    }

    /// Whether `bytes` may pass in second `now`, any clock that only rises.
    /// The first line after a pause brings the count of lines held back.
    pub fn admit(&mut self, now: u64, bytes: usize) -> Admission {
        if now != self.second {
            self.second = now;
            self.left = self.bytes_per_second;
        }
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        if bytes > self.left {
            self.held_back += 1;
            return Admission::HeldBack;
        }
        self.left -= bytes;
        Admission::Pass { held_back_before: core::mem::take(&mut self.held_back) }
    }
}

/// What a [`Throttle`] says of one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// The line passes.
    Pass {
        /// Lines that were held back since the last one that passed.
        held_back_before: u64,
    },
    /// The line is held back.
    HeldBack,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_and_cleaned() {
        assert_eq!(printable("a\x1b[2Jb\n"), "a\u{fffd}[2Jb\u{fffd}");
        let long = printable(&"é".repeat(1000));
        assert!(long.len() <= MAX_LINE_BYTES + '…'.len_utf8() && long.ends_with('…'));
    }

    #[test]
    fn a_flood_is_held_back_and_counted() {
        let mut throttle = Throttle::new(10);
        assert_eq!(throttle.admit(1, 8), Admission::Pass { held_back_before: 0 });
        assert_eq!(throttle.admit(1, 8), Admission::HeldBack);
        assert_eq!(throttle.admit(1, 8), Admission::HeldBack);
        assert_eq!(throttle.admit(2, 8), Admission::Pass { held_back_before: 2 });
    }
}
