//! Bodies of requests: read whole, and only so many large ones at a time.

use std::sync::Arc;

use axum::{
    body::Bytes,
    extract::Request,
    http::{StatusCode, header},
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Api, MAX_BODY_BYTES, Problem};

/// The body, and leave to have it in memory if it is large.
pub(super) async fn read(
    api: &Api,
    request: Request,
    most: usize,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Problem> {
    let too_long = || {
        let why = format!("the body is longer than {most} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, why)
    };
    let declared = content_length(&request);
    if declared.is_some_and(|length| length > most) {
        return Err(too_long());
    }
    let is_small = declared.is_some_and(|length| length <= MAX_BODY_BYTES);
    let permit = if is_small || most <= MAX_BODY_BYTES {
        None
    } else {
        let places = api.large_bodies.0.clone();
        let permit = places.try_acquire_owned().map_err(|_taken| {
            let why = "other large requests are being read; try again";
            Problem::new(StatusCode::SERVICE_UNAVAILABLE, why)
        })?;
        Some(permit)
    };
    let body = Limited::new(request.into_body(), most).collect().await;
    let body = body.map_err(|error| match error.downcast::<LengthLimitError>() {
        Ok(_) => too_long(),
        Err(error) => Problem::new(StatusCode::BAD_REQUEST, error.to_string()),
    })?;
    Ok((body.to_bytes(), permit))
}

fn content_length(request: &Request) -> Option<usize> {
    let length = request.headers().get(header::CONTENT_LENGTH)?;
    length.to_str().ok()?.parse().ok()
}

/// Places for bodies larger than [`MAX_BODY_BYTES`], or of unknown length: so many may be in memory at a time.
#[derive(Debug)]
pub(crate) struct LargeBodies(Arc<Semaphore>);

impl Default for LargeBodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(2)))
    }
}
