//! The gateway protocol of Envoy over gRPC: `envoy.service.auth.v3.Authorization/Check`.
//!
//! A request becomes the same decision as at `/authz/ext-authz`, and the response of that route becomes the response
//! over gRPC. What is read from a request: `docs/gateways.md`.

use std::{
    cell::Cell,
    net::{IpAddr, SocketAddr},
    panic::AssertUnwindSafe,
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use actix_web::{
    HttpResponse,
    body::MessageBody as _,
    http::{
        StatusCode,
        header::{HeaderName, HeaderValue},
    },
    web,
};
use anyhow::Context as _;
use envoy_types::pb::{
    envoy::{
        config::core::v3::{
            HeaderValue as EnvoyHeader, HeaderValueOption, address::Address,
            header_value_option::HeaderAppendAction,
        },
        service::auth::v3::{
            CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
            attribute_context::Peer, check_response,
        },
        r#type::v3::HttpStatus,
    },
    google::rpc,
};
use futures_util::{FutureExt as _, future::LocalBoxFuture};
use hyper::body::Incoming;
use tokio::{sync::Semaphore, time::timeout};
use tollkey_core::{Invalid, Problem};
use tonic::{
    Code, Status,
    body::Body,
    codegen::http,
    server::{Grpc, UnaryService},
};
use tonic_prost::ProstCodec;

use crate::{
    auth::{FORWARDED_FOR, KeyRateLimit, PeerAddress, RequestParts, is_forwarding_header},
    edge::{RequestTrace, X_REQUEST_ID},
    state::State,
    surfaces::verification::{
        GATEWAYS, allowed,
        decision::{Authorization, Requirement, decide, invalid_requirement},
    },
    telemetry,
    transport::{self, Connections, REQUEST_DEADLINE, Server},
};

/// The path of the only operation, which is also its route in logs and metrics.
const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Maximum size of a request in bytes. Envoy accepts 60 KiB of headers by default, and sends the path twice.
const MAX_MESSAGE: usize = 128 * 1024;
/// How many requests of all connections are read or decided at the same time. The buffer of one grows to at most 256 KiB,
/// so all take at most 128 MiB.
const MAX_REQUESTS: usize = 512;

/// Starts the listener. Returns its address. It shares the limit of `connections` with the other listener.
pub(crate) fn start(
    listen: SocketAddr,
    state: &web::Data<State>,
    connections: &Arc<Connections>,
    options: &transport::Options,
) -> anyhow::Result<(SocketAddr, Server)> {
    let listener =
        transport::listen(listen).with_context(|| format!("cannot listen on {listen}"))?;
    let address = listener
        .local_addr()
        .context("cannot read the address of the socket")?;
    let state = state.clone();
    let permits = Arc::new(Semaphore::new(MAX_REQUESTS));
    let server = Server::start_http2(listener.into(), connections, options, move || {
        let worker = Rc::new(Worker {
            state: state.clone(),
            permits: Arc::clone(&permits),
            requests: telemetry::Requests::default(),
        });
        move |request: http::Request<Incoming>, peer: Option<SocketAddr>| {
            respond(Rc::clone(&worker), request, peer.map(|peer| peer.ip()))
        }
    })?;
    Ok((address, server))
}

/// What the requests of one thread share.
struct Worker {
    state: web::Data<State>,
    /// All threads share them.
    permits: Arc<Semaphore>,
    requests: telemetry::Requests,
}

async fn respond(
    worker: Rc<Worker>,
    request: http::Request<Incoming>,
    peer: Option<IpAddr>,
) -> http::Response<Body> {
    if request.uri().path() != CHECK {
        return Status::unimplemented(format!("this server has only {CHECK}")).into_http();
    }
    let started = Instant::now();
    // Taken before the body is read.
    let Ok(_permit) = worker.permits.try_acquire() else {
        let status = Status::resource_exhausted("the server has too many requests in flight");
        return worker.fail(started, &status, StatusCode::SERVICE_UNAVAILABLE);
    };
    let codec = ProstCodec::<CheckResponse, CheckRequest>::default();
    let mut grpc = Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE);
    let check = Check {
        worker: Rc::clone(&worker),
        peer,
    };
    let response = AssertUnwindSafe(grpc.unary(check, request)).catch_unwind();
    match timeout(REQUEST_DEADLINE, response).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            transport::log_panic();
            let status = Status::internal("the server failed");
            worker.fail(started, &status, StatusCode::INTERNAL_SERVER_ERROR)
        }
        Err(_) => {
            let status = Status::deadline_exceeded("the request took too long");
            worker.fail(started, &status, StatusCode::SERVICE_UNAVAILABLE)
        }
    }
}

