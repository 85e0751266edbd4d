//! The stream of one connection, over TCP or a Unix socket. Closes it when the client reads nothing of a response for
//! too long, stops reading a body that is not needed, and limits how far it reads ahead.

use std::{
    io,
    os::fd::AsFd,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use metrics::counter;
use rustix::{
    io::Errno,
    net::{RecvFlags, SendFlags, recv, send, sockopt},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

use super::connections::Peer;
use crate::telemetry::CONNECTIONS_CLOSED;

/// How many times within the deadline the server checks whether the client has read anything.
const TRIES: u32 = 8;
/// The limits, in time and bytes, for reading and discarding unneeded input after the response. Closing a connection
/// with unread input resets it, and a reset can destroy the response before the client reads it (RFC 9112,
/// section 9.6).
const LINGER: (Duration, usize) = (Duration::from_secs(1), 256 * 1024);

pub(super) struct Stream<S> {
    io: S,
    peer: Rc<Peer>,
    write_timeout: Duration,
    stall: Option<Stall>,
    linger: Option<Linger>,
    /// Something was read since the task was last woken.
    has_read: bool,
}

/// A write that waits for the client to read.
struct Stall {
    next_try: Pin<Box<Sleep>>,
    tries: u32,
}

/// The time between the end of the response and the end of the connection.
struct Linger {
    end: Pin<Box<Sleep>>,
    bytes_left: usize,
}

impl<S> Stream<S> {
    pub(super) fn new(io: S, peer: Rc<Peer>, write_timeout: Duration) -> Self {
        Self {
            io,
            peer,
            write_timeout,
            stall: None,
            linger: None,
            has_read: false,
        }
    }

    pub(super) fn io(&self) -> &S {
        &self.io
    }

    pub(super) fn peer(&self) -> &Rc<Peer> {
        &self.peer
    }

    fn progressed(&mut self) {
        if self.stall.take().is_some() {
            self.peer.unblock();
        }
    }
}

impl<S: AsFd> Stream<S> {
    /// Makes the kernel discard unsent bytes when the socket is closed, instead of trying to send them for minutes.
    fn reset(&self, why: io::ErrorKind) -> io::Error {
        // An error means that the socket is already closed.
        let _ = sockopt::set_socket_linger(&self.io, Some(Duration::ZERO));
        why.into()
    }

    fn poll_stalled(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let pause = self.write_timeout / TRIES;
        let stall = self.stall.get_or_insert_with(|| {
            self.peer.block();
            Stall {
                next_try: Box::pin(sleep(pause)),
                tries: 0,
            }
        });
        self.peer.register(cx.waker());
        if self.peer.is_aborted() {
            return Poll::Ready(Err(self.reset(io::ErrorKind::ConnectionAborted)));
        }
        loop {
            ready!(stall.next_try.as_mut().poll(cx));
            // The kernel reports the socket as writable only when a third of its buffer is free, which takes a slow
            // client longer than the deadline. It accepts bytes as soon as the client has read some.
            match send(&self.io, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) if sent > 0 => {
                    self.progressed();
                    return Poll::Ready(Ok(sent));
                }
                Ok(_) | Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
            stall.tries += 1;
            if stall.tries >= TRIES {
                counter!(CONNECTIONS_CLOSED, "reason" => "write_timeout").increment(1);
                tracing::debug!("closed a connection whose client did not read its response");
                return Poll::Ready(Err(self.reset(io::ErrorKind::TimedOut)));
            }
            stall.next_try.as_mut().reset(Instant::now() + pause);
        }
    }
}

/// Returns whether the socket has bytes that tokio may not know of yet. If so, tokio still wakes the task for them.
fn has_input(io: &impl AsFd) -> bool {
    matches!(
        recv(io, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT),
        Ok((1.., _))
    )
}

impl<S: AsyncRead + AsFd + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            io,
            peer,
            stall,
            has_read,
            ..
        } = &mut *self;
        if peer.ignores_input() {
            return Poll::Ready(Ok(())); // as if the client had closed its side
        }
        let room = peer.room_to_read(!*has_read);
        if stall.is_some() || room == 0 {
            *has_read = false;
            if stall.is_none() && peer.can_decode() {
                cx.waker().wake_by_ref(); // to read on after the bytes read so far are decoded
            } else {
                peer.pause_reading(cx.waker());
            }
            return Poll::Pending;
        }
        let before = buf.filled().len();
        let read = if buf.remaining() > room {
            let mut part = ReadBuf::new(buf.initialize_unfilled_to(room));
            let read = Pin::new(&mut *io).poll_read(cx, &mut part);
            let bytes = part.filled().len();
            buf.advance(bytes);
            read
        } else {
            Pin::new(&mut *io).poll_read(cx, buf)
        };
        if read.is_pending() {
            peer.register(cx.waker());
            let has_read = std::mem::take(has_read);
            if peer.ends_input() {
                if has_read {
                    cx.waker().wake_by_ref(); // the bytes may be a request, which is processed first
                } else if !has_input(&*io) {
                    return Poll::Ready(Ok(()));
                }
            }
        } else if buf.filled().len() > before {
            *has_read = true;
            peer.count_read(buf.filled().len() - before);
        }
        read
    }
}

impl<S: AsyncRead + AsyncWrite + AsFd + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.io).poll_write(cx, bytes) {
            Poll::Ready(written) => {
                self.progressed();
                Poll::Ready(written)
            }
            Poll::Pending => self.poll_stalled(cx, bytes),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        if self.peer.has_rejected_request() {
            // The final response is written. actix-http would wait for the response to the rejected request.
            ready!(self.poll_shutdown(cx))?;
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            io, peer, linger, ..
        } = &mut *self;
        if linger.is_none() {
            ready!(Pin::new(&mut *io).poll_shutdown(cx))?;
            if !(peer.has_unread_body() || peer.has_rejected_request() || peer.is_paused()) {
                return Poll::Ready(Ok(()));
            }
        }
        let (time, bytes) = LINGER;
        let linger = linger.get_or_insert_with(|| Linger {
            end: Box::pin(sleep(time)),
            bytes_left: bytes,
        });
        while linger.end.as_mut().poll(cx).is_pending() {
            if linger.bytes_left == 0 {
                return Poll::Pending;
            }
            let mut space = [0; 4096];
            let mut buf = ReadBuf::new(&mut space);
            match ready!(Pin::new(&mut *io).poll_read(cx, &mut buf)) {
                Ok(()) if !buf.filled().is_empty() => {
                    linger.bytes_left = linger.bytes_left.saturating_sub(buf.filled().len());
                }
                _ => break,
            }
        }
        Poll::Ready(Ok(()))
    }
}
