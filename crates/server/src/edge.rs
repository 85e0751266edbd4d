//! The outermost middleware of every request.
//!
//! It assigns the request an ID, treats HEAD as GET, renders problems in the format of the surface, sets the shared
//! headers, counts the request and logs one line.

use std::{sync::Arc, time::Instant};

use actix_web::{
    Error, HttpMessage as _, HttpResponse, HttpResponseBuilder,
    body::{EitherBody, MessageBody},
    dev::{ServiceRequest, ServiceResponse},
    http::{
        Method, StatusCode,
        header::{self, HeaderMap, HeaderName, HeaderValue},
    },
    middleware::Next,
    web,
};
use tollkey_core::{Problem, ProblemCode};
use ulid::Ulid;

use crate::{
    auth::{self, KeyRateLimit, REALM},
    rejection::Rejection,
    request_id::RequestId,
    routes::SURFACES,
    state::State,
    surface::{Rendered, Surface},
    telemetry,
    transport::{self, SharedBody},
};

pub(crate) static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
// draft-ietf-httpapi-ratelimit-headers-11.
const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

pub(crate) struct RequestTrace {
    started: Instant,
    surface: &'static Surface,
    pub(crate) id: Arc<str>,
}

impl RequestTrace {
    /// `request_ids` are the values of [`X_REQUEST_ID`].
    pub(crate) fn begin<'a>(
        state: &State,
        request_ids: impl Iterator<Item = &'a [u8]>,
        surface: &'static Surface,
    ) -> Self {
        let started = Instant::now();
        let id = inbound_request_id(request_ids, surface).unwrap_or_else(|| new_request_id(state));
        Self {
            started,
            surface,
            id,
        }
    }

    pub(crate) fn render(&self, state: &State, problem: &Problem) -> HttpResponse {
        let rendered = Rendered {
            problem,
            request_id: &self.id,
            now: state.service.clock.now(),
            public_path: &state.public_path,
        };
        (self.surface.render)(problem_response(problem), &rendered)
    }

    /// `route` is the template of the path, never the path itself, because a path can contain a secret.
    pub(crate) fn end(
        &self,
        state: &State,
        requests: &telemetry::Requests,
        (method, route): (&str, Option<&str>),
        (status, headers): (StatusCode, &mut HeaderMap),
        rate_limit: Option<&KeyRateLimit>,
    ) {
        if let Ok(id) = HeaderValue::from_str(&self.id) {
            headers.insert(X_REQUEST_ID.clone(), id);
        }
        (self.surface.set_headers)(headers, status);
        state.public_path.add_to(headers);

        if (!self.surface.is_for_gateways || status == StatusCode::TOO_MANY_REQUESTS)
            && let Some(rate_limit) = rate_limit
        {
            let fields = rate_limit.rate.fields(rate_limit.retry_after_seconds);
            for (name, value) in [RATE_LIMIT_POLICY, RATE_LIMIT].into_iter().zip(fields) {
                if let Ok(value) = HeaderValue::try_from(value) {
                    headers.insert(name, value);
                }
            }
        }

        let elapsed = self.started.elapsed();
        requests.record(method, route, status.as_u16(), elapsed);
        let (method, route) = (telemetry::known_method(method), route.unwrap_or("-"));
        let duration_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        let id = &self.id;
        // Two calls, because the level of an event is static.
        if status.is_success() && self.surface.quiet_routes.contains(&route) {
            tracing::debug!(target: "tollkey::http", request_id = %id, method, route, status = status.as_u16(), duration_us, "request completed");
        } else {
            tracing::info!(target: "tollkey::http", request_id = %id, method, route, status = status.as_u16(), duration_us, "request completed");
        }
    }
}

