//! Sessions of the legacy era: they say which requests a cancellation means,
//! and nothing else. They allow nothing, so a guessed one wins nothing.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::port::desk::Open;

/// The most sessions; the one used longest ago makes way.
const MOST: usize = 64;

/// The table of sessions.
#[derive(Debug, Default)]
pub(super) struct Sessions(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    uses: u64,
    sessions: HashMap<String, (u64, Open)>,
}

impl Sessions {
    /// A new session's id and requests.
    pub(super) fn begin(&self) -> (String, Open) {
        let mut id = [0; 16];
        // Without randomness the id is one that everybody has: see above.
        let _ = aws_lc_rs::rand::fill(&mut id);
        let (id, open) = (hex::encode(id), Open::default());
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if table.sessions.len() >= MOST {
            let oldest = table.sessions.iter().min_by_key(|(_, (used, _))| *used);
            let oldest = oldest.map(|(id, _)| id.clone()).unwrap_or_default();
            table.sessions.remove(&oldest);
        }
        table.uses += 1;
        let used = table.uses;
        table.sessions.insert(id.clone(), (used, open.clone()));
        (id, open)
    }

    /// The requests of session `id`.
    pub(super) fn open(&self, id: &str) -> Option<Open> {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.uses += 1;
        let now = table.uses;
        let (used, open) = table.sessions.get_mut(id)?;
        *used = now;
        Some(open.clone())
    }

    /// Ends session `id`; false if there is none.
    pub(super) fn end(&self, id: &str) -> bool {
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = table.sessions.remove(id);
        ended.inspect(|(_, open)| open.abort_all()).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sessions_are_bounded_and_the_oldest_makes_way() {
        let sessions = Sessions::default();
        let (first, _) = sessions.begin();
        let (second, _) = sessions.begin();
        assert_ne!(first, second);
        for _ in 2..MOST {
            sessions.begin();
        }
        assert!(sessions.open(&first).is_some());
        sessions.begin();
        assert!(sessions.open(&second).is_none() && sessions.open(&first).is_some());
        assert!(sessions.end(&first) && !sessions.end(&first));
    }
}
