//! Finding the socket of one connection among those of the process, to shut it down.
//!
//! diesel does not give out the socket of a `PgConnection`, and libpq takes none that was opened by the caller. But
//! libpq sets `TCP_USER_TIMEOUT` to what the connection's parameters say, and that can be read back from a socket. So
//! each connection gets a value that no other has, a few milliseconds above the configured one: its [`Mark`]. Nothing
//! outside of this module depends on what a mark is. It works on Linux and over TCP only.

use std::io;

/// The `tcp_user_timeout` that the HTTP client sets on its sockets, in milliseconds.
const OF_HTTP_CLIENT: u32 = 30_000;

/// What the kernel does without a `tcp_user_timeout`, in milliseconds: it gives up after a quarter of an hour.
const OF_KERNEL: u32 = 15 * 60 * 1000;

/// The `TCP_USER_TIMEOUT` of one connection's socket, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Mark(u32);

impl Mark {
    /// The lowest mark above the `tcp_user_timeout` of these completed keywords that is not used.
    pub(super) fn unused(keywords: &str, is_used: impl Fn(Self) -> bool) -> Option<Self> {
        let configured = keywords
            .rsplit_once("tcp_user_timeout='")
            .and_then(|(_, rest)| rest.split('\'').next()?.parse().ok())
            .filter(|millis| *millis != 0)
            .unwrap_or(OF_KERNEL);
        (configured.saturating_add(1)..)
            .filter(|millis| *millis != OF_HTTP_CLIENT)
            .map(Self)
            .find(|mark| !is_used(*mark))
    }

    /// The parameters that give a connection this mark. They have to be the last ones. libpq ignores the timeout of a
    /// connection without keep-alives.
    pub(super) fn parameters(self) -> String {
        format!("keepalives=1 tcp_user_timeout={}", self.0)
    }

    /// Shuts down the sockets with this mark. Returns whether there was one.
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
            // belong to something else. It is only asked for a socket option and copied, which changes nothing.
            let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
            if tcp_user_timeout(descriptor) != Ok(self.0) {
                continue;
            }
            let Ok(copy) = descriptor.try_clone_to_owned() else {
                continue;
            };
            // The copy stays what it is, even if libpq closes its socket now. So this check is the one that counts.
            if tcp_user_timeout(&copy) == Ok(self.0) {
                any |= shutdown(&copy, Shutdown::Both).is_ok();
            }
        }
        Ok(any)
    }

    /// Elsewhere sockets cannot be told apart.
    #[cfg(not(target_os = "linux"))]
    pub(super) fn shut_down(self) -> io::Result<bool> {
        Ok(false)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt::set_tcp_user_timeout;

    use super::*;

    impl Mark {
        /// Gives a socket this mark, as libpq does.
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
    fn socket_that_does_not_exist_is_not_shut_down() {
        let mark = Mark(510_001);
        assert!(!mark.shut_down().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        mark.set(&socket);
        assert!(mark.shut_down().unwrap());
    }
}
