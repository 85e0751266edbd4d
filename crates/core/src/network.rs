//! Networks a key may be used from.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

use crate::{Invalid, heap};

/// A non-empty list of networks in CIDR form, host bits zero. IPv4-mapped IPv6 counts as IPv4, in the list and
/// in what is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(transparent))]
pub struct IpList(Vec<IpNet>);

impl IpList {
    /// How many networks a list can have.
    pub const MAX: usize = 100;

    /// Reads a list of CIDR texts.
    ///
    /// # Errors
    /// [`Invalid`] when the list is empty or has more than [`IpList::MAX`] networks, or a text is no CIDR or has
    /// host bits set.
    ///
    /// ```
    /// use tollkey_core::IpList;
    /// let list = IpList::parse(["203.0.113.0/24", "2001:db8::/32"]).unwrap();
    /// assert!(list.contains("::ffff:203.0.113.9".parse().unwrap()));
    /// assert!(!list.contains("203.0.114.1".parse().unwrap()));
    /// assert_eq!(
    ///     IpList::parse(["203.0.113.9/24"]).unwrap_err().to_string(),
    ///     "\"203.0.113.9/24\" has host bits set; did you mean 203.0.113.0/24?"
    /// );
    /// ```
    pub fn parse<'a>(cidrs: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        Self::parse_up_to(Self::MAX, cidrs)
    }

    /// [`IpList::parse`] for the networks that several lists have in common, which can be more than one list has.
    ///
    /// # Errors
    /// [`Invalid`] as there, but for the number of networks.
    pub fn parse_common<'a>(cidrs: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        Self::parse_up_to(usize::MAX, cidrs)
    }

    fn parse_up_to<'a>(max: usize, cidrs: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        let mut networks = Vec::new();
        for cidr in cidrs {
            let network = parse_network(cidr)?;
            if !networks.contains(&network) {
                networks.push(network);
            }
            if networks.len() > max {
                return Err(Invalid::new(format!("must have at most {max} networks")));
            }
        }
        if networks.is_empty() {
            return Err(Invalid::new("must not be empty; leave it out to allow every address"));
        }
        Ok(Self(networks))
    }

    /// Whether the address is in one of the networks.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether every address of `other` is in this list, judged network by network.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other.0.iter().all(|inner| self.0.iter().any(|outer| outer.contains(inner)))
    }

    /// The networks that both lists allow. Where they have none in common it is a list that no client passes: that of
    /// the IPv4 broadcast address, which is never a sender.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        const NO_CLIENT: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32));
        let mut common: Vec<IpNet> = Vec::new();
        for one in &self.0 {
            for network in &other.0 {
                // Two CIDR networks are nested or have nothing in common.
                let inner = if one.contains(network) { network } else { one };
                if (one.contains(network) || network.contains(one)) && !common.contains(inner) {
                    common.push(*inner);
                }
            }
        }
        // Of nested networks the outer one is enough. So what is common to a list and one within it is no longer than the
        // latter, and every release can read it.
        let outermost = |inner: &&IpNet| !common.iter().any(|outer| outer != *inner && outer.contains(*inner));
        let common: Vec<IpNet> = common.iter().filter(outermost).copied().collect();
        Self(if common.is_empty() { vec![NO_CLIENT] } else { common })
    }

    /// Estimates the heap it takes, in bytes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        heap::vec(&self.0)
    }

    pub(crate) fn shrink_to_fit(&mut self) {
        self.0.shrink_to_fit();
    }

    /// The networks, as given, mapped ones as IPv4.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }
}

