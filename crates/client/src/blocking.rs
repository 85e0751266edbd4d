//! Calls from programs without an async runtime: each call has `send_blocking()`, each list `items_blocking()`.

use std::{iter, sync::Arc};

use tokio::runtime::{Builder, Runtime};

use crate::{Error, Listing, client::Shared, connections::Connections, error::Kind, list::Paged};

/// What blocking calls of a client run on. A connection lives on the runtime that opened it, so they share none with the
/// async calls: those would stand still while their runtime waits for a blocking call.
pub(crate) struct Blocking {
    /// There until it is dropped.
    runtime: Option<Runtime>,
    pub(crate) connections: Arc<Connections>,
}

impl Blocking {
    pub(crate) fn runtime(&self) -> &Runtime {
        self.runtime
            .as_ref()
            .expect("it is there until it is dropped")
    }
}

impl Drop for Blocking {
    fn drop(&mut self) {
        // Dropped where it stands, a runtime panics inside of another.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Shared {
    /// What blocking calls run on, made with the first of them.
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
                Kind::Settings("there is no thread for blocking calls".to_owned()),
                error,
            )
        })?;
        // An HTTP client of the caller's own cannot be built a second time.
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

/// The items of a list, or its pages, fetched as they are asked for.
pub(crate) fn iterate<L: Paged, T: Send + 'static>(
    mut list: L,
    listed: fn(L) -> Listing<T>,
) -> impl Iterator<Item = Result<T, Error>> + Send {
    let shared = list.call_mut().shared();
    let mut listing = shared.blocking().map(|blocking| {
        list.call_mut().send_with(blocking.connections.clone());
        listed(list)
    });
    iter::from_fn(move || match (&mut listing, shared.blocking()) {
        (Ok(listing), Ok(blocking)) => blocking.runtime().block_on(listing.next()),
        (listing, _) => std::mem::replace(listing, Ok(Listing::empty()))
            .err()
            .map(Err),
    })
}
