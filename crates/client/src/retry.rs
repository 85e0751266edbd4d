//! Decides when a call is sent again, and after which pause.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::{Duration, SystemTime},
};

use reqwest::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};

use crate::{Error, ErrorKind};

/// The minimum number of repeats while a creation is in progress: enough to wait about as long as one attempt
/// may take.
const MIN_REPEATS_IN_PROGRESS: u32 = 5;

/// How often and after how long a call is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retries {
    /// The number of repeats, without the first attempt.
    pub(crate) max: u32,
    /// The pause before the first repeat. It doubles with each further repeat.
    pub(crate) first_pause: Duration,
    /// The maximum pause.
    pub(crate) longest_pause: Duration,
    /// The longest `Retry-After` that the client waits for. If the server sends a longer one, the call fails,
    /// and the error contains it.
    pub(crate) max_retry_after: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self {
            max: 2,
            first_pause: Duration::from_millis(500),
            longest_pause: Duration::from_secs(8),
            max_retry_after: Duration::from_secs(120),
        }
    }
}

/// The failures after which a call is repeated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// All temporary failures, because a repeat has no further effect.
    Always,
    /// All temporary failures, and once an unreadable response, which may have been damaged in transit. The
    /// call has a random Idempotency-Key, so the server sends the first response again.
    AlsoUnreadable,
    /// Temporary failures with a response or without a connection. After an attempt without a response,
    /// another caller may have reversed its effect, and a repeat would undo that.
    WhenAnswered,
    /// No failure.
    Never,
}

/// The progress of a call. It is still available when the deadline drops an attempt.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    attempts: AtomicU32,
    uncertain: AtomicBool,
}

impl Progress {
    /// Counts the start of an attempt.
    pub(crate) fn begin(&self) {
        self.attempts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn attempts(&self) -> u32 {
        self.attempts.load(Ordering::Relaxed)
    }

    /// Returns whether an attempt may have taken effect although no response confirmed it.
    pub(crate) fn is_uncertain(&self) -> bool {
        self.uncertain.load(Ordering::Relaxed)
    }
}

impl Retries {
    /// Calls `send` until it succeeds, fails with an error that is not repeated, or reaches the maximum number of
    /// attempts.
    pub(crate) async fn run<T, Sent>(
        &self,
        repeat: Repeat,
        progress: &Progress,
        mut send: impl FnMut(u32) -> Sent,
    ) -> Result<T, Error>
    where
        Sent: Future<Output = Result<T, Error>>,
    {
        let mut attempt = 1;
        let mut may_repeat_unreadable = repeat == Repeat::AlsoUnreadable;
        loop {
            let error = match send(attempt).await {
                Ok(reply) => return Ok(reply),
                Err(error) => error,
            };
            progress
                .uncertain
                .fetch_or(error.is_uncertain(), Ordering::Relaxed);
            let repeated = match repeat {
                Repeat::Always | Repeat::AlsoUnreadable => true,
                Repeat::WhenAnswered => {
                    !matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::Timeout)
                }
                Repeat::Never => false,
            };
            let is_unreadable = error.kind() == ErrorKind::Unreadable;
            let is_temporary = is_temporary(&error)
                || (is_unreadable && std::mem::take(&mut may_repeat_unreadable));
            let pause =
                self.pause_after(&error, is_temporary && repeated, attempt, fastrand::f64());
            let Some(pause) = pause else {
                return Err(error);
            };
            tracing::debug!(attempt, %error, pause_ms = pause.as_millis() as u64, "sending a call again");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// Returns the pause after this attempt, or `None` if it was the last. `jitter` is 0 to 1.
    fn pause_after(
        &self,
        error: &Error,
        is_repeated: bool,
        attempt: u32,
        jitter: f64,
    ) -> Option<Duration> {
        let max = match self.max {
            1.. if is_in_progress(error) => self.max.max(MIN_REPEATS_IN_PROGRESS),
            max => max,
        };
        if attempt > max || !is_repeated {
            return None;
        }
        let doubled = self
            .first_pause
            .saturating_mul(2_u32.saturating_pow(attempt - 1))
            .min(self.longest_pause);
        // Half of the pause is random, so that clients that failed at the same time do not retry at the same time.
        let half = doubled / 2;
        let random = half.saturating_sub(half.mul_f64(jitter));
        match error.retry_after() {
            Some(requested) if requested > self.max_retry_after => None,
            requested => Some(
                requested
                    .unwrap_or_default()
                    .max(doubled - half)
                    .saturating_add(random),
            ),
        }
    }
}

/// Returns whether the failure is temporary.
fn is_temporary(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Connect | ErrorKind::Interrupted | ErrorKind::Timeout => true,
        ErrorKind::Rejected => {
            is_in_progress(error) || matches!(error.status(), Some(408 | 429 | 500..))
        }
        _ => false,
    }
}

/// Returns whether the first request with this Idempotency-Key is still in progress.
fn is_in_progress(error: &Error) -> bool {
    error.code() == Some("idempotency_in_progress")
}

/// Parses `Retry-After` (RFC 9110, section 10.2.3): seconds or a date. A date is compared with the response's `Date`
/// header if it has one, so that the clock of the client does not matter.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = |value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?).ok();
    let until = httpdate::parse_http_date(text).ok()?;
    Some(
        until
            .duration_since(headers.get(DATE).and_then(date).unwrap_or(now))
            .unwrap_or_default(),
    )
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;
    use crate::{
        error::{Kind, Rejection},
        transport::ConnectFailure,
    };

