//! The headers `ETag` and `If-Match` (RFC 9110, sections 8.8.3 and 13.1.1). The rules are in [`tollkey_core::etag`].

use actix_web::{
    FromRequest, HttpRequest, HttpResponse, HttpResponseBuilder,
    dev::Payload,
    http::{StatusCode, header},
};
use tollkey_core::{EntityTag, Preconditions, Problem};

use crate::rejection::Rejection;

/// The `If-Match` of a request. A handler reads it once the caller is authenticated, so that a 400 about the header does
/// not take the place of a 401.
#[derive(Debug)]
pub struct IfMatch(Result<Preconditions, Problem>);

impl FromRequest for IfMatch {
    type Error = Rejection;
    type Future = std::future::Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let values = request.headers().get_all(header::IF_MATCH);
        let read = Preconditions::parse(values.map(|value| value.as_bytes()))
            .map_err(|rule| Problem::field("If-Match", rule.to_string()));
        std::future::ready(Ok(Self(read)))
    }
}

impl IfMatch {
    /// Fails with `validation_failed` for a malformed header.
    pub fn preconditions(self) -> Result<Preconditions, Problem> {
        self.0
    }
}

/// Begins a response about a resource in the state with this tag.
pub fn tagged(status: StatusCode, tag: EntityTag) -> HttpResponseBuilder {
    let mut response = HttpResponse::build(status);
    response.insert_header((header::ETAG, tag.to_string()));
    response
}

/// Begins a 200 about a resource in the state with this tag.
pub fn ok(tag: EntityTag) -> HttpResponseBuilder {
    tagged(StatusCode::OK, tag)
}
