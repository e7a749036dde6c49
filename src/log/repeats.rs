//! Lines that come again and again: a few of them are said, the others are counted.
//!
//! A damaged disk can give a line for each read, and a mount lives for months. Two lines are the same if they come from the same place in the code and say the
//! same; those that only come from the same place have a limit, too, which is higher. What somebody asked for (debug and below) has none.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::limits::{LOG_KNOWN_MAX, LOG_SAME_MAX, LOG_SIMILAR_MAX, LOG_WINDOW};

/// What was said lately; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Repeats(Arc<Mutex<Seen>>);

#[derive(Debug, Default)]
struct Seen {
    lines: HashMap<u64, Line>,
    /// By their place in the code, of which there are only so many.
    places: HashMap<u64, Line>,
    /// What was left out, and is not counted any more.
    owed: Vec<(String, u64)>,
}

#[derive(Debug)]
struct Line {
    since: Instant,
    times: u64,
    limit: u64,
    like: String,
}

impl Line {
    fn new(like: &str, limit: u64, since: Instant) -> Self {
        Self { since, times: 0, limit, like: like.to_owned() }
    }

    /// One more: whether it is said, and what was left out in a time that is over.
    fn count(&mut self, now: Instant) -> (bool, u64) {
        let mut left_out = 0;
        if self.is_over(now) {
            left_out = self.left_out();
            (self.since, self.times) = (now, 0);
        }
        self.times += 1;
        (self.times <= self.limit, left_out)
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.since) >= LOG_WINDOW
    }

    fn left_out(&self) -> u64 {
        self.times.saturating_sub(self.limit)
    }
}

impl Repeats {
    /// Says how much was left out of what is over; of everything, if `all`.
    pub(super) fn tell(&self, all: bool) {
        let owed = self.0.lock().unwrap_or_else(PoisonError::into_inner).settle(Instant::now(), all);
        for (like, times) in owed {
            tracing::warn!(like, times, "lines that say the same were left out");
        }
    }
}

impl<S: Subscriber> Layer<S> for Repeats {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        if *event.metadata().level() > Level::INFO {
            return true;
        }
        let mut said = Said { hasher: DefaultHasher::new(), message: String::new() };
        event.metadata().callsite().hash(&mut said.hasher);
        let place = said.hasher.finish();
        event.record(&mut said);
        let (same, message) = (said.hasher.finish(), said.message);
        let now = Instant::now();
        let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        seen.says(same, &message, now) && seen.says_at(place, &message, now)
    }
}

impl Seen {
    fn says(&mut self, key: u64, like: &str, now: Instant) -> bool {
        if !self.lines.contains_key(&key) && self.lines.len() >= LOG_KNOWN_MAX {
            self.forget(now);
        }
        let line = self.lines.entry(key).or_insert_with(|| Line::new(like, LOG_SAME_MAX, now));
        let (admitted, left_out) = line.count(now);
        self.owe(like, left_out);
        admitted
    }

    fn says_at(&mut self, place: u64, like: &str, now: Instant) -> bool {
        let (admitted, left_out) = self.places.entry(place).or_insert_with(|| Line::new(like, LOG_SIMILAR_MAX, now)).count(now);
        self.owe(like, left_out);
        admitted
    }

    /// Makes room: for what is over, or else for the oldest.
    fn forget(&mut self, now: Instant) {
        let oldest = self.lines.values().map(|line| line.since).min();
        let any_over = self.lines.values().any(|line| line.is_over(now));
        let gone: Vec<Line> = self
            .lines
            .extract_if(|_, line| if any_over { line.is_over(now) } else { Some(line.since) == oldest })
            .map(|(_, line)| line)
            .collect();
        gone.iter().for_each(|line| self.owe(&line.like, line.left_out()));
    }

    fn owe(&mut self, like: &str, times: u64) {
        if times == 0 {
            return;
        }
        let full = self.owed.len() >= LOG_KNOWN_MAX;
        match self.owed.iter_mut().find(|(other, _)| other == like) {
            Some((_, sum)) => *sum = sum.saturating_add(times),
            // Nobody tells them: the count is right, if not the text.
            None if full => self.owed.iter_mut().take(1).for_each(|(_, sum)| *sum = sum.saturating_add(times)),
            None => self.owed.push((like.to_owned(), times)),
        }
    }

    fn settle(&mut self, now: Instant, all: bool) -> Vec<(String, u64)> {
        let is_over = |_: &u64, line: &mut Line| all || line.is_over(now);
        let over: Vec<Line> = self.lines.extract_if(is_over).chain(self.places.extract_if(is_over)).map(|(_, line)| line).collect();
        over.iter().for_each(|line| self.owe(&line.like, line.left_out()));
        std::mem::take(&mut self.owed)
    }
}

