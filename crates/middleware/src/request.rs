//! The parts of a request that a guard reads.

use std::net::IpAddr;

use tollkey_core::credential::{self, CredentialHeaders};

use crate::RejectionForm;

/// The headers of a request in any framework.
pub trait Headers: Sync {
    /// Calls `show` with the name and the value of every header, with the values of one name in the order of the request.
    ///
    /// One pass over all headers is faster than a few look-ups by name.
    fn for_each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8]));
}

/// A request without its body.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method as sent.
    pub method: &'a str,
    /// The path and query as sent, with any prefix that a router has removed.
    pub target: &'a str,
    /// The IP address of the peer of the connection, if it is known.
    pub peer: Option<IpAddr>,
    /// The headers.
    pub headers: &'a dyn Headers,
    /// The form of a rejection by the guard or by a handler.
    pub form: RejectionForm,
}

impl<'a> RequestHead<'a> {
    pub(crate) fn all(&self, name: &str) -> Vec<&'a [u8]> {
        let mut values = Vec::new();
        self.headers.for_each(&mut |own, value| {
            if own.eq_ignore_ascii_case(name) {
                values.push(value);
            }
        });
        values
    }

    /// Returns the first two credential headers that are not empty, each with its lower-case name. A third would not change
    /// the decision.
    pub(crate) fn first_two(
        &self,
        headers: CredentialHeaders,
    ) -> [Option<(&'static str, &'a [u8])>; 2] {
        let mut found = [None; 2];
        self.headers.for_each(&mut |own, value| {
            if let Some(name) = headers.names().find(|name| own.eq_ignore_ascii_case(name))
                && let Some(free) = found.iter_mut().find(|slot| slot.is_none())
                && !credential::is_empty(name, value)
            {
                *free = Some((name, value));
            }
        });
        found
    }

    /// Returns the value of a header, for closures of [`crate::MerchantSource::from_fn`]. `None` if the header is missing, repeated
    /// or not UTF-8.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&'a str> {
        match self.all(name)[..] {
            [value] => std::str::from_utf8(value).ok(),
            _ => None,
        }
    }

    /// Returns the path without the query.
    #[must_use]
    pub fn path(&self) -> &'a str {
        self.target
            .split_once('?')
            .map_or(self.target, |(path, _)| path)
    }
}

impl std::fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The headers and the query may contain a key.
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}
