//! A load generator: one thread, persistent connections, one request in flight on each.
//!
//! Closed loop: a connection sends its next request after the response to the previous one. So the
//! latencies are measured at full throughput, and a faster server gets more requests.

use std::{
    cell::Cell,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::{fd::AsFd, unix::net::UnixStream},
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    time::{ClockId, clock_gettime},
};

pub(super) const CONNECTIONS: usize = 32;
/// The longest time without any response.
const SILENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// More than any response of the measured servers.
const LARGEST_RESPONSE: usize = 16 * 1024;

#[derive(Debug)]
pub(super) struct Round {
    /// Nanoseconds from sending each request to its complete response, sorted.
    latencies: Vec<u32>,
    took: Duration,
    /// The generator's CPU time. Close to `took`, the generator is the bottleneck.
    busy: Duration,
}

impl Round {
    /// `busy` is the CPU time of the generator.
    pub(super) fn new(mut latencies: Vec<u32>, took: Duration, busy: Duration) -> Self {
        latencies.sort_unstable();
        Self {
            latencies,
            took,
            busy,
        }
    }

    pub(super) fn requests(&self) -> usize {
        self.latencies.len()
    }

    /// Requests per second.
    pub(super) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency at this quantile, in microseconds.
    pub(super) fn latency(&self, share: f64) -> f64 {
        let rank = (share * self.latencies.len() as f64).ceil() as usize;
        self.latencies
            .get(rank.saturating_sub(1))
            .map_or(f64::NAN, |nanos| f64::from(*nanos) / 1000.0)
    }

    /// The CPU load of the generator, from 0 to 1.
    pub(super) fn busy(&self) -> f64 {
        self.busy.as_secs_f64() / self.took.as_secs_f64()
    }
}

/// The same request with each of many keys. A million complete requests would take too much memory.
pub(super) struct Requests {
    /// Up to the key.
    before: String,
    keys: Vec<String>,
    /// From the key on.
    after: String,
    /// The index of the next key. Measurements continue where the last one ended, so that all keys are used.
    next: Cell<usize>,
}

impl Requests {
    /// `request` returns the request with a key, which it contains once.
    pub(super) fn new(keys: Vec<String>, request: impl Fn(&str) -> String) -> anyhow::Result<Self> {
        let first = keys.first().context("no keys")?;
        let text = request(first);
        let (before, after) = text.split_once(first.as_str()).context("no key")?;
        ensure!(
            !after.contains(first.as_str()),
            "the request contains the key twice"
        );
        ensure!(
            keys.iter().all(|key| key.len() == first.len()),
            "the keys differ in length, and so does Content-Length"
        );
        Ok(Self {
            before: before.to_owned(),
            after: after.to_owned(),
            keys,
            next: Cell::new(0),
        })
    }

    /// Writes the next request into `bytes`. After the last key comes the first one again.
    fn write_next<'a>(&self, bytes: &'a mut Vec<u8>) -> &'a [u8] {
        let key = self.next.get();
        self.next.set((key + 1) % self.keys.len());
        bytes.clear();
        for part in [&self.before, &self.keys[key], &self.after] {
            bytes.extend_from_slice(part.as_bytes());
        }
        bytes
    }
}

