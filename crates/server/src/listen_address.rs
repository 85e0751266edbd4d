//! The addresses of the server's listeners: TCP addresses and paths of Unix sockets, with the access to those.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use tollkey_core::Invalid;

/// The maximum number of listeners.
pub const MAX_LISTENERS: usize = 8;
/// The maximum length of a path in bytes: `sun_path` of Linux has 108 bytes, and the last one is zero (unix(7)).
const MAX_PATH: usize = 107;
const UNIX: &str = "unix:";

/// The address of one listener. Its `Display` can be parsed again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ListenAddress {
    Tcp(SocketAddr),
    /// The absolute path of a socket file.
    Unix(PathBuf),
}

impl ListenAddress {
    /// Parses `ADDRESS:PORT` or `unix:/absolute/path`.
    ///
    /// # Errors
    /// [`Invalid`] if the text is neither. It does not quote the text.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        if let Some(path) = text.strip_prefix(UNIX) {
            return parse_path(path).map(Self::Unix);
        }
        parse_tcp(text).map(Self::Tcp).ok_or_else(|| {
            Invalid::new(
                "must be an address and a port, such as 127.0.0.1:8080 or [::]:8080, or a Unix socket, such as \
                 unix:/run/tollkey/tollkey.sock",
            )
        })
    }

    /// Returns the TCP address, or `None` for a Unix socket.
    #[must_use]
    pub fn tcp(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Returns the path of a Unix socket, or `None` for a TCP address.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Tcp(_) => None,
            Self::Unix(path) => Some(path),
        }
    }
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// Parses an address and a port, also with the name `localhost`.
pub(crate) fn parse_tcp(text: &str) -> Option<SocketAddr> {
    match text.strip_prefix("localhost:") {
        Some(port) => Some((Ipv4Addr::LOCALHOST, port.parse().ok()?).into()),
        None => text.parse().ok(),
    }
}

/// Whether a text is meant as the address of a Unix socket.
pub(crate) fn is_unix(text: &str) -> bool {
    text.starts_with(UNIX)
}

fn parse_path(text: &str) -> Result<PathBuf, Invalid> {
    if !text.starts_with('/') || text.ends_with('/') {
        return Err(Invalid::new(
            "must name a Unix socket by its absolute path, such as unix:/run/tollkey/tollkey.sock",
        ));
    }
    if text.chars().any(char::is_control) {
        return Err(Invalid::new(
            "must not have control characters in the path of a Unix socket; remove them",
        ));
    }
    // Removes repeated slashes and `.`, so that equal paths are recognized and `unix:///run/a` works.
    let path: PathBuf = Path::new(text).components().collect();
    if path.as_os_str().len() > MAX_PATH {
        return Err(Invalid::new(format!(
            "must have at most {MAX_PATH} bytes in the path of a Unix socket, the limit of the operating system; choose a \
             shorter path"
        )));
    }
    Ok(path)
}

/// One to [`MAX_LISTENERS`] different addresses, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenAddresses(Vec<ListenAddress>);

impl ListenAddresses {
    /// Parses addresses with commas between them.
    ///
    /// # Errors
    /// [`Invalid`] if there are more than [`MAX_LISTENERS`], or one is invalid or repeated. It does not quote the text.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let entries: Vec<&str> = text.split(',').map(str::trim).collect();
        if entries.len() > MAX_LISTENERS {
            return Err(Invalid::new(format!(
                "must have at most {MAX_LISTENERS} entries"
            )));
        }
        let mut addresses = Vec::with_capacity(entries.len());
        for (at, entry) in (1..).zip(&entries) {
            let address = ListenAddress::parse(entry).map_err(|rule| {
                if entries.len() == 1 {
                    rule
                } else {
                    Invalid::new(format!("entry {at} {rule}"))
                }
            })?;
            if let Some(first) = addresses.iter().position(|other| *other == address) {
                return Err(Invalid::new(format!(
                    "entry {at} repeats entry {}; remove it",
                    first + 1
                )));
            }
            addresses.push(address);
        }
        Ok(Self(addresses))
    }

    #[must_use]
    pub fn first(&self) -> &ListenAddress {
        // There is at least one: a text has at least one entry.
        &self.0[0]
    }

    pub fn iter(&self) -> impl Iterator<Item = &ListenAddress> {
        self.0.iter()
    }

    /// Returns the first Unix socket, or `None` if all addresses are TCP.
    #[must_use]
    pub fn unix(&self) -> Option<&Path> {
        self.iter().find_map(ListenAddress::path)
    }
}

