//! People who are asked, in a test.

use std::time::Duration;

use casemate_gateway::{Command, Reply, SigningKey, Waiting};
use casemate_ledger::cgp::{Message, method};
use casemate_ledger::{Approval, Record, text};
use serde_json::{Value, json};

use super::scene::Scene;
use super::{House, Port, code, now};

/// A house in which alice, bob and carol may approve; bob has two keys.
pub fn approving() -> (House, Vec<(&'static str, SigningKey)>) {
    let mut house = House::new();
    let people = [("alice", "alice"), ("bob", "bob"), ("bob2", "bob"), ("carol", "carol")];
    let mut keys = Vec::new();
    for (name, person) in people {
        let key = SigningKey::generate().unwrap();
        let public = text::hex(key.public());
        let table =
            format!("[[approver]]\nname = \"{name}\"\nperson = \"{person}\"\nkey = \"{public}\"\n");
        house.controls.push_str(&table);
        keys.push((name, key));
    }
    (house, keys)
}

impl Scene {
    pub async fn waiting(&self, count: usize) -> Vec<Waiting> {
        loop {
            let Reply::Approvals(calls) = self.admin(Command::ApprovalList { after: None }).await
            else {
                panic!()
            };
            if calls.len() >= count {
                return calls;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Makes a call that waits, and leaves it there.
    pub async fn left_waiting(&self, port: &mut Port, arguments: Value) -> Waiting {
        let id = port.start("fx.echo", arguments, &|_| ()).await;
        let waiting = self.waiting(1).await.remove(0);
        let params = json!({ "requestId": id });
        port.wire.send(&Message::notification(method::CANCELLED, params)).await;
        assert_eq!(code(&port.answer(id).await.unwrap()), "approval_pending");
        waiting
    }

    /// Connects a port again whose connection ended.
    pub async fn again(&self, port: Port) -> Port {
        let wire = self.house.connect(&self.gateway, &port.credential).await;
        let (sequence, previous) = (port.sequence, port.previous);
        Port::hello(wire, port.credential, sequence, previous).await.unwrap()
    }

    /// Has one of `keys` answer, after `change` of what is signed.
    pub async fn say(
        &self,
        keys: &[(&str, SigningKey)],
        name: &str,
        call: &Waiting,
        change: impl FnOnce(&mut Approval),
    ) -> Reply {
        let key = &keys.iter().find(|(known, _)| *known == name).unwrap().1;
        let display = call.display.as_deref().unwrap_or("nothing");
        let mut approval = Approval {
            hold: text::from_hex(&call.id).unwrap().try_into().unwrap(),
            approve: true,
            approver: name.to_owned(),
            display: casemate_ledger::digest(display.as_bytes()),
            expires: now().plus_seconds(60),
            reason: None,
        };
        change(&mut approval);
        let signed = approval.sign(key.public(), |message| key.sign(message));
        self.admin(Command::ApprovalAdd { approval: text::base64url(signed.bytes()) }).await
    }
}
