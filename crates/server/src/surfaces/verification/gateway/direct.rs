//! Handles gateway requests without the routing and the middleware of actix, which take longer than the verification
//! of a key. Gateway requests are the most frequent requests.
//!
//! Other requests go to the application, including gateway requests with a path that must be decoded first. The
//! application has the same routes and sends the same responses.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    rc::Rc,
    sync::Arc,
};

use actix_http::{Request, Response, body::BoxBody};
use actix_web::{HttpResponse, dev::RequestHead, http::header::HeaderName, web};
use tollkey_core::Invalid;

use super::{super::GATEWAYS, Dialect, EXT_AUTHZ, Requirement, authorize, ext_authz_parts};
use crate::{
    auth::{self, KeyRateLimit, PeerAddress, RequestParts},
    edge::{RequestTrace, X_REQUEST_ID},
    rejection::Rejection,
    state::State,
    telemetry,
    transport::EarlyHandler,
};

/// Maximum number of cached requirements. A gateway's configuration has one for each kind of route.
const REQUIREMENTS_MAX: usize = 256;
/// Maximum length of the text of cached requirements, in bytes.
const TEXT_MAX: usize = 1024;

/// Queries and path segments have separate caches, because the same text can have different meanings.
#[derive(Default)]
struct RequirementCache(RefCell<HashMap<Box<str>, Rc<Requirement>>>);

impl RequirementCache {
    fn get(
        &self,
        text: &str,
        parse: impl FnOnce() -> Result<Requirement, Invalid>,
    ) -> Result<Rc<Requirement>, Invalid> {
        if let Some(cached) = self.0.borrow().get(text) {
            return Ok(Rc::clone(cached));
        }
        let requirement = Rc::new(parse()?);
        if text.len() <= TEXT_MAX {
            let mut cached = self.0.borrow_mut();
            if cached.len() >= REQUIREMENTS_MAX {
                cached.clear();
            }
            cached.insert(text.into(), Rc::clone(&requirement));
        }
        Ok(requirement)
    }
}

/// Handles the gateway requests of one worker.
pub struct DirectGateway {
    state: web::Data<State>,
    requests: telemetry::Requests,
    queries: RequirementCache,
    segments: RequirementCache,
}

impl DirectGateway {
    #[must_use]
    pub fn new(state: web::Data<State>) -> Self {
        Self {
            state,
            requests: telemetry::Requests::default(),
            queries: RequirementCache::default(),
            segments: RequirementCache::default(),
        }
    }
}

struct GatewayRequest<'a> {
    request: &'a Request,
    head: &'a RequestHead,
    id: &'a Arc<str>,
    rate_limit: Cell<Option<KeyRateLimit>>,
}

impl RequestParts for GatewayRequest<'_> {
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        auth::values(self.head.headers(), name)
    }

    fn is_forwarded(&self) -> bool {
        auth::is_forwarded(self.head.headers())
    }

    fn peer(&self) -> PeerAddress {
        PeerAddress::new(self.head.peer_addr, || self.request.conn_data())
    }

    fn request_id(&self) -> Arc<str> {
        Arc::clone(self.id)
    }

    fn set_rate_limit(&self, rate_limit: KeyRateLimit) {
        self.rate_limit.set(Some(rate_limit));
    }
}

impl EarlyHandler for DirectGateway {
    async fn respond(&self, request: Request) -> Result<Response<BoxBody>, Request> {
        let state = &self.state;
        let head = request.head();
        let path = head.uri.path();
        let path = state.public_path.strip(path).unwrap_or(path);
        let Some(dialect) = dialect(path) else {
            return Err(request);
        };
        let request_ids = auth::values(head.headers(), &X_REQUEST_ID);
        let trace = RequestTrace::begin(state, request_ids, &GATEWAYS);
        let requirement = match dialect {
            Dialect::ExtAuthz => match ext_authz_parts(path) {
                Some((segment, _)) => self
                    .segments
                    .get(segment, || Requirement::from_segment(state, Some(segment))),
                None => Requirement::from_segment(state, None).map(Rc::new),
            },
            Dialect::ForwardAuth | Dialect::AuthRequest => {
                let query = head.uri.query().unwrap_or_default();
                self.queries
                    .get(query, || Requirement::from_query(state, query))
            }
        };
        let gateway_request = GatewayRequest {
            request: &request,
            head,
            id: &trace.id,
            rate_limit: Cell::new(None),
        };
        let requirement = requirement.as_deref();
        let authorization = dialect.authorization(head, path, requirement);
        let mut response: HttpResponse =
            match authorize(&gateway_request, state, authorization).await {
                Ok(response) => response,
                Err(Rejection(problem)) => trace.render(state, &problem),
            };
        trace.end(
            state,
            &self.requests,
            (head.method.as_str(), Some(dialect.pattern())),
            (response.status(), response.headers_mut()),
            gateway_request.rate_limit.get().as_ref(),
        );
        Ok(response.into())
    }
}

/// Returns the dialect of a gateway path, or `None` for other paths and for paths that must be decoded first.
fn dialect(path: &str) -> Option<Dialect> {
    [Dialect::ForwardAuth, Dialect::AuthRequest]
        .into_iter()
        .find(|dialect| path == dialect.pattern())
        .or_else(|| path.starts_with(EXT_AUTHZ).then_some(Dialect::ExtAuthz))
}
