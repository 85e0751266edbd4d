//! The open connections of listeners: their limit, and which idle one is closed when a new one arrives.

use std::{
    cell::Cell,
    fmt,
    pin::pin,
    rc::Rc,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering},
    },
    task::Waker,
    time::{Duration, Instant},
};

use futures_util::task::AtomicWaker;
use metrics::counter;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::telemetry::CONNECTIONS_CLOSED;

/// How many connections over the limit wait for another one to end. Further ones are closed immediately.
pub(super) const MAX_WAITING: usize = 64;
/// How many sockets beyond the open and waiting connections may be accepted and not yet closed. With [`MAX_WAITING`],
/// it stays below [`super::open_files::RESERVED`].
const MAX_CLOSING: usize = 32;
/// How often a waiting connection tries to close an idle one, and how many times.
const WAIT: (Duration, u32) = (Duration::from_millis(50), 20);
/// How many bytes of responses may wait for slow clients, in total. Static files do not count: they are in memory once.
const MAX_PENDING_BYTES: usize = 256 * 1024 * 1024;
/// When the memory for responses is used up, the connection of a client that read nothing for this long is closed.
const STALLED: Duration = Duration::from_secs(1);

/// How many bytes are read in one wake-up, or during a request that is not waiting for its body. actix-http polls a
/// connection without a pause once it has read 128 KiB that it cannot decode yet.
pub(super) const READ_AHEAD: usize = 64 * 1024;

// Flags of a connection.
/// A request is in flight.
const BUSY: u8 = 1;
/// Bytes are ready to be written, and the client does not read them.
const BLOCKED: u8 = 2;
/// Had a request since the clock hand last passed.
const RECENT: u8 = 4;
/// The next response whose head is written has `Connection: close` and ends the connection.
const LAST_RESPONSE: u8 = 8;
/// The connection closes. A request that the client has already sent is the last one.
const CLOSING: u8 = 16;
/// The client has not sent all of a body that no handler reads.
const UNREAD_BODY: u8 = 32;
/// The current response is abandoned.
const ABORTED: u8 = 64;
/// The connection closes when it has no request in flight, even without `Connection: close` in a response.
const END_WHEN_IDLE: u8 = 128;

/// The state of one connection that all threads share.
#[derive(Default)]
struct Connection {
    flags: AtomicU8,
    /// When it became [`BLOCKED`], in milliseconds since the server started.
    blocked_since: AtomicU64,
    task: AtomicWaker,
}

impl Connection {
    fn has(&self, flags: u8) -> bool {
        self.flags.load(Ordering::Acquire) & flags != 0
    }

    fn end(&self, flags: u8) {
        self.flags.fetch_or(flags, Ordering::AcqRel);
        self.task.wake();
    }

    /// Closes the connection if it is idle and not [`RECENT`]; an idle one that is `RECENT` loses that flag. Atomic,
    /// so a request either begins before this or sees it.
    fn close_idle(&self) -> bool {
        let before = self
            .flags
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |flags| {
                match (flags & (BUSY | BLOCKED | CLOSING), flags & RECENT) {
                    (0, 0) => Some(flags | CLOSING),
                    (0, _) => Some(flags & !RECENT),
                    _ => None,
                }
            });
        let closed = before.is_ok_and(|flags| flags & RECENT == 0);
        if closed {
            self.task.wake();
        }
        closed
    }

    fn close_when_idle(&self) {
        // The closure always returns flags.
        let _ = self
            .flags
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |flags| {
                Some(
                    flags
                        | LAST_RESPONSE
                        | END_WHEN_IDLE
                        | if flags & BUSY == 0 { CLOSING } else { 0 },
                )
            });
        self.task.wake();
    }

    /// If the connection was about to be closed, this request is its last one.
    fn begin(&self) {
        let _ = self
            .flags
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |flags| {
                let flags = flags | BUSY | RECENT;
                let closes = flags & (CLOSING | UNREAD_BODY | ABORTED) == CLOSING;
                Some(if closes {
                    flags & !CLOSING | LAST_RESPONSE | END_WHEN_IDLE
                } else {
                    flags
                })
            });
    }
}

