//! Fair shares of the look-ups that run at the same time.

use std::{net::IpAddr, sync::Arc};

use tollkey_core::{AccountId, network::client_network};
use tollkey_fair::{FairSemaphore, Limits};

use crate::settings::Settings;

/// The client or authenticated caller on whose behalf a key is looked up. Look-ups are shared fairly among requesters, so
/// that one requester with random keys does not delay others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Requester {
    /// A client that presents a key or a service key, by the network of its IP address; `None` if the address is unknown.
    Client(Option<IpAddr>),
    /// An authenticated resource server or gateway, by the ID of its service key or the subject of its token.
    Service(Arc<str>),
    /// An account that verifies other keys with a secret key.
    Account(AccountId),
}

impl Requester {
    /// Returns the requester for the client at this IP address, by [`client_network`].
    #[must_use]
    pub fn client(address: Option<IpAddr>) -> Self {
        Self::Client(address.map(client_network))
    }
}

/// Limits the look-ups that run at the same time. Clients and authenticated callers have separate semaphores, so that
/// unauthenticated clients, which may use any number of addresses, do not delay authenticated callers.
pub(crate) struct LookUps {
    clients: FairSemaphore<Requester>,
    authenticated: FairSemaphore<Requester>,
}

impl LookUps {
    pub(crate) fn new(settings: &Settings) -> Self {
        let half =
            |permits| FairSemaphore::new(Limits::half_per_owner(permits, settings.max_waiting));
        let clients = settings.max_look_ups.div_ceil(2);
        Self {
            clients: half(clients),
            authenticated: half(settings.max_look_ups.saturating_sub(clients)),
        }
    }

    pub(crate) fn of(&self, requester: &Requester) -> &FairSemaphore<Requester> {
        match requester {
            Requester::Client(_) => &self.clients,
            Requester::Service(_) | Requester::Account(_) => &self.authenticated,
        }
    }
}
