//! The IP address of the client.

use std::net::IpAddr;

use tollkey_core::network::{InvalidHop, client_address, forwarded_address};

use super::request_parts::{PeerAddress, RequestParts};
use crate::state::State;

/// Returns the IP address of the client: the peer or, if that is a trusted proxy, the last hop of `X-Forwarded-For`
/// that is not a trusted proxy. The peer of a Unix socket is a trusted proxy. `None` if the peer is unknown, or if no
/// hop is left.
pub fn forwarded_ip(
    request: &impl RequestParts,
    state: &State,
) -> Result<Option<IpAddr>, InvalidHop> {
    let (peer, trusted) = (request.peer(), &state.request_settings.trusted_proxies);
    let address = match peer {
        PeerAddress::Ip(peer) => client_address(Some(peer), || request.hops(), trusted),
        PeerAddress::UnixSocket => forwarded_address(request.hops(), trusted),
        PeerAddress::Unknown => Ok(None),
    };
    address.inspect_err(|InvalidHop| {
        if state.log_limits.unreadable_hop.allows(state.service.clock.elapsed()) {
            tracing::warn!(
                request_id = %request.request_id(), %peer,
                "a trusted proxy sends X-Forwarded-For with a hop that is not an IP address; the client address is unknown \
                 and gateway routes deny the request"
            );
        }
    })
}

/// Like [`forwarded_ip`], with `None` instead of an error.
pub fn client_ip(request: &impl RequestParts, state: &State) -> Option<IpAddr> {
    forwarded_ip(request, state).unwrap_or_default()
}