/// The open connections, for the clock (second-chance) algorithm: the hand goes around and stops at the first idle
/// connection without a request since it last passed. No request has to reorder a list.
#[derive(Default)]
struct Clock {
    slots: Vec<Option<Arc<Connection>>>,
    free: Vec<usize>,
    hand: usize,
}

impl Clock {
    /// Moves the hand to the first connection that `fits`, by at most `steps` slots.
    fn find(
        &mut self,
        steps: usize,
        mut fits: impl FnMut(&Connection) -> bool,
    ) -> Option<&Connection> {
        for _ in 0..steps {
            self.hand = (self.hand + 1) % self.slots.len();
            if self.slots[self.hand].as_deref().is_some_and(&mut fits) {
                return self.slots[self.hand].as_deref();
            }
        }
        None
    }
}

/// The connections of all listeners that share a limit, on all workers. A request on an open connection does not lock it.
pub struct Connections {
    limit: usize,
    permits: Arc<Semaphore>,
    accepted: AtomicU64,
    sockets: Arc<Semaphore>,
    waiting: AtomicUsize,
    pending_bytes: AtomicUsize,
    /// Changed only while `clock` is locked.
    initial_flags: AtomicU8,
    ended: Notify,
    clock: Mutex<Clock>,
    started: Instant,
}

impl fmt::Debug for Connections {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connections")
            .field("open", &self.open())
            .finish_non_exhaustive()
    }
}

