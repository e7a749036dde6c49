//! A blob as a stream in order: one request for a small one, several connections at once for a large one.
//!
//! Ranges that are not next wait in memory, within one budget for the whole process; a connection that finds it spent stops reading.
//! The range that is next never waits for that budget (it has a small allowance of its own), so that streams cannot block each other.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::Poll;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{poll, stream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::timeout_at;

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
    let fetch = Fetch { endpoint, digest, size, cut, state: State::Start(from), ready: VecDeque::new() };
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
    /// What came with the last batch and is handed out next.
    ready: VecDeque<Bytes>,
}

enum State {
    Start(u64),
    Running(Lanes),
    Done,
}

/// The ranges that are being fetched, in order.
struct Lanes {
    lanes: VecDeque<Lane>,
    /// Ends the fetches when it is dropped.
    tasks: JoinSet<()>,
    next: Next,
    /// For the lane that is next in order.
    allowance: Arc<Semaphore>,
}

/// What is fetched beside the lanes that there are.
enum Next {
    /// Nothing: they reach to the end.
    Nothing,
    /// That depends on how long the first range is waited for.
    Measured { begun: Instant, waited: Duration },
    /// Ranges, from this offset on.
    Ranges(u64),
}

struct Lane {
    start: u64,
    end: End,
    events: UnboundedReceiver<Event>,
    is_next: watch::Sender<bool>,
}

enum Event {
    Bytes(Batch),
    End { at: u64 },
    Stop(Stop),
}

/// Pieces that came one after the other, and the room that they take. Each time one thread
/// wakes another for it, so it is done for many at once.
struct Batch {
    pieces: Vec<Bytes>,
    bytes: usize,
    /// When it is handed over at the latest.
    due: Instant,
    room: Vec<OwnedSemaphorePermit>,
}

