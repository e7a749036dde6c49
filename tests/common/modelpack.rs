//! Packs ModelPack artifacts, and models as Docker Model Runner packs them: a layer is added as it is to be, with its annotations.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::pack::MANIFEST;
use super::registry::{Registry, sha256};

/// An artifact whose layers say by annotations where they belong.
#[derive(Debug, Clone)]
pub struct Pack {
    config_type: &'static str,
    artifact_type: Option<&'static str>,
    pub layers: Vec<PackLayer>,
}

#[derive(Debug, Clone)]
pub struct PackLayer {
    pub media_type: String,
    pub digest: String,
    pub blob: Arc<Vec<u8>>,
    annotations: Map<String, Value>,
}

pub const FILEPATH: &str = "org.cncf.model.filepath";
pub const METADATA: &str = "org.cncf.model.file.metadata+json";

impl Pack {
    /// A ModelPack.
    pub fn model_pack() -> Self {
        let artifact_type = Some("application/vnd.cncf.model.manifest.v1+json");
        Self { config_type: "application/vnd.cncf.model.config.v1+json", artifact_type, layers: Vec::new() }
    }

    /// A ModelPack by the first drafts of the spec.
    pub fn draft() -> Self {
        let artifact_type = Some("application/vnd.cnai.model.manifest.v1+json");
        Self { config_type: "application/vnd.cnai.model.config.v1+json", artifact_type, layers: Vec::new() }
    }

    /// A model of Docker Model Runner.
    pub fn docker() -> Self {
        Self { config_type: "application/vnd.docker.ai.model.config.v0.1+json", artifact_type: None, layers: Vec::new() }
    }

    /// One more layer; the media type without `application/vnd.`.
    pub fn layer(mut self, media_type: &str, annotations: &[(&str, &str)], blob: impl Into<Vec<u8>>) -> Self {
        let blob = blob.into();
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), json!(value))).collect();
        let media_type = format!("application/vnd.{media_type}");
        self.layers.push(PackLayer { media_type, digest: sha256(&blob), blob: Arc::new(blob), annotations });
        self
    }

    /// Puts it into the registry and says the reference: `127.0.0.1:PORT/name:v1`.
    pub fn serve(&self, registry: &Registry, name: &str) -> String {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.digest.as_str()).collect();
        // No layer is compressed, so its digest is its content's.
        let config = match self.artifact_type {
            Some(_) => json!({
                "descriptor": { "name": name, "version": "7", "licenses": ["MIT"] },
                "modelfs": { "type": "layers", "diffIds": diff_ids },
                "config": { "format": "gguf", "paramSize": "8b", "precision": "bf16" },
            }),
            None => json!({
                "config": { "format": "gguf", "parameters": "361.82 M", "architecture": "llama" },
                "descriptor": { "created": "2025-05-05T10:20:30Z" },
                "rootfs": { "type": "rootfs", "diff_ids": diff_ids },
            }),
        };
        let config = config.to_string().into_bytes();
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": { "mediaType": self.config_type, "digest": registry.blob(config.clone()), "size": config.len() },
            "layers": self.layers.iter().map(PackLayer::descriptor).collect::<Vec<_>>(),
        });
        if let Some(artifact_type) = self.artifact_type {
            manifest["artifactType"] = artifact_type.into();
        }
        for layer in &self.layers {
            registry.blob_as(&layer.digest, layer.blob.to_vec());
        }
        registry.manifest(name, "v1", MANIFEST, manifest.to_string());
        format!("{}/{name}:v1", registry.host())
    }
}

impl PackLayer {
    fn descriptor(&self) -> Value {
        let mut descriptor = json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.blob.len() });
        if !self.annotations.is_empty() {
            descriptor["annotations"] = self.annotations.clone().into();
        }
        descriptor
    }
}

/// A tar of files, as Docker Model Runner makes one of a folder of configuration.
pub fn tar(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, path, content.as_bytes()).expect("memory");
    }
    tar.into_inner().expect("memory")
}
