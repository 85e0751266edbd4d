//! The parts of a request that authentication reads, whether it is an HTTP request or one that a gateway describes.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use actix_web::{
    HttpMessage as _, HttpRequest,
    http::header::{HeaderMap, HeaderName, HeaderValue},
};

use super::authenticate::KeyRateLimit;
use crate::{listen_address::UnixSocketPeer, request_id::request_id};

pub(crate) static FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The other end of the connection of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerAddress {
    Ip(IpAddr),
    /// A process on this machine, which has no address. It is a trusted proxy: the permissions of the socket decide
    /// which processes can connect to it.
    UnixSocket,
    /// A TCP peer whose connection has ended.
    Unknown,
}

impl PeerAddress {
    /// Returns the peer of a connection with this address. `unix` returns its [`UnixSocketPeer`].
    pub(crate) fn new<'a>(
        address: Option<SocketAddr>,
        unix: impl FnOnce() -> Option<&'a UnixSocketPeer>,
    ) -> Self {
        match address {
            Some(address) => Self::Ip(address.ip()),
            None => unix().map_or(Self::Unknown, |UnixSocketPeer| Self::UnixSocket),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::UnixSocket => f.write_str("unix"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

pub trait RequestParts {
    /// Returns the values of a header, in the order in which they were sent.
    fn values<'a>(&'a self, name: &'a HeaderName) -> impl Iterator<Item = &'a [u8]>;

    /// Returns whether the request has `Forwarded` or a header that begins with `X-Forwarded-`.
    fn is_forwarded(&self) -> bool;

    fn peer(&self) -> PeerAddress;

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

    fn peer(&self) -> PeerAddress {
        PeerAddress::new(self.peer_addr(), || self.conn_data())
    }

    fn request_id(&self) -> Arc<str> {
        request_id(self)
    }

    fn set_rate_limit(&self, rate_limit: KeyRateLimit) {
        self.extensions_mut().insert(rate_limit);
    }
}