impl Fetch {
    async fn next(&mut self) -> Option<Result<Bytes, SourceError>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(Ok(bytes));
            }
            let lanes = match &mut self.state {
                State::Done => return None,
                State::Start(from) => {
                    let from = *from;
                    if let Err(error) = self.start(from).await {
                        return self.fail(error);
                    }
                    continue;
                }
                State::Running(lanes) => lanes,
            };
            lanes.fill(&self.endpoint, self.digest, self.size, self.cut);
            let Some(lane) = lanes.lanes.front_mut() else {
                self.state = State::Done;
                continue;
            };
            let asked = Instant::now();
            let event = lane.events.recv().await;
            if let Next::Measured { waited, .. } = &mut lanes.next {
                *waited += asked.elapsed();
            }
            match event {
                Some(Event::Bytes(batch)) => {
                    lane.start += batch.bytes as u64;
                    self.ready = batch.pieces.into();
                }
                // The registry's blob ends before its descriptor says, consistently; the check will say so.
                Some(Event::End { at }) if matches!(lane.end, End::Before(end) if at < end) => self.state = State::Done,
                Some(Event::End { at }) => {
                    lanes.lanes.pop_front();
                    if let Next::Measured { begun, waited } = lanes.next {
                        let starved = waited.as_secs_f64() * 100.0 >= begun.elapsed().as_secs_f64() * f64::from(self.cut.starved_percent);
                        tracing::debug!(blob = %self.digest, ?waited, all = ?begun.elapsed(), starved, "first range");
                        lanes.next = if starved { Next::Ranges(at) } else { Next::Nothing };
                        if !starved {
                            lanes.run(rest(&self.endpoint, self.digest, self.size, at));
                        }
                    }
                    lanes.lanes.front_mut().into_iter().for_each(Lane::is_next_now);
                }
                // It answered a range before and ignores one now: go on with one request, from where we are.
                Some(Event::Stop(Stop::NoRanges)) => {
                    let piece = rest(&self.endpoint, self.digest, self.size, lane.start);
                    self.state = State::Running(Lanes::of(piece, Next::Nothing));
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

    async fn start(&mut self, from: u64) -> Result<(), SourceError> {
        // There is nothing to fetch, and the check can decide without it.
        if from >= self.size {
            self.state = State::Done;
            return Ok(());
        }
        if self.size - from <= self.cut.bytes || self.cut.connections < 2 {
            self.state = State::Running(Lanes::of(rest(&self.endpoint, self.digest, self.size, from), Next::Nothing));
            return Ok(());
        }
        // The first answer tells whether there are ranges to be had.
        let end = from + self.cut.bytes;
        let mut first = Box::new(Piece::new(Arc::clone(&self.endpoint), self.digest, self.size, from, End::Before(end)));
        let next = if !first.begin().await? {
            first.until_the_end();
            Next::Nothing
        } else if self.cut.starved_percent == 0 {
            Next::Ranges(end)
        } else {
            Next::Measured { begun: Instant::now(), waited: Duration::ZERO }
        };
        self.state = State::Running(Lanes::of(first, next));
        Ok(())
    }

    fn fail(&mut self, error: SourceError) -> Option<Result<Bytes, SourceError>> {
        self.state = State::Done;
        Some(Err(error))
    }
}

/// All that is left from `at` on, by one request.
fn rest(endpoint: &Arc<Endpoint>, digest: Digest, size: u64, at: u64) -> Box<Piece> {
    Box::new(Piece::new(Arc::clone(endpoint), digest, size, at, End::Blob))
}

impl Lanes {
    /// One lane, which is next in order.
    fn of(piece: Box<Piece>, next: Next) -> Self {
        let allowance = Arc::new(Semaphore::new((limits::IN_ORDER_BYTES / PERMIT_BYTES) as usize));
        let mut lanes = Self { lanes: VecDeque::new(), tasks: JoinSet::new(), next, allowance };
        lanes.run(piece);
        lanes.lanes.front_mut().into_iter().for_each(Lane::is_next_now);
        lanes
    }

    /// Begins as many lanes as there is room for.
    fn fill(&mut self, endpoint: &Arc<Endpoint>, digest: Digest, size: u64, cut: Cut) {
        while self.tasks.try_join_next().is_some() {}
        let none = self.lanes.is_empty();
        // Twice as many as are fetched at once: those that are complete wait for their turn.
        while self.tasks.len() < cut.connections && self.lanes.len() < 2 * cut.connections {
            let Next::Ranges(start) = self.next else { break };
            let end = match start.checked_add(cut.bytes) {
                Some(end) if end < size => {
                    self.next = Next::Ranges(end);
                    End::Before(end)
                }
                _ => {
                    self.next = Next::Nothing;
                    End::Blob
                }
            };
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
}

impl Lane {
    fn is_next_now(&mut self) {
        self.is_next.send_replace(true);
    }
}

impl Batch {
    fn new() -> Self {
        Self { pieces: Vec::new(), bytes: 0, due: Instant::now() + Duration::from_millis(limits::BATCH_MS), room: Vec::new() }
    }

    /// Hands over what there is, and begins anew. False if nobody listens any more.
    fn hand_over(&mut self, events: &UnboundedSender<Event>) -> bool {
        self.pieces.is_empty() || events.send(Event::Bytes(std::mem::replace(self, Self::new()))).is_ok()
    }
}

/// Reads a piece as fast as there is room for it.
async fn pump(mut piece: Box<Piece>, events: UnboundedSender<Event>, mut next: watch::Receiver<bool>, allowance: Arc<Semaphore>) {
    let mut batch = Batch::new();
    loop {
        let came = {
            let mut coming = pin!(piece.next());
            // What is here does not wait for what is slow.
            match timeout_at(batch.due.into(), &mut coming).await {
                Ok(came) => came,
                Err(_) => {
                    if !batch.hand_over(&events) {
                        return;
                    }
                    coming.await
                }
            }
        };
        let last = match came {
            Ok(Some(bytes)) => {
                if batch.pieces.is_empty() {
                    batch.due = Instant::now() + Duration::from_millis(limits::BATCH_MS);
                }
                let permit = {
                    let mut room = pin!(room(bytes.len() as u64, &mut next, &allowance));
                    match poll!(&mut room) {
                        Poll::Ready(permit) => permit,
                        // The room that is waited for may be what the batch takes.
                        Poll::Pending if batch.hand_over(&events) => room.await,
                        Poll::Pending => return,
                    }
                };
                let Some(permit) = permit else { return };
                batch.bytes += bytes.len();
                batch.pieces.push(bytes);
                batch.room.push(permit);
                if (batch.bytes >= limits::BATCH_BYTES || batch.pieces.len() >= limits::BATCH_PIECES) && !batch.hand_over(&events) {
                    return;
                }
                continue;
            }
            Ok(None) => Event::End { at: piece.at() },
            Err(stop) => Event::Stop(stop),
        };
        // Nobody may listen any more.
        if batch.hand_over(&events) {
            let _ = events.send(last);
        }
        return;
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
