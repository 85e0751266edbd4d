//! The result of a handler.

use std::fmt;

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use tollkey_core::Problem;

/// The problem of a request. The [`edge`](crate::edge) renders it in the format of the surface.
#[derive(Debug)]
pub struct Rejection(pub Problem);

impl From<Problem> for Rejection {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ResponseError for Rejection {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.0.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        HttpResponse::new(self.status_code())
    }
}

pub type HandlerResult = Result<HttpResponse, Rejection>;
