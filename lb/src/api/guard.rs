//! What holds for every request and every answer: bodies have a size, a type and a time, and errors are problem details.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http_body_util::{BodyExt, Limited};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};

use super::{Api, Problem};

/// No route takes a larger body. Some take less.
pub(super) const MAX_BODY_BYTES: usize = 64 << 20;
/// A body must be here whole after this time.
pub(super) const BODY_TIME: Duration = Duration::from_secs(30);

/// Refuses bodies that no route would take, before anything of them is read.
pub(super) async fn check_body(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Response {
    let size = request.body().size_hint();
    if size.lower() > MAX_BODY_BYTES as u64 {
        let bytes = size.lower();
        let why =
            format!("the body has {bytes} bytes; no request needs more than {MAX_BODY_BYTES}");
        return Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why).into_response();
    }
    if size.exact() == Some(0) {
        return next.run(request).await;
    }
    if let Err(given) = is_json(request.headers()) {
        let why = format!(
            "the body is `{given}`; send JSON with `Content-Type: application/json` (curl: `--json`)"
        );
        let problem = Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, why);
        return problem.of_field("Content-Type").into_response();
    }
    let too_slow = Arc::new(AtomicBool::new(false));
    let request = request.map(|body| Body::new(Timely::new(body, api.body_time, too_slow.clone())));
    let response = next.run(request).await;
    if too_slow.load(Ordering::Relaxed) {
        let why = format!("{TooSlow}; send it within {} seconds", BODY_TIME.as_secs());
        return Problem::new(StatusCode::REQUEST_TIMEOUT, why).into_response();
    }
    response
}

/// Whether the body says that it is JSON, or says nothing; else what it says.
fn is_json(headers: &HeaderMap) -> Result<(), String> {
    let Some(kind) = headers.get(header::CONTENT_TYPE) else {
        return Ok(());
    };
    let kind = String::from_utf8_lossy(kind.as_bytes());
    let essence = kind.split(';').next().unwrap_or_default().trim();
    let essence = essence.to_ascii_lowercase();
    if essence == "application/json"
        || (essence.starts_with("application/") && essence.ends_with("+json"))
    {
        Ok(())
    } else {
        Err(kind.chars().filter(|c| !c.is_control()).take(64).collect())
    }
}

/// Gives every error a body in problem details, also those that come from under the routes.
pub(super) async fn as_problem(request: Request, next: Next) -> Response {
    let path = request.uri().path().to_owned();
    let response = next.run(request).await;
    let status = response.status();
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind == super::problem::CONTENT_TYPE);
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    let text = Limited::new(body, DETAIL_BYTES).collect().await;
    let text = text.map_or_else(|_too_long| Bytes::new(), |text| text.to_bytes());
    let detail = match str::from_utf8(&text) {
        Ok(text) if !text.trim().is_empty() => text.trim().to_owned(),
        _ => format!("{path}: {status}"),
    };
    parts.headers.remove(header::CONTENT_TYPE);
    parts.headers.remove(header::CONTENT_LENGTH);
    let mut problem = Problem::new(status, detail).into_response();
    problem.headers_mut().extend(parts.headers);
    problem
}

const DETAIL_BYTES: usize = 4096;

/// A request's body that ends with an error if it takes too long.
struct Timely {
    body: Body,
    deadline: Pin<Box<Sleep>>,
    /// Set when it did: what reads the body knows only that it ends early.
    too_slow: Arc<AtomicBool>,
}

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
#[error("the body was not here in time")]
struct TooSlow;

impl Timely {
    fn new(body: Body, time: Duration, too_slow: Arc<AtomicBool>) -> Self {
        Self {
            body,
            deadline: Box::pin(sleep(time)),
            too_slow,
        }
    }
}

impl HttpBody for Timely {
    type Data = Bytes;
    type Error = axum::BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::BoxError>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        ready!(self.deadline.as_mut().poll(context));
        self.too_slow.store(true, Ordering::Relaxed);
        Poll::Ready(Some(Err(TooSlow.into())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
