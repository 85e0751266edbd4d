//! Finds the socket of a connection among those of the process, to shut it down.
//!
//! diesel does not expose the socket of a `PgConnection`, and libpq cannot use one that the caller has
//! opened. But libpq sets the socket option `TCP_USER_TIMEOUT` from the connection's parameters, and this
//! process can read the option of every socket. So each connection gets a unique value a few milliseconds
//! above the configured one: its [`Mark`]. Works on Linux and over TCP only.

use std::io;

/// The `tcp_user_timeout` that the HTTP client sets on its sockets, in milliseconds.
const HTTP_CLIENT_TIMEOUT: u32 = 30_000;

/// The kernel's timeout without a `tcp_user_timeout`, about 15 minutes, in milliseconds.
const KERNEL_TIMEOUT: u32 = 15 * 60 * 1000;

/// The `TCP_USER_TIMEOUT` of one connection's socket, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark(u32);

impl Mark {
    /// Returns the lowest unused mark above the `tcp_user_timeout` of this connection string.
    pub(super) fn unused(keywords: &str, is_used: impl Fn(Self) -> bool) -> Option<Self> {
        let configured = keywords
            .rsplit_once("tcp_user_timeout='")
            .and_then(|(_, rest)| rest.split('\'').next()?.parse().ok())
            .filter(|millis| *millis != 0)
            .unwrap_or(KERNEL_TIMEOUT);
        (configured.saturating_add(1)..)
            .filter(|millis| *millis != HTTP_CLIENT_TIMEOUT)
            .map(Self)
            .find(|mark| !is_used(*mark))
    }

    /// Returns the parameters that give a connection this mark. They must be the last ones. libpq ignores the timeout
    /// if keep-alives are off.
    pub(super) fn parameters(self) -> String {
        format!("keepalives=1 tcp_user_timeout={}", self.0)
    }

    /// Shuts down the sockets with this mark. Returns whether there were any.
    #[cfg(target_os = "linux")]
    pub(super) fn shut_down(self) -> io::Result<bool> {
        use std::{
            fs,
            os::fd::{BorrowedFd, RawFd},
        };

        use rustix::net::{Shutdown, shutdown, sockopt::tcp_user_timeout};

        let mut any = false;
        for entry in fs::read_dir("/proc/self/fd")? {
            let Some(number) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<RawFd>().ok())
            else {
                continue;
            };
            // SAFETY: a number from that list is not -1. The descriptor may have been closed since, and the number may
            // belong to another file. Reading a socket option and duplicating the descriptor change nothing.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            if tcp_user_timeout(descriptor) != Ok(self.0) {
                continue;
            }
            let Ok(copy) = descriptor.try_clone_to_owned() else {
                continue;
            };
            // The copy refers to the same socket even if libpq closes its own now, so this check decides.
            if tcp_user_timeout(&copy) == Ok(self.0) {
                any |= shutdown(&copy, Shutdown::Both).is_ok();
            }
        }
        Ok(any)
    }

    /// Does nothing: on other systems, the socket of a connection cannot be found.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn shut_down(self) -> io::Result<bool> {
        Ok(false)
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt::set_tcp_user_timeout;

    use super::*;

    impl Mark {
        /// Sets this mark on a socket, as libpq does.
        pub(in super::super) fn set(self, socket: &TcpStream) {
            set_tcp_user_timeout(socket, self.0).unwrap();
        }
    }

    fn unused(keywords: &str, used: &[u32]) -> u32 {
        Mark::unused(keywords, |mark| used.contains(&mark.0))
            .unwrap()
            .0
    }

    #[test]
    fn mark_is_the_next_unused_number_above_the_timeout() {
        for (keywords, used, mark) in [
            ("host='a' tcp_user_timeout='3000'", &[][..], 3_001),
            ("tcp_user_timeout='3000'", &[3_001, 3_003], 3_002),
            ("tcp_user_timeout='1' tcp_user_timeout='3000'", &[], 3_001),
            ("tcp_user_timeout='29999'", &[], 30_001),
            ("tcp_user_timeout='0'", &[], 900_001),
            ("host='a'", &[], 900_001),
        ] {
            assert_eq!(unused(keywords, used), mark, "{keywords}");
        }
    }

    #[test]
    fn only_a_socket_with_the_mark_is_shut_down() {
        let mark = Mark(510_001);
        assert!(!mark.shut_down().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        mark.set(&socket);
        assert!(mark.shut_down().unwrap());
    }
}