/// What a line says, as far as it matters whether it is the same.
struct Said {
    hasher: DefaultHasher,
    message: String,
}

impl Visit for Said {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            // Writing into a String cannot fail.
            _ = write!(self.message, "{value:?}");
        }
        field.name().hash(&mut self.hasher);
        _ = write!(Hashed(&mut self.hasher), "{value:?}");
    }

    /// A number with a fraction is something that was measured or drawn, and another one each time.
    fn record_f64(&mut self, field: &Field, _: f64) {
        field.name().hash(&mut self.hasher);
    }
}

struct Hashed<'a>(&'a mut DefaultHasher);

impl fmt::Write for Hashed<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        text.hash(self.0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// Counts what gets through.
    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<String>>>);

    impl<S: Subscriber> Layer<S> for Heard {
        fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
            let mut said = Said { hasher: DefaultHasher::new(), message: String::new() };
            event.record(&mut said);
            self.0.lock().expect("no panic").push(said.message);
        }
    }

    #[test]
    fn the_same_line_is_said_a_few_times_and_then_counted() {
        let (heard, repeats) = (Heard::default(), Repeats::default());
        let subscriber = tracing_subscriber::registry().with(heard.clone()).with(repeats.clone());
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..LOG_SAME_MAX + 7 {
                tracing::warn!(file = "a", "it broke");
            }
            for number in 0..3 {
                tracing::warn!(number, "not the same");
            }
            for _ in 0..LOG_SAME_MAX + 7 {
                tracing::debug!("asked for");
            }
        });
        let count = |text: &str| heard.0.lock().expect("no panic").iter().filter(|line| *line == text).count() as u64;
        assert_eq!((count("it broke"), count("not the same"), count("asked for")), (LOG_SAME_MAX, 3, LOG_SAME_MAX + 7));
        let mut seen = repeats.0.lock().expect("no panic");
        assert_eq!(seen.settle(Instant::now(), false), [], "it is not over yet");
        assert_eq!(seen.settle(Instant::now() + LOG_WINDOW, false), [("it broke".to_owned(), 7)]);
        assert_eq!(seen.settle(Instant::now() + LOG_WINDOW, true), [], "told once");
    }

    #[test]
    fn a_retry_is_the_same_however_long_it_waits() {
        let (heard, repeats) = (Heard::default(), Repeats::default());
        let subscriber = tracing_subscriber::registry().with(heard.clone()).with(repeats.clone());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..LOG_SAME_MAX + 5 {
                tracing::warn!(error = "the connection broke", seconds = 1.0 / (number as f64 + 1.0), "trying again");
            }
            tracing::warn!(error = "it is away", seconds = 1.0, "trying again");
        });
        assert_eq!(heard.0.lock().expect("no panic").len() as u64, LOG_SAME_MAX + 1);
    }

    #[test]
    fn lines_of_one_place_have_a_limit_too() {
        let (heard, repeats) = (Heard::default(), Repeats::default());
        let subscriber = tracing_subscriber::registry().with(heard.clone()).with(repeats.clone());
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..LOG_SIMILAR_MAX + 5 {
                tracing::warn!(number, "each is another");
            }
        });
        assert_eq!(heard.0.lock().expect("no panic").len() as u64, LOG_SIMILAR_MAX);
        let mut seen = repeats.0.lock().expect("no panic");
        assert!(seen.lines.len() <= LOG_KNOWN_MAX);
        assert_eq!(seen.settle(Instant::now(), true), [("each is another".to_owned(), 5)]);
    }

    #[test]
    fn a_new_minute_begins_anew_and_nothing_is_lost() {
        let start = Instant::now();
        let mut seen = Seen::default();
        let many = 2 * LOG_SAME_MAX;
        let admitted = |seen: &mut Seen, at| (0..many).filter(|_| seen.says(1, "x", at)).count() as u64;
        assert_eq!(admitted(&mut seen, start), LOG_SAME_MAX);
        assert_eq!(admitted(&mut seen, start + LOG_WINDOW - Duration::from_millis(1)), 0);
        assert_eq!(admitted(&mut seen, start + LOG_WINDOW), LOG_SAME_MAX);
        assert_eq!(seen.settle(start + LOG_WINDOW, true), [("x".to_owned(), 3 * many - 2 * LOG_SAME_MAX)]);
        // More kinds of lines than are remembered: the oldest goes, with its count.
        for key in 0..=LOG_KNOWN_MAX as u64 {
            let at = start + Duration::from_millis(key);
            (0..LOG_SAME_MAX + 2).for_each(|_| _ = seen.says(key, "y", at));
        }
        assert_eq!(seen.lines.len(), LOG_KNOWN_MAX);
        assert_eq!(seen.settle(start, true), [("y".to_owned(), 2 * (LOG_KNOWN_MAX as u64 + 1))]);
    }
}
