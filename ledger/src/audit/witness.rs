//! What witnesses saw of the log: a quorum cosigned its head, and the walk comes
//! to that head.

use super::{Auditor, Found, fail, failed, not_checkable};
use crate::checkpoint::Checkpoint;
use crate::merkle::Hash;

impl Auditor<'_> {
    /// Takes the note of the head that witnesses cosigned last, before the first
    /// leaf: a quorum by the trust file's policy must have, and the walk must
    /// come to that head.
    pub fn cosigned(&mut self, note: Option<&str>) {
        let checked = match (&self.trust.witnesses, note) {
            (None, _) => not_checkable("the trust file names no witnesses"),
            (Some(_), None) => Err(fail("no head that witnesses cosigned is beside the log")),
            (Some(policy), Some(note)) => {
                Checkpoint::verify(note, &self.trust.log).map_err(failed).and_then(|head| {
                    let seen = policy.witnessed(note).map(|_| head);
                    seen.ok_or_else(|| fail("too few witnesses cosigned their last head"))
                })
            }
        };
        match checked {
            Ok(head) => self.cosigned = Some(head),
            Err(found) => drop(self.note::<()>("log.witness", Err(found))),
        }
    }

    /// The root over the leaves so far.
    pub fn root(&self) -> Hash {
        self.tree.root()
    }

    /// Compares when the walk is at the head that witnesses saw.
    pub(super) fn reached(&mut self) {
        let here = self.cosigned.take_if(|head| head.size == self.report.leaves);
        if let Some(head) = here {
            let why = "the witnesses saw other leaves than these";
            let same = head.root == self.tree.root();
            self.note("log.witness", same.then_some(()).ok_or_else(|| fail(why)));
            self.behind = Some(head.size);
        }
    }

    /// Says what the walk did not come to, and what came behind.
    pub(super) fn unreached(&mut self) {
        if let Some(head) = self.cosigned.take() {
            let (seen, here) = (head.size, self.report.leaves);
            let why = format!("the witnesses saw {seen} leaves, and here are {here}");
            self.note::<()>("log.witness", Err(fail(why)));
        }
        if let Some(after) = self.behind.map(|size| self.report.leaves - size).filter(|n| *n > 0) {
            let why = format!("{after} leaves came after the head that witnesses saw last");
            self.note::<()>("log.witness", Err((Found::NotCheckable, why)));
        }
    }
}
