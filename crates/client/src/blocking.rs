//! Calls from programs without an async runtime: each call has `send_blocking()`, each list `items_blocking()`.

use std::{iter, sync::Arc};

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Listing, client::Shared, connections::Connections, error::Kind, list::Paged};

/// The runtime and connections of a client's blocking calls.
///
/// A connection belongs to the runtime that opened it. So blocking calls share no connections with async calls:
/// otherwise a blocking call could wait for a connection whose runtime it blocks.
pub(crate) struct Blocking {
    /// `Some` until drop.
    runtime: Option<Runtime>,
    pub(crate) connections: Arc<Connections>,
}

impl Blocking {
    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("a runtime until drop")
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        // Dropping a runtime inside another runtime panics; `shutdown_background` does not.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    /// Returns the runtime and connections of blocking calls. The first blocking call creates them.
    pub(crate) fn blocking(&self) -> Result<&Blocking, Error> {
        if let Some(blocking) = self.blocking.get() {
            return Ok(blocking);
        }
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("tollkey-client")
            .enable_all()
            .build();
        let runtime = runtime.map_err(|error| {
            Error::with_source(
                Kind::Settings("the runtime of blocking calls cannot be started".to_owned()),
                error,
            )
        })?;
        // An HTTP client of the caller cannot be built a second time, so it is shared.
        let connections = match self.connections.separate() {
            Some(connections) => Arc::new(connections?),
            None => self.connections.clone(),
        };
        Ok(self.blocking.get_or_init(|| Blocking {
            runtime: Some(runtime),
            connections,
        }))
    }
}

/// Returns an iterator over the items or the pages of a list, which fetches each page when it is needed.
pub(crate) fn iterate<L: Paged, T: Send + 'static>(
    mut list: L,
    into_listing: fn(L) -> Listing<T>,
) -> impl Iterator<Item = Result<T, Error>> + Send {
    let shared = list.call_mut().shared();
    let mut listing = shared.blocking().map(|blocking| {
        list.call_mut().send_with(blocking.connections.clone());
        into_listing(list)
    });
    iter::from_fn(move || match (&mut listing, shared.blocking()) {
        (Ok(listing), Ok(blocking)) => blocking.runtime().block_on(listing.next()),
        (listing, _) => std::mem::replace(listing, Ok(Listing::empty()))
            .err()
            .map(Err),
    })
}
