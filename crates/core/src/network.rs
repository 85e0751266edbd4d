//! IP allowlists, and the IP address of a client.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};
use serde::Serialize;

use crate::{Invalid, heap};

/// An IP allowlist: a non-empty list of CIDRs whose host bits are zero. IPv4-mapped IPv6 counts as IPv4, both in the
/// list and as the address of a client.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct IpList(Vec<IpNet>);

impl IpList {
    /// The maximum number of IP ranges.
    pub const MAX: usize = 100;

    /// Reads a list of CIDRs.
    ///
    /// # Errors
    /// [`Invalid`] if the list is empty or has more than [`IpList::MAX`] IP ranges, or if a text is not a CIDR or has
    /// host bits set.
    ///
    /// ```
    /// use tollkey_core::IpList;
    /// let list = IpList::parse(["203.0.113.0/24", "2001:db8::/32"]).unwrap();
    /// assert!(list.contains("::ffff:203.0.113.9".parse().unwrap()));
    /// assert!(!list.contains("203.0.114.1".parse().unwrap()));
    /// assert_eq!(
    ///     IpList::parse(["203.0.113.9/24"]).unwrap_err().to_string(),
    ///     "`203.0.113.9/24` has host bits set; did you mean `203.0.113.0/24`?"
    /// );
    /// ```
    pub fn parse<'a>(cidrs: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        Self::parse_up_to(Self::MAX, cidrs)
    }

    /// Reads a list that is the intersection of others, which can have more than [`IpList::MAX`] IP ranges.
    ///
    /// # Errors
    /// [`Invalid`] as for [`IpList::parse`], except for the number of IP ranges.
    pub fn parse_common<'a>(cidrs: impl IntoIterator<Item = &'a str>) -> Result<Self, Invalid> {
        Self::parse_up_to(usize::MAX, cidrs)
    }

    fn parse_up_to<'a>(
        max: usize,
        cidrs: impl IntoIterator<Item = &'a str>,
    ) -> Result<Self, Invalid> {
        let mut networks = Vec::new();
        for cidr in cidrs {
            let network = parse_network(cidr)?;
            if !networks.contains(&network) {
                networks.push(network);
            }
            if networks.len() > max {
                return Err(Invalid::new(format!("must have at most {max} entries")));
            }
        }
        if networks.is_empty() {
            return Err(Invalid::new(
                "must not be empty; on creation, omit the field to set no restriction",
            ));
        }
        Ok(Self(networks))
    }

    /// Whether the address is in one of the IP ranges.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }

    /// Whether each IP range of `other` is inside one IP range of this list.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        other
            .0
            .iter()
            .all(|inner| self.0.iter().any(|outer| outer.contains(inner)))
    }

    /// Returns the IP ranges that both lists allow. If the lists have no address in common, the result
    /// contains only the IPv4 broadcast address, which no client has.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        const NO_CLIENT: IpNet = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::BROADCAST, 32));
        let mut common: Vec<IpNet> = Vec::new();
        for a in &self.0 {
            for b in &other.0 {
                // Two CIDRs are nested or disjoint.
                let inner = if a.contains(b) { b } else { a };
                if (a.contains(b) || b.contains(a)) && !common.contains(inner) {
                    common.push(*inner);
                }
            }
        }
        // Keep only the outermost of nested ranges. If `self` covers `other`, the result is then not longer
        // than `other`, so earlier releases, which read at most `MAX` ranges, can read it.
        let outermost = |inner: &&IpNet| {
            !common
                .iter()
                .any(|outer| outer != *inner && outer.contains(*inner))
        };
        let common: Vec<IpNet> = common.iter().filter(outermost).copied().collect();
        Self(if common.is_empty() {
            vec![NO_CLIENT]
        } else {
            common
        })
    }

    /// Estimates its heap memory in bytes.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        heap::vec(&self.0)
    }

    pub(crate) fn shrink_to_fit(&mut self) {
        self.0.shrink_to_fit();
    }

    /// The IP ranges in their order, with IPv4-mapped ranges as IPv4.
    #[must_use]
    pub fn networks(&self) -> &[IpNet] {
        &self.0
    }
}