    fn rejection(status: u16, retry_after: Option<Duration>) -> Error {
        Error::new(Kind::Rejected(Box::new(Rejection {
            status,
            retry_after,
            ..Rejection::default()
        })))
    }

    fn unreadable(status: u16) -> Error {
        Error::new(Kind::Unreadable {
            status,
            request_id: None,
            why: "a reason".to_owned(),
        })
    }

    fn with_max(max: u32) -> Retries {
        Retries {
            max,
            ..Retries::default()
        }
    }

    /// Returns how often a call is sent whose attempts, counted from 1, all fail with these errors, and the last error.
    async fn attempts(
        retries: Retries,
        repeat: Repeat,
        progress: &Progress,
        error: impl Fn(u32) -> Error,
    ) -> (u32, Error) {
        let mut sent = 0;
        let failed = retries.run(repeat, progress, |attempt| {
            sent = attempt;
            std::future::ready(Err::<(), _>(error(attempt)))
        });
        let last = failed.await.unwrap_err();
        (sent, last)
    }

    /// Returns the pauses between attempts that all fail with this error.
    async fn pauses(retries: Retries, error: impl Fn() -> Error) -> Vec<Duration> {
        let mut sent = Vec::new();
        let progress = Progress::default();
        let failed = retries.run(Repeat::Always, &progress, |attempt| {
            sent.push(Instant::now());
            assert_eq!(attempt as usize, sent.len());
            std::future::ready(Err::<(), _>(error()))
        });
        failed.await.unwrap_err();
        sent.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// Timers have a resolution of a millisecond.
    const TICK: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn pauses_double_up_to_eight_seconds_with_random_half() {
        let doubled = [500, 1000, 2000, 4000, 8000, 8000, 8000].map(Duration::from_millis);
        let mut shares = Vec::new();
        for _ in 0..100 {
            let pauses = pauses(with_max(7), || rejection(503, None)).await;
            assert_eq!(pauses.len(), doubled.len());
            for (pause, doubled) in pauses.into_iter().zip(doubled) {
                assert!(
                    (doubled / 2..=doubled + TICK).contains(&pause),
                    "{pause:?} of {doubled:?}"
                );
                shares.push(pause.as_secs_f64() / doubled.as_secs_f64());
            }
        }
        // The probability that a fifth of the range has none of 700 samples is about 10^-67.
        for fifth in 0..5 {
            let from = 0.5 + f64::from(fifth) * 0.1;
            assert!(
                shares
                    .iter()
                    .any(|share| (from..from + 0.1).contains(share)),
                "{from}: {shares:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn call_is_sent_three_times_by_default() {
        for (retries, repeats) in [(Retries::default(), 2), (with_max(0), 0)] {
            let pauses = pauses(retries, || rejection(503, None)).await;
            assert_eq!(pauses.len(), repeats);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn client_waits_for_a_longer_retry_after_plus_jitter() {
        for seconds in [1, 3, 60, 120] {
            let requested = Duration::from_secs(seconds);
            let pauses = pauses(with_max(1), || rejection(429, Some(requested))).await;
            assert_eq!(pauses.len(), 1);
            assert!(
                (requested..=requested + Duration::from_millis(250) + TICK).contains(&pauses[0]),
                "{pauses:?}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn shorter_retry_after_does_not_shorten_the_pause() {
        for requested in [0, 1, 100] {
            let error = || rejection(503, Some(Duration::from_millis(requested)));
            for pause in pauses(Retries::default(), error).await {
                assert!(pause >= Duration::from_millis(250), "{pause:?}");
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retry_after_beyond_two_minutes_fails_immediately() {
        for requested in [
            Duration::from_millis(120_001),
            Duration::from_secs(121),
            Duration::MAX,
        ] {
            let started = Instant::now();
            let error = || rejection(503, Some(requested));
            assert!(pauses(Retries::default(), error).await.is_empty());
            assert_eq!(started.elapsed(), Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn retries_stop_at_the_first_success() {
        let started = Instant::now();
        let retries = Retries::default();
        let progress = Progress::default();
        let outcome = retries.run(Repeat::Always, &progress, |attempt| {
            std::future::ready(if attempt < 2 {
                Err(rejection(503, None))
            } else {
                Ok(attempt)
            })
        });
        assert_eq!(outcome.await.unwrap(), 2);
        assert!(started.elapsed() <= Duration::from_millis(500) + TICK);
    }

    #[tokio::test(start_paused = true)]
    async fn retries_stop_at_the_first_permanent_error() {
        let progress = Progress::default();
        let error = |attempt| rejection(if attempt < 2 { 503 } else { 404 }, None);
        let (sent, last) = attempts(Retries::default(), Repeat::Always, &progress, error).await;
        assert_eq!((last.status(), sent), (Some(404), 2));
        assert!(
            progress.is_uncertain(),
            "the first attempt may have taken effect"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn creation_in_progress_is_repeated_for_several_seconds() {
        let in_progress = || {
            let code = Some("idempotency_in_progress".to_owned());
            Error::new(Kind::Rejected(Box::new(Rejection {
                status: 409,
                code,
                ..Rejection::default()
            })))
        };
        let waited: Duration = pauses(Retries::default(), in_progress)
            .await
            .into_iter()
            .sum();
        assert!(waited > Duration::from_millis(7500), "{waited:?}");
        assert!(pauses(with_max(0), in_progress).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn restored_access_is_repeated_only_after_a_response() {
        let errors: [(fn() -> Error, u32); 5] = [
            (|| Error::new(Kind::Timeout), 0),
            (|| Error::new(Kind::Interrupted), 0),
            (|| Error::new(Kind::Connect(ConnectFailure::TimedOut)), 2),
            (|| rejection(503, None), 2),
            (|| rejection(429, None), 2),
        ];
        for (error, repeats) in errors {
            let (retries, progress) = (Retries::default(), Progress::default());
            let (sent, last) =
                attempts(retries, Repeat::WhenAnswered, &progress, |_| error()).await;
            assert_eq!(sent, repeats + 1, "{last}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unreadable_response_is_repeated_once_and_only_for_creations() {
        for (repeat, max, expected) in [
            (Repeat::AlsoUnreadable, 2, 2),
            (Repeat::AlsoUnreadable, 9, 2),
            (Repeat::AlsoUnreadable, 1, 2),
            (Repeat::AlsoUnreadable, 0, 1),
            (Repeat::Always, 2, 1),
            (Repeat::WhenAnswered, 2, 1),
            (Repeat::Never, 2, 1),
        ] {
            let progress = Progress::default();
            let (sent, last) =
                attempts(with_max(max), repeat, &progress, |_| unreadable(201)).await;
            assert_eq!(last.kind(), ErrorKind::Unreadable);
            assert_eq!(sent, expected, "{repeat:?} {max}");
        }
        // Other failures do not count as the one repeat after an unreadable response.
        let (retries, progress) = (with_max(3), Progress::default());
        let error = |attempt| match attempt % 2 {
            1 => rejection(503, None),
            _ => unreadable(201),
        };
        let (sent, last) = attempts(retries, Repeat::AlsoUnreadable, &progress, error).await;
        assert_eq!((last.kind(), sent), (ErrorKind::Unreadable, 4));
    }

    #[test]
    fn jitter_shortens_a_pause_by_up_to_half() {
        let retries = with_max(u32::MAX);
        let rows = [
            (1, 500),
            (2, 1000),
            (3, 2000),
            (4, 4000),
            (5, 8000),
            (6, 8000),
            (33, 8000),
            (u32::MAX, 8000),
        ];
        for (attempt, milliseconds) in rows {
            let pause = |jitter| {
                retries
                    .pause_after(&rejection(503, None), true, attempt, jitter)
                    .unwrap()
            };
            let doubled = Duration::from_millis(milliseconds);
            assert_eq!(pause(0.0), doubled, "{attempt}");
            assert_eq!(pause(0.5), doubled * 3 / 4, "{attempt}");
            assert_eq!(pause(1.0), doubled / 2, "{attempt}");
        }
    }

    #[test]
    fn configured_pauses_are_used() {
        let (first_pause, longest_pause) = (Duration::from_millis(30), Duration::from_millis(50));
        // A pause of zero is allowed, and the maximum also limits the first pause.
        for (first_pause, longest_pause, attempt, expected) in [
            (first_pause, longest_pause, 1, Some(first_pause)),
            (first_pause, longest_pause, 2, Some(longest_pause)),
            (first_pause, longest_pause, 3, Some(longest_pause)),
            (first_pause, longest_pause, 4, None),
            (Duration::ZERO, Duration::ZERO, 1, Some(Duration::ZERO)),
            (Duration::MAX, longest_pause, 1, Some(longest_pause)),
        ] {
            let retries = Retries {
                first_pause,
                longest_pause,
                ..with_max(3)
            };
            let pause = retries.pause_after(&rejection(503, None), true, attempt, 0.0);
            assert_eq!(pause, expected);
        }
    }

    #[test]
    fn maximum_pause_does_not_overflow() {
        let retries = Retries {
            first_pause: Duration::MAX,
            longest_pause: Duration::MAX,
            ..with_max(1)
        };
        for jitter in [0.0, f64::EPSILON, 0.5, 1.0] {
            let pause = retries.pause_after(&rejection(503, None), true, 1, jitter);
            assert!(pause.is_some(), "{jitter}");
        }
    }

    #[test]
    fn only_temporary_failures_are_repeated() {
        for (error, temporary) in [
            (Error::new(Kind::Connect(ConnectFailure::Rejected)), true),
            (Error::new(Kind::Connect(ConnectFailure::TimedOut)), true),
            (Error::new(Kind::Interrupted), true),
            (Error::new(Kind::Timeout), true),
            (Error::settings("a reason"), false),
            (Error::argument("id", "a reason"), false),
            (Error::new(Kind::Auth), false),
            (Error::new(Kind::Redirect { status: Some(503) }), false),
            (Error::new(Kind::Redirect { status: None }), false),
            (unreadable(503), false),
        ] {
            assert_eq!(is_temporary(&error), temporary, "{error:?}");
        }
    }

    #[test]
    fn retry_after_date_is_relative_to_the_response_date() {
        let at = |text: &str| httpdate::parse_http_date(text).unwrap();
        let now = at("Mon, 23 Feb 2026 12:00:00 GMT");
        let until = ("retry-after", "Mon, 23 Feb 2026 12:00:07 GMT");
        let wait = |headers: &[(&'static str, &'static str)]| {
            let headers = headers
                .iter()
                .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
            retry_after(&headers.collect(), now).map(|wait| wait.as_secs())
        };
        let date = |text| ("date", text);
        assert_eq!(wait(&[until]), Some(7));
        let before = date("Mon, 23 Feb 2026 12:00:05 GMT");
        assert_eq!(wait(&[until, before]), Some(2));
        let after = date("Mon, 23 Feb 2026 13:00:00 GMT");
        assert_eq!(wait(&[until, after]), Some(0));
        assert_eq!(wait(&[until, date("today")]), Some(7));
        assert_eq!(wait(&[before]), None);
        let past = ("retry-after", "Mon, 23 Feb 2026 11:00:00 GMT");
        assert_eq!(wait(&[past]), Some(0));
    }
}
