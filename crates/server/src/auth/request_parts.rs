//! The parts of a request that authentication reads, whether actix has routed the request or not.

use std::{net::IpAddr, sync::Arc};

use actix_web::{HttpMessage as _, HttpRequest, http::header::HeaderMap};

use super::KeyRateLimit;
use crate::request_id::request_id;

pub trait RequestParts {
    fn headers(&self) -> &HeaderMap;
    fn peer_ip(&self) -> Option<IpAddr>;
    fn request_id(&self) -> Arc<str>;
    /// Stores the rate limit of the presented key for the headers of the response.
    fn set_rate_limit(&self, rate_limit: KeyRateLimit);
}

impl RequestParts for HttpRequest {
    fn headers(&self) -> &HeaderMap {
        self.headers()
    }

    fn peer_ip(&self) -> Option<IpAddr> {
        self.peer_addr().map(|peer| peer.ip())
    }

    fn request_id(&self) -> Arc<str> {
        request_id(self)
    }

    fn set_rate_limit(&self, rate_limit: KeyRateLimit) {
        self.extensions_mut().insert(rate_limit);
    }
}
