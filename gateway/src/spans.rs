//! OpenTelemetry spans of calls, as OTLP to a collector on this host.
//!
//! They show people what is slow and what fails. They are no evidence: while the
//! collector is away spans are lost, never a call or a record. They carry names
//! that operators gave, codes, numbers and digests, and nothing that a sandbox
//! or a tool server wrote, so that nothing leaves by them. A trace's id is the
//! start of its invocation's digest, which the call's receipt has whole.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use casemate_ledger::cgp::{Denial, MCP_VERSION, RpcError, method};
use casemate_ledger::{Authentic, Identity, Invocation, Outcome, Verdict, text};
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanProcessor};

use crate::clock::{Clock, Now};
use crate::keys::random;
use collector::Collector;
pub use collector::CollectorUrl;

mod collector;

/// Where spans go: a queue of 2,048, emptied by a thread of its own.
pub(crate) struct Spans {
    processor: BatchSpanProcessor,
    lost: Arc<AtomicU64>,
}

/// How long the last spans may take when the gateway stops.
const LAST: Duration = Duration::from_secs(2);
const SCOPE: &str = "casemate-gateway";

impl Spans {
    /// Sends to `url` with the runtime that this is called in.
    pub(crate) fn open(url: &CollectorUrl) -> Result<Arc<Self>, String> {
        let lost = Arc::default();
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Collector::new(url, Arc::clone(&lost)))
            .with_endpoint(url.to_string())
            .with_protocol(Protocol::HttpJson)
            .build()
            .map_err(|error| error.to_string())?;
        let mut processor = BatchSpanProcessor::builder(exporter).build();
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource =
            Resource::builder_empty().with_service_name(SCOPE).with_attribute(version).build();
        processor.set_resource(&resource);
        Ok(Arc::new(Self { processor, lost }))
    }

    /// How many batches of spans did not reach the collector.
    pub(crate) fn lost_batches(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Sends what is left. It blocks.
    pub(crate) fn close(&self) {
        if let Err(error) = self.processor.shutdown_with_timeout(LAST) {
            tracing::warn!(%error, "the last spans are lost");
        }
    }
}

/// The spans of one call, sent when it is dropped.
pub(crate) struct Trace(Option<Box<Open>>);

struct Open {
    spans: Arc<Spans>,
    clock: Clock,
    received: Now,
    trace: TraceId,
    root: SpanId,
    name: String,
    attributes: Vec<KeyValue>,
    /// The code of what went wrong.
    error: Option<String>,
    parts: Vec<SpanData>,
}

impl Trace {
    /// Begins with a call whose signature holds. A tool that is not `pinned` is
    /// not named: its name is the sandbox's own words.
    pub(crate) fn begin(
        spans: Option<&Arc<Spans>>,
        clock: Clock,
        (caller, invocation): (&Identity, &Authentic<Invocation>),
        pinned: Option<&str>,
    ) -> Self {
        let digest = invocation.digest();
        let open = spans.map(|spans| {
            let trace = TraceId::from(u128::from_be_bytes(first(&digest)));
            let mut attributes = vec![
                KeyValue::new("mcp.method.name", method::TOOLS_CALL),
                KeyValue::new("mcp.protocol.version", MCP_VERSION),
                KeyValue::new("gen_ai.operation.name", "execute_tool"),
                KeyValue::new("casemate.sandbox", caller.sandbox.clone()),
                number("casemate.epoch", caller.claims.epoch),
                KeyValue::new("casemate.task", caller.claims.task.clone()),
                number("casemate.sequence", invocation.sequence),
                KeyValue::new("casemate.invocation", text::hex(&digest)),
                KeyValue::new("casemate.arguments", text::hex(&invocation.arguments.digest)),
            ];
            attributes
                .extend(pinned.map(|tool| KeyValue::new("gen_ai.tool.name", tool.to_owned())));
            let name = pinned.map(|tool| format!("{} {tool}", method::TOOLS_CALL));
            Box::new(Open {
                spans: Arc::clone(spans),
                clock,
                received: clock.now(),
                trace,
                root: new_id(),
                name: name.unwrap_or_else(|| method::TOOLS_CALL.to_owned()),
                attributes,
                error: Some("unanswered".to_owned()),
                parts: Vec::new(),
            })
        });
        Self(open)
    }

    /// The call came to no decision.
    pub(crate) fn refused(&mut self, error: &RpcError) {
        if let Some(open) = &mut self.0 {
            open.error = Some(error.code.to_string());
        }
    }