/// Reads a CIDR whose host bits are zero.
///
/// # Errors
/// [`Invalid`] if it is not a CIDR or has host bits set.
pub fn parse_network(cidr: &str) -> Result<IpNet, Invalid> {
    let shown: String = cidr.chars().take(64).flat_map(char::escape_debug).collect();
    // The standard library rejects octets with leading zeros, which some parsers read as octal; ipnet does not.
    let is_ambiguous = cidr
        .split_once('/')
        .is_some_and(|(address, _)| address.parse::<IpAddr>().is_err());
    let network = cidr
        .parse::<IpNet>()
        .ok()
        .filter(|_| !is_ambiguous)
        .ok_or_else(|| {
            Invalid::new(match cidr.parse::<IpAddr>() {
                Ok(address) => format!(
                    "`{shown}` is not in CIDR notation; did you mean `{}`?",
                    IpNet::from(address)
                ),
                Err(_) => format!("`{shown}` is not in CIDR notation, such as 203.0.113.0/24"),
            })
        })?;
    if network.addr() != network.network() {
        return Err(Invalid::new(format!(
            "`{shown}` has host bits set; did you mean `{}`?",
            network.trunc()
        )));
    }
    Ok(match network {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.addr().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(network, IpNet::V4),
            None => network,
        },
        _ => network,
    })
}

/// The error if a trusted proxy wrote a hop of `X-Forwarded-For` that is not an IP address. It does not
/// contain the hop, because the header can contain any text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a hop of X-Forwarded-For is not an IP address")]
pub struct InvalidHop;

/// Returns the client's IP address: the peer if it is not a trusted proxy, and otherwise the rightmost hop of
/// `X-Forwarded-For` that is not a trusted proxy. The hops to the left of it are ignored, because the client can forge
/// them.
///
/// `forwarded_for` returns all values of the header in their order; it is called only if the peer is a trusted proxy.
///
/// Returns `None` if the peer is unknown, if every hop is a trusted proxy, or if a trusted proxy sends no hop.
///
/// # Errors
/// [`InvalidHop`] if a hop that a trusted proxy wrote is not an IP address; see [`parse_hop`].
///
/// ```
/// use tollkey_core::network::{InvalidHop, client_address};
/// let trusted = ["10.0.0.0/8".parse().unwrap()];
/// let peer = "10.0.0.1".parse().ok();
/// let of = |peer, hops: &'static str| client_address(peer, || vec![hops.as_bytes()], &trusted);
/// assert_eq!(of(peer, "6.6.6.6, 203.0.113.7:4711, 10.0.0.2"), Ok("203.0.113.7".parse().ok()));
/// assert_eq!(of("198.51.100.1".parse().ok(), "6.6.6.6"), Ok("198.51.100.1".parse().ok()));
/// assert_eq!(of(peer, "203.0.113.7, unknown"), Err(InvalidHop));
/// assert_eq!(client_address(peer, Vec::new, &trusted), Ok(None));
/// ```
pub fn client_address<'a>(
    peer: Option<IpAddr>,
    forwarded_for: impl FnOnce() -> Vec<&'a [u8]>,
    trusted: &[IpNet],
) -> Result<Option<IpAddr>, InvalidHop> {
    match peer.map(|peer| peer.to_canonical()) {
        None => Ok(None),
        Some(peer) if !is_trusted(trusted, peer) => Ok(Some(peer)),
        Some(_) => forwarded_address(forwarded_for(), trusted),
    }
}

fn is_trusted(trusted: &[IpNet], address: IpAddr) -> bool {
    trusted.iter().any(|proxy| proxy.contains(&address))
}

