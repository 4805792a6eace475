//! One request of a tool: told how far it is, and cancelled when nobody waits.

use std::convert::Infallible;

use futures_util::StreamExt;
use rmcp::handler::client::progress::ProgressDispatcher;
use rmcp::model::{
    CallToolRequest, CallToolRequestParams, CancelledNotificationParam, ClientRequest, RequestId,
    ServerResult,
};
use rmcp::service::PeerRequestOptions;
use rmcp::{Peer, RoleClient, ServiceError};

use crate::inflight::Reporter;
use crate::secrets::Secrets;

/// Sends the request and waits for its answer. Dropping the future cancels it.
pub(super) async fn call(
    peer: &Peer<RoleClient>,
    dispatcher: &ProgressDispatcher,
    params: CallToolRequestParams,
    progress: Option<(Reporter, &Secrets)>,
) -> Result<ServerResult, ServiceError> {
    let request = ClientRequest::CallToolRequest(CallToolRequest::new(params));
    let asked = peer.send_request_with_option(request, PeerRequestOptions::no_options()).await?;
    let mut abandoned = Abandoned { peer, id: Some(asked.id.clone()) };
    // Who does not read what it subscribed to would hold the server's notices up.
    let told = match progress {
        Some((reporter, secrets)) => {
            let notices = dispatcher.subscribe(asked.progress_token.clone()).await;
            Some((notices, reporter, secrets))
        }
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
    let answer = tokio::select! {
        biased;
        answer = asked.await_response() => answer,
        never = reporting => match never {},
    };
    abandoned.id = None;
    answer
}

/// Tells the server, when it is dropped, that nobody waits for the request.
struct Abandoned<'a> {
    peer: &'a Peer<RoleClient>,
    id: Option<RequestId>,
}

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        let Some(id) = self.id.take() else { return };
        let peer = self.peer.clone();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let params = CancelledNotificationParam::new(Some(id), None);
            // A server that is gone has nothing to cancel.
            let _ = peer.notify_cancelled(params).await;
        });
    }
}