impl Connections {
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            permits: Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS))),
            accepted: AtomicU64::new(0),
            sockets: Arc::new(Semaphore::new(
                (limit + MAX_WAITING + MAX_CLOSING).min(Semaphore::MAX_PERMITS),
            )),
            waiting: AtomicUsize::new(0),
            pending_bytes: AtomicUsize::new(0),
            initial_flags: AtomicU8::new(RECENT),
            ended: Notify::new(),
            clock: Mutex::default(),
            started: Instant::now(),
        })
    }

    /// Returns the permits of accepted sockets. A socket holds one from before it is accepted until it is closed.
    /// Otherwise clients that connect faster than the workers run would use up the file descriptors of the process.
    pub(super) fn sockets(&self) -> &Arc<Semaphore> {
        &self.sockets
    }

    #[must_use]
    pub fn open(&self) -> usize {
        let clock = self.clock();
        clock.slots.len() - clock.free.len()
    }

    /// Returns the maximum number of open connections.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Returns how many connections were accepted, including those that were closed because of the limit.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Returns how many bytes of responses wait for clients, without static files.
    #[must_use]
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes.load(Ordering::Relaxed)
    }

    /// Ends every connection, including those admitted later, with the next response whose head is written: it has
    /// `Connection: close`. Connections without a request stay open. With HTTP/2, ends every connection that has had a
    /// request.
    pub fn announce_close(&self) {
        let clock = self.clock();
        self.initial_flags.fetch_or(LAST_RESPONSE, Ordering::AcqRel);
        for connection in clock.slots.iter().flatten() {
            // Wakes it, because a connection of HTTP/2 announces its end without a response.
            connection.end(LAST_RESPONSE);
        }
    }

    /// Closes each connection, after its current request if it has one. One that is admitted later serves one request.
    pub fn close_all(&self) {
        let clock = self.clock();
        self.initial_flags
            .fetch_or(LAST_RESPONSE | END_WHEN_IDLE, Ordering::AcqRel);
        for connection in clock.slots.iter().flatten() {
            connection.close_when_idle();
        }
    }

    pub async fn all_closed(&self) {
        loop {
            let mut ended = pin!(self.ended.notified());
            // Before the count is read; otherwise a connection could end unnoticed between the two.
            ended.as_mut().enable();
            if self.open() == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Admits a new connection. Over the limit, an idle connection is closed for it; if none is idle, it waits for up
    /// to a second. Returns `None` when the new connection must be closed.
    pub(super) async fn admit(self: &Arc<Self>) -> Option<Rc<Peer>> {
        self.accepted.fetch_add(1, Ordering::Relaxed);
        let permit = match Arc::clone(&self.permits).try_acquire_owned() {
            Ok(permit) => permit,
            Err(_) => self.wait().await.or_else(|| {
                counter!(CONNECTIONS_CLOSED, "reason" => "limit").increment(1);
                None
            })?,
        };
        let mut clock = self.clock();
        let flags = AtomicU8::new(self.initial_flags.load(Ordering::Acquire));
        let connection = Arc::new(Connection {
            flags,
            ..Connection::default()
        });
        let slot = clock.free.pop().unwrap_or_else(|| {
            clock.slots.push(None);
            clock.slots.len() - 1
        });
        clock.slots[slot] = Some(Arc::clone(&connection));
        drop(clock);
        Some(Rc::new(Peer {
            connection,
            connections: Arc::clone(self),
            slot,
            reading: Reading::default(),
            is_final: Cell::new(false),
            has_rejected_request: Cell::new(false),
            closes_with_goaway: Cell::new(false),
            _permit: permit,
        }))
    }

    async fn wait(&self) -> Option<OwnedSemaphorePermit> {
        struct Waiting<'a>(&'a AtomicUsize);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        let others = self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waiting = Waiting(&self.waiting);
        if others >= MAX_WAITING {
            return None;
        }
        let mut permit = pin!(Arc::clone(&self.permits).acquire_owned());
        let (step, steps) = WAIT;
        for _ in 0..steps {
            self.close_idle();
            if let Ok(permit) = tokio::time::timeout(step, &mut permit).await {
                return permit.ok();
            }
        }
        None
    }

    fn close_idle(&self) {
        let mut clock = self.clock();
        // The first time around, the hand only clears `RECENT`.
        let steps = 2 * clock.slots.len();
        if clock.find(steps, Connection::close_idle).is_some() {
            counter!(CONNECTIONS_CLOSED, "reason" => "idle").increment(1);
        }
    }

    /// When the memory is used up, closes a connection whose client has stalled; `false` if there is none.
    pub(super) fn has_room(&self, bytes: usize) -> bool {
        if self.pending_bytes() + bytes <= MAX_PENDING_BYTES {
            return true;
        }
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let before = millis(self.started.elapsed().saturating_sub(STALLED));
        let mut clock = self.clock();
        let steps = clock.slots.len();
        let stalled = clock.find(steps, |connection| {
            connection.has(BLOCKED)
                && !connection.has(ABORTED)
                && connection.blocked_since.load(Ordering::Relaxed) < before
        });
        stalled.is_some_and(|stalled| {
            counter!(CONNECTIONS_CLOSED, "reason" => "memory").increment(1);
            stalled.end(CLOSING | ABORTED);
            true
        })
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Dropping the last reference frees the connection's slot.
pub(super) struct Peer {
    connection: Arc<Connection>,
    connections: Arc<Connections>,
    slot: usize,
    reading: Reading,
    /// A response was begun after which no request is processed.
    is_final: Cell<bool>,
    /// A request arrived after that.
    has_rejected_request: Cell<bool>,
    /// The connection ends with GOAWAY (HTTP/2) and not with the end of its input.
    closes_with_goaway: Cell<bool>,
    _permit: OwnedSemaphorePermit,
}

/// How far the server reads ahead of the request in flight.
#[derive(Default)]
struct Reading {
    /// Bytes read since the last wake-up that began while input could be decoded.
    ahead: Cell<usize>,
    /// Some of them arrived during a request that was not waiting for its body.
    is_behind_request: Cell<bool>,
    /// Reading resumes when the client reads some of the response or the request ends.
    is_paused: Cell<bool>,
    awaits_body: Cell<bool>,
}

impl Peer {
    pub(super) fn connections(&self) -> &Connections {
        &self.connections
    }

    pub(super) fn is_closing(&self) -> bool {
        self.connection.has(CLOSING)
    }

    /// Whether the connection is closing, and no further input is needed for that.
    pub(super) fn ends_input(&self) -> bool {
        self.is_closing() && !self.closes_with_goaway.get()
    }

    /// Marks a connection that closes itself with GOAWAY.
    #[cfg(feature = "grpc")]
    pub(super) fn close_with_goaway(&self) {
        self.closes_with_goaway.set(true);
    }

    pub(super) fn has_unread_body(&self) -> bool {
        self.connection.has(UNREAD_BODY)
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.connection.has(ABORTED)
    }

    pub(super) fn is_last_response(&self) -> bool {
        self.connection.has(LAST_RESPONSE)
    }

    pub(super) fn ignores_input(&self) -> bool {
        self.is_final.get() || self.connection.has(UNREAD_BODY | ABORTED)
    }

    /// Marks that the final response has begun. No later request is processed (RFC 9112, section 9.6).
    pub(super) fn begin_final_response(&self) {
        self.is_final.set(true);
    }

    pub(super) fn is_final(&self) -> bool {
        self.is_final.get()
    }

    /// Marks that another request arrived: the connection ends once the final response is written.
    pub(super) fn reject_further_requests(&self) {
        self.has_rejected_request.set(true);
    }

    pub(super) fn has_rejected_request(&self) -> bool {
        self.has_rejected_request.get()
    }

    pub(super) fn can_decode(&self) -> bool {
        !self.connection.has(BUSY) || self.reading.awaits_body.get()
    }

    pub(super) fn await_body(&self, awaits: bool) {
        self.reading.awaits_body.set(awaits);
        if awaits {
            self.resume_reading();
        }
    }

    pub(super) fn room_to_read(&self, starts: bool) -> usize {
        if starts && self.can_decode() {
            self.reading.ahead.set(0);
        }
        READ_AHEAD.saturating_sub(self.reading.ahead.get())
    }

    pub(super) fn count_read(&self, bytes: usize) {
        self.reading
            .ahead
            .set(self.reading.ahead.get().saturating_add(bytes));
        if !self.can_decode() {
            self.reading.is_behind_request.set(true);
        }
    }

    pub(super) fn pause_reading(&self, waker: &Waker) {
        self.register(waker);
        self.reading.is_paused.set(true);
    }

    pub(super) fn is_paused(&self) -> bool {
        self.reading.is_paused.get()
    }

    fn resume_reading(&self) {
        if self.reading.is_paused.take() {
            self.connection.task.wake();
        }
    }

    pub(super) fn leave_body_unread(&self) {
        self.connection.end(CLOSING | UNREAD_BODY);
    }

    /// Registers the task to be woken when another thread closes the connection.
    pub(super) fn register(&self, waker: &Waker) {
        self.connection.task.register(waker);
    }

    pub(super) fn block(&self) {
        let now = u64::try_from(self.connections.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.connection.blocked_since.store(now, Ordering::Relaxed);
        self.connection.flags.fetch_or(BLOCKED, Ordering::AcqRel);
    }

    pub(super) fn unblock(&self) {
        self.connection.flags.fetch_and(!BLOCKED, Ordering::AcqRel);
        self.resume_reading();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let mut clock = self.connections.clock();
        clock.slots[self.slot] = None;
        clock.free.push(self.slot);
        drop(clock);
        self.connections.ended.notify_waiters();
    }
}

/// The connection is not idle until this is dropped.
pub(super) struct InFlight(Rc<Peer>);

impl InFlight {
    pub(super) fn new(peer: Rc<Peer>) -> Self {
        peer.connection.begin();
        Self(peer)
    }

    pub(super) fn peer(&self) -> &Rc<Peer> {
        &self.0
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let flags = self.0.connection.flags.fetch_and(!BUSY, Ordering::AcqRel);
        if flags & END_WHEN_IDLE != 0 {
            self.0.connection.end(CLOSING);
        }
        let reading = &self.0.reading;
        reading.awaits_body.set(false);
        self.0.resume_reading();
        // actix-http decodes at most 16 requests ahead, and further ones only when the connection's task is woken.
        if reading.is_behind_request.take() {
            self.0.connection.task.wake();
        }
    }
}

/// Counts the bytes of a response that waits for its client.
pub(super) struct Pending {
    peer: Rc<Peer>,
    bytes: usize,
}

impl Pending {
    pub(super) fn new(peer: Rc<Peer>, bytes: usize) -> Self {
        peer.connections
            .pending_bytes
            .fetch_add(bytes, Ordering::Relaxed);
        Self { peer, bytes }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.peer
            .connections
            .pending_bytes
            .fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