impl Worker {
    /// Counts and logs a request without a decision. Its method is unknown. Returns the response.
    fn fail(
        &self,
        started: Instant,
        status: &Status,
        counted_as: StatusCode,
    ) -> http::Response<Body> {
        let elapsed = started.elapsed();
        let http_status = counted_as.as_u16();
        self.requests.record("-", Some(CHECK), http_status, elapsed);
        let duration_us = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        tracing::info!(target: "tollkey::http", route = CHECK, status = http_status, duration_us, reason = status.message(), "gRPC request failed");
        status.clone().into_http()
    }
}

struct Check {
    worker: Rc<Worker>,
    peer: Option<IpAddr>,
}

impl UnaryService<CheckRequest> for Check {
    type Response = CheckResponse;
    type Future = LocalBoxFuture<'static, Result<tonic::Response<CheckResponse>, Status>>;

    fn call(&mut self, request: tonic::Request<CheckRequest>) -> Self::Future {
        let (worker, peer) = (Rc::clone(&self.worker), self.peer);
        Box::pin(async move {
            let response = check(&worker, peer, request.into_inner()).await?;
            Ok(tonic::Response::new(response))
        })
    }
}

/// Decides about the request that Envoy describes. `peer` is Envoy.
async fn check(
    worker: &Worker,
    peer: Option<IpAddr>,
    request: CheckRequest,
) -> Result<CheckResponse, Status> {
    let attributes = request.attributes.unwrap_or_default();
    let http = attributes.request.and_then(|request| request.http);
    let http = http.ok_or_else(|| {
        Status::invalid_argument(
            "attributes.request.http is required; use the HTTP filter ext_authz",
        )
    })?;
    let state = &*worker.state;
    let raw_headers = http.header_map.map(|map| map.headers);
    let headers = raw_headers.as_deref().unwrap_or_default();
    let request_ids = values(headers, X_REQUEST_ID.as_str());
    let trace = RequestTrace::begin(state, request_ids, &GATEWAYS);
    let source = attributes.source.and_then(source_address);
    let request = DescribedRequest {
        headers,
        peer,
        source: source.as_deref(),
        id: &trace.id,
        rate_limit: Cell::new(None),
    };
    let extensions = attributes.context_extensions.iter();
    let requirement = requirement(
        state,
        extensions.map(|(name, value)| (name.as_str(), value.as_str())),
    );
    let decision = if raw_headers.is_some() {
        match path(headers, &http.path) {
            Ok(path) => {
                let authorization = Authorization {
                    method: present(&http.method),
                    uri: Some(path),
                    leads_out: false,
                    requirement: requirement.as_ref(),
                };
                decide(&request, state, authorization).await
            }
            Err(problem) => Err(problem),
        }
    } else {
        let rule = Invalid::new("the filter ext_authz must have `encode_raw_headers: true`");
        Err(invalid_requirement(&request, state, &rule))
    };
    let mut response = decision
        .and_then(|identity| allowed(identity, state))
        .unwrap_or_else(|problem| trace.render(state, &problem));
    trace.end(
        state,
        &worker.requests,
        (&http.method, Some(CHECK)),
        (response.status(), response.headers_mut()),
        request.rate_limit.get().as_ref(),
    );
    Ok(check_response(response))
}

fn present(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// Returns the path that Envoy forwards. Envoy replaces invalid bytes in `described` (`attributes.request.http.path`) with
/// `!`, and forwards them as they were sent, so `described` alone could be another path than the one that the API gets.
fn path<'a>(headers: &'a [EnvoyHeader], described: &str) -> Result<&'a str, Problem> {
    let mut paths = values(headers, ":path");
    let path = match (paths.next(), paths.next()) {
        (Some(path), None) if path == described.as_bytes() => path,
        _ => return Err(malformed_path()),
    };
    if path.is_empty() || !path.iter().all(u8::is_ascii_graphic) {
        return Err(malformed_path());
    }
    str::from_utf8(path).map_err(|_| malformed_path())
}

fn malformed_path() -> Problem {
    Problem::field(
        "",
        "The path of the request is malformed. Percent-encode every byte that is not visible ASCII.",
    )
}

