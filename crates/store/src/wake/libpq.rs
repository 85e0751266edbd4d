//! A connection that can be waited for. diesel keeps its socket to itself, so that one can only look again and again:
//! every 10 ms that cost 0.3 % of a core, and each revocation 5.1 ms from the commit to the wake-up (median; 99 %
//! within 10.0 ms). Waiting here costs nothing at rest, and the wake-up comes no later than the commit's own answer (99
//! % within 0.03 ms of it). `wake::measured` in the tests says how that was measured.
//!
//! It calls the libpq that diesel brings along anyway, with the same parameters, so that TLS, time-outs and the refusal
//! of standbys are the same.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
};

use pq_sys::{
    ConnStatusType, ExecStatusType, PGconn, PQclear, PQconnectdb, PQconsumeInput, PQfinish,
    PQfreemem, PQgetResult, PQisBusy, PQnotifies, PQresultStatus, PQsendQuery,
    PQsetNoticeProcessor, PQsocket, PQstatus,
};

/// The connection cannot be made, or is lost. Without libpq's message, which names host and user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost;

/// An open connection, closed when dropped. Not `Send`: libpq wants one thread at a time, and one is all there is.
pub(super) struct Connection(NonNull<PGconn>);

impl Connection {
    /// Connects. Ends in bounded time if there is a `connect_timeout`.
    pub(super) fn open(conninfo: &str) -> Result<Self, Lost> {
        let conninfo = CString::new(conninfo).map_err(|_| Lost)?;
        // SAFETY: `conninfo` ends with a zero byte and lives until the call is over.
        let connection = NonNull::new(unsafe { PQconnectdb(conninfo.as_ptr()) }).ok_or(Lost)?;
        let connection = Self(connection); // to be closed from here on, whatever its status
        // SAFETY: what PQconnectdb gave is valid until PQfinish, which only `drop` calls. `ignore` uses no argument.
        unsafe { PQsetNoticeProcessor(connection.0.as_ptr(), Some(ignore), ptr::null_mut()) };
        // SAFETY: the connection is valid as above.
        match unsafe { PQstatus(connection.0.as_ptr()) } {
            ConnStatusType::CONNECTION_OK => Ok(connection),
            _ => Err(Lost),
        }
    }

    /// Sends statements whose rows nobody wants. [`answered`](Self::answered) says when they are done; not to be sent
    /// more before that.
    pub(super) fn send(&mut self, sql: &CStr) -> Result<(), Lost> {
        let sql: *const c_char = sql.as_ptr();
        // SAFETY: the connection is valid as above and borrowed by this thread alone; `sql` ends with a zero byte.
        match unsafe { PQsendQuery(self.0.as_ptr(), sql) } {
            1 => Ok(()),
            _ => Err(Lost),
        }
    }

    /// Reads what has come, without waiting. Whether all is answered that was sent.
    pub(super) fn answered(&mut self) -> Result<bool, Lost> {
        self.read()?;
        loop {
            // SAFETY: the connection is valid as above and borrowed by this thread alone.
            if unsafe { PQisBusy(self.0.as_ptr()) } != 0 {
                return Ok(false);
            }
            // SAFETY: as before. It does not wait, because the connection is not busy.
            let result = unsafe { PQgetResult(self.0.as_ptr()) };
            if result.is_null() {
                return Ok(true);
            }
            // SAFETY: PQgetResult gave it, and it is not null.
            let status = unsafe { PQresultStatus(result) };
            // SAFETY: as before; the result is not used any more.
            unsafe { PQclear(result) };
            match status {
                ExecStatusType::PGRES_COMMAND_OK | ExecStatusType::PGRES_TUPLES_OK => {}
                _ => return Err(Lost),
            }
        }
    }

    fn read(&mut self) -> Result<(), Lost> {
        // SAFETY: the connection is valid as above and borrowed by this thread alone.
        match unsafe { PQconsumeInput(self.0.as_ptr()) } {
            1 => Ok(()),
            _ => Err(Lost),
        }
    }

    /// What becomes readable when there is something to [`take`](Self::take). Anew each time: it is another socket
    /// after an error.
    pub(super) fn socket(&self) -> Result<BorrowedFd<'_>, Lost> {
        // SAFETY: the connection is valid as above.
        let socket = unsafe { PQsocket(self.0.as_ptr()) };
        if socket < 0 {
            return Err(Lost);
        }
        // SAFETY: the socket is open: libpq closes it only in PQfinish and while it reads or writes, all of which need
        // `&mut self` and so wait for the end of this borrow.
        Ok(unsafe { BorrowedFd::borrow_raw(socket) })
    }

    /// Reads what has come, without waiting. Whether there were notifications among it.
    pub(super) fn take(&mut self) -> Result<bool, Lost> {
        let mut any = false;
        loop {
            self.read()?;
            // SAFETY: the connection is valid as above and borrowed by this thread alone.
            let notification = unsafe { PQnotifies(self.0.as_ptr()) };
            if notification.is_null() {
                return Ok(any);
            }
            // SAFETY: PQnotifies leaves what it gives to the caller, in one piece. Nothing of it is used.
            unsafe { PQfreemem(notification.cast()) };
            any = true;
        }
    }
}

/// What the server says unasked, libpq would print to stderr.
extern "C" fn ignore(_: *mut c_void, _: *const c_char) {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the connection is valid, and nobody has it after this.
        unsafe { PQfinish(self.0.as_ptr()) };
    }
}
