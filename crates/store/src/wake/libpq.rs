//! A libpq connection on whose socket a thread can wait; diesel does not expose the socket.
//!
//! Polling with diesel every 10 ms cost 0.3 % of a core and took 5.1 ms from a commit to the wake-up (median; 99 %
//! within 10.0 ms). Waiting costs nothing while idle, and the wake-up arrives no later than the response to the commit
//! (99 % within 0.03 ms of it). `wake::wake_up_latency_is_measured` in the tests measures this.
//!
//! This is the libpq that diesel uses, with the same parameters, so TLS, timeouts and the rejection of standbys are the
//! same.

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

/// Connecting failed or the connection is lost. Without libpq's message, which names host and user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost;

/// An open connection, closed when dropped. Not `Send`: libpq allows one thread at a time.
pub(super) struct Connection(NonNull<PGconn>);

impl Connection {
    /// Connects. Blocks, for at most `connect_timeout` if that is set.
    pub(super) fn open(conninfo: &str) -> Result<Self, Lost> {
        let conninfo = CString::new(conninfo).map_err(|_| Lost)?;
        // SAFETY: `conninfo` ends with a zero byte and lives until the call returns.
        let connection = NonNull::new(unsafe { PQconnectdb(conninfo.as_ptr()) }).ok_or(Lost)?;
        let connection = Self(connection); // from here on `drop` closes it, whatever its status
        // SAFETY: the pointer of PQconnectdb is valid until PQfinish, which only `drop` calls. `ignore` uses no
        // argument.
        unsafe { PQsetNoticeProcessor(connection.0.as_ptr(), Some(ignore), ptr::null_mut()) };
        // SAFETY: the connection is valid as above.
        match unsafe { PQstatus(connection.0.as_ptr()) } {
            ConnStatusType::CONNECTION_OK => Ok(connection),
            _ => Err(Lost),
        }
    }

    /// Sends statements whose rows are discarded. Send no more before [`answered`](Self::answered) has returned `true`.
    pub(super) fn send(&mut self, sql: &CStr) -> Result<(), Lost> {
        let sql: *const c_char = sql.as_ptr();
        // SAFETY: the connection is valid as above and borrowed by this thread alone; `sql` ends with a zero byte.
        match unsafe { PQsendQuery(self.0.as_ptr(), sql) } {
            1 => Ok(()),
            _ => Err(Lost),
        }
    }

    /// Reads available input without blocking. Returns whether all statements have completed.
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
            // SAFETY: PQgetResult returned it, and it is not null.
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

    /// Returns the socket, which becomes readable when [`take`](Self::take) has something to read. Call it before each
    /// wait: after an error libpq may use another socket.
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

    /// Reads available input without blocking. Returns whether it contained notifications.
    pub(super) fn take(&mut self) -> Result<bool, Lost> {
        let mut any = false;
        loop {
            self.read()?;
            // SAFETY: the connection is valid as above and borrowed by this thread alone.
            let notification = unsafe { PQnotifies(self.0.as_ptr()) };
            if notification.is_null() {
                return Ok(any);
            }
            // SAFETY: the caller of PQnotifies owns the result, which is one allocation. It is not used any more.
            unsafe { PQfreemem(notification.cast()) };
            any = true;
        }
    }
}

/// Discards notices of the server, which libpq would print to stderr.
extern "C" fn ignore(_: *mut c_void, _: *const c_char) {}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: the connection is valid, and it is not used after this.
        unsafe { PQfinish(self.0.as_ptr()) };
    }
}