/// Returns the client's IP address if the peer is a trusted proxy, such as the peer of a Unix socket: the rightmost hop
/// of `X-Forwarded-For` that is not a trusted proxy. See [`client_address`].
///
/// # Errors
/// [`InvalidHop`] as for [`client_address`].
///
/// ```
/// use tollkey_core::network::forwarded_address;
/// let trusted = ["10.0.0.0/8".parse().unwrap()];
/// let of = |hops: &'static str| forwarded_address(vec![hops.as_bytes()], &trusted);
/// assert_eq!(of("6.6.6.6, 203.0.113.7, 10.0.0.2"), Ok("203.0.113.7".parse().ok()));
/// assert_eq!(of("10.0.0.2"), Ok(None));
/// assert_eq!(forwarded_address(Vec::new(), &trusted), Ok(None));
/// ```
pub fn forwarded_address(
    values: Vec<&[u8]>,
    trusted: &[IpNet],
) -> Result<Option<IpAddr>, InvalidHop> {
    // An empty header counts as absent.
    if values
        .iter()
        .all(|value| value.iter().all(|byte| matches!(byte, b' ' | b'\t')))
    {
        return Ok(None);
    }
    for hop in values
        .into_iter()
        .rev()
        .flat_map(|value| value.rsplit(|byte| *byte == b','))
    {
        let address = parse_hop(hop).ok_or(InvalidHop)?;
        if !is_trusted(trusted, address) {
            return Ok(Some(address));
        }
    }
    Ok(None)
}

/// Reads a hop of `X-Forwarded-For`: an IPv4 or IPv6 address, optionally with a port, and optionally in
/// double quotes. An IPv6 address can be in brackets, and must be if it has a port. Only spaces and tabs
/// around the hop are skipped. An IPv4-mapped address is returned as IPv4.
///
/// ```
/// use tollkey_core::network::parse_hop;
/// for hop in ["192.0.2.1", "192.0.2.1:80", "\"192.0.2.1:80\"", " [::ffff:192.0.2.1]:80\t"] {
///     assert_eq!(parse_hop(hop.as_bytes()), "192.0.2.1".parse().ok(), "{hop:?}");
/// }
/// assert_eq!(parse_hop(b"unknown"), None);
/// ```
#[must_use]
pub fn parse_hop(hop: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(hop).ok()?.trim_matches([' ', '\t']);
    let text = match text.strip_prefix('"') {
        Some(quoted) => quoted.strip_suffix('"')?,
        None => text,
    };
    let is_port = |port: &str| {
        (1..=5).contains(&port.len())
            && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok()
    };
    let address = if let Some(rest) = text.strip_prefix('[') {
        let (address, port) = rest.split_once(']')?;
        if !port.is_empty() && !is_port(port.strip_prefix(':')?) {
            return None;
        }
        IpAddr::V6(address.parse().ok()?)
    } else {
        match text.split_once(':') {
            Some((address, port)) if !port.contains(':') => {
                IpAddr::V4(is_port(port).then(|| address.parse().ok()).flatten()?)
            }
            _ => text.parse().ok()?,
        }
    };
    Some(address.to_canonical())
}

