//! A blob as a stream in order: one request for a small one, several connections at once for a large one.
//!
//! Ranges that are not next wait in memory, within one budget for the whole process; a connection that finds it spent stops reading.
//! The range that is next never waits for that budget (it has a small allowance of its own), so that streams cannot block each other.

use std::collections::VecDeque;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;

use super::endpoint::Endpoint;
use super::piece::{End, Piece, Stop};
use crate::digest::Digest;
use crate::limits;
use crate::source::{BlobStream, SourceError};
use crate::verify::Unverified;

/// How a blob is cut into ranges. The default is what [`limits`] says; tests make it small.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of a range; a blob that has no more is fetched by one request.
    pub bytes: u64,
    /// Ranges that are fetched at the same time.
    pub connections: usize,
    /// How much of its time the first range has to be waited for, in percent, before there are several: where reading is not what takes the time, further
    /// connections only take it away from whoever hashes and writes. With 0 there are several at once.
    pub starved_percent: u32,
}

impl Default for Cut {
    fn default() -> Self {
        Self { bytes: limits::RANGE_BYTES, connections: limits::CONNECTIONS, starved_percent: limits::STARVED_PERCENT }
    }
}

/// Permits are kilobytes, for a semaphore counts in 32 bits when it gives several.
const PERMIT_BYTES: u64 = 1024;

/// What is out of order in this process.
static REORDER: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new((limits::REORDER_BYTES / PERMIT_BYTES) as usize)));

/// The blob's bytes from `from` on. Dropping the stream ends its requests.
pub(super) fn blob(endpoint: Arc<Endpoint>, digest: Digest, size: u64, from: u64, cut: Cut) -> BlobStream {
    let fetch = Fetch { endpoint, digest, size, cut, state: State::Start(from) };
    Box::pin(stream::unfold(fetch, |mut fetch| async move {
        let item = fetch.next().await?;
        Some((item.map(Unverified::new), fetch))
    }))
}

struct Fetch {
    endpoint: Arc<Endpoint>,
    digest: Digest,
    size: u64,
    cut: Cut,
    state: State,
}

enum State {
    Start(u64),
    /// The first range, of which is measured how long it is waited for.
    First {
        piece: Box<Piece>,
        begun: Instant,
        waited: Duration,
    },
    One(Box<Piece>),
    Many(Lanes),
    Done,
}

/// The ranges that are being fetched, in order.
struct Lanes {
    lanes: VecDeque<Lane>,
    /// Ends the fetches when it is dropped.
    tasks: JoinSet<()>,
    /// The offset at which the next lane begins; `None` when the last one has begun.
    next: Option<u64>,
    /// For the lane that is next in order.
    allowance: Arc<Semaphore>,
}

struct Lane {
    start: u64,
    end: End,
    events: UnboundedReceiver<Event>,
    is_next: watch::Sender<bool>,
}

enum Event {
    Bytes(Bytes, OwnedSemaphorePermit),
    End { at: u64 },
    Stop(Stop),
}

