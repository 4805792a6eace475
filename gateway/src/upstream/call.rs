//! One request of a tool: told how far it is, and cancelled when nobody waits.

use std::convert::Infallible;
use std::time::Duration;

use futures_util::StreamExt;
use rmcp::handler::client::progress::ProgressDispatcher;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, ClientNotification, ClientRequest, CustomNotification,
    RequestId, ServerResult,
};
use rmcp::service::{PeerRequestOptions, RequestHandle};
use rmcp::{Peer, RoleClient, ServiceError};
use serde_json::json;
use tokio::time::timeout;

use crate::inflight::Reporter;
use crate::secrets::Secrets;

/// The connection that a request takes.
pub(super) struct Way<'a> {
    pub(super) peer: &'a Peer<RoleClient>,
    /// Whether it is a child's pipe: one over HTTP is closed to cancel.
    pub(super) is_child: bool,
}

/// What is done with an answer that comes too late.
type Late = Box<dyn FnOnce(ServerResult) + Send>;

/// How long an answer to a cancelled request is listened for.
const LATE: Duration = Duration::from_secs(10);

/// Sends the request and waits for its answer. Dropping the future cancels it.
pub(super) async fn call(
    way: Way<'_>,
    dispatcher: &ProgressDispatcher,
    params: CallToolRequestParams,
    (progress, late): (Option<(Reporter, &Secrets)>, Late),
) -> Result<ServerResult, ServiceError> {
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
    let options = PeerRequestOptions::no_options();
    let asked = way.peer.send_request_with_option(request, options).await?;
    // Who does not read what it subscribed to would hold the server's notices up.
    let token = asked.progress_token.clone();
    let mut waiting = Waiting { asked: Some(asked), is_child: way.is_child, late: Some(late) };
    let told = match progress {
        Some((reporter, secrets)) => Some((dispatcher.subscribe(token).await, reporter, secrets)),
        None => None,
    };
    let reporting = async {
        if let Some((mut notices, mut reporter, secrets)) = told {
            while let Some(notice) = notices.next().await {
                // As in a result: words that say a credential are not passed on.
                let message = notice.message.as_deref();
                let message = message.filter(|message| !secrets.occur_in_text(message));
                reporter.report(notice.progress, notice.total, message);
            }
        }
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        biased;
        answer = waiting.answer() => answer,
        never = reporting => match never {},
    }
}

/// A request that is out. When it is dropped unanswered, its server is told
/// that nobody waits.
struct Waiting {
    asked: Option<RequestHandle<RoleClient>>,
    is_child: bool,
    late: Option<Late>,
}

impl Waiting {
    async fn answer(&mut self) -> Result<ServerResult, ServiceError> {
        let Some(asked) = &mut self.asked else { return Err(ServiceError::TransportClosed) };
        let answer = (&mut asked.rx).await.map_err(|_| ServiceError::TransportClosed);
        self.asked = None;
        answer?
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let (Some(asked), Some(late)) = (self.asked.take(), self.late.take()) else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let is_child = self.is_child;
        runtime.spawn(async move {
            if is_child {
                listen(asked, late).await;
            } else {
                // The library closes the request's stream, or tells a server of the
                // older era: after that there is nothing to listen to. A server
                // that is gone has nothing to cancel.
                let _ = asked.cancel(None).await;
            }
        });
    }
}

/// Cancels a request of a child, which may have answered already, and listens
/// for that. The connection is not kept for it: a child that is ended is silent.
async fn listen(mut asked: RequestHandle<RoleClient>, late: Late) {
    if asked.peer.send_notification(cancelled(&asked.id)).await.is_err() {
        return;
    }
    match timeout(LATE, &mut asked.rx).await {
        Ok(Ok(Ok(answer))) => late(answer),
        Ok(_) => {}
        // The library keeps the request until it cancels it in its own way; a
        // server that was told already has nothing to do.
        Err(_) => drop(asked.cancel(None).await),
    }
}

/// `notifications/cancelled`, in words that do not make the library forget the
/// request: it would drop the answer.
fn cancelled(id: &RequestId) -> ClientNotification {
    let params = json!({ "requestId": id });
    CustomNotification::new("notifications/cancelled", Some(params)).into()
}