/// Returns the address that identifies a client in limits per client: an IPv4 address unchanged, and an IPv6 address
/// with only its first 64 bits, because one client usually has all addresses with these bits (RFC 6177).
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
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(
            address.to_bits() & !u128::from(u64::MAX),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_mapped_addresses_count_as_ipv4() {
        let mapped = IpList::parse(["::ffff:10.1.0.0/112"]).unwrap();
        assert_eq!(mapped, IpList::parse(["10.1.0.0/16"]).unwrap());
        assert!(mapped.contains("10.1.2.3".parse().unwrap()));
        assert!(mapped.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!mapped.contains("10.2.0.0".parse().unwrap()));
        assert!(
            !IpList::parse(["::/0"])
                .unwrap()
                .contains("10.1.2.3".parse().unwrap())
        );
    }

    #[test]
    fn hops_with_ports_brackets_and_quotes_are_read() {
        let (v4, v6) = ("203.0.113.7", "2001:db8::7");
        for (hop, address) in [
            ("203.0.113.7", v4),
            ("203.0.113.7:4711", v4),
            ("203.0.113.7:0", v4),
            ("203.0.113.7:65535", v4),
            (" \t203.0.113.7\t ", v4),
            ("\"203.0.113.7\"", v4),
            ("\"203.0.113.7:4711\"", v4),
            ("::ffff:203.0.113.7", v4),
            ("[::ffff:203.0.113.7]:4711", v4),
            ("2001:db8::7", v6),
            ("2001:DB8:0::7", v6),
            ("[2001:db8::7]", v6),
            ("[2001:db8::7]:4711", v6),
            ("\"2001:db8::7\"", v6),
            ("\"[2001:db8::7]\"", v6),
            ("\"[2001:db8::7]:4711\"", v6),
            // Without brackets, the last group is not a port.
            ("2001:db8::7:80", "2001:db8::7:80"),
        ] {
            assert_eq!(
                parse_hop(hop.as_bytes()),
                Some(address.parse().unwrap()),
                "{hop:?}"
            );
        }
    }

    #[test]
    fn invalid_hops_are_rejected() {
        for hop in [
            "",
            " ",
            "unknown",
            "_hidden",
            "localhost",
            "203.0.113",
            "203.0.113.07",
            "203.0.113.7/32",
            "203.0.113.7:",
            "203.0.113.7:x",
            "203.0.113.7:+80",
            "203.0.113.7:65536",
            "203.0.113.7:000080",
            "203.0.113.7:80:80",
            "203.0.113.7 : 80",
            "203.0.113.7 80",
            "[203.0.113.7]",
            "[203.0.113.7]:80",
            "[2001:db8::7",
            "2001:db8::7]",
            "[2001:db8::7]80",
            "[2001:db8::7]:",
            "[2001:db8::7]: 80",
            "[ 2001:db8::7 ]",
            "[fe80::1%eth0]",
            "fe80::1%eth0",
            "\"203.0.113.7",
            "203.0.113.7\"",
            "\"\"203.0.113.7\"\"",
            "'203.0.113.7'",
            "\" 203.0.113.7\"",
            "for=203.0.113.7",
            "203.0.113.7;proto=https",
            "0x7f.0.0.1",
            "2130706433",
            // White space other than spaces and tabs.
            "\u{a0}203.0.113.7",
            "203.0.113.7\u{a0}",
            "203.0.113.7\u{2003}",
            "203.0.113.7\r",
            "203.0.113.7\u{b}",
        ] {
            assert_eq!(parse_hop(hop.as_bytes()), None, "{hop:?}");
        }
        // U+00A0 as Latin-1.
        assert_eq!(parse_hop(b"203.0.113.7\xa0"), None);
    }

    #[test]
    fn unreadable_hop_is_an_error_only_from_a_trusted_proxy() {
        let trusted = ["10.0.0.0/8".parse().unwrap()];
        let of = |peer: &str, hops: &'static [u8]| {
            client_address(peer.parse().ok(), || vec![hops], &trusted)
        };
        let client = Ok("203.0.113.7".parse().ok());
        assert_eq!(of("10.0.0.1", b"unknown, 203.0.113.7, 10.0.0.2"), client);
        assert_eq!(
            of("10.0.0.1", b"203.0.113.7, unknown, 10.0.0.2"),
            Err(InvalidHop)
        );
        assert_eq!(of("10.0.0.1", b"203.0.113.7,"), Err(InvalidHop));
        assert_eq!(of("10.0.0.1", b"203.0.113.7\xa0"), Err(InvalidHop));
        assert_eq!(of("203.0.113.7", b"unknown"), client);
        assert_eq!(of("10.0.0.1", b"10.0.0.3, 10.0.0.2"), Ok(None));
        assert_eq!(of("10.0.0.1", b" "), Ok(None), "an empty header");
    }

    #[test]
    fn invalid_ip_ranges_are_rejected() {
        for cidr in [
            "",
            "10.0.0.0",
            "10.0.0.0/33",
            "10.0.0.1/24",
            "::1/64",
            "10.0.0/8",
            " 10.0.0.0/8",
            "010.0.0.0/8",
            "x",
        ] {
            assert!(IpList::parse([cidr]).is_err(), "{cidr:?}");
        }
        assert!(IpList::parse([]).is_err());
        let many: Vec<String> = (0..=IpList::MAX)
            .map(|i| format!("10.0.{i}.0/24"))
            .collect();
        assert!(IpList::parse(many.iter().map(String::as_str)).is_err());
    }
}