impl Fetch {
    async fn next(&mut self) -> Option<Result<Bytes, SourceError>> {
        loop {
            match &mut self.state {
                State::Done => return None,
                State::Start(from) => {
                    let from = *from;
                    if let Err(error) = self.start(from).await {
                        return self.fail(error);
                    }
                }
                State::First { piece, begun, waited } => {
                    let asked = Instant::now();
                    let came = piece.next().await;
                    *waited += asked.elapsed();
                    match came {
                        Ok(Some(bytes)) => return Some(Ok(bytes)),
                        // The registry's blob ends before its descriptor says, consistently; the check will say so.
                        Ok(None) if matches!(piece.end(), End::Before(end) if piece.at() < end) => self.state = State::Done,
                        Ok(None) => {
                            let at = piece.at();
                            let starved =
                                waited.as_secs_f64() * 100.0 >= begun.elapsed().as_secs_f64() * f64::from(self.cut.starved_percent);
                            tracing::debug!(blob = %self.digest, ?waited, all = ?begun.elapsed(), starved, "first range");
                            self.state = if starved { State::Many(Lanes::from(at)) } else { State::One(self.rest(at)) };
                        }
                        Err(Stop::NoRanges) => {
                            let at = piece.at();
                            self.state = State::One(self.rest(at));
                        }
                        Err(Stop::Error(error)) => return self.fail(error),
                    }
                }
                State::One(piece) => match piece.next().await {
                    Ok(Some(bytes)) => return Some(Ok(bytes)),
                    Ok(None) => self.state = State::Done,
                    // It goes to the end of the blob, so it is never bounded.
                    Err(Stop::NoRanges) => {
                        let at = piece.at();
                        self.state = State::One(self.rest(at));
                    }
                    Err(Stop::Error(error)) => return self.fail(error),
                },
                State::Many(lanes) => {
                    lanes.fill(&self.endpoint, self.digest, self.size, self.cut);
                    let Some(lane) = lanes.lanes.front_mut() else {
                        self.state = State::Done;
                        continue;
                    };
                    match lane.events.recv().await {
                        Some(Event::Bytes(bytes, _permit)) => {
                            lane.start += bytes.len() as u64;
                            return Some(Ok(bytes));
                        }
                        // The registry's blob ends before its descriptor says, consistently; the check will say so.
                        Some(Event::End { at }) if matches!(lane.end, End::Before(end) if at < end) => self.state = State::Done,
                        Some(Event::End { .. }) => lanes.advance(),
                        // It answered a range before and ignores one now: go on with one request, from where we are.
                        Some(Event::Stop(Stop::NoRanges)) => {
                            let at = lane.start;
                            self.state = State::One(self.rest(at));
                        }
                        Some(Event::Stop(Stop::Error(error))) => return self.fail(error),
                        None => {
                            let reason = "the fetch ended unexpectedly".to_owned();
                            let error = self.endpoint.unavailable(&format!("blob {}", self.digest), reason, None);
                            return self.fail(error);
                        }
                    }
                }
            }
        }
    }

    async fn start(&mut self, from: u64) -> Result<(), SourceError> {
        // There is nothing to fetch, and the check can decide without it.
        if from >= self.size {
            self.state = State::Done;
            return Ok(());
        }
        if self.size - from <= self.cut.bytes || self.cut.connections < 2 {
            self.state = State::One(self.rest(from));
            return Ok(());
        }
        // The first answer tells whether there are ranges to be had.
        let end = End::Before(from + self.cut.bytes);
        let mut first = Box::new(Piece::new(Arc::clone(&self.endpoint), self.digest, self.size, from, end));
        let ranged = first.begin().await?;
        self.state = if ranged && self.cut.starved_percent == 0 {
            let mut lanes = Lanes::from(from + self.cut.bytes);
            lanes.run(first);
            lanes.lanes.front_mut().into_iter().for_each(Lane::is_next_now);
            State::Many(lanes)
        } else if ranged {
            State::First { piece: first, begun: Instant::now(), waited: Duration::ZERO }
        } else {
            first.until_the_end();
            State::One(first)
        };
        Ok(())
    }

    /// All that is left from `at` on, by one request.
    fn rest(&self, at: u64) -> Box<Piece> {
        Box::new(Piece::new(Arc::clone(&self.endpoint), self.digest, self.size, at, End::Blob))
    }

    fn fail(&mut self, error: SourceError) -> Option<Result<Bytes, SourceError>> {
        self.state = State::Done;
        Some(Err(error))
    }
}

impl Lanes {
    fn from(at: u64) -> Self {
        let allowance = Arc::new(Semaphore::new((limits::IN_ORDER_BYTES / PERMIT_BYTES) as usize));
        Self { lanes: VecDeque::new(), tasks: JoinSet::new(), next: Some(at), allowance }
    }

