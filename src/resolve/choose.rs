//! From an OCI index to the one ModelKit in it.
//!
//! An index may hold images, attestations and much else beside a kit, and what its entries say of themselves proves nothing. So every
//! manifest in it is fetched, checked and looked at. One that is not there is an error too: leaving it out, a registry could choose among
//! several kits, although the index's digest speaks for all of them.

use std::fmt;

use bytes::Bytes;

use super::{Failure, Resolver};
use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::kit::{Kit, KitError};
use crate::limits;
use crate::oci::{DOCKER_MANIFEST_LIST, IMAGE_INDEX, IMAGE_MANIFEST, Index, IndexError, Listed, ManifestError};
use crate::source::Source;
use crate::verify::Verified;

/// Why an index stands for no kit.
#[derive(Debug, thiserror::Error)]
pub enum ChoiceError {
    /// A list in it, or the list itself, is refused.
    #[error("the index {index}")]
    Index {
        /// Which list.
        index: Digest,
        /// What is wrong with it.
        #[source]
        source: IndexError,
    },
    /// There is no kit in it.
    #[error("not a ModelKit: none of the {manifests} manifests in the index {index} is one")]
    None {
        /// The index.
        index: Digest,
        /// How many manifests it holds.
        manifests: usize,
    },
    /// There are several.
    #[error("the index {index} holds {} ModelKits", kits.len())]
    Several {
        /// The index.
        index: Digest,
        /// What it holds.
        kits: Vec<Choice>,
    },
    /// A list in a list has a list in it.
    #[error("the index {index} has an index in an index in it; one level is followed")]
    Deep {
        /// The outermost.
        index: Digest,
    },
    /// There is too much to look at.
    #[error(
        "the manifests in the index {index} are more than the {} or have more than the {} bytes that are looked at",
        limits::INDEX_MANIFESTS,
        limits::INDEX_DOCUMENTS_BYTES
    )]
    TooMuch {
        /// The outermost.
        index: Digest,
    },
}

/// A kit among several.
#[derive(Debug)]
pub struct Choice {
    /// Its manifest.
    pub digest: Digest,
    /// What the index says about it.
    about: Vec<String>,
}

impl Choice {
    fn new(listed: &Listed) -> Self {
        let named = [("name", &listed.name), ("platform", &listed.platform)];
        let named = named.into_iter().filter_map(|(key, text)| Some((key, text.as_deref()?)));
        let annotations = listed.annotations.iter().map(|(key, text)| (key.as_str(), text.as_str()));
        let about = named.chain(annotations).take(limits::INDEX_FACTS_SHOWN).map(|(key, text)| format!("{key} {text}")).collect();
        Self { digest: listed.descriptor.digest, about }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.digest)?;
        if self.about.is_empty() { Ok(()) } else { write!(f, " ({})", self.about.join(", ")) }
    }
}

