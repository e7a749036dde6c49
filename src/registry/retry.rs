//! How often and how long a thing is tried.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use tokio::time::Instant;

use crate::failure::chain;
use crate::limits;
use crate::source::SourceError;

/// Every wait on the way to a registry. The default is what [`limits`] says; tests shorten it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// For a connection to stand, TLS included.
    pub connect: Duration,
    /// Without a byte, before an attempt is given up.
    pub stall: Duration,
    /// After the last byte, before the waiter hears of it.
    pub silence: Duration,
    /// For a whole small document.
    pub document: Duration,
    /// Before the second attempt.
    pub delay: Duration,
    /// The longest `Retry-After` that is waited for.
    pub retry_after: Duration,
    /// Failures in a row that end it.
    pub attempts: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(limits::CONNECT_S),
            stall: Duration::from_secs(limits::STALL_S),
            silence: Duration::from_secs(limits::SILENCE_S),
            document: Duration::from_secs(limits::DOCUMENT_S),
            delay: Duration::from_millis(limits::RETRY_DELAY_MS),
            retry_after: Duration::from_secs(limits::RETRY_AFTER_S),
            attempts: limits::ATTEMPTS,
        }
    }
}

/// Why an attempt failed, and whether another one may do better.
#[derive(Debug)]
pub(super) enum Failure {
    /// Asking again would get the same answer.
    Final(SourceError),
    /// Asking again may help, but not before `after`.
    Again {
        /// What to report if it does not.
        error: SourceError,
        /// What the other side wants us to wait.
        after: Option<Duration>,
    },
}

impl Failure {
    pub(super) fn again(error: SourceError) -> Self {
        Self::Again { error, after: None }
    }
}

/// The attempts since the last new byte.
#[derive(Debug)]
pub(super) struct Tries {
    timing: Timing,
    delays: ExponentialBackoff,
    since: Instant,
    last: Option<SourceError>,
}

impl Tries {
    pub(super) fn new(timing: Timing) -> Self {
        Self { delays: delays(timing), since: Instant::now(), last: None, timing }
    }

    /// Something new came: all attempts are there again, and the silence begins anew.
    pub(super) fn progress(&mut self) {
        self.delays = delays(self.timing);
        self.since = Instant::now();
    }

    /// Something came, though nothing new: only the silence begins anew.
    pub(super) fn alive(&mut self) {
        self.since = Instant::now();
    }

    /// When the waiter has to hear of it at the latest.
    pub(super) fn deadline(&self) -> Instant {
        self.since + self.timing.silence
    }

    /// How the last attempt ended that was followed by another one.
    pub(super) fn last(self) -> Option<SourceError> {
        self.last
    }

    /// Waits until the next attempt is due, or says that there is none.
    pub(super) async fn again(&mut self, failure: Failure) -> Result<(), SourceError> {
        let (error, after) = match failure {
            Failure::Final(error) => return Err(error),
            Failure::Again { error, after } => (error, after.unwrap_or_default()),
        };
        if after > self.timing.retry_after {
            return Err(error);
        }
        let Some(delay) = self.delays.next() else { return Err(error) };
        let due = Instant::now() + delay.max(after);
        if due >= self.deadline() {
            return Err(error);
        }
        tracing::warn!(error = chain(&error), seconds = delay.max(after).as_secs_f64(), "trying again");
        self.last = Some(error);
        tokio::time::sleep_until(due).await;
        Ok(())
    }
}

/// The `Retry-After` of an answer as a span from now. A date in the past is no wait.
pub(super) fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let text = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim();
    let believed = Duration::from_secs(limits::RETRY_AFTER_BELIEVED_S);
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number too long for 64 bits is a long time too.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)).min(believed));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::try_from(date.duration_since(jiff::Timestamp::now())).unwrap_or_default().min(believed))
}

fn delays(timing: Timing) -> ExponentialBackoff {
    ExponentialBuilder::new().with_jitter().with_min_delay(timing.delay).with_max_times(timing.attempts.saturating_sub(1)).build()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(value: &str) -> http::HeaderMap {
        let mut headers = http::HeaderMap::new();
        headers.insert(http::header::RETRY_AFTER, http::HeaderValue::from_bytes(value.as_bytes()).expect("a header"));
        headers
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let seconds = |value: &str| retry_after(&headers(value)).map(|wait| wait.as_secs());
        assert_eq!(seconds("0"), Some(0));
        assert_eq!(seconds(" 31 "), Some(31));
        assert_eq!(seconds("99999999999999999999999999"), Some(limits::RETRY_AFTER_BELIEVED_S));
        assert_eq!(seconds("Sun, 06 Nov 1994 08:49:37 GMT"), Some(0));
        assert_eq!(seconds("Thu, 31 Dec 9998 23:59:59 GMT"), Some(limits::RETRY_AFTER_BELIEVED_S));
        for nonsense in ["", "soon", "-1", "1.5", "\u{e4}", "Sun, 99 Nov 1994 08:49:37 GMT"] {
            assert_eq!(seconds(nonsense), None, "{nonsense}");
        }
    }

    #[test]
    fn all_attempts_and_delays_fit_into_the_silence() {
        let timing = Timing::default();
        // Jitter adds at most the delay itself.
        let delays: u32 = (0..timing.attempts as u32 - 1).map(|n| 2 * (1 << n)).sum();
        assert!(timing.stall * timing.attempts as u32 + timing.delay * delays < timing.silence);
    }

    #[tokio::test]
    async fn progress_gives_all_attempts_back() {
        let timing = Timing { delay: Duration::from_millis(1), ..Timing::default() };
        let mut tries = Tries::new(timing);
        let failure = || Failure::again(SourceError::Stalled { place: "here".into(), what: "it".into(), seconds: 1 });
        for round in 0..3 {
            for _ in 1..timing.attempts {
                assert!(tries.again(failure()).await.is_ok(), "round {round}");
            }
            assert!(tries.again(failure()).await.is_err());
            tries.progress();
        }
    }
}