    /// Begins as many lanes as there is room for.
    fn fill(&mut self, endpoint: &Arc<Endpoint>, digest: Digest, size: u64, cut: Cut) {
        while self.tasks.try_join_next().is_some() {}
        let none = self.lanes.is_empty();
        // Twice as many as are fetched at once: those that are complete wait for their turn.
        while self.tasks.len() < cut.connections && self.lanes.len() < 2 * cut.connections {
            let Some(start) = self.next else { break };
            let (end, next) = match start.checked_add(cut.bytes) {
                Some(end) if end < size => (End::Before(end), Some(end)),
                _ => (End::Blob, None),
            };
            self.next = next;
            self.run(Box::new(Piece::new(Arc::clone(endpoint), digest, size, start, end)));
        }
        if none {
            self.lanes.front_mut().into_iter().for_each(Lane::is_next_now);
        }
    }

    fn run(&mut self, piece: Box<Piece>) {
        let (sender, events) = unbounded_channel();
        let (is_next, next) = watch::channel(false);
        self.lanes.push_back(Lane { start: piece.at(), end: piece.end(), events, is_next });
        self.tasks.spawn(pump(piece, sender, next, Arc::clone(&self.allowance)));
    }

    /// The first lane is done.
    fn advance(&mut self) {
        self.lanes.pop_front();
        self.lanes.front_mut().into_iter().for_each(Lane::is_next_now);
    }
}

impl Lane {
    fn is_next_now(&mut self) {
        self.is_next.send_replace(true);
    }
}

/// Reads a piece as fast as there is room for it.
async fn pump(mut piece: Box<Piece>, events: UnboundedSender<Event>, mut next: watch::Receiver<bool>, allowance: Arc<Semaphore>) {
    loop {
        let event = match piece.next().await {
            Ok(Some(bytes)) => {
                let Some(permit) = room(bytes.len() as u64, &mut next, &allowance).await else { return };
                Event::Bytes(bytes, permit)
            }
            Ok(None) => Event::End { at: piece.at() },
            Err(stop) => Event::Stop(stop),
        };
        let last = !matches!(event, Event::Bytes(..));
        // Nobody listens any more, or there is no more to say.
        if events.send(event).is_err() || last {
            return;
        }
    }
}

/// Waits until so many bytes may be kept.
async fn room(bytes: u64, next: &mut watch::Receiver<bool>, allowance: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    let permits = |most: u64| u32::try_from(bytes.clamp(1, most).div_ceil(PERMIT_BYTES)).unwrap_or(u32::MAX);
    if !*next.borrow() {
        tokio::select! {
            biased;
            // An error means that the lane is gone.
            turn = next.wait_for(|next| *next) => drop(turn.ok()?),
            permit = Arc::clone(&REORDER).acquire_many_owned(permits(limits::REORDER_BYTES)) => return permit.ok(),
        }
    }
    Arc::clone(allowance).acquire_many_owned(permits(limits::IN_ORDER_BYTES)).await.ok()
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn whoever_is_next_never_waits_for_the_others() {
        let (is_next, next) = watch::channel(false);
        let allowance = Arc::new(Semaphore::new((limits::IN_ORDER_BYTES / PERMIT_BYTES) as usize));
        // Larger than what there is: it gets all of it, not nothing.
        let everything = room(u64::MAX, &mut next.clone(), &allowance).await.expect("the whole budget");
        assert_eq!(REORDER.available_permits(), 0);
        let mut receiver = next.clone();
        let mut waiting = Box::pin(room(1, &mut receiver, &allowance));
        assert!(waiting.as_mut().now_or_never().is_none(), "the budget is spent");
        is_next.send_replace(true);
        let first = waiting.await.expect("its turn has come");
        // Its own allowance is bounded too.
        let rest = room(limits::IN_ORDER_BYTES - PERMIT_BYTES, &mut next.clone(), &allowance).await;
        assert!(room(1, &mut next.clone(), &allowance).now_or_never().is_none());
        drop((first, rest));
        assert!(room(limits::IN_ORDER_BYTES, &mut next.clone(), &allowance).now_or_never().is_some());
        drop(everything);
        assert_eq!(REORDER.available_permits() as u64, limits::REORDER_BYTES / PERMIT_BYTES);
        drop(is_next);
        let (gone, mut next) = watch::channel(false);
        let all = room(limits::REORDER_BYTES, &mut next.clone(), &allowance).await;
        drop(gone);
        assert!(room(1, &mut next, &allowance).await.is_none(), "nobody waits for it");
        drop(all);
    }
}
