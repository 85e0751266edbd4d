//! The ID of a request.

use std::sync::Arc;

use actix_web::{HttpMessage as _, HttpRequest};

/// The ID of a request, `X-Request-Id`. The [`edge`](crate::edge) inserts it into the request's extensions.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// Returns the ID of a request, or an empty text if the edge has not assigned one.
pub fn request_id(request: &HttpRequest) -> Arc<str> {
    request
        .extensions()
        .get::<RequestId>()
        .map_or_else(|| Arc::from(""), |id| Arc::clone(&id.0))
}
