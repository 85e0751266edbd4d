//! The parts of a request that a guard reads.

use std::net::IpAddr;

use tollkey_core::credential::{self, CredentialHeaders};

use crate::RejectionForm;

/// The headers of a request, in any framework's type.
pub trait Headers: Sync {
    /// Calls `show` with the name and the value of every header; those of one name in the order in which they came.
    ///
    /// All of them, because a few look-ups by name cost more than one pass over what a request has.
    fn each<'a>(&'a self, show: &mut dyn FnMut(&'a str, &'a [u8]));
}

/// A request without its body.
#[derive(Clone, Copy)]
pub struct RequestHead<'a> {
    /// The method on the wire.
    pub method: &'a str,
    /// Path and query on the wire, with any prefix that a router has cut off.
    pub target: &'a str,
    /// The address of the other end of the connection, where it is known.
    pub peer: Option<IpAddr>,
    /// The headers.
    pub headers: &'a dyn Headers,
    /// In which form the request is rejected, by the guard and by a handler.
    pub form: RejectionForm,
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

    /// The first two headers that a credential is read from and that present something, each with its lower-case name: a third
    /// changes nothing.
    pub(crate) fn first_two(
        &self,
        headers: CredentialHeaders,
    ) -> [Option<(&'static str, &'a [u8])>; 2] {
        let mut found = [None; 2];
        self.headers.each(&mut |own, value| {
            if let Some(name) = headers.names().find(|name| own.eq_ignore_ascii_case(name))
                && let Some(free) = found.iter_mut().find(|slot| slot.is_none())
                && !credential::is_empty(name, value)
            {
                *free = Some((name, value));
            }
        });
        found
    }

    /// The value of a header that is present once and is a text; `None` otherwise. For closures of [`crate::Merchant::from_fn`].
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
        self.target
            .split_once('?')
            .map_or(self.target, |(path, _)| path)
    }
}

impl std::fmt::Debug for RequestHead<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Neither headers nor query: a key may be in them.
        f.debug_struct("RequestHead")
            .field("method", &self.method)
            .field("path", &self.path())
            .finish_non_exhaustive()
    }
}