/// The owning group of a Unix socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SocketGroup {
    Id(u32),
    Name(String),
}

/// Which users may connect to a Unix socket.
#[derive(Debug, Clone)]
pub struct SocketAccess {
    /// The permission bits of the socket.
    pub mode: u32,
    /// `None` leaves the group that the operating system assigns, usually that of the process.
    pub group: Option<SocketGroup>,
}

/// The data of a connection over a Unix socket, whose peer has no address.
#[derive(Debug, Clone, Copy)]
pub struct UnixSocketPeer;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_addresses_and_unix_sockets_are_parsed() {
        let parsed = ListenAddresses::parse(
            "localhost:8080, [::1]:0,unix:/run/tollkey/tollkey.sock , 0.0.0.0:9000",
        )
        .unwrap();
        let shown: Vec<String> = parsed.iter().map(ToString::to_string).collect();
        assert_eq!(
            shown,
            [
                "127.0.0.1:8080",
                "[::1]:0",
                "unix:/run/tollkey/tollkey.sock",
                "0.0.0.0:9000"
            ]
        );
        assert_eq!(ListenAddresses::parse(&shown.join(",")).unwrap(), parsed);
        assert_eq!(parsed.first().tcp(), "127.0.0.1:8080".parse().ok());
        assert_eq!(parsed.unix(), Some(Path::new("/run/tollkey/tollkey.sock")));
        assert_eq!(ListenAddresses::parse("[::]:8080").unwrap().unix(), None);
    }

    #[test]
    fn path_of_a_unix_socket_is_normalized() {
        for (text, path) in [
            ("unix:///run/a.sock", "/run/a.sock"),
            ("unix:/run//./a.sock", "/run/a.sock"),
            ("unix:/run/../a.sock", "/run/../a.sock"),
            ("unix:/a b.sock", "/a b.sock"),
        ] {
            let parsed = ListenAddress::parse(text).unwrap();
            assert_eq!(parsed, ListenAddress::Unix(path.into()), "{text}");
        }
    }

    #[test]
    fn invalid_listeners_are_rejected() {
        let (either, absolute) = ("must be an address and a port", "its absolute path");
        let long = |length: usize| format!("unix:/{}", "a".repeat(length - 1));
        let many = |count: u16| {
            let entries: Vec<_> = (1..=count).map(|port| format!("[::1]:{port}")).collect();
            entries.join(",")
        };
        for (text, rule) in [
            ("8080".to_owned(), either),
            ("localhost".to_owned(), either),
            ("localhost:http".to_owned(), either),
            ("tollkey.example:8080".to_owned(), either),
            ("/run/tollkey.sock".to_owned(), either),
            ("UNIX:/run/tollkey.sock".to_owned(), either),
            ("127.0.0.1:8080,".to_owned(), "entry 2 must be an address"),
            ("unix:".to_owned(), absolute),
            ("unix:/".to_owned(), absolute),
            ("unix:/run/".to_owned(), absolute),
            ("unix:tollkey.sock".to_owned(), absolute),
            ("unix:@tollkey".to_owned(), absolute),
            ("unix:/run/\0".to_owned(), "control characters"),
            (long(108), "at most 107 bytes"),
            (
                "[::1]:1,[::1]:2,localhost:1,127.0.0.1:1".to_owned(),
                "entry 4 repeats entry 3",
            ),
            (
                "unix:/run/a,unix:///run//a".to_owned(),
                "entry 2 repeats entry 1",
            ),
            (many(9), "must have at most 8 entries"),
        ] {
            let error = ListenAddresses::parse(&text).unwrap_err().to_string();
            assert!(error.contains(rule), "{text:?}: {error}");
        }
        for text in [long(107), many(8)] {
            assert!(ListenAddresses::parse(&text).is_ok(), "{text}");
        }
    }
}
