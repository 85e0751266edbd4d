//! [`VerifiedKey`] and [`Rejection`] in axum and in other frameworks that use the crate `http`.

use axum_core::{
    body::Body,
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{Extensions, HeaderName, HeaderValue, StatusCode, request::Parts};

use crate::{Admission, Rejection, VerifiedKey};

impl VerifiedKey {
    /// Returns the key from the extensions of a request, for frameworks without extractors such as tonic and
    /// hyper. `None` without a Tollkey layer, or if the key is [optional](crate::Requirement::optional) and
    /// the request has none.
    #[must_use]
    pub fn from_extensions(extensions: &Extensions) -> Option<Self> {
        extensions.get::<Admission>()?.key().cloned()
    }
}

impl<S: Sync> FromRequestParts<S> for VerifiedKey {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Rejection> {
        let admission = parts
            .extensions
            .get::<Admission>()
            .ok_or_else(Rejection::unguarded)?;
        admission.required_key().cloned()
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for VerifiedKey {
    type Rejection = Rejection;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Rejection> {
        let admission = parts
            .extensions
            .get::<Admission>()
            .ok_or_else(Rejection::unguarded)?;
        Ok(admission.key().cloned())
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let rejected = self.response();
        let mut response = Response::new(Body::from(rejected.body));
        *response.status_mut() =
            StatusCode::from_u16(rejected.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        for (name, value) in rejected.headers {
            // The closure of `on_rejection` may have set an invalid header, which is left out.
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::try_from(value))
            {
                response.headers_mut().insert(name, value);
            }
        }
        response.extensions_mut().insert(self);
        response
    }
}
