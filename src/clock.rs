//! Time for whoever waits. The clock on the wall may jump by years, and a process may be stopped for hours: neither may look like somebody else's silence.
//!
//! What is measured here is measured by clocks that only go forward. The time of day is for people: nothing in kitfs waits for it, with the exception of what others
//! sign or announce in it (certificates, signatures, `Retry-After`).

use std::time::{Duration, Instant};

use rustix::time::{ClockId, Timespec, clock_gettime};

/// The most that passes between two looks of one who was not stopped, however busy the machine is.
const STEP: Duration = Duration::from_secs(1);

/// Time as a waiter lives through it: it passes from look to look, by a second at most. To one who was stopped (by a signal, a debugger, a frozen
/// container, a paused machine) the others seem to have been silent for as long, most likely because they were stopped as well. They get the time to show that they
/// live.
#[derive(Debug, Default)]
pub struct Lived {
    last: Option<Instant>,
    passed: Duration,
}

impl Lived {
    /// A look, `now`; tells how much time has passed since the first.
    pub fn look(&mut self, now: Instant) -> Duration {
        let since = self.last.replace(now).map_or(Duration::ZERO, |last| now.saturating_duration_since(last));
        self.passed += since.min(STEP);
        self.passed
    }

    /// What the last look told.
    pub fn passed(&self) -> Duration {
        self.passed
    }
}

/// Time since the host booted, suspension included, for what is over by then: a registry that was asked to be left alone for a minute before the lid was closed may
/// be asked when it is opened.
pub fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.try_into().unwrap_or_default(), now.tv_nsec.try_into().unwrap_or_default())
}

/// How long a system call may wait, as it wants to be told.
pub(crate) fn timespec(limit: Duration) -> Timespec {
    Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stop_is_a_moment_to_whoever_was_stopped() {
        let begin = Instant::now();
        let mut lived = Lived::default();
        let looks = [(0, 0), (50, 50), (1050, 1050), (3_600_000, 2050), (3_600_000, 2050), (3_600_050, 2100)];
        for (at, passed) in looks {
            assert_eq!(lived.look(begin + Duration::from_millis(at)), Duration::from_millis(passed));
            assert_eq!(lived.passed(), Duration::from_millis(passed));
        }
    }

    #[test]
    fn the_time_since_boot_goes_on() {
        let before = since_boot();
        assert!(before > Duration::ZERO && since_boot() >= before);
    }
}
