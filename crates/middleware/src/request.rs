//! What is read of a request.

use std::net::IpAddr;

/// The headers of a request, whatever its framework calls them.
pub trait Headers: Sync {
    /// The `n`-th value of the header with this lower-case name, in the order in which they came.
    fn nth(&self, name: &str, n: usize) -> Option<&[u8]>;
}

/// A request without its body.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method, as sent.
    pub method: &'a str,
    /// Path and query, as sent: what a router has cut off belongs to it.
    pub target: &'a str,
    /// The other end of the connection, where it is known.
    pub peer: Option<IpAddr>,
    /// The headers.
    pub headers: &'a dyn Headers,
}

impl<'a> RequestHead<'a> {
    /// All values of a header.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let headers = self.headers;
        (0..).map_while(move |n| headers.nth(name, n))
    }

    /// The value of a header that is there once and a text; `None` otherwise. For closures of [`crate::Merchant::from_fn`].
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (Some(value), None) => std::str::from_utf8(value).ok(),
            _ => None,
        }
    }

    /// The path, without the query.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.target.split_once('?').map_or(self.target, |(path, _)| path)
    }
}

impl std::fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither headers nor query: a key may stand there.
        f.debug_struct("RequestHead").field("method", &self.method).field("path", &self.path()).finish_non_exhaustive()
    }
}
