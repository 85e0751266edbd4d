//! [`VerifiedKey`] and [`Rejection`] in actix-web.

use std::future::{Ready, ready};

use actix_web::{
    FromRequest, HttpMessage as _, HttpRequest, HttpResponse, ResponseError,
    dev::Payload,
    http::{
        StatusCode,
        header::{HeaderName, HeaderValue},
    },
};

use crate::{Admission, Rejection, VerifiedKey};

impl FromRequest for VerifiedKey {
    type Error = Rejection;
    type Future = Ready<Result<Self, Rejection>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let extensions = request.extensions();
        let admission = extensions
            .get::<Admission>()
            .ok_or_else(Rejection::unguarded);
        ready(admission.and_then(|admission| admission.required_key().cloned()))
    }
}

impl ResponseError for Rejection {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let rejected = self.response();
        let status =
            StatusCode::from_u16(rejected.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = HttpResponse::new(status);
        for (name, value) in rejected.headers {
            // The application's own format may have set an invalid header; it is left out.
            if let (Ok(name), Ok(value)) =
                (HeaderName::try_from(name), HeaderValue::try_from(value))
            {
                response.headers_mut().insert(name, value);
            }
        }
        response.extensions_mut().insert(self.clone());
        response.set_body(rejected.body).map_into_boxed_body()
    }
}
