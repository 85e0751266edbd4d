//! Notifies other replicas of changes with PostgreSQL's `NOTIFY`.
//!
//! Only for speed: a lost notification costs time, never correctness, because verifiers also read the changes at every
//! lease renewal.

use std::{
    convert::Infallible,
    ffi::{CStr, CString},
    io::{self, PipeReader, PipeWriter},
    ops::ControlFlow,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    time::Timespec,
};

use self::libpq::{Connection, Lost};
use crate::{
    Store, postgres_session,
    target::{Target, Use},
};

#[expect(
    unsafe_code,
    reason = "diesel cannot wait for notifications; libpq.rs has measurements of polling instead"
)]
mod libpq;

/// The channel of the notifications, which have no payload.
pub(crate) const CHANNEL: &str = "tollkey_changes";

/// After this time without notifications the connection is checked. A proxy in between may have lost it silently, and
/// then the kernel's keep-alives do not detect that.
const CHECK_AFTER: Duration = Duration::from_secs(30);
/// How long the server may take to respond.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The pause before reconnecting.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);
/// How long dropping a listener waits for its thread, which may be connecting.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// A thread that waits for notifications, until this is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the listening"]
pub struct Listener {
    /// Closed to stop the thread; `None` only while dropping.
    stop: Option<PipeWriter>,
    /// Disconnected when the thread has ended.
    ended: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop = None;
        if self.ended.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Disconnected)
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that listens for changes panicked");
        }
    }
}

impl Store {
    /// Starts a thread that calls `wake` whenever another process may have changed something. `None` on SQLite, which
    /// has no notifications.
    pub fn listen(&self, wake: impl Fn() + Send + 'static) -> io::Result<Option<Listener>> {
        let Target::Postgres(url) = self.target().clone() else {
            return Ok(None);
        };
        let (stopped, stop) = io::pipe()?;
        let (ending, ended) = mpsc::channel();
        let thread = std::thread::Builder::new()
            .name("tollkey-listen".into())
            .spawn(move || {
                let _ending = ending;
                keep_listening(&url, &stopped, &wake);
            })?;
        Ok(Some(Listener {
            stop: Some(stop),
            ended,
            thread: Some(thread),
        }))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wakeup {
    /// The listener was dropped.
    Stopped,
    Readable,
    TimedOut,
}

/// Listens on one connection after the other, until the listener is dropped.
fn keep_listening(url: &str, stopped: &PipeReader, wake: &impl Fn()) {
    let mut connected = true;
    loop {
        let Err(Lost) = listen(url, stopped, || {
            if !connected {
                tracing::info!("listening for changes again");
                connected = true;
            }
            wake();
        }) else {
            return;
        };
        if connected {
            connected = false;
            tracing::warn!(
                "the connection that listens for changes is lost; without it revocations take longer"
            );
        }
        match wait(None, stopped, RECONNECT_PAUSE) {
            Ok(Wakeup::Stopped) => return,
            Ok(_) => {}
            Err(Lost) => std::thread::sleep(RECONNECT_PAUSE), // `poll` failed, for instance without memory
        }
    }
}

fn listen(url: &str, stopped: &PipeReader, mut wake: impl FnMut()) -> Result<(), Lost> {
    let mut connection = Connection::open(url)?;
    for sql in [
        postgres_session::statement(Use::Read),
        format!("LISTEN {CHANNEL}"),
    ] {
        if execute(
            &mut connection,
            stopped,
            &CString::new(sql).map_err(|_| Lost)?,
        )?
        .is_break()
        {
            return Ok(());
        }
    }
    wake(); // for changes before LISTEN
    loop {
        // Before waiting: notifications that arrived with a response do not make the socket readable.
        if connection.take()? {
            wake();
        }
        match wait(Some(&connection), stopped, CHECK_AFTER)? {
            Wakeup::Stopped => return Ok(()),
            Wakeup::Readable => {}
            Wakeup::TimedOut => {
                if execute(&mut connection, stopped, c"SELECT 1")?.is_break() {
                    return Ok(());
                }
            }
        }
    }
}

/// Runs statements and discards their rows. The connection counts as lost if the response takes longer than
/// [`RESPONSE_TIMEOUT`]. Breaks if the listener is dropped.
fn execute(
    connection: &mut Connection,
    stopped: &PipeReader,
    sql: &CStr,
) -> Result<ControlFlow<()>, Lost> {
    let late_at = Instant::now() + RESPONSE_TIMEOUT;
    connection.send(sql)?;
    while !connection.answered()? {
        match wait(
            Some(connection),
            stopped,
            late_at.saturating_duration_since(Instant::now()),
        )? {
            Wakeup::Stopped => return Ok(ControlFlow::Break(())),
            Wakeup::Readable => {}
            Wakeup::TimedOut => return Err(Lost),
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Waits until the connection, if there is one, is readable, the listener is dropped, or the time limit has passed.
fn wait(
    connection: Option<&Connection>,
    stopped: &PipeReader,
    limit: Duration,
) -> Result<Wakeup, Lost> {
    let limit = Timespec::try_from(limit).map_err(|_| Lost)?;
    let mut watched = vec![PollFd::new(stopped, PollFlags::IN)];
    if let Some(connection) = connection {
        watched.push(PollFd::from_borrowed_fd(
            connection.socket()?,
            PollFlags::IN,
        ));
    }
    match poll(&mut watched, Some(&limit)) {
        Ok(0) => Ok(Wakeup::TimedOut),
        // Includes errors and the end of the stream, which the next read returns.
        Ok(_) if watched[0].revents().is_empty() => Ok(Wakeup::Readable),
        Ok(_) => Ok(Wakeup::Stopped),
        Err(Errno::INTR) => Ok(Wakeup::Readable), // reading does not block
        Err(_) => Err(Lost),
    }
}
