//! A contiguous piece of a blob, over as many requests as it takes.

use std::sync::Arc;

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_RANGE;
use reqwest::Response;
use tokio::time::timeout_at;

use super::endpoint::{Endpoint, content_length};
use super::retry::{Failure, Tries};
use crate::digest::Digest;
use crate::limits;
use crate::source::SourceError;

/// Reads a piece in order. Dropping it, also while it waits, ends its request.
pub(super) struct Piece {
    endpoint: Arc<Endpoint>,
    digest: Digest,
    what: String,
    /// The size of the whole blob, as its descriptor says.
    size: u64,
    /// The offset of the next byte.
    at: u64,
    end: End,
    body: Option<Body>,
    tries: Tries,
    /// The full length that the registry claimed when an answer ended here without anything having broken.
    claimed: Option<u64>,
    /// No more will come, and that is no error here.
    over: bool,
}

/// Where a piece ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// Before this offset.
    Before(u64),
    /// Where the blob ends; the first byte beyond its size is passed on.
    Blob,
}

/// Why a piece ends early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The registry ignores ranges, and this piece does not begin where its answers do.
    NoRanges,
    /// For good.
    Error(SourceError),
}

/// An answer that is being read.
struct Body {
    response: Response,
    /// Bytes to throw away first, because the registry did not.
    skip: u64,
    /// The blob's length according to this answer.
    says: Option<u64>,
}

impl Piece {
    pub(super) fn new(endpoint: Arc<Endpoint>, digest: Digest, size: u64, at: u64, end: End) -> Self {
        let tries = Tries::new(endpoint.timing);
        let what = format!("blob {digest}");
        Self { endpoint, digest, what, size, at, end, body: None, tries, claimed: None, over: false }
    }

    /// The offset of the next byte.
    pub(super) fn at(&self) -> u64 {
        self.at
    }

    pub(super) fn end(&self) -> End {
        self.end
    }

    /// Gets the first answer. True if it is the range that was asked for, false if the registry ignores ranges and sends the whole.
    pub(super) async fn begin(&mut self) -> Result<bool, SourceError> {
        self.tries.alive();
        loop {
            match self.within(Self::ask).await {
                Ok(ranged) => return Ok(ranged),
                Err(failure) => self.tries.again(failure).await?,
            }
            if self.over {
                return Ok(true);
            }
        }
    }

    /// Reads on beyond the end that was planned, for the answer holds the whole blob anyway.
    pub(super) fn until_the_end(&mut self) {
        self.end = End::Blob;
    }

