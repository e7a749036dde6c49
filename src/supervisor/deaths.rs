//! What follows from the deaths of workers: for the next one, and for the requests that they were at.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::worker::Death;
use crate::limits::{OWN_DEATHS_MAX, OWN_DEATHS_WINDOW, RESTART_DELAY_FIRST, RESTART_DELAY_MAX, SUSPECTS_MAX};

/// Deaths so far, as far as they matter.
#[derive(Debug, Default)]
pub(super) struct Deaths {
    /// When workers died of something that they did themselves.
    own: Vec<Instant>,
    /// How often a request was in a handler at a death of the kind that a request can cause.
    suspects: HashMap<u64, u32>,
}

impl Deaths {
    /// Notes how a worker died that was handling these requests. Those that are answered with an error from now on are given back.
    pub(super) fn note(&mut self, death: &Death, handled: HashSet<u64>) -> Vec<u64> {
        if death.is_own_fault() {
            self.own.push(Instant::now());
        }
        if !death.may_be_a_requests_fault() {
            return Vec::new();
        }
        if self.suspects.len() + handled.len() > SUSPECTS_MAX {
            self.suspects.clear();
        }
        let mut guilty = Vec::new();
        for unique in handled {
            let times = self.suspects.entry(unique).or_default();
            *times += 1;
            if *times >= 2 {
                self.suspects.remove(&unique);
                guilty.push(unique);
            }
        }
        guilty
    }

    /// So many in a short time that the next worker has to do less at once.
    pub(super) fn are_many(&mut self) -> bool {
        self.own.retain(|at| at.elapsed() < OWN_DEATHS_WINDOW);
        self.own.len() >= OWN_DEATHS_MAX
    }

    /// How long the next worker waits, after one that served.
    pub(super) fn pause(&mut self) -> Duration {
        if self.are_many() { delay((self.own.len() + 1).saturating_sub(OWN_DEATHS_MAX) as u32) } else { Duration::ZERO }
    }
}

/// How long it is waited after so many failures in a row.
pub(super) fn delay(failures: u32) -> Duration {
    RESTART_DELAY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(RESTART_DELAY_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_before_a_restart_doubles_up_to_its_limit() {
        let waits: Vec<u128> = [1, 2, 3, 6, 7, 1000].map(|failures| delay(failures).as_millis()).into();
        assert_eq!(waits, [100, 200, 400, 3200, 5000, 5000]);
    }

    #[test]
    fn a_request_that_two_workers_died_of_is_given_up() {
        let (killed, crashed) = (Death::Signal(libc::SIGKILL, false), Death::Signal(libc::SIGSEGV, false));
        let mut deaths = Deaths::default();
        for (death, handled, guilty) in [
            (&killed, [1, 2], vec![]),
            (&crashed, [1, 2], vec![]),
            (&killed, [1, 2], vec![]),
            (&crashed, [2, 3], vec![2]),
            (&crashed, [2, 4], vec![]),
        ] {
            assert_eq!(deaths.note(death, handled.into()), guilty, "{death} {handled:?}");
        }
    }

    #[test]
    fn the_next_worker_waits_when_many_died_of_themselves() {
        let mut deaths = Deaths::default();
        for _ in 0..OWN_DEATHS_MAX {
            assert!(!deaths.are_many() && deaths.pause() == Duration::ZERO);
            deaths.note(&Death::Signal(libc::SIGKILL, false), HashSet::new());
            deaths.note(&Death::Exit(1), HashSet::new());
        }
        assert!(deaths.are_many() && deaths.pause() == RESTART_DELAY_FIRST);
        deaths.note(&Death::Exit(1), HashSet::new());
        assert_eq!(deaths.pause(), 2 * RESTART_DELAY_FIRST);
    }
}
