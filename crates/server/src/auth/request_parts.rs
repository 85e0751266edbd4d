//! The parts of a request that authentication reads, whether it is an HTTP request or one that a gateway describes.

use std::{net::IpAddr, sync::Arc};

use actix_web::{
    HttpMessage as _, HttpRequest,
    http::header::{HeaderMap, HeaderName, HeaderValue},
};

use super::authenticate::KeyRateLimit;
use crate::request_id::request_id;

pub(crate) static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

pub trait RequestParts {
    /// Returns the values of a header, in the order in which they were sent.
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]>;

    /// Returns whether the request has `Forwarded` or a header that begins with `X-Forwarded-`.
    fn is_forwarded(&self) -> bool;

    fn peer_ip(&self) -> Option<IpAddr>;

    /// Returns the hops before the peer, as in `X-Forwarded-For`. They count only if the peer is a trusted proxy.
    fn hops(&self) -> Vec<&[u8]> {
        self.values(&FORWARDED_FOR).collect()
    }

    fn request_id(&self) -> Arc<str>;

    /// Stores the rate limit of the presented key for the headers of the response.
    fn set_rate_limit(&self, rate_limit: KeyRateLimit);
}

/// Returns whether a name is `forwarded`, or begins with `x-forwarded-`. The name is in lower case.
pub(crate) fn is_forwarding_header(name: &str) -> bool {
    name == "forwarded" || name.starts_with("x-forwarded-")
}

/// Returns the values of a header of an HTTP request.
pub(crate) fn values<'a>(
    headers: &'a HeaderMap,
    name: &'a HeaderName,
) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).map(HeaderValue::as_bytes)
}

/// Returns whether an HTTP request has passed a proxy.
pub(crate) fn is_forwarded(headers: &HeaderMap) -> bool {
    headers
        .keys()
        .any(|name| is_forwarding_header(name.as_str()))
}

impl RequestParts for HttpRequest {
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]> {
        values(self.headers(), name)
    }

    fn is_forwarded(&self) -> bool {
        is_forwarded(self.headers())
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