    /// The next bytes; `None` when the piece is complete, or when the registry says consistently that there is no more.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Stop> {
        // The reader may have taken its time with what it got before.
        self.tries.alive();
        loop {
            if self.is_complete() || self.over {
                self.body = None;
                return Ok(None);
            }
            let failure = if self.body.is_none() {
                // All bytes are there; whether there are more is not worth a request.
                if self.end == End::Blob && self.at == self.size {
                    self.over = true;
                    continue;
                }
                let bounded = matches!(self.end, End::Before(_));
                match self.within(Self::ask).await {
                    Ok(false) if bounded => return Err(Stop::NoRanges),
                    Ok(_) => continue,
                    Err(failure) => failure,
                }
            } else {
                match self.within(Self::read).await {
                    Ok(Some(bytes)) => return Ok(Some(bytes)),
                    Ok(None) => continue,
                    Err(failure) => failure,
                }
            };
            self.body = None;
            if self.at == self.size {
                // Whatever happened after the last byte changes nothing.
                self.over = true;
                continue;
            }
            if self.over {
                continue;
            }
            self.tries.again(failure).await.map_err(Stop::Error)?;
        }
    }

    fn is_complete(&self) -> bool {
        match self.end {
            End::Before(end) => self.at >= end,
            End::Blob => self.at > self.size,
        }
    }

    /// Runs a step that ends when the waiter has to hear something.
    async fn within<T>(&mut self, step: impl AsyncFnOnce(&mut Self) -> Result<T, Failure>) -> Result<T, Failure> {
        let deadline = self.tries.deadline();
        let (place, what) = (self.endpoint.place.clone(), self.what.clone());
        let seconds = self.endpoint.timing.silence.as_secs();
        match timeout_at(deadline, step(self)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Failure::Final(SourceError::Stalled { place, what, seconds })),
        }
    }

    /// Asks for the rest of the piece. Ok(false) if the whole blob comes instead.
    async fn ask(&mut self) -> Result<bool, Failure> {
        let url = self.endpoint.url("blobs", &self.digest.to_string());
        let range = match self.end {
            End::Before(end) => Some(format!("bytes={}-{}", self.at, end.saturating_sub(1))),
            End::Blob if self.at > 0 => Some(format!("bytes={}-", self.at)),
            End::Blob => None,
        };
        let response = self.endpoint.get(&url, &self.what, None, range.as_deref()).await?;
        match response.status().as_u16() {
            200 => {
                let ignored = range.is_some();
                if ignored && self.at > limits::SKIP_BYTES {
                    let reason = format!("it ignores ranges, so that the fetch cannot go on at byte {}", self.at);
                    return Err(Failure::Final(self.endpoint.unavailable(&self.what, reason, None)));
                }
                let says = content_length(response.headers());
                self.body = Some(Body { response, skip: self.at, says });
                Ok(!ignored)
            }
            206 => {
                let says = self.check_range(response.headers(), range.is_some())?;
                self.body = Some(Body { response, skip: 0, says });
                Ok(true)
            }
            _ => Err(self.beyond(response.headers())),
        }
    }

    /// The next bytes of the answer that are new. `Ok(None)`: not yet.
    async fn read(&mut self) -> Result<Option<Bytes>, Failure> {
        let Some(body) = &mut self.body else { return Ok(None) };
        let Some(mut bytes) = self.endpoint.chunk(&mut body.response, &self.what).await? else {
            let says = body.says;
            return Err(self.short(says));
        };
        if body.skip > 0 {
            let skip = usize::try_from(body.skip).unwrap_or(usize::MAX).min(bytes.len());
            // Never beyond the chunk: the smaller of the two.
            drop(bytes.split_to(skip));
            body.skip -= skip as u64;
            self.tries.alive();
            if bytes.is_empty() {
                return Ok(None);
            }
        }
        let room = match self.end {
            End::Before(end) => end.saturating_sub(self.at),
            End::Blob => self.size.saturating_add(1).saturating_sub(self.at),
        };
        bytes.truncate(usize::try_from(room).unwrap_or(usize::MAX));
        self.at += bytes.len() as u64;
        self.claimed = None;
        self.tries.progress();
        Ok(Some(bytes))
    }

    /// The answer ended, in an orderly way, before the piece did.
    fn short(&mut self, says: Option<u64>) -> Failure {
        let says = says.unwrap_or(self.at);
        self.claim(says);
        let reason = format!("the answer ended at byte {} of {} (its head spoke of {says})", self.at, self.size);
        Failure::again(self.endpoint.unavailable(&self.what, reason, None))
    }

    /// 416: the registry has nothing from here on.
    fn beyond(&mut self, headers: &HeaderMap) -> Failure {
        let Some(says) = content_range(headers).and_then(|range| range.total) else {
            return Failure::again(
                self.endpoint.protocol(&self.what, format!("it refuses the range from byte {} without a reason", self.at)),
            );
        };
        self.claim(says);
        let reason = format!("it has only {says} bytes of it, {} were expected", self.size);
        Failure::again(self.endpoint.unavailable(&self.what, reason, None))
    }

    /// A registry that says twice in a row that this is all may be believed: the content is what is wrong, not the connection.
    fn claim(&mut self, says: u64) {
        self.over = says <= self.at && self.claimed == Some(says);
        self.claimed = Some(says);
    }

    /// Compares what a 206 holds with what was asked for; the blob's full length according to it.
    fn check_range(&self, headers: &HeaderMap, asked: bool) -> Result<Option<u64>, Failure> {
        let wrong = |got: String| {
            let asked = match (asked, self.end) {
                (false, _) => "the whole".to_owned(),
                (_, End::Before(end)) => format!("bytes {}-{}", self.at, end.saturating_sub(1)),
                (_, End::Blob) => format!("bytes {}-", self.at),
            };
            Failure::again(self.endpoint.protocol(&self.what, format!("asked for {asked}, got {got}")))
        };
        let Some(ContentRange { range: Some((first, last)), total }) = content_range(headers) else {
            return Err(wrong("a part of it without a valid Content-Range".to_owned()));
        };
        let shown = || format!("bytes {first}-{last}/{}", total.map_or("*".to_owned(), |total| total.to_string()));
        // A range reaches to the end of the blob at most, so a blob that is shorter than it should be shortens it.
        let end = match (self.end, total) {
            (End::Before(end), Some(total)) => Some(end.min(total)),
            (End::Before(end), None) => Some(end),
            (End::Blob, total) => total,
        };
        let fits = asked && first == self.at && end.is_none_or(|end| last.checked_add(1) == Some(end));
        if !fits {
            return Err(wrong(shown()));
        }
        match content_length(headers) {
            Some(length) if last.checked_sub(first).and_then(|span| span.checked_add(1)) != Some(length) => {
                Err(wrong(format!("{} in {length} bytes", shown())))
            }
            _ => Ok(total),
        }
    }
}

/// A `Content-Range`: `bytes 0-9/100`, `bytes 0-9/*`, or (with 416) `bytes */100`.
#[derive(Debug, PartialEq, Eq)]
struct ContentRange {
    range: Option<(u64, u64)>,
    total: Option<u64>,
}

fn content_range(headers: &HeaderMap) -> Option<ContentRange> {
    let number = |text: &str| -> Option<u64> {
        // `parse` alone would take a `+`.
        if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
    };
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.trim();
    let (unit, rest) = text.split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    if !unit.eq_ignore_ascii_case("bytes") {
        return None;
    }
    let total = if total == "*" { None } else { Some(number(total)?) };
    let range = match range {
        "*" => None,
        _ => {
            let (first, last) = range.split_once('-')?;
            Some((number(first)?, number(last)?))
        }
    };
    let sound = range.is_none_or(|(first, last)| first <= last && total.is_none_or(|total| last < total));
    sound.then_some(ContentRange { range, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        let parse = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_RANGE, http::HeaderValue::from_bytes(text.as_bytes()).expect("a header"));
            content_range(&headers).map(|ContentRange { range, total }| (range, total))
        };
        assert_eq!(parse("bytes 0-9/100"), Some((Some((0, 9)), Some(100))));
        assert_eq!(parse("Bytes 5-5/*"), Some((Some((5, 5)), None)));
        assert_eq!(parse("bytes */100"), Some((None, Some(100))));
        for wrong in [
            "",
            "bytes",
            "bytes 0-9",
            "bytes=0-9/100",
            "items 0-9/100",
            "bytes 9-0/100",
            "bytes 0-100/100",
            "bytes +0-9/100",
            "bytes -9/100",
            "bytes 0-/100",
            "bytes 0-9/-1",
            "bytes 0-99999999999999999999/*",
            "bytes 0-9/100, 20-29/100",
            "bytes \u{e4}-9/100",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
