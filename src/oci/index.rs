//! Lists of manifests: an OCI index, and the `index.json` of a layout, which is one that nobody vouches for.

use bytes::Bytes;

use super::{DOCKER_MANIFEST_LIST, IMAGE_INDEX, REF_NAME};
use crate::descriptor::Descriptor;
use crate::digest::DigestError;
use crate::json::{Json, JsonError};
use crate::limits;
use crate::verify::Verified;

/// A list of manifests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    /// The manifests in their order. A digest may stand there several times.
    pub manifests: Vec<Listed>,
}

/// A manifest as a list has it. What it says of the manifest is for people and for finding it; what it is, only the manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The manifest, or another list.
    pub descriptor: Descriptor,
    /// The name that it has in this list.
    pub name: Option<String>,
    /// What it is for: `linux/arm64`.
    pub platform: Option<String>,
    /// What kind of artifact it is said to be.
    pub artifact_type: Option<String>,
    /// Its other annotations.
    pub annotations: Vec<(String, String)>,
}

/// Why a list is refused.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// It is larger than any may be.
    #[error("the index has {0} bytes, {limit} are allowed", limit = limits::MANIFEST_BYTES)]
    TooLarge(u64),
    /// It is no JSON of the shape that the spec gives.
    #[error("the index is malformed")]
    Malformed(#[from] JsonError),
    /// It was announced as something else than it says it is.
    #[error("the index says or is said to be `{0}`, expected `{IMAGE_INDEX}`")]
    MediaType(String),
    /// It follows another version of the schema.
    #[error("the index has schemaVersion {0}, 2 is understood")]
    SchemaVersion(u64),
    /// It lists too much.
    #[error("the index lists {count} manifests, {limit} are allowed")]
    TooMany {
        /// How many.
        count: usize,
        /// How many may be.
        limit: usize,
    },
    /// A digest in it cannot be used.
    #[error("the index's `{at}`")]
    Digest {
        /// Where the digest stands.
        at: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
    /// It has what an image manifest has, so that two readers would see two things.
    #[error("the index has `{0}` as an image manifest has")]
    Ambiguous(&'static str),
}

impl Index {
    /// Reads an index that stands for the manifest of a kit.
    pub fn parse(bytes: &Verified<Bytes>) -> Result<Self, IndexError> {
        let size = bytes.descriptor().size;
        if size > limits::MANIFEST_BYTES {
            return Err(IndexError::TooLarge(size));
        }
        Self::read(&Json::parse(bytes)?, &bytes.descriptor().media_type, limits::INDEX_MANIFESTS)
    }

    /// Reads the `index.json` of a layout. Nobody vouches for it; it only says which manifest a name means, as a registry does.
    pub(crate) fn of_layout(bytes: &[u8]) -> Result<Self, IndexError> {
        Self::of_json(&Json::parse(bytes)?)
    }

    /// The same, for whoever parsed it.
    pub(crate) fn of_json(json: &Json) -> Result<Self, IndexError> {
        Self::read(json, "", limits::LAYOUT_MANIFESTS)
    }

    /// Reads a list of referrers, which nobody vouches for either. An entry that cannot be read takes no other with it.
    pub(crate) fn of_referrers(bytes: &[u8]) -> Result<(Self, Vec<IndexError>), IndexError> {
        let (mut manifests, mut malformed) = (Vec::new(), Vec::new());
        for (at, element) in entries(&Json::parse(bytes)?, "")? {
            match Listed::read(element, &at) {
                Ok(listed) => manifests.push(listed),
                Err(error) => malformed.push(error),
            }
        }
        Ok((Self { manifests }, malformed))
    }

    fn read(json: &Json, announced: &str, limit: usize) -> Result<Self, IndexError> {
        let elements = entries(json, announced)?;
        if elements.len() > limit {
            return Err(IndexError::TooMany { count: elements.len(), limit });
        }
        let manifests = elements.into_iter().map(|(at, element)| Listed::read(element, &at)).collect::<Result<_, _>>()?;
        Ok(Self { manifests })
    }
}

/// The entries of a list, and where they stand, if it is one.
fn entries<'j>(json: &'j Json, announced: &str) -> Result<Vec<(String, &'j Json)>, IndexError> {
    let document = json.object("", &["schemaVersion", "mediaType", "manifests", "config", "layers"])?;
    for claimed in [Some(announced).filter(|claimed| !claimed.is_empty()), document.string("mediaType")?].into_iter().flatten() {
        if ![IMAGE_INDEX, DOCKER_MANIFEST_LIST].contains(&claimed) {
            return Err(IndexError::MediaType(claimed.to_owned()));
        }
    }
    if let Some(other) = ["config", "layers"].into_iter().find(|key| document.get(key).is_some()) {
        return Err(IndexError::Ambiguous(other));
    }
    match document.required_size("schemaVersion")? {
        2 => {}
        other => return Err(IndexError::SchemaVersion(other)),
    }
    Ok(document.array("manifests")?)
}

impl Listed {
    fn read(json: &Json, at: &str) -> Result<Self, IndexError> {
        let entry = json.object(at, &["mediaType", "digest", "size", "annotations", "platform"])?;
        let platform = match entry.get("platform") {
            Some(platform) => {
                let platform = platform.object(&entry.place("platform"), &["os", "architecture", "variant"])?;
                let parts = [platform.string("os")?, platform.string("architecture")?, platform.string("variant")?];
                Some(parts.into_iter().flatten().collect::<Vec<_>>().join("/"))
            }
            None => None,
        };
        let mut annotations: Vec<_> =
            entry.strings("annotations")?.into_iter().map(|(key, text)| (key.to_owned(), text.to_owned())).collect();
        let name = annotations.iter().position(|(key, _)| key == REF_NAME).map(|at| annotations.remove(at).1);
        // It only helps to find things, so a wrong one is none.
        let artifact_type = entry.string("artifactType").ok().flatten().map(str::to_owned);
        Ok(Self { descriptor: descriptor(json, at)?, name, platform, artifact_type, annotations })
    }
}

/// The descriptor that `json` is, annotations aside.
pub(crate) fn descriptor(json: &Json, at: &str) -> Result<Descriptor, IndexError> {
    let entry = json.object(at, &["mediaType", "digest", "size"])?;
    let digest = entry.required_string("digest")?.parse().map_err(|source| IndexError::Digest { at: entry.place("digest"), source })?;
    Ok(Descriptor { media_type: entry.required_string("mediaType")?.to_owned(), digest, size: entry.required_size("size")? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::chain;
    use crate::fixtures::verified;
    use crate::oci::IMAGE_MANIFEST;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse_as(media_type: &str, text: &str) -> Result<Index, IndexError> {
        Index::parse(&verified(media_type, Bytes::copy_from_slice(text.as_bytes())))
    }

    fn entry(more: &str) -> String {
        format!(r#"{{"mediaType":"{IMAGE_MANIFEST}","digest":"{DIGEST}","size":7{more}}}"#)
    }

    fn index(entries: &str) -> String {
        format!(r#"{{"schemaVersion":2,"mediaType":"{IMAGE_INDEX}","manifests":[{entries}]}}"#)
    }

    #[test]
    fn what_a_list_says_of_a_manifest_is_kept() {
        let more = r#","platform":{"os":"linux","architecture":"arm64","variant":"v8","features":[]},
            "annotations":{"a":"b","org.opencontainers.image.ref.name":"v1"},"artifactType":"x","urls":["https://x.example/"]"#;
        let listed = parse_as(IMAGE_INDEX, &index(&[entry(more), entry("")].join(","))).expect("good").manifests;
        assert_eq!((listed[0].name.as_deref(), listed[0].platform.as_deref()), (Some("v1"), Some("linux/arm64/v8")));
        assert_eq!((&listed[0].annotations, listed[0].descriptor.size), (&vec![("a".into(), "b".into())], 7));
        assert_eq!((&listed[1].name, &listed[1].platform, listed[1].annotations.len()), (&None, &None, 0));
        for announced in ["", DOCKER_MANIFEST_LIST] {
            assert!(parse_as(announced, &index("")).expect("an empty list").manifests.is_empty());
        }
        assert!(parse_as("", r#"{"schemaVersion":2,"manifests":null}"#).expect("an empty list").manifests.is_empty());
    }

    #[test]
    fn an_entry_of_a_list_of_referrers_takes_no_other_with_it() {
        let text = index(
            &[entry(r#","artifactType":"a/b""#), "7".to_owned(), entry("").replace("sha256", "sha1"), entry(r#","artifactType":7"#)]
                .join(","),
        );
        let (read, malformed) = Index::of_referrers(text.as_bytes()).expect("a list");
        let types: Vec<_> = read.manifests.iter().map(|listed| listed.artifact_type.as_deref()).collect();
        assert_eq!((types, malformed.len()), (vec![Some("a/b"), None], 2));
        let many = index(&vec![entry(""); limits::INDEX_MANIFESTS + 1].join(","));
        assert_eq!(
            Index::of_referrers(many.as_bytes()).expect("how many is for others to limit").0.manifests.len(),
            limits::INDEX_MANIFESTS + 1
        );
        for text in ["", "<html>", "[]", r#"{"manifests":[]}"#, r#"{"schemaVersion":2,"layers":[]}"#] {
            assert!(Index::of_referrers(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        let many = |count: usize| index(&vec![entry(""); count].join(","));
        assert!(parse_as(IMAGE_INDEX, &many(limits::INDEX_MANIFESTS)).is_ok());
        for (announced, text, part) in [
            (IMAGE_INDEX, "{".to_owned(), "JSON"),
            (IMAGE_INDEX, r#"{"schemaVersion":1,"manifests":[]}"#.to_owned(), "schemaVersion 1"),
            (IMAGE_INDEX, r#"{"schemaVersion":2,"manifests":[],"manifests":[]}"#.to_owned(), "stands there twice"),
            (IMAGE_INDEX, r#"{"schemaVersion":2,"manifests":[],"config":{}}"#.to_owned(), "`config` as an image manifest has"),
            (IMAGE_INDEX, r#"{"schemaVersion":2,"Manifests":[]}"#.to_owned(), "spelled like `manifests`"),
            (IMAGE_MANIFEST, index(""), "is said to be"),
            ("text/html", index(""), "`text/html`"),
            (IMAGE_INDEX, index("").replace(IMAGE_INDEX, IMAGE_MANIFEST), "says or"),
            (IMAGE_INDEX, index(&entry("").replace(DIGEST, "sha256:../../etc/passwd")), "manifests[0].digest"),
            (IMAGE_INDEX, index(&entry("").replace(":7", ":-7")), "manifests[0].size"),
            (IMAGE_INDEX, index(&entry(r#","platform":"linux""#)), "manifests[0].platform"),
            (IMAGE_INDEX, many(limits::INDEX_MANIFESTS + 1), "65 manifests, 64 are allowed"),
        ] {
            let error = parse_as(announced, &text).expect_err(&text[..text.len().min(200)]);
            assert!(chain(&error).contains(part), "{}", chain(&error));
        }
        let large = index("") + &" ".repeat(limits::MANIFEST_BYTES as usize);
        assert!(matches!(parse_as(IMAGE_INDEX, &large), Err(IndexError::TooLarge(_))));
    }
}
