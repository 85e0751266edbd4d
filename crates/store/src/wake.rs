//! Waking other replicas: PostgreSQL tells everyone who listens that the change counter has moved.
//!
//! This only makes revocations quick. A notification that gets lost costs time, never correctness: verifiers also look
//! at every renewal of their lease.

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
    Store,
    connection::{Target, Use},
    postgres_session,
};

#[expect(
    unsafe_code,
    reason = "libpq can be waited for only past diesel; what that is worth is measured there"
)]
mod libpq;

/// The channel of the notifications. They say nothing but that there is something.
pub(crate) const CHANNEL: &str = "tollkey_changes";

/// After so long a silence the server is asked for a sign of life. What stands between, a proxy for instance, may have
/// lost the connection without telling, and then the kernel's own keep-alives notice nothing.
const SILENCE: Duration = Duration::from_secs(30);
/// How long a sign of life may take to come.
const SIGN: Duration = Duration::from_secs(5);
/// How long after a lost connection a new one is tried.
const AGAIN: Duration = Duration::from_secs(1);
/// How long dropping a listener waits for its thread, which may be in the middle of connecting.
const GOODBYE: Duration = Duration::from_secs(1);

/// Listens until it is dropped.
#[derive(Debug)]
#[must_use = "dropping it ends the listening"]
pub struct Listener {
    /// Closing it is what ends the thread. Gone while dropping.
    stop: Option<PipeWriter>,
    /// Says that the thread has ended, by ending itself.
    ended: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.stop = None;
        if self.ended.recv_timeout(GOODBYE) == Err(RecvTimeoutError::Disconnected)
            && let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that listens for changes panicked");
        }
    }
}

impl Store {
    /// Calls `wake` whenever another process may have changed something, on a thread of its own. `None` on SQLite,
    /// which cannot tell.
    ///
    /// # Errors
    /// When the thread cannot be started.
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

/// Why waiting has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Woken {
    /// The listener was dropped.
    Stopped,
    /// The connection has something to read.
    Readable,
    /// Nothing happened for that long.
    Silence,
}

/// Listens on one connection after the other.
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
        match wait(None, stopped, AGAIN) {
            Ok(Woken::Stopped) => return,
            Ok(_) => {}
            Err(Lost) => std::thread::sleep(AGAIN), // no memory to wait with
        }
    }
}

/// Listens on one connection, until the listener is dropped.
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
    wake(); // for what happened while nobody listened
    loop {
        // Before waiting: what came along with an answer makes no socket readable.
        if connection.take()? {
            wake();
        }
        match wait(Some(&connection), stopped, SILENCE)? {
            Woken::Stopped => return Ok(()),
            Woken::Readable => {}
            Woken::Silence => {
                if execute(&mut connection, stopped, c"SELECT 1")?.is_break() {
                    return Ok(());
                }
            }
        }
    }
}

/// Runs statements whose rows nobody wants. Without an answer in time the connection counts as lost. Breaks off when
/// the listener is dropped.
fn execute(
    connection: &mut Connection,
    stopped: &PipeReader,
    sql: &CStr,
) -> Result<ControlFlow<()>, Lost> {
    let late_at = Instant::now() + SIGN;
    connection.send(sql)?;
    while !connection.answered()? {
        match wait(
            Some(connection),
            stopped,
            late_at.saturating_duration_since(Instant::now()),
        )? {
            Woken::Stopped => return Ok(ControlFlow::Break(())),
            Woken::Readable => {}
            Woken::Silence => return Err(Lost),
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Waits until the connection can be read, if there is one, or the listener is dropped; at most for that long.
fn wait(
    connection: Option<&Connection>,
    stopped: &PipeReader,
    limit: Duration,
) -> Result<Woken, Lost> {
    let limit = Timespec::try_from(limit).map_err(|_| Lost)?;
    let mut watched = vec![PollFd::new(stopped, PollFlags::IN)];
    if let Some(connection) = connection {
        watched.push(PollFd::from_borrowed_fd(
            connection.socket()?,
            PollFlags::IN,
        ));
    }
    match poll(&mut watched, Some(&limit)) {
        Ok(0) => Ok(Woken::Silence),
        // Errors and the end of a stream count, too: reading then tells.
        Ok(_) if watched[0].revents().is_empty() => Ok(Woken::Readable),
        Ok(_) => Ok(Woken::Stopped),
        Err(Errno::INTR) => Ok(Woken::Readable), // reading waits for nothing
        Err(_) => Err(Lost),
    }
}