/// Reads one CIDR text with zero host bits.
///
/// # Errors
/// [`Invalid`] when it is no CIDR or has host bits set.
pub fn parse_network(cidr: &str) -> Result<IpNet, Invalid> {
    let shown: String = cidr.chars().take(64).collect();
    // The standard library refuses octets with leading zeros, which some readers take for octal; ipnet does not.
    let unclear = cidr.split_once('/').is_some_and(|(address, _)| address.parse::<IpAddr>().is_err());
    let network = cidr.parse::<IpNet>().ok().filter(|_| !unclear).ok_or_else(|| {
        Invalid::new(match cidr.parse::<IpAddr>() {
            Ok(address) => format!("{shown:?} is not a CIDR network; did you mean {}?", IpNet::from(address)),
            Err(_) => format!("{shown:?} is not a CIDR network such as 203.0.113.0/24"),
        })
    })?;
    if network.addr() != network.network() {
        return Err(Invalid::new(format!("{shown:?} has host bits set; did you mean {}?", network.trunc())));
    }
    Ok(match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(network, IpNet::V4),
            None => network,
        },
        _ => network,
    })
}

/// The address a request comes from: of the hops in `X-Forwarded-For` (all of its values, in order, asked for where they
/// matter) and the peer behind them, the last one that is no trusted proxy. What stands left of it could have been written
/// by anybody. `None` when every hop is a trusted proxy, or one on the way cannot be read.
///
/// ```
/// use tollkey_core::network::client_address;
/// let trusted = ["10.0.0.0/8".parse().unwrap()];
/// let peer = "10.0.0.1".parse().ok();
/// let of = |peer, hops: &'static str| client_address(peer, || vec![hops.as_bytes()], &trusted);
/// assert_eq!(of(peer, "6.6.6.6, 203.0.113.7, 10.0.0.2"), "203.0.113.7".parse().ok());
/// assert_eq!(of("198.51.100.1".parse().ok(), "6.6.6.6"), "198.51.100.1".parse().ok());
/// assert_eq!(of(peer, ""), None);
/// ```
#[must_use]
pub fn client_address<'a>(
    peer: Option<IpAddr>,
    forwarded_for: impl FnOnce() -> Vec<&'a [u8]>,
    trusted: &[IpNet],
) -> Option<IpAddr> {
    let is_trusted = |address: &IpAddr| trusted.iter().any(|proxy| proxy.contains(address));
    let peer = peer?.to_canonical();
    if !is_trusted(&peer) {
        return Some(peer);
    }
    for hop in forwarded_for().into_iter().rev().flat_map(|value| value.rsplit(|byte| *byte == b',')) {
        let address = std::str::from_utf8(hop).ok()?.trim().parse::<IpAddr>().ok()?.to_canonical();
        if !is_trusted(&address) {
            return Some(address);
        }
    }
    None
}

/// The network that a client's requests are counted by: an IPv4 address by itself, an IPv6 address by its first 64 bits,
/// which one client usually has all of (RFC 6177).
///
/// ```
/// use tollkey_core::network::client_network;
/// let network = |address: &str| client_network(address.parse().unwrap()).to_string();
/// assert_eq!(network("2001:db8:1:2:3:4:5:6"), "2001:db8:1:2::");
/// assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
/// ```
#[must_use]
pub fn client_network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mapped_addresses_count_as_ipv4_on_both_sides() {
        let mapped = IpList::parse(["::ffff:10.1.0.0/112"]).unwrap();
        assert_eq!(mapped, IpList::parse(["10.1.0.0/16"]).unwrap());
        assert!(mapped.contains("10.1.2.3".parse().unwrap()));
        assert!(mapped.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!mapped.contains("10.2.0.0".parse().unwrap()));
        assert!(!IpList::parse(["::/0"]).unwrap().contains("10.1.2.3".parse().unwrap()));
    }

    #[test]
    fn what_is_no_network_is_refused() {
        for cidr in
            ["", "10.0.0.0", "10.0.0.0/33", "10.0.0.1/24", "::1/64", "10.0.0/8", " 10.0.0.0/8", "010.0.0.0/8", "x"]
        {
            assert!(IpList::parse([cidr]).is_err(), "{cidr:?}");
        }
        assert!(IpList::parse([]).is_err());
        let many: Vec<String> = (0..=IpList::MAX).map(|i| format!("10.0.{i}.0/24")).collect();
        assert!(IpList::parse(many.iter().map(String::as_str)).is_err());
    }
}
