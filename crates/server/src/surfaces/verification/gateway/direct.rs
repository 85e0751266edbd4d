//! Gateway requests without the application: a server gets more of them than of all others, and to find a route among all
//! routes and to pass all middleware takes longer than to verify a key.
//!
//! A path that needs decoding is left to the application, which has the same routes. Both give the same responses.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::IpAddr,
    rc::Rc,
    sync::Arc,
};

use actix_http::{Request, Response, body::BoxBody};
use actix_web::{HttpResponse, dev::RequestHead, http::header::HeaderMap, web};
use tollkey_core::Invalid;

use super::{super::GATEWAYS, Dialect, EXT_AUTHZ, Requirement, authorize, ext_authz_parts};
use crate::{
    auth::{Allowance, RequestParts},
    edge::Passage,
    rejection::Rejection,
    state::State,
    telemetry,
    transport::Front,
};

/// The most requirements that are kept. A gateway's configuration has one for each kind of route.
const REQUIREMENTS_MAX: usize = 256;

/// Responds to gateway requests before the application. Each worker has its own.
pub struct DirectGateway {
    state: web::Data<State>,
    requests: telemetry::Requests,
    /// The requirements that were read, by their text.
    requirements: RefCell<HashMap<Box<str>, Rc<Requirement>>>,
}

impl DirectGateway {
    /// Returns the gateway routes of a worker.
    #[must_use]
    pub fn new(state: web::Data<State>) -> Self {
        Self {
            state,
            requests: telemetry::Requests::default(),
            requirements: RefCell::default(),
        }
    }

    /// Returns the requirements in this text, which are read once.
    fn requirement(
        &self,
        text: &str,
        read: impl FnOnce() -> Result<Requirement, Invalid>,
    ) -> Result<Rc<Requirement>, Invalid> {
        if let Some(known) = self.requirements.borrow().get(text) {
            return Ok(Rc::clone(known));
        }
        let requirement = Rc::new(read()?);
        let mut requirements = self.requirements.borrow_mut();
        if requirements.len() >= REQUIREMENTS_MAX {
            requirements.clear();
        }
        requirements.insert(text.into(), Rc::clone(&requirement));
        Ok(requirement)
    }
}

/// A gateway request.
struct GatewayRequest<'a> {
    head: &'a RequestHead,
    id: &'a Arc<str>,
    allowance: Cell<Option<Allowance>>,
}

impl RequestParts for GatewayRequest<'_> {
    fn headers(&self) -> &HeaderMap {
        self.head.headers()
    }

    fn peer_ip(&self) -> Option<IpAddr> {
        self.head.peer_addr.map(|peer| peer.ip())
    }

    fn request_id(&self) -> Arc<str> {
        Arc::clone(self.id)
    }

    fn set_allowance(&self, allowance: Allowance) {
        self.allowance.set(Some(allowance));
    }
}

impl Front for DirectGateway {
    async fn respond(&self, request: Request) -> Result<Response<BoxBody>, Request> {
        let state = &self.state;
        let head = request.head();
        let path = head.uri.path();
        let path = state.public_path.strip(path).unwrap_or(path);
        let Some(dialect) = dialect(path) else {
            return Err(request);
        };
        let passage = Passage::begin(state, head.headers(), &GATEWAYS);
        let requirement = match dialect {
            Dialect::ExtAuthz => {
                let segment = ext_authz_parts(path).map(|(segment, _)| segment);
                let read = || Requirement::from_segment(state, segment);
                self.requirement(segment.unwrap_or_default(), read)
            }
            Dialect::ForwardAuth | Dialect::AuthRequest => {
                let query = head.uri.query().unwrap_or_default();
                self.requirement(query, || Requirement::from_query(state, query))
            }
        };
        let gateway_request = GatewayRequest {
            head,
            id: &passage.id,
            allowance: Cell::new(None),
        };
        let authorization = dialect.authorization(head, path, requirement);
        let mut response: HttpResponse =
            match authorize(&gateway_request, state, authorization).await {
                Ok(response) => response,
                Err(Rejection(problem)) => passage.render(state, &problem),
            };
        passage.end(
            state,
            &self.requests,
            (&head.method, Some(dialect.pattern())),
            (response.status(), response.headers_mut()),
            gateway_request.allowance.get().as_ref(),
        );
        Ok(response.into())
    }
}

/// Returns the dialect of a path that needs no decoding.
fn dialect(path: &str) -> Option<Dialect> {
    [Dialect::ForwardAuth, Dialect::AuthRequest]
        .into_iter()
        .find(|dialect| path == dialect.pattern())
        .or_else(|| path.starts_with(EXT_AUTHZ).then_some(Dialect::ExtAuthz))
}
