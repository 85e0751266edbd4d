//! What is read of a request.

use std::net::IpAddr;

/// The headers of a request, whatever its framework calls them.
pub trait Headers: Sync {
    /// Shows every header, its name and its value; those of one name in the order in which they came.
    ///
    /// All of them, because to look a few names up each time costs more than to go through what a request has.
    fn each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8]));
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
    pub(crate) fn all(&self, name: &str) -> Vec<&'a [u8]> {
        let mut values = Vec::new();
        self.headers.each(&mut |own, value| {
            if own.eq_ignore_ascii_case(name) {
                values.push(value);
            }
        });
        values
    }

    /// The first two headers with one of these names: more than one is all there is to know of more.
    pub(crate) fn first_two(&self, names: &[&'static str]) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        let mut found: [Option<(&'a str, &'a [u8])>; 2] = [None; 2];
        self.headers.each(&mut |own, value| {
            if let Some(name) = names.iter().find(|name| own.eq_ignore_ascii_case(name))
                && let Some(free) = found.iter_mut().find(|place| place.is_none())
            {
                *free = Some((*name, value));
            }
        });
        found.into_iter().flatten()
    }

    /// The value of a header that is there once and a text; `None` otherwise. For closures of [`crate::Merchant::from_fn`].
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        match self.all(name)[..] {
            [value] => std::str::from_utf8(value).ok(),
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