/// Reads the `context_extensions` of a route: `scope`, with spaces between several scopes or `-` for none, and `mode`.
///
/// `scope` is required. Envoy merges the extensions of the virtual host and the route, so a route whose `scope` was
/// forgotten could have the `mode` of its virtual host.
fn requirement<'a>(
    state: &State,
    extensions: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<Requirement, Invalid> {
    let mut pairs = Vec::new();
    let mut has_scope = false;
    for (name, value) in extensions {
        has_scope |= name == "scope";
        match (name, value) {
            ("scope", "-") => {}
            ("scope", scopes) => pairs.extend(scopes.split(' ').map(|scope| (name, scope))),
            pair => pairs.push(pair),
        }
    }
    if !has_scope {
        return Err(Invalid::new(
            "`context_extensions` must have `scope`; `scope: \"-\"` requires no scope",
        ));
    }
    Requirement::read(state, pairs)
}

/// Returns the IP address that connected to Envoy.
fn source_address(source: Peer) -> Option<String> {
    match source.address?.address? {
        Address::SocketAddress(address) => Some(address.address),
        Address::Pipe(_) | Address::EnvoyInternalAddress(_) => None,
    }
}

fn values<'a>(headers: &'a [EnvoyHeader], name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let named = headers
        .iter()
        .filter(move |header| header.key.eq_ignore_ascii_case(name));
    named.map(|header| match header.raw_value.as_slice() {
        [] => header.value.as_bytes(),
        raw => raw,
    })
}

/// The request of a client, as Envoy describes it.
struct DescribedRequest<'a> {
    headers: &'a [EnvoyHeader],
    /// Envoy.
    peer: Option<IpAddr>,
    /// The address that connected to Envoy; `None` for another socket than one of IP.
    source: Option<&'a str>,
    id: &'a Arc<str>,
    rate_limit: Cell<Option<KeyRateLimit>>,
}

impl RequestParts for DescribedRequest<'_> {
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        values(self.headers, name.as_str())
    }

    fn is_forwarded(&self) -> bool {
        self.headers
            .iter()
            .any(|header| is_forwarding_header(&header.key.to_ascii_lowercase()))
    }

    fn peer(&self) -> PeerAddress {
        self.peer.map_or(PeerAddress::Unknown, PeerAddress::Ip)
    }

    /// Envoy is the peer, and the address that connected to it is the last hop. Without that address, any client could
    /// have written the header, so no hop counts.
    fn hops(&self) -> Vec<&[u8]> {
        let Some(source) = self.source else {
            return Vec::new();
        };
        let mut hops: Vec<_> = self.values(&FORWARDED_FOR).collect();
        // An empty header counts as absent.
        if hops.iter().all(|hop| hop.trim_ascii().is_empty()) {
            hops.clear();
        }
        hops.push(source.as_bytes());
        hops
    }

    fn request_id(&self) -> Arc<str> {
        Arc::clone(self.id)
    }

    fn set_rate_limit(&self, rate_limit: KeyRateLimit) {
        self.rate_limit.set(Some(rate_limit));
    }
}

/// Converts the response of the HTTP route.
fn check_response(response: HttpResponse) -> CheckResponse {
    let is_allowed = response.status() == StatusCode::OK;
    let headers = response
        .headers()
        .iter()
        .map(|(name, value)| overwrite(name, value))
        .collect();
    let (code, http_response) = if is_allowed {
        let allowed = OkHttpResponse {
            headers,
            ..OkHttpResponse::default()
        };
        (Code::Ok, check_response::HttpResponse::OkResponse(allowed))
    } else {
        let code = i32::from(response.status().as_u16());
        // The body of a problem is a text in memory.
        let body = response.into_body().try_into_bytes().unwrap_or_default();
        let denied = DeniedHttpResponse {
            status: Some(HttpStatus { code }),
            headers,
            body: String::from_utf8_lossy(&body).into_owned(),
        };
        let denied = check_response::HttpResponse::DeniedResponse(denied);
        (Code::PermissionDenied, denied)
    };
    CheckResponse {
        status: Some(rpc::Status {
            code: code.into(),
            ..rpc::Status::default()
        }),
        http_response: Some(http_response),
        ..CheckResponse::default()
    }
}

/// Returns a header that replaces those of the client with the same name, even if its value is empty.
fn overwrite(name: &HeaderName, value: &HeaderValue) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(EnvoyHeader {
            key: name.as_str().to_owned(),
            // Envoy ignores `raw_value` here. The values are texts.
            value: String::from_utf8_lossy(value.as_bytes()).into_owned(),
            raw_value: Vec::new(),
        }),
        append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        keep_empty_value: true,
        ..HeaderValueOption::default()
    }
}