pub async fn edge<B: MessageBody + 'static>(
    state: web::Data<State>,
    requests: web::Data<telemetry::Requests>,
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    // From here on, the request has the server's own path, whether or not a proxy strips the prefix.
    if let Some(own) = state.public_path.strip_uri(request.uri()) {
        request.match_info_mut().get_mut().update(&own);
        request.head_mut().uri = own;
    }
    let method = request.method().clone();
    // The path as the router sees it, so that an escape in it does not select another surface.
    let surface = SURFACES.of(request.match_info().as_str());
    if method == Method::HEAD && !surface.is_for_gateways {
        request.head_mut().method = Method::GET;
    }
    let request_ids = auth::values(request.headers(), &X_REQUEST_ID);
    let trace = RequestTrace::begin(&state, request_ids, surface);
    request
        .extensions_mut()
        .insert(RequestId(Arc::clone(&trace.id)));

    // Routing and handlers respond even when they fail. An error here comes from actix itself.
    let (http_request, response) = next.call(request).await?.into_parts();
    let problem = response
        .error()
        .map(problem_of)
        .or_else(|| empty_not_found(&response))
        .or_else(|| {
            let is_shared = response.extensions().get::<SharedBody>().is_some();
            // Dropped here, so that responses that clients do not read stay within their memory limit.
            (!transport::has_room(&http_request, response.body().size(), is_shared)).then(|| {
                Problem {
                    retry_after: Some(1),
                    ..Problem::unavailable()
                }
            })
        });
    let mut response = match problem {
        Some(problem) => trace.render(&state, &problem).map_into_right_body(),
        None => response.map_into_left_body(),
    };

    let status = response.status();
    let route = http_request.match_pattern();
    trace.end(
        &state,
        &requests,
        (method.as_str(), route.as_deref()),
        (status, response.headers_mut()),
        http_request.extensions().get::<KeyRateLimit>(),
    );
    Ok(ServiceResponse::new(http_request, response))
}

fn inbound_request_id<'a>(
    mut values: impl Iterator<Item = &'a [u8]>,
    surface: &Surface,
) -> Option<Arc<str>> {
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    std::str::from_utf8(value)
        .ok()
        .filter(|text| (surface.keeps_request_id)(text))
        .map(Arc::from)
}

fn new_request_id(state: &State) -> Arc<str> {
    let millis = u64::try_from(state.service.clock.coarse_now().as_millisecond()).unwrap_or(0);
    let mut random = [0; 16];
    state
        .service
        .random
        .for_request_ids(|rng| rand::Rng::fill_bytes(rng, &mut random));
    format!(
        "req_{}",
        Ulid::from_parts(millis, u128::from_be_bytes(random))
    )
    .into()
}

fn problem_of(error: &Error) -> Problem {
    if let Some(Rejection(problem)) = error.as_error() {
        return problem.clone();
    }
    let status = error.as_response_error().status_code();
    match status.as_u16() {
        404 => Problem::not_found(),
        413 => Problem::new(
            ProblemCode::PayloadTooLarge,
            "The request is too large. Send a smaller one.",
        ),
        400..=499 => Problem::validation(vec![tollkey_core::FieldError {
            pointer: String::new(),
            detail: "The request is malformed. Check its path, query and headers.".to_owned(),
        }]),
        _ => {
            tracing::error!(%error, "unexpected error of the web framework");
            Problem::internal()
        }
    }
}

/// Returns the problem for an empty 404, which the router of a scope sends when no route matches.
fn empty_not_found<B>(response: &HttpResponse<B>) -> Option<Problem> {
    let is_empty = response.status() == StatusCode::NOT_FOUND
        && !response.headers().contains_key(header::CONTENT_TYPE);
    is_empty.then(|| {
        Problem::new(
            ProblemCode::NotFound,
            "No resource exists at this path. Check the URL.",
        )
    })
}

/// Returns the head of a problem response with the headers of the problem. The surface adds the body.
fn problem_response(problem: &Problem) -> HttpResponseBuilder {
    let status =
        StatusCode::from_u16(problem.code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = HttpResponse::build(status);
    if let Some(challenge) = problem.challenge(REALM) {
        response.insert_header((header::WWW_AUTHENTICATE, challenge));
    }
    if let Some(seconds) = problem.retry_after {
        response.insert_header((header::RETRY_AFTER, seconds));
    }
    for (name, value) in &problem.headers {
        response.append_header((*name, value.as_str()));
    }
    response
}
