//! What a port and a running call say to each other: cancelled one way,
//! progress the other. Neither changes what is decided or recorded of a call.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use casemate_ledger::cgp::{
    MAX_PROGRESS_MESSAGE_BYTES, Message, Progress, RpcError, error_code, meta, method,
};
use serde_json::Value;
use tokio::sync::{mpsc, watch};

use crate::sync::locked;

/// The requests of one connection that are not answered yet, by number.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<HashMap<u64, watch::Sender<bool>>>>);

/// One request while it runs.
pub(crate) struct InFlight {
    /// Turns true when nobody waits for the answer any more.
    pub(crate) cancelled: watch::Receiver<bool>,
    /// Where progress goes, if the port asked for it.
    pub(crate) progress: Option<Reporter>,
}

impl Calls {
    /// A request begins. Its number must not be in use, and its progress token,
    /// if there is one, must be that number.
    pub(crate) fn start(
        &self,
        id: u64,
        params: &Value,
        outgoing: &mpsc::Sender<Vec<u8>>,
    ) -> Result<InFlight, RpcError> {
        let token = params.get("_meta").and_then(|fields| fields.get(meta::PROGRESS_TOKEN));
        if token.is_some_and(|token| token.as_u64() != Some(id)) {
            let text = "_meta, progressToken: expected the request's number";
            return Err(RpcError::new(error_code::INVALID_PARAMS, text));
        }
        let (cancel, cancelled) = watch::channel(false);
        let mut calls = locked(&self.0);
        if calls.contains_key(&id) {
            let text = "id: expected a number not in use";
            return Err(RpcError::new(error_code::INVALID_REQUEST, text));
        }
        calls.insert(id, cancel);
        let progress = token.map(|_| Reporter::new(id, outgoing.clone()));
        Ok(InFlight { cancelled, progress })
    }

    /// Nobody waits for request `id`. One that is answered already is not there.
    pub(crate) fn cancel(&self, id: u64) {
        if let Some(call) = locked(&self.0).get(&id) {
            call.send_replace(true);
        }
    }

    /// Request `id` is about to be answered.
    pub(crate) fn end(&self, id: u64) {
        locked(&self.0).remove(&id);
    }
}

/// A call has at most this many notices of progress in any second (MCP asks for
/// a rate limit).
const NOTICES: usize = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// Tells the port how far one call is. What does not grow, comes too fast or
/// finds the connection busy is dropped: progress is a courtesy.
pub(crate) struct Reporter {
    id: u64,
    outgoing: mpsc::Sender<Vec<u8>>,
    last: Option<f64>,
    /// When the last notices went out.
    sent: VecDeque<Instant>,
}

impl Reporter {
    fn new(id: u64, outgoing: mpsc::Sender<Vec<u8>>) -> Self {
        Self { id, outgoing, last: None, sent: VecDeque::new() }
    }

    /// One notice of the tool server. Its words are cut, not believed.
    pub(crate) fn report(&mut self, progress: f64, total: Option<f64>, message: Option<&str>) {
        self.report_at(Instant::now(), progress, total, message);
    }

    fn report_at(
        &mut self,
        now: Instant,
        progress: f64,
        total: Option<f64>,
        message: Option<&str>,
    ) {
        self.sent.retain(|sent| now < *sent + WINDOW);
        let grows = self.last.is_none_or(|last| progress > last);
        if !progress.is_finite() || !grows || self.sent.len() >= NOTICES {
            return;
        }
        self.last = Some(progress);
        self.sent.push_back(now);
        let notice = Progress {
            progress_token: self.id,
            progress,
            total: total.filter(|total| total.is_finite()),
            message: message.map(|message| cut(message, MAX_PROGRESS_MESSAGE_BYTES)),
        };
        let Ok(params) = serde_json::to_value(notice) else { return };
        let _ = self.outgoing.try_send(Message::notification(method::PROGRESS, params).encode());
    }
}

/// At most the first `most` bytes of `text`.
pub(crate) fn cut(text: &str, most: usize) -> String {
    let mut end = most.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_is_open_once_and_cancelled_by_number() {
        let (outgoing, _queue) = mpsc::channel(4);
        let calls = Calls::default();
        let call = calls.start(7, &json!({}), &outgoing).ok().unwrap();
        assert!(call.progress.is_none());
        assert!(calls.start(7, &json!({}), &outgoing).is_err());
        calls.cancel(8);
        assert!(!*call.cancelled.borrow());
        calls.cancel(7);
        assert!(*call.cancelled.borrow());
        calls.end(7);
        let token = |token: Value| json!({"_meta": {"progressToken": token}});
        assert!(calls.start(7, &token(json!(8)), &outgoing).is_err());
        assert!(calls.start(7, &token(json!("7")), &outgoing).is_err());
        assert!(calls.start(7, &token(json!(7)), &outgoing).ok().unwrap().progress.is_some());
    }

    #[test]
    fn progress_grows_keeps_its_pace_and_is_cut() {
        let (outgoing, mut queue) = mpsc::channel(64);
        let mut reporter = Reporter::new(7, outgoing);
        let long = "é".repeat(MAX_PROGRESS_MESSAGE_BYTES);
        let start = Instant::now();
        reporter.report_at(start, 1.0, Some(f64::INFINITY), Some(&long));
        reporter.report_at(start, 1.0, None, None); // not further
        reporter.report_at(start, f64::NAN, None, None);
        for step in 2..40 {
            reporter.report_at(start, f64::from(step), None, None); // nine of them
        }
        reporter.report_at(start + WINDOW, 50.0, Some(51.0), None);
        let notices: Vec<Progress> = std::iter::from_fn(|| queue.try_recv().ok())
            .map(|line| match Message::parse(line.strip_suffix(b"\n").unwrap()).unwrap() {
                Message::Notification { params, .. } => serde_json::from_value(params).unwrap(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(notices.len(), NOTICES + 1);
        assert_eq!((notices[0].progress, notices[0].total), (1.0, None));
        assert!(notices[0].message.as_ref().unwrap().len() <= MAX_PROGRESS_MESSAGE_BYTES);
        assert_eq!((notices[9].progress, notices[9].total), (10.0, None));
        assert_eq!((notices[10].progress, notices[10].total), (50.0, Some(51.0)));
    }
}
