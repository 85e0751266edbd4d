//! The sockets of this process, which are told apart by their `TCP_USER_TIMEOUT`.

use std::{
    fs, io,
    os::fd::{BorrowedFd, RawFd},
};

use rustix::net::{Shutdown, shutdown, sockopt::tcp_user_timeout};

/// Ends the traffic on the sockets with that mark. Whether there was one.
pub(super) fn shut(mark: u32) -> io::Result<bool> {
    let mut any = false;
    for entry in fs::read_dir("/proc/self/fd")? {
        let Some(number) = entry?
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<RawFd>().ok())
        else {
            continue;
        };
        // SAFETY: a number out of that list is not -1. It may have been closed since, and even be something else by now:
        // all that happens to it is a question, which changes nothing whatever it is, and a copy, which is asked again.
        let found = unsafe { BorrowedFd::borrow_raw(number) };
        if tcp_user_timeout(found) != Ok(mark) {
            continue;
        }
        // What is shut is certain to be what was asked: libpq may close its own and somebody else get its number.
        let Ok(copy) = found.try_clone_to_owned() else {
            continue;
        };
        if tcp_user_timeout(&copy) == Ok(mark) {
            any |= shutdown(&copy, Shutdown::Both).is_ok();
        }
    }
    Ok(any)
}