/// Where a server listens.
#[derive(Debug, Clone)]
pub(super) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// A connection with a request in flight.
struct Connection<S> {
    stream: S,
    buffer: Vec<u8>,
    filled: usize,
    sent: Instant,
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn connect_unix(to: &PathBuf) -> anyhow::Result<UnixStream> {
    let stream =
        UnixStream::connect(to).with_context(|| format!("cannot connect to {}", to.display()))?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

impl<S: Read + Write> Connection<S> {
    fn new(stream: S) -> Self {
        Self {
            stream,
            buffer: vec![0; LARGEST_RESPONSE],
            filled: 0,
            sent: Instant::now(),
        }
    }

    fn send(&mut self, request: &[u8], now: Instant) -> anyhow::Result<()> {
        self.filled = 0;
        self.sent = now;
        // The previous response has arrived, so the socket's buffer is empty, and far larger than a request.
        Ok(self.stream.write_all(request)?)
    }

    /// Reads the bytes that have arrived. Returns whether the response is complete.
    fn receive(&mut self, expected: u16) -> anyhow::Result<bool> {
        match self.stream.read(&mut self.buffer[self.filled..]) {
            Ok(0) => bail!("the server closed a connection, or its response is too long"),
            Ok(count) => self.filled += count,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        let received = &self.buffer[..self.filled];
        let Some(response) = ResponseHead::read(received)? else {
            return Ok(false);
        };
        ensure!(
            response.status == expected,
            "status {} instead of {expected}: {}",
            response.status,
            String::from_utf8_lossy(received)
        );
        ensure!(
            response.end == self.filled,
            "the response is longer than its Content-Length"
        );
        Ok(true)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ResponseHead {
    pub(super) status: u16,
    /// The offset of its body.
    pub(super) body: usize,
    /// The offset of its end.
    pub(super) end: usize,
}

impl ResponseHead {
    /// Reads an HTTP/1.1 response with `Content-Length`. Returns `None` while it is incomplete.
    pub(super) fn read(bytes: &[u8]) -> anyhow::Result<Option<Self>> {
        let Some(head) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
            return Ok(None);
        };
        let mut lines = bytes[..head]
            .split(|byte| *byte == b'\n')
            .map(<[u8]>::trim_ascii);
        let status = lines
            .next()
            .and_then(|line| line.strip_prefix(b"HTTP/1.1 "))
            .and_then(|line| line.get(..3));
        let status = number(status.context("not an HTTP/1.1 response")?)?;
        let length = lines.find_map(|line| {
            let (name, value) = line.split_at_checked("content-length:".len())?;
            name.eq_ignore_ascii_case(b"content-length:")
                .then_some(value)
        });
        let body = head + 4;
        // Of the measured responses, only those with status 204 have no Content-Length.
        let length = if status == 204 {
            0
        } else {
            number(length.context("a response without Content-Length")?)?
        };
        let response = Self {
            status: u16::try_from(status)?,
            body,
            end: body + length,
        };
        Ok((bytes.len() >= response.end).then_some(response))
    }
}

fn number(text: &[u8]) -> anyhow::Result<usize> {
    Ok(str::from_utf8(text)?.trim().parse()?)
}

/// How long requests are sent.
#[derive(Debug, Clone, Copy)]
pub(super) enum Until {
    Elapsed(Duration),
    /// Each request was sent once.
    AllSent,
}

/// Sends the requests in turn. Every response must have the expected status.
pub(super) fn load(
    to: &Target,
    requests: &Requests,
    expected: u16,
    until: Until,
) -> anyhow::Result<Round> {
    match to {
        Target::Tcp(address) => load_over(|| connect(*address), requests, expected, until),
        Target::Unix(path) => load_over(|| connect_unix(path), requests, expected, until),
    }
}

fn load_over<S: Read + Write + AsFd>(
    connect: impl Fn() -> anyhow::Result<S>,
    requests: &Requests,
    expected: u16,
    until: Until,
) -> anyhow::Result<Round> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = (0..CONNECTIONS)
        .map(|_| connect().map(Connection::new))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (number, connection) in (0..).zip(&connections) {
        epoll::add(
            &epoll,
            &connection.stream,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN,
        )?;
    }
    let mut sent = 0;
    let mut bytes = Vec::new();
    let mut latencies = Vec::new();
    let mut events = Vec::with_capacity(CONNECTIONS);

    let (started, busy_before) = (Instant::now(), cpu_time());
    let mut in_flight = 0;
    for connection in &mut connections {
        connection.send(requests.write_next(&mut bytes), started)?;
        (sent, in_flight) = (sent + 1, in_flight + 1);
    }
    while in_flight > 0 {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&SILENCE))?;
        ensure!(
            !events.is_empty(),
            "no response for {} seconds",
            SILENCE.tv_sec
        );
        for event in &events {
            let connection = &mut connections[event.data.u64() as usize];
            if !connection.receive(expected)? {
                continue;
            }
            let now = Instant::now();
            latencies.push(u32::try_from((now - connection.sent).as_nanos()).unwrap_or(u32::MAX));
            let has_next = match until {
                Until::Elapsed(time) => now - started < time,
                Until::AllSent => sent < requests.keys.len(),
            };
            if has_next {
                connection.send(requests.write_next(&mut bytes), now)?;
                sent += 1;
            } else {
                in_flight -= 1;
            }
        }
    }
    let (took, busy) = (started.elapsed(), cpu_time().saturating_sub(busy_before));
    Ok(Round::new(latencies, took, busy))
}

/// The CPU time of this thread.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_read_once_it_is_complete() {
        let text = b"HTTP/1.1 403 Forbidden\r\nX-A: b\r\nContent-length: 2\r\n\r\nno";
        for cut in 0..text.len() {
            assert_eq!(ResponseHead::read(&text[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(
            ResponseHead::read(text).unwrap(),
            Some(ResponseHead {
                status: 403,
                body: text.len() - 2,
                end: text.len()
            })
        );
        assert!(ResponseHead::read(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn latency_is_the_value_at_the_rank_of_its_quantile() {
        let latencies = (1..=200).map(|micros| micros * 1000).collect();
        let round = Round {
            latencies,
            took: Duration::from_secs(2),
            busy: Duration::from_secs(1),
        };
        assert_eq!(
            (round.latency(0.5), round.latency(0.99), round.latency(1.0)),
            (100.0, 198.0, 200.0)
        );
        assert_eq!((round.rate(), round.busy()), (100.0, 0.5));
    }
}
