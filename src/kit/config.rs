//! The config of a kit: its Kitfile as JSON, with the digests of the layers in it.
//!
//! Kit reads it leniently and checks a Kitfile only when it packs one, so nothing here is taken for checked: types are, and digests
//! are well-formed; what paths mean is for [`crate::kit`] to say.

use crate::digest::{Digest, DigestError};
use crate::json::{Json, JsonError, Object};

/// A Kitfile. Strings that are absent are empty, as for kit.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Config {
    pub(crate) manifest_version: String,
    pub(crate) package: Package,
    pub(crate) model: Option<Model>,
    pub(crate) code: Vec<Code>,
    pub(crate) datasets: Vec<Dataset>,
    pub(crate) docs: Vec<Doc>,
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) mcp_servers: Vec<McpServer>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) description: String,
    pub(crate) license: String,
    pub(crate) authors: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) license: String,
    pub(crate) framework: String,
    pub(crate) format: String,
    pub(crate) version: String,
    pub(crate) description: String,
    pub(crate) parts: Vec<Part>,
    pub(crate) parameters: Option<Json>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) license: String,
    pub(crate) kind: String,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Code {
    pub(crate) path: String,
    pub(crate) description: String,
    pub(crate) license: String,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Dataset {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) remote_path: String,
    pub(crate) remote_hash: String,
    pub(crate) description: String,
    pub(crate) license: String,
    pub(crate) parameters: Option<Json>,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Doc {
    pub(crate) path: String,
    pub(crate) description: String,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Prompt {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) description: String,
    pub(crate) content: Content,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct McpServer {
    pub(crate) name: String,
    pub(crate) path: String,
    pub(crate) description: String,
    pub(crate) content: Content,
}

/// Which layer an entry is, from kit 0.5 on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) digest: Option<Digest>,
    pub(crate) diff_id: Option<Digest>,
}

/// Why a config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It is no JSON of the shape that kit writes.
    #[error("the config is malformed")]
    Malformed(#[from] JsonError),
    /// A digest in it cannot be used.
    #[error("the config's `{at}`")]
    Digest {
        /// Where the digest stands.
        at: String,
        /// What is wrong with it.
        #[source]
        source: DigestError,
    },
}

impl Config {
    pub(crate) fn from_json(json: &Json) -> Result<Self, ConfigError> {
        let known = ["manifestVersion", "package", "model", "code", "datasets", "docs", "prompts", "mcpServers"];
        let document = json.object("", &known)?;
        Ok(Self {
            manifest_version: text(&document, "manifestVersion")?,
            package: document.get("package").map(package).transpose()?.unwrap_or_default(),
            model: document.get("model").map(model).transpose()?,
            code: entries(&document, "code", &["path", "description", "license"], |entry| {
                Ok(Code {
                    path: text(entry, "path")?,
                    description: text(entry, "description")?,
                    license: text(entry, "license")?,
                    content: content(entry)?,
                })
            })?,
            datasets: entries(
                &document,
                "datasets",
                &["name", "path", "remotePath", "remoteHash", "description", "license", "parameters"],
                |entry| {
                    Ok(Dataset {
                        name: text(entry, "name")?,
                        path: text(entry, "path")?,
                        remote_path: text(entry, "remotePath")?,
                        remote_hash: text(entry, "remoteHash")?,
                        description: text(entry, "description")?,
                        license: text(entry, "license")?,
                        parameters: entry.get("parameters").cloned(),
                        content: content(entry)?,
                    })
                },
            )?,
            docs: entries(&document, "docs", &["path", "description"], |entry| {
                Ok(Doc { path: text(entry, "path")?, description: text(entry, "description")?, content: content(entry)? })
            })?,
            prompts: entries(&document, "prompts", &["name", "path", "description"], |entry| {
                Ok(Prompt {
                    name: text(entry, "name")?,
                    path: text(entry, "path")?,
                    description: text(entry, "description")?,
                    content: content(entry)?,
                })
            })?,
            mcp_servers: entries(&document, "mcpServers", &["name", "path", "description"], |entry| {
                Ok(McpServer {
                    name: text(entry, "name")?,
                    path: text(entry, "path")?,
                    description: text(entry, "description")?,
                    content: content(entry)?,
                })
            })?,
        })
    }
}

fn package(json: &Json) -> Result<Package, ConfigError> {
    let object = json.object("package", &["name", "version", "description", "license", "authors"])?;
    Ok(Package {
        name: text(&object, "name")?,
        version: text(&object, "version")?,
        description: text(&object, "description")?,
        license: text(&object, "license")?,
        authors: texts(&object, "authors")?,
    })
}

fn model(json: &Json) -> Result<Model, ConfigError> {
    let known = ["name", "path", "license", "framework", "format", "version", "description", "parts", "parameters", "digest", "diffId"];
    let object = json.object("model", &known)?;
    Ok(Model {
        name: text(&object, "name")?,
        path: text(&object, "path")?,
        license: text(&object, "license")?,
        framework: text(&object, "framework")?,
        format: text(&object, "format")?,
        version: text(&object, "version")?,
        description: text(&object, "description")?,
        parts: entries(&object, "parts", &["name", "path", "license", "type"], |entry| {
            Ok(Part {
                name: text(entry, "name")?,
                path: text(entry, "path")?,
                license: text(entry, "license")?,
                kind: text(entry, "type")?,
                content: content(entry)?,
            })
        })?,
        parameters: object.get("parameters").cloned(),
        content: content(&object)?,
    })
}

fn entries<T>(
    parent: &Object<'_>,
    key: &str,
    known: &[&'static str],
    read: impl Fn(&Object<'_>) -> Result<T, ConfigError>,
) -> Result<Vec<T>, ConfigError> {
    let known: Vec<&'static str> = known.iter().copied().chain(["digest", "diffId"]).collect();
    parent.array(key)?.into_iter().map(|(at, entry)| read(&entry.object(&at, &known)?)).collect()
}

pub(super) fn text(object: &Object<'_>, key: &str) -> Result<String, JsonError> {
    Ok(object.string(key)?.unwrap_or_default().to_owned())
}

pub(super) fn texts(object: &Object<'_>, key: &str) -> Result<Vec<String>, JsonError> {
    let texts = object.array(key)?.into_iter().map(|(at, text)| match text {
        // What Go makes of a null among strings.
        Json::Null => Ok(String::new()),
        text => text.string(&at).map(str::to_owned),
    });
    texts.collect()
}

fn content(object: &Object<'_>) -> Result<Content, ConfigError> {
    let digest = |key: &str| match object.string(key)? {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|source| ConfigError::Digest { at: object.place(key), source }),
    };
    Ok(Content { digest: digest("digest")?, diff_id: digest("diffId")? })
}
