//! When a call is sent again, and after how long.

use std::time::{Duration, SystemTime};

use reqwest::header::{DATE, HeaderMap, HeaderValue, RETRY_AFTER};

use crate::{Error, ErrorKind};

/// A call is not held up longer than this for a server that asks to wait; the error tells how long it would be.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(120);

/// How often and after how long a call is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retries {
    /// Besides the first attempt.
    pub(crate) max: u32,
    /// The pause before the first repeat; it doubles with each,
    pub(crate) first_pause: Duration,
    /// up to this.
    pub(crate) longest_pause: Duration,
}

impl Default for Retries {
    fn default() -> Self {
        Self { max: 2, first_pause: Duration::from_millis(500), longest_pause: Duration::from_secs(8) }
    }
}

impl Retries {
    /// Sends until there is an answer, an error that stays one, or enough of it.
    pub(crate) async fn run<T, Sent>(&self, mut send: impl FnMut(u32) -> Sent) -> Result<T, (Error, u32)>
    where
        Sent: Future<Output = Result<T, Error>>,
    {
        let mut attempt = 1;
        loop {
            let error = match send(attempt).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            let Some(pause) = self.pause_after(&error, attempt, fastrand::f64()) else { return Err((error, attempt)) };
            tracing::debug!(attempt, %error, pause_ms = pause.as_millis() as u64, "a call is sent again");
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// How long to wait after this attempt, if it makes sense to try again. `jitter` is 0 to 1.
    fn pause_after(&self, error: &Error, attempt: u32, jitter: f64) -> Option<Duration> {
        if attempt > self.max || !is_passing(error) {
            return None;
        }
        let doubled = self.first_pause.saturating_mul(2_u32.saturating_pow(attempt - 1)).min(self.longest_pause);
        // Half of it is left to chance, so that those who failed together do not come back together.
        let pause = doubled.mul_f64(1.0 - jitter / 2.0);
        match error.retry_after() {
            Some(asked) if asked > MAX_RETRY_AFTER => None,
            asked => Some(pause.max(asked.unwrap_or_default())),
        }
    }
}

/// Whether the next attempt may go better. Every call of this client may be sent again: what creates carries an
/// Idempotency-Key, and the rest can be repeated.
fn is_passing(error: &Error) -> bool {
    match error.kind() {
        ErrorKind::Connect | ErrorKind::Interrupted | ErrorKind::Timeout => true,
        ErrorKind::Refused => {
            matches!(error.status(), Some(408 | 429 | 500..)) || error.code() == Some("idempotency_in_progress")
        }
        _ => false,
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date, which is taken against the answer's own `Date` where
/// there is one, so that a wrong clock here does not matter.
pub(crate) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date = |value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?).ok();
    let until = httpdate::parse_http_date(text).ok()?;
    Some(until.duration_since(headers.get(DATE).and_then(date).unwrap_or(now)).unwrap_or_default())
}
