//! Fair shares of the look-ups that the source gets at the same time.

use std::{net::IpAddr, sync::Arc};

use tollkey_core::{AccountId, network::client_network};
use tollkey_fair::{FairSemaphore, Limits};

use crate::settings::Settings;

/// The client or authenticated caller that a look-up is made for. Look-ups are shared fairly among requesters, so that
/// random keys presented by one do not delay the keys of others.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Requester {
    /// A client that presents a key or a service key, by the network of its address; `None` if its address is unknown.
    Client(Option<IpAddr>),
    /// An authenticated resource server or gateway, by the ID of its service key or the subject of its token.
    Service(Arc<str>),
    /// An account, whose authenticated secret key verifies other keys.
    Account(AccountId),
}

impl Requester {
    /// The client at this address, by [`client_network`].
    #[must_use]
    pub fn client(address: Option<IpAddr>) -> Self {
        Self::Client(address.map(client_network))
    }
}

/// Limits how many look-ups the source gets at the same time. Clients and authenticated callers have a semaphore each, so
/// that unauthenticated clients, which may use any number of addresses, do not delay authenticated callers.
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