    /// The decision is durable at `index`.
    pub(crate) fn decided(&mut self, index: u64, verdict: Verdict, denial: Option<&Denial>) {
        let Some(open) = &mut self.0 else { return };
        let verdict = match verdict {
            Verdict::Allow => "allow",
            Verdict::Deny(_) => "deny",
            Verdict::Hold(_) => "hold",
        };
        let attributes =
            vec![number("casemate.decision", index), KeyValue::new("casemate.verdict", verdict)];
        open.part(("decide".to_owned(), SpanKind::Internal), open.received, attributes.clone());
        open.attributes.extend(attributes);
        if let Some(denial) = denial {
            open.error = Some(denial.code.name().to_owned());
        }
    }

    /// The tool was asked since `began`, and `outcome` is what came of it.
    pub(crate) fn worked(&mut self, began: Now, outcome: &Outcome) {
        let Some(open) = &mut self.0 else { return };
        if let Some(upstream) = outcome.upstream.as_ref().filter(|_| outcome.started_ms != 0) {
            let about = vec![KeyValue::new("casemate.upstream", upstream.name.clone())];
            open.part((open.name.clone(), SpanKind::Client), began, about);
        }
        open.attributes.extend([
            KeyValue::new("casemate.status", outcome.status.name()),
            number("casemate.bytes_out", outcome.bytes_out),
            number("casemate.bytes_in", outcome.bytes_in),
        ]);
        let result = outcome.result.map(|result| text::hex(&result.digest));
        open.attributes.extend(result.map(|result| KeyValue::new("casemate.result", result)));
        let failed = outcome.status != casemate_ledger::Status::Executed;
        let code = outcome.reason.as_deref().unwrap_or(outcome.status.name());
        open.error = failed.then(|| code.to_owned());
    }

    /// What came of it is in no record: the span must not say more than the log.
    pub(crate) fn unrecorded(&mut self) {
        let Some(open) = &mut self.0 else { return };
        let said = ["casemate.status", "casemate.result"];
        open.attributes.retain(|attribute| !said.contains(&attribute.key.as_str()));
        open.attributes.push(KeyValue::new("casemate.status", "unknown"));
        open.error = Some("outcome_unknown".to_owned());
    }

    /// The outcome is durable at `index`.
    pub(crate) fn recorded(&mut self, index: u64) {
        if let Some(open) = &mut self.0 {
            open.attributes.push(number("casemate.outcome", index));
        }
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let Some(mut open) = self.0.take() else { return };
        let mut attributes = std::mem::take(&mut open.attributes);
        let code = open.error.take();
        attributes.extend(code.clone().map(|code| KeyValue::new("error.type", code)));
        let name = std::mem::take(&mut open.name);
        let mut root = open.span(open.root, (name, SpanKind::Server), open.received, attributes);
        root.parent_span_id = SpanId::INVALID;
        root.status = code.map_or(Status::Unset, Status::error);
        for span in open.parts.drain(..).chain([root]) {
            open.spans.processor.on_end(span);
        }
    }
}

impl Open {
    /// A part of the call, from `began` to now.
    fn part(&mut self, what: (String, SpanKind), began: Now, attributes: Vec<KeyValue>) {
        let span = self.span(new_id(), what, began, attributes);
        self.parts.push(span);
    }

    fn span(
        &self,
        id: SpanId,
        (name, span_kind): (String, SpanKind),
        began: Now,
        attributes: Vec<KeyValue>,
    ) -> SpanData {
        let context = |id| {
            SpanContext::new(self.trace, id, TraceFlags::SAMPLED, false, TraceState::default())
        };
        SpanData {
            span_context: context(id),
            parent_span_id: self.root,
            parent_span_is_remote: false,
            span_kind,
            name: name.into(),
            start_time: self.time(began),
            end_time: self.time(self.clock.now()),
            attributes,
            dropped_attributes_count: 0,
            events: Default::default(),
            links: Default::default(),
            status: Status::Unset,
            instrumentation_scope: InstrumentationScope::builder(SCOPE).build(),
        }
    }

    /// The wall clock of the call's begin, and from there the one that is never
    /// put back.
    fn time(&self, at: Now) -> SystemTime {
        let since = at.monotonic_us.saturating_sub(self.received.monotonic_us);
        UNIX_EPOCH + Duration::from_millis(self.received.unix_ms) + Duration::from_micros(since)
    }
}

fn first(digest: &[u8; 32]) -> [u8; 16] {
    digest.first_chunk().copied().unwrap_or_default()
}

fn new_id() -> SpanId {
    SpanId::from(u64::from_be_bytes(random().unwrap_or_default()))
}

/// OTLP has signed numbers only.
fn number(key: &'static str, value: u64) -> KeyValue {
    KeyValue::new(key, i64::try_from(value).unwrap_or(i64::MAX))
}
