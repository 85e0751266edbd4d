//! A load generator: one thread, kept connections, one request under way on each.
//!
//! Closed loop: a connection sends its next request when it has the answer to the last one. So latencies are those at
//! full throughput, and a server that is faster gets more to do.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    time::{ClockId, clock_gettime},
};

/// How many connections.
pub(super) const CONNECTIONS: usize = 32;
/// How long no connection may get an answer.
const SILENCE: Timespec = Timespec {
    tv_sec: 5,
    tv_nsec: 0,
};
/// More than any answer of the measured servers.
const LARGEST_ANSWER: usize = 16 * 1024;

/// What a round has measured.
#[derive(Debug)]
pub(super) struct Round {
    /// Nanoseconds from sending to the whole answer, sorted, of every request.
    latencies: Vec<u32>,
    /// How long it took.
    took: Duration,
    /// How much of that the generator itself computed. Near all of it means that it is what limits.
    busy: Duration,
}

impl Round {
    /// How many requests were answered.
    pub(super) fn requests(&self) -> usize {
        self.latencies.len()
    }

    /// Requests in a second.
    pub(super) fn rate(&self) -> f64 {
        self.latencies.len() as f64 / self.took.as_secs_f64()
    }

    /// The latency that this share of the requests did not exceed, in microseconds.
    pub(super) fn latency(&self, share: f64) -> f64 {
        let rank = (share * self.latencies.len() as f64).ceil() as usize;
        self.latencies
            .get(rank.saturating_sub(1))
            .map_or(f64::NAN, |nanos| f64::from(*nanos) / 1000.0)
    }

    /// Which share of the time the generator computed.
    pub(super) fn busy(&self) -> f64 {
        self.busy.as_secs_f64() / self.took.as_secs_f64()
    }
}

/// A connection with a request under way.
struct Connection {
    stream: TcpStream,
    answer: Vec<u8>,
    filled: usize,
    sent: Instant,
}

impl Connection {
    fn open(to: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            answer: vec![0; LARGEST_ANSWER],
            filled: 0,
            sent: Instant::now(),
        })
    }

    fn send(&mut self, request: &[u8], now: Instant) -> anyhow::Result<()> {
        self.filled = 0;
        self.sent = now;
        // The last one was answered, so nothing is in the way of this one: a socket's buffer holds far more.
        Ok(self.stream.write_all(request)?)
    }

    /// Takes in what has come; true once that is the whole answer, which must have the expected status.
    fn receive(&mut self, expected: u16) -> anyhow::Result<bool> {
        match self.stream.read(&mut self.answer[self.filled..]) {
            Ok(0) => bail!("the server closed a connection, or its answer is too long"),
            Ok(count) => self.filled += count,
            Err(error)
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                return Ok(false);
            }
            Err(error) => return Err(error.into()),
        }
        let come = &self.answer[..self.filled];
        let Some(answer) = Answer::read(come)? else {
            return Ok(false);
        };
        ensure!(
            answer.status == expected,
            "status {} instead of {expected}: {}",
            answer.status,
            String::from_utf8_lossy(come)
        );
        ensure!(
            answer.end <= self.filled,
            "nothing may come after the end of an answer"
        );
        Ok(true)
    }
}

/// An answer, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer {
    /// Its status.
    pub(super) status: u16,
    /// Where its body begins.
    pub(super) body: usize,
    /// Where it ends.
    pub(super) end: usize,
}

impl Answer {
    /// Reads an HTTP/1.1 answer with `Content-Length`. `None` until it is whole.
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
        let status = number(status.context("this is no answer of HTTP/1.1")?)?;
        let length = lines.find_map(|line| {
            let (name, value) = line.split_at_checked("content-length:".len())?;
            name.eq_ignore_ascii_case(b"content-length:")
                .then_some(value)
        });
        let body = head + 4;
        // 204 is the one answer without a length that is used here.
        let length = if status == 204 {
            0
        } else {
            number(length.context("an answer without Content-Length")?)?
        };
        let answer = Self {
            status: u16::try_from(status)?,
            body,
            end: body + length,
        };
        Ok((bytes.len() >= answer.end).then_some(answer))
    }
}

fn number(text: &[u8]) -> anyhow::Result<usize> {
    Ok(str::from_utf8(text)?.trim().parse()?)
}

/// Asks the server for a while, the requests in turn. Every answer must have the expected status.
pub(super) fn load(
    to: SocketAddr,
    requests: &[Vec<u8>],
    expected: u16,
    time: Duration,
) -> anyhow::Result<Round> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    let mut connections = (0..CONNECTIONS)
        .map(|_| Connection::open(to))
        .collect::<anyhow::Result<Vec<_>>>()?;
    for (number, connection) in (0..).zip(&connections) {
        epoll::add(
            &epoll,
            &connection.stream,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN,
        )?;
    }
    let mut next = requests.iter().cycle();
    let mut latencies = Vec::new();
    let mut events = Vec::with_capacity(CONNECTIONS);

    let (started, busy_before) = (Instant::now(), computed());
    let mut under_way = 0;
    for (connection, request) in connections.iter_mut().zip(&mut next) {
        connection.send(request, started)?;
        under_way += 1;
    }
    while under_way > 0 {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), Some(&SILENCE))?;
        ensure!(
            !events.is_empty(),
            "no answer for {} seconds",
            SILENCE.tv_sec
        );
        for event in &events {
            let connection = &mut connections[event.data.u64() as usize];
            if !connection.receive(expected)? {
                continue;
            }
            let now = Instant::now();
            latencies.push(u32::try_from((now - connection.sent).as_nanos()).unwrap_or(u32::MAX));
            match next.next() {
                Some(request) if now - started < time => connection.send(request, now)?,
                _ => under_way -= 1,
            }
        }
    }
    let (took, busy) = (started.elapsed(), computed().saturating_sub(busy_before));
    latencies.sort_unstable();
    Ok(Round {
        latencies,
        took,
        busy,
    })
}

/// How much this thread has computed so far.
fn computed() -> Duration {
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
    fn an_answer_is_read_once_it_is_whole() {
        let text = b"HTTP/1.1 403 Forbidden\r\nX-A: b\r\nContent-length: 2\r\n\r\nno";
        for cut in 0..text.len() {
            assert_eq!(Answer::read(&text[..cut]).unwrap(), None, "{cut}");
        }
        assert_eq!(
            Answer::read(text).unwrap(),
            Some(Answer {
                status: 403,
                body: text.len() - 2,
                end: text.len()
            })
        );
        assert!(Answer::read(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }

    #[test]
    fn a_latency_is_that_of_its_rank() {
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
