//! A source for a test registry, with short waits, and what comes out of it.

use std::time::Duration;

use futures_util::StreamExt as _;
use kitfs::credentials::Credentials;
use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::oci::{Reference, Transport};
use kitfs::registry::{Cut, Registry, RegistryOptions, Timing};
use kitfs::source::{Source, SourceError};

/// One request for a blob of these tests.
pub const ONE: Cut = Cut { bytes: 1 << 20, connections: 3, starved_percent: 0 };
/// Several.
pub const MANY: Cut = Cut { bytes: 16 << 10, connections: 3, starved_percent: 0 };

/// No wait that a test has to sit through; what is not to happen has long to happen.
pub fn timing() -> Timing {
    Timing {
        connect: Duration::from_secs(10),
        stall: Duration::from_secs(20),
        silence: Duration::from_secs(75),
        document: Duration::from_secs(60),
        delay: Duration::from_millis(1),
        ..Timing::default()
    }
}

/// Plain HTTP, anonymous.
pub fn options(cut: Cut) -> RegistryOptions {
    RegistryOptions { plain_http: true, ca_cert: None, credentials: Credentials::none(), timing: timing(), cut }
}

/// `HOST/acme/minilm` and what follows.
pub fn open(host: &str, suffix: &str, options: &RegistryOptions) -> Registry {
    let reference: Reference = format!("{host}/acme/minilm{suffix}").parse().expect("a reference");
    let Transport::Registry(name) = reference.transport() else { panic!("a registry") };
    Registry::new(name, reference.digest(), options).expect("a source")
}

pub fn descriptor(content: &[u8]) -> Descriptor {
    Descriptor { media_type: "x/y".into(), digest: Digest::of(Algorithm::Sha256, content), size: content.len() as u64 }
}

/// Content of which no two parts are alike.
pub fn content(length: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        })
        .collect()
}

/// What came out of a stream.
#[derive(Debug)]
pub struct Came {
    /// How many bytes.
    pub bytes: u64,
    /// All of them were those of the content, in order.
    pub right: bool,
    /// What it ended with.
    pub error: Option<SourceError>,
}

/// Reads a blob from `from` on and compares it with `content`.
pub async fn read(source: &dyn Source, descriptor: &Descriptor, content: &[u8], from: u64) -> Came {
    let mut stream = source.blob(descriptor, from);
    let mut came = Came { bytes: 0, right: true, error: None };
    while let Some(chunk) = stream.next().await {
        match chunk {
            Ok(chunk) => {
                let start = usize::try_from(from + came.bytes).expect("small");
                let expected = content.get(start..start + chunk.len()).map(|part| Digest::of(Algorithm::Sha256, part));
                came.right &= expected == Some(chunk.describe(Algorithm::Sha256, "").digest);
                came.bytes += chunk.len() as u64;
            }
            Err(error) => came.error = Some(error),
        }
    }
    came
}

/// The kind of an error, for tables.
pub fn kind(error: &SourceError) -> &'static str {
    match error {
        SourceError::NotFound { .. } => "not found",
        SourceError::Denied { .. } => "denied",
        SourceError::Stalled { .. } => "stalled",
        SourceError::Unconnected { .. } => "unconnected",
        SourceError::Late { .. } => "late",
        SourceError::Unavailable { .. } => "unavailable",
        SourceError::Protocol { .. } => "protocol",
        SourceError::Local { .. } => "local",
    }
}
