//! Manifests, and references that are remembered.

use std::path::Path;

use bytes::Bytes;
use kitfs::descriptor::Descriptor;
use kitfs::digest::{Algorithm, Digest};
use kitfs::verify::{Unverified, Verified};

use crate::bench::Bench;
use crate::damage::{append, flip, truncate};

#[test]
fn documents_are_hashed_at_each_use() {
    let bench = Bench::new();
    let bytes = Bytes::from_static(b"{\"schemaVersion\":2}");
    let descriptor = Descriptor { media_type: "x/y".into(), digest: Digest::of(Algorithm::Sha256, &bytes), size: bytes.len() as u64 };
    let document: Verified<Bytes> = Unverified::new(bytes.clone()).verify(&descriptor).expect("right");
    assert!(bench.store.document(&descriptor).expect("readable").is_none());
    bench.store.put_document(&document).expect("room");
    bench.store.put_document(&document).expect("room");
    assert_eq!(&*bench.store.document(&descriptor).expect("readable").expect("kept"), &bytes[..]);
    let path = bench.cache().join("v1/blobs").join(descriptor.digest.file_name());
    for damage in [|path: &Path| flip(path, 3), truncate, append] {
        bench.store.put_document(&document).expect("room");
        damage(&path);
        assert!(bench.store.document(&descriptor).expect("readable").is_none());
        assert!(!path.exists());
    }
}

#[test]
fn a_reference_is_remembered() {
    let bench = Bench::new();
    let descriptor = |text: &str| Descriptor { media_type: "x/y".into(), digest: Digest::of(Algorithm::Sha256, text.as_bytes()), size: 7 };
    let name = "reg.example:5000/../a/b:v1";
    assert_eq!(bench.store.remembered(name).expect("readable"), None);
    for text in ["one", "two"] {
        bench.store.remember(name, &descriptor(text)).expect("room");
        assert_eq!(bench.store.remembered(name).expect("readable"), Some(descriptor(text)));
    }
    assert_eq!(bench.store.remembered("other").expect("readable"), None);
}