impl Resolver<'_> {
    /// The manifest of the kit that `found` stands for: itself, unless it is an index. What is not in the cache is asked of `source`.
    pub(super) async fn chosen(&self, found: Verified<Bytes>, source: Option<&dyn Source>) -> Result<Verified<Bytes>, Failure> {
        if !matches!(Kit::config(&found), Err(KitError::Manifest(ManifestError::Index))) {
            return Ok(found);
        }
        let index = found.descriptor().digest;
        let refuse = |error| Failure::Choice(Box::new(error));
        let read = |list: &Verified<Bytes>| {
            let of = list.descriptor().digest;
            Index::parse(list).map_err(|source| refuse(ChoiceError::Index { index: of, source }))
        };
        // Whether it may be a list itself, and what it is.
        let mut open: Vec<(bool, Listed)> = read(&found)?.manifests.into_iter().map(|listed| (true, listed)).collect();
        let (mut seen, mut bytes) = (Vec::new(), 0_u64);
        let mut kits: Vec<(Choice, Verified<Bytes>)> = Vec::new();
        while let Some((may_nest, listed)) = open.pop() {
            let Descriptor { digest, size, media_type } = &listed.descriptor;
            if seen.contains(digest) {
                continue;
            }
            seen.push(*digest);
            bytes = bytes.saturating_add(*size);
            if seen.len() > limits::INDEX_MANIFESTS || bytes > limits::INDEX_DOCUMENTS_BYTES {
                return Err(refuse(ChoiceError::TooMuch { index }));
            }
            let is_list = [IMAGE_INDEX, DOCKER_MANIFEST_LIST].contains(&media_type.as_str());
            if !is_list && media_type != IMAGE_MANIFEST {
                // What a kit's manifest never is.
                continue;
            }
            let document = self.manifest(&listed.descriptor, source).await?;
            if is_list {
                if !may_nest {
                    return Err(refuse(ChoiceError::Deep { index }));
                }
                open.extend(read(&document)?.manifests.into_iter().map(|listed| (false, listed)));
                continue;
            }
            match Kit::config(&document) {
                // Whether it is one that can be mounted is another question.
                Err(KitError::NotAKit { .. } | KitError::Manifest(_)) => {}
                _ => kits.push((Choice::new(&listed), document)),
            }
        }
        match kits.len() {
            0 => Err(refuse(ChoiceError::None { index, manifests: seen.len() })),
            1 => Ok(kits.swap_remove(0).1),
            _ => {
                // In the order in which they are listed.
                let kits = kits.into_iter().rev().map(|(choice, _)| choice).collect();
                Err(refuse(ChoiceError::Several { index, kits }))
            }
        }
    }

    /// A manifest or an index that an index lists.
    async fn manifest(&self, descriptor: &Descriptor, source: Option<&dyn Source>) -> Result<Verified<Bytes>, Failure> {
        let document = match (self.store.document(descriptor)?, source) {
            (Some(document), _) => document,
            (None, Some(source)) => self.fetch(source, descriptor, "manifest").await?,
            (None, None) => return Err(Failure::NotCached { what: "manifest", digest: descriptor.digest }),
        };
        self.store.remember(&descriptor.digest.to_string(), descriptor)?;
        Ok(document)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use serde_json::{Value, json};
    use tokio::runtime::Runtime;

    use super::*;
    use crate::digest::Algorithm;
    use crate::failure::{ErrorClass, chain};
    use crate::fixtures;
    use crate::resolve::{Pinned, PinnedBy, ResolveError, kit};
    use crate::source::SourceOptions;
    use crate::store::Store;

    struct Stage {
        folder: tempfile::TempDir,
        store: Store,
        runtime: Runtime,
        /// The two kits in the layout.
        kits: [Value; 2],
    }

    fn entry(media_type: &str, content: &[u8]) -> Value {
        json!({ "mediaType": media_type, "digest": Digest::of(Algorithm::Sha256, content).to_string(), "size": content.len() })
    }

    impl Stage {
        fn new() -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let kits = ["all-kinds-plain", "nested-paths"].map(|name| {
                let case = fixtures::case("kits", name);
                case.lay_out(&folder.path().join("layout"));
                entry(IMAGE_MANIFEST, &case.manifest())
            });
            let store = Store::open(&folder.path().join("cache")).expect("a cache");
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("threads");
            Self { folder, store, runtime, kits }
        }

        fn layout(&self) -> std::path::PathBuf {
            self.folder.path().join("layout")
        }

        fn blob(&self, media_type: &str, content: &[u8]) -> Value {
            let digest = Digest::of(Algorithm::Sha256, content);
            fs::write(self.layout().join("blobs/sha256").join(digest.hex()), content).expect("room");
            entry(media_type, content)
        }

        fn index(&self, manifests: &[Value]) -> Value {
            self.blob(IMAGE_INDEX, json!({ "schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": manifests }).to_string().as_bytes())
        }

        /// Some manifest that is no kit's.
        fn image(&self, seed: u32) -> Value {
            let empty = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
            let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": empty, "size": 2 });
            let image = json!({ "schemaVersion": 2, "config": config, "layers": [], "annotations": { "n": seed.to_string() } });
            self.blob(IMAGE_MANIFEST, image.to_string().as_bytes())
        }

        /// Makes it what the layout has, and resolves the layout.
        fn resolve(&self, top: &Value) -> Result<Pinned, ResolveError> {
            fs::write(self.layout().join("index.json"), json!({ "schemaVersion": 2, "manifests": [top] }).to_string()).expect("room");
            self.resolve_as(&format!("oci:{}", self.layout().display()), false)
        }

        fn resolve_as(&self, reference: &str, offline: bool) -> Result<Pinned, ResolveError> {
            let options = SourceOptions { offline, ..SourceOptions::default() };
            let from = crate::resolve::Access { options: &options, store: &self.store, runtime: self.runtime.handle() };
            kit(&reference.parse().expect(reference), crate::filter::Selection::default(), false, &from, &mut crate::resolve::ungated)
        }
    }

    fn digest(entry: &Value) -> &str {
        entry["digest"].as_str().expect("a digest")
    }

    fn refusal(outcome: Result<Pinned, ResolveError>) -> ChoiceError {
        match outcome.map(|pinned| pinned.kit().manifest.clone()) {
            Err(error @ ResolveError::Choice { .. }) => {
                assert_eq!(error.class(), ErrorClass::Refused);
                let ResolveError::Choice { source, .. } = error else { unreachable!() };
                *source
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_only_kit_of_an_index_is_meant() {
        let stage = Stage::new();
        let [kit, _] = &stage.kits;
        let foreign = json!({ "mediaType": "x/y", "digest": Digest::of(Algorithm::Sha256, b"nowhere").to_string(), "size": 0 });
        let wrong = json!({ "mediaType": IMAGE_MANIFEST, "digest": digest(&stage.image(0)), "size": 0 });
        let nested = stage.index(&[stage.image(3), kit.clone()]);
        for top in [
            stage.index(std::slice::from_ref(kit)),
            stage.index(&[foreign, kit.clone()]),
            stage.index(&[stage.image(1), kit.clone(), stage.image(2)]),
            stage.index(&[kit.clone(), kit.clone()]),
            stage.index(&[stage.image(1), nested.clone()]),
            stage.index(&[kit.clone(), nested.clone()]),
        ] {
            let pinned = stage.resolve(&top).unwrap_or_else(|error| panic!("{top}: {}", chain(&error)));
            assert_eq!((pinned.kit().manifest.digest.to_string().as_str(), pinned.root().pin), (digest(kit), PinnedBy::Source));
            // The index by its own digest, listed or not, with and without its source.
            let reference = format!("oci:{}@{}", stage.layout().display(), digest(&top));
            for reference in [reference.as_str(), &format!("reg.example/a/b:v1@{}", digest(&top))] {
                let pinned = stage.resolve_as(reference, true).expect("kept");
                assert_eq!((pinned.kit().manifest.digest.to_string().as_str(), pinned.root().pin), (digest(kit), PinnedBy::User));
            }
        }
        let unlisted = Stage::new();
        let inner = unlisted.index(std::slice::from_ref(kit));
        let reference = format!("oci:{}@{}", unlisted.layout().display(), digest(&inner));
        assert_eq!(unlisted.resolve_as(&reference, false).expect("there").kit().manifest.digest.to_string(), digest(kit));
        // What is not of the size that is said is refused, whatever it is.
        assert!(matches!(stage.resolve(&stage.index(&[wrong, kit.clone()])), Err(ResolveError::Content { what: "manifest", .. })));
    }

    #[test]
    fn several_kits_are_listed_and_none_is_chosen() {
        let stage = Stage::new();
        let [mut one, mut other] = stage.kits.clone();
        one["platform"] = json!({ "os": "linux", "architecture": "arm64" });
        other["annotations"] = json!({ "org.opencontainers.image.ref.name": "q4\u{1b}[31m", "ml.kitops.modelkit.original-tag": "v2" });
        let top = stage.index(&[one.clone(), stage.image(1), other.clone()]);
        let ChoiceError::Several { kits, .. } = refusal(stage.resolve(&top)) else { panic!("two kits") };
        let shown: Vec<String> = kits.iter().map(ToString::to_string).collect();
        assert_eq!(shown[0], format!("{} (platform linux/arm64)", digest(&one)));
        assert!(shown[1].starts_with(&format!("{} (name q4", digest(&other))) && shown[1].contains("original-tag v2"), "{}", shown[1]);
        // Each can be named.
        for kit in &stage.kits {
            let reference = format!("oci:{}@{}", stage.layout().display(), digest(kit));
            assert_eq!(stage.resolve_as(&reference, false).expect("a kit").kit().manifest.digest.to_string(), digest(kit));
        }
        // A kit that is hidden is not a kit that is not there.
        fs::remove_file(blob_path(&stage.layout(), digest(&other))).expect("ours");
        let fresh = Stage { store: Store::open(&stage.folder.path().join("other")).expect("a cache"), ..stage };
        assert!(matches!(fresh.resolve(&top), Err(ResolveError::Source { .. })));
    }

    fn blob_path(layout: &Path, digest: &str) -> std::path::PathBuf {
        layout.join("blobs").join(digest.replacen(':', "/", 1))
    }

    #[test]
    fn what_no_kit_can_be_found_in_is_refused() {
        let stage = Stage::new();
        let [kit, _] = &stage.kits;
        let images: Vec<Value> = (0..=limits::INDEX_MANIFESTS as u32).map(|seed| stage.image(seed)).collect();
        let bytes = |text: &str| stage.blob(IMAGE_INDEX, text.as_bytes());
        let deep = stage.index(&[stage.index(&[stage.index(std::slice::from_ref(kit))])]);
        let half = stage.index(&images[..limits::INDEX_MANIFESTS / 2]);
        let large = |size: u64| json!({ "mediaType": IMAGE_MANIFEST, "digest": digest(kit), "size": size });
        for (top, part) in [
            (stage.index(&[]), "none of the 0 manifests"),
            (stage.index(&images[..3]), "none of the 3 manifests"),
            (stage.index(&images), "65 manifests, 64 are allowed"),
            (stage.index(&[images[images.len() / 2..].to_vec(), vec![half]].concat()), "are more than"),
            (stage.index(&[large(limits::INDEX_DOCUMENTS_BYTES + 1)]), "are more than"),
            (deep, "one level is followed"),
            (bytes(r#"{"schemaVersion":2,"manifests":{}}"#), "should be an array"),
            (bytes(r#"{"schemaVersion":1,"manifests":[]}"#), "schemaVersion 1"),
            (bytes(&format!(r#"{{"schemaVersion":2,"mediaType":"{IMAGE_MANIFEST}","manifests":[]}}"#)), "says or is said"),
        ] {
            let error = refusal(stage.resolve(&top));
            assert!(chain(&error).contains(part), "{}", chain(&error));
        }
        // An index that is not what its digest says.
        let top = stage.index(std::slice::from_ref(kit));
        let path = blob_path(&stage.layout(), digest(&top));
        let mut text = fs::read(&path).expect("there");
        text[20] ^= 1;
        fs::write(&path, text).expect("room");
        assert!(matches!(stage.resolve(&top), Err(ResolveError::Content { what: "manifest", .. })));
    }
}
