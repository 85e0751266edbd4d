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
        let max = if is_in_progress(error) && self.max > 0 {
            self.max.max(MIN_REPEATS_IN_PROGRESS)
        } else {
            self.max
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
        let retries = Retries {
            max: 7,
            ..Retries::default()
        };
        let doubled = [500, 1000, 2000, 4000, 8000, 8000, 8000].map(Duration::from_millis);
        let mut shares = Vec::new();
        for _ in 0..100 {
            let pauses = pauses(retries, || rejection(503, None)).await;
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
        assert_eq!(
            pauses(Retries::default(), || rejection(503, None))
                .await
                .len(),
            2
        );
        assert!(
            pauses(
                Retries {
                    max: 0,
                    ..Retries::default()
                },
                || rejection(503, None)
            )
            .await
            .is_empty()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn client_waits_for_a_longer_retry_after_plus_jitter() {
        for seconds in [1, 3, 60, 120] {
            let requested = Duration::from_secs(seconds);
            let pauses = pauses(
                Retries {
                    max: 1,
                    ..Retries::default()
                },
                || rejection(429, Some(requested)),
            )
            .await;
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
            assert!(
                pauses(Retries::default(), || rejection(503, Some(requested)))
                    .await
                    .is_empty()
            );
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
        let retries = Retries::default();
        let (progress, mut sent) = (Progress::default(), 0);
        let failed = retries.run(Repeat::Always, &progress, |attempt| {
            sent = attempt;
            let status = if attempt < 2 { 503 } else { 404 };
            std::future::ready(Err::<(), _>(rejection(status, None)))
        });
        let error = failed.await.unwrap_err();
        assert_eq!((error.status(), sent), (Some(404), 2));
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
        assert!(
            pauses(
                Retries {
                    max: 0,
                    ..Retries::default()
                },
                in_progress
            )
            .await
            .is_empty()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn restored_access_is_repeated_only_after_a_response() {
        for (kind, status, repeats) in [
            (Some(Kind::Timeout), 0, 0),
            (Some(Kind::Interrupted), 0, 0),
            (Some(Kind::Connect(ConnectFailure::TimedOut)), 0, 2),
            (None, 503, 2),
            (None, 429, 2),
        ] {
            let progress = Progress::default();
            let mut kind = kind;
            let mut sent = 0;
            let retries = Retries::default();
            let failed = retries.run(Repeat::WhenAnswered, &progress, |attempt| {
                sent = attempt;
                let again = kind.as_ref().map(|kind| match kind {
                    Kind::Connect(failure) => Kind::Connect(*failure),
                    Kind::Interrupted => Kind::Interrupted,
                    _ => Kind::Timeout,
                });
                let error = std::mem::replace(&mut kind, again)
                    .map_or_else(|| rejection(status, None), Error::new);
                std::future::ready(Err::<(), _>(error))
            });
            failed.await.unwrap_err();
            assert_eq!(sent, repeats + 1, "{status}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn unreadable_response_is_repeated_once_and_only_for_creations() {
        let unreadable = || Kind::Unreadable {
            status: 201,
            request_id: None,
            why: "a reason".to_owned(),
        };
        for (repeat, max, attempts) in [
            (Repeat::AlsoUnreadable, 2, 2),
            (Repeat::AlsoUnreadable, 9, 2),
            (Repeat::AlsoUnreadable, 1, 2),
            (Repeat::AlsoUnreadable, 0, 1),
            (Repeat::Always, 2, 1),
            (Repeat::WhenAnswered, 2, 1),
            (Repeat::Never, 2, 1),
        ] {
            let retries = Retries {
                max,
                ..Retries::default()
            };
            let (progress, mut sent) = (Progress::default(), 0);
            let failed = retries.run(repeat, &progress, |attempt| {
                sent = attempt;
                std::future::ready(Err::<(), _>(Error::new(unreadable())))
            });
            assert_eq!(failed.await.unwrap_err().kind(), ErrorKind::Unreadable);
            assert_eq!(sent, attempts, "{repeat:?} {max}");
        }
        // Other failures do not count as the one repeat after an unreadable response.
        let (progress, mut sent) = (Progress::default(), 0);
        let retries = Retries {
            max: 3,
            ..Retries::default()
        };
        let failed = retries.run(Repeat::AlsoUnreadable, &progress, |attempt| {
            sent = attempt;
            let error = if attempt % 2 == 1 {
                rejection(503, None)
            } else {
                Error::new(unreadable())
            };
            std::future::ready(Err::<(), _>(error))
        });
        assert_eq!(
            (failed.await.unwrap_err().kind(), sent),
            (ErrorKind::Unreadable, 4)
        );
    }

    #[test]
    fn jitter_shortens_a_pause_by_up_to_half() {
        let retries = Retries {
            max: u32::MAX,
            ..Retries::default()
        };
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
        let retries = Retries {
            max: 3,
            first_pause,
            longest_pause,
            ..Retries::default()
        };
        let pauses = [1, 2, 3, 4]
            .map(|attempt| retries.pause_after(&rejection(503, None), true, attempt, 0.0));
        assert_eq!(
            pauses,
            [
                Some(first_pause),
                Some(longest_pause),
                Some(longest_pause),
                None
            ]
        );
        // A pause of zero is allowed, and the maximum also limits the first pause.
        let none = Retries {
            max: 1,
            first_pause: Duration::ZERO,
            longest_pause: Duration::ZERO,
            ..Retries::default()
        };
        assert_eq!(
            none.pause_after(&rejection(503, None), true, 1, 0.0),
            Some(Duration::ZERO)
        );
        let longer = Retries {
            max: 1,
            first_pause: Duration::MAX,
            longest_pause,
            ..Retries::default()
        };
        assert_eq!(
            longer.pause_after(&rejection(503, None), true, 1, 0.0),
            Some(longest_pause)
        );
    }

    #[test]
    fn maximum_pause_does_not_overflow() {
        let retries = Retries {
            max: 1,
            first_pause: Duration::MAX,
            longest_pause: Duration::MAX,
            ..Retries::default()
        };
        for jitter in [0.0, f64::EPSILON, 0.5, 1.0] {
            assert!(
                retries
                    .pause_after(&rejection(503, None), true, 1, jitter)
                    .is_some(),
                "{jitter}"
            );
        }
    }

    #[test]
    fn only_temporary_failures_are_repeated() {
        let text = || "a reason".to_owned();
        let rows = [
            (Kind::Connect(ConnectFailure::Rejected), true),
            (Kind::Connect(ConnectFailure::TimedOut), true),
            (Kind::Interrupted, true),
            (Kind::Timeout, true),
            (Kind::Settings(text()), false),
            (
                Kind::Argument {
                    name: "id",
                    rule: text(),
                },
                false,
            ),
            (Kind::Auth, false),
            (Kind::Redirect { status: Some(503) }, false),
            (Kind::Redirect { status: None }, false),
            (
                Kind::Unreadable {
                    status: 503,
                    request_id: None,
                    why: text(),
                },
                false,
            ),
        ];
        for (kind, temporary) in rows {
            let error = Error::new(kind);
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
        assert_eq!(wait(&[until]), Some(7));
        assert_eq!(
            wait(&[until, ("date", "Mon, 23 Feb 2026 12:00:05 GMT")]),
            Some(2)
        );
        assert_eq!(
            wait(&[until, ("date", "Mon, 23 Feb 2026 13:00:00 GMT")]),
            Some(0)
        );
        assert_eq!(wait(&[until, ("date", "today")]), Some(7));
        assert_eq!(wait(&[("date", "Mon, 23 Feb 2026 12:00:05 GMT")]), None);
        assert_eq!(
            wait(&[("retry-after", "Mon, 23 Feb 2026 11:00:00 GMT")]),
            Some(0)
        );
    }
}
