//! The media types of layers, and what each family of artifacts means by them.

use super::{Family, LayerKind};

/// What a media type says of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Media {
    pub(super) kind: LayerKind,
    pub(super) format: Format,
    pub(super) coding: Coding,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Tar,
    Raw,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Coding {
    None,
    Gzip,
    Zstd,
}

impl Media {
    /// What a layer of an artifact of this family is. `None` for what has no meaning there.
    pub(super) fn of(family: Family, media_type: &str) -> Option<Self> {
        match family {
            Family::ModelKit => Self::parse(media_type),
            Family::ModelPack => Self::pack(media_type),
            Family::DockerModel => Self::docker(media_type).or_else(|| Self::pack(media_type)),
        }
    }

    /// Of a kit: `application/vnd.kitops.modelkit.<kind>.v1.<format>[+<coding>]`.
    pub(super) fn parse(media_type: &str) -> Option<Self> {
        let (kind, coded) = media_type.strip_prefix("application/vnd.kitops.modelkit.")?.split_once(".v1.")?;
        let (format, coding) = split_coding(coded);
        Some(Self {
            kind: match kind {
                "model" => LayerKind::Model,
                "modelpart" => LayerKind::ModelPart,
                "code" => LayerKind::Code,
                "dataset" => LayerKind::Dataset,
                "docs" => LayerKind::Docs,
                "mcpb" => LayerKind::McpServer,
                _ => return None,
            },
            format: match format {
                "tar" => Format::Tar,
                "raw" => Format::Raw,
                _ => return None,
            },
            coding: match coding {
                None | Some("none") => Coding::None,
                Some("gzip") => Coding::Gzip,
                Some("zstd") => Coding::Zstd,
                Some(_) => return None,
            },
        })
    }

    /// Of a ModelPack: `application/vnd.cncf.model.<kind>.v1.<format>[+<coding>]`. Its first drafts had `cnai` for `cncf`, and one kind, `layer`, for
    /// everything. Docker Model Runner wrote the format of the file for `raw`. The spec has no compressed raw layers.
    fn pack(media_type: &str) -> Option<Self> {
        let (kind, coded) = ["application/vnd.cncf.model.", "application/vnd.cnai.model."]
            .iter()
            .find_map(|prefix| media_type.strip_prefix(prefix))?
            .split_once(".v1.")?;
        let kind = match kind {
            "weight" => LayerKind::Model,
            "weight.config" => LayerKind::ModelConfig,
            "doc" => LayerKind::Docs,
            "code" => LayerKind::Code,
            "dataset" => LayerKind::Dataset,
            // An annotation may say more: see `super::modelpack`.
            "layer" if media_type.contains("cnai") => LayerKind::ModelPart,
            _ => return None,
        };
        let (format, coding) = match split_coding(coded) {
            ("raw", None) => (Format::Raw, Coding::None),
            ("gguf" | "safetensors", None) if kind == LayerKind::Model => (Format::Raw, Coding::None),
            ("tar", None) => (Format::Tar, Coding::None),
            ("tar", Some("gzip")) => (Format::Tar, Coding::Gzip),
            ("tar", Some("zstd")) => (Format::Tar, Coding::Zstd),
            _ => return None,
        };
        Some(Self { kind, format, coding })
    }

    /// Of a model of Docker Model Runner. No layer of it is compressed.
    fn docker(media_type: &str) -> Option<Self> {
        let (kind, format) = match media_type.strip_prefix("application/vnd.docker.ai.")? {
            "gguf.v3" | "safetensors" | "dduf" => (LayerKind::Model, Format::Raw),
            "mmproj" | "gguf.v3.mmproj" | "gguf.v3.lora" => (LayerKind::ModelPart, Format::Raw),
            "chat.template.jinja" | "model.file" => (LayerKind::ModelConfig, Format::Raw),
            "vllm.config.tar" | "dir.tar" => (LayerKind::ModelConfig, Format::Tar),
            "license" => (LayerKind::Docs, Format::Raw),
            _ => return None,
        };
        Some(Self { kind, format, coding: Coding::None })
    }
}

fn split_coding(coded: &str) -> (&str, Option<&str>) {
    coded.split_once('+').map_or((coded, None), |(format, coding)| (format, Some(coding)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layer_of_a_kit_is_told_and_nothing_else() {
        for (text, kind, format, coding) in [
            ("model.v1.tar", LayerKind::Model, Format::Tar, Coding::None),
            ("modelpart.v1.tar+gzip", LayerKind::ModelPart, Format::Tar, Coding::Gzip),
            ("dataset.v1.tar+zstd", LayerKind::Dataset, Format::Tar, Coding::Zstd),
            ("code.v1.raw", LayerKind::Code, Format::Raw, Coding::None),
            ("docs.v1.raw+zstd", LayerKind::Docs, Format::Raw, Coding::Zstd),
            ("mcpb.v1.raw", LayerKind::McpServer, Format::Raw, Coding::None),
        ] {
            let media = Media::parse(&format!("application/vnd.kitops.modelkit.{text}"));
            assert_eq!(media, Some(Media { kind, format, coding }), "{text}");
        }
        for text in [
            "application/vnd.kitops.modelkit.model.v1.tar+gzip-fastest",
            "application/vnd.kitops.modelkit.model.v1.tarball",
            "application/vnd.kitops.modelkit.model.v2.tar",
            "application/vnd.kitops.modelkit.firmware.v1.tar",
            "application/vnd.kitops.modelkit.model.v1.tar+gzip+gzip",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "xapplication/vnd.kitops.modelkit.model.v1.tar",
        ] {
            assert_eq!(Media::parse(text), None, "{text}");
        }
    }

    #[test]
    fn every_layer_of_a_modelpack_is_told_and_nothing_else() {
        for namespace in ["cncf", "cnai"] {
            for (base, kind) in [
                ("weight", LayerKind::Model),
                ("weight.config", LayerKind::ModelConfig),
                ("doc", LayerKind::Docs),
                ("code", LayerKind::Code),
                ("dataset", LayerKind::Dataset),
            ] {
                for (written, format, coding) in [
                    ("raw", Format::Raw, Coding::None),
                    ("tar", Format::Tar, Coding::None),
                    ("tar+gzip", Format::Tar, Coding::Gzip),
                    ("tar+zstd", Format::Tar, Coding::Zstd),
                ] {
                    let text = format!("application/vnd.{namespace}.model.{base}.v1.{written}");
                    assert_eq!(Media::of(Family::ModelPack, &text), Some(Media { kind, format, coding }), "{text}");
                    assert_eq!(Media::of(Family::DockerModel, &text), Some(Media { kind, format, coding }), "{text}");
                    assert_eq!(Media::of(Family::ModelKit, &text), None, "{text}");
                }
            }
        }
        let layer = Media { kind: LayerKind::ModelPart, format: Format::Tar, coding: Coding::Gzip };
        assert_eq!(Media::of(Family::ModelPack, "application/vnd.cnai.model.layer.v1.tar+gzip"), Some(layer));
        for text in [
            // The spec forbids it, and kit does too.
            "application/vnd.cncf.model.weight.v1.raw+gzip",
            "application/vnd.cncf.model.weight.v1.raw+zstd",
            "application/vnd.cncf.model.weight.v1.tar+none",
            "application/vnd.cncf.model.weight.v1.gguf+gzip",
            "application/vnd.cncf.model.doc.v1.gguf",
            "application/vnd.cncf.model.weight.v1.onnx",
            "application/vnd.cncf.model.weight.v2.raw",
            "application/vnd.cncf.model.weight.raw",
            "application/vnd.cncf.model.layer.v1.tar",
            "application/vnd.cncf.model.config.v1+json",
            "application/vnd.kitops.modelkit.model.v1.tar",
            "application/vnd.docker.ai.gguf.v3",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/octet-stream",
        ] {
            assert_eq!(Media::of(Family::ModelPack, text), None, "{text}");
        }
    }

    #[test]
    fn every_layer_of_docker_model_runner_is_told_and_nothing_else() {
        for (text, kind, format) in [
            ("vnd.cncf.model.weight.v1.gguf", LayerKind::Model, Format::Raw),
            ("vnd.cncf.model.weight.v1.safetensors", LayerKind::Model, Format::Raw),
            ("vnd.docker.ai.gguf.v3", LayerKind::Model, Format::Raw),
            ("vnd.docker.ai.safetensors", LayerKind::Model, Format::Raw),
            ("vnd.docker.ai.dduf", LayerKind::Model, Format::Raw),
            ("vnd.docker.ai.mmproj", LayerKind::ModelPart, Format::Raw),
            ("vnd.docker.ai.gguf.v3.mmproj", LayerKind::ModelPart, Format::Raw),
            ("vnd.docker.ai.gguf.v3.lora", LayerKind::ModelPart, Format::Raw),
            ("vnd.docker.ai.chat.template.jinja", LayerKind::ModelConfig, Format::Raw),
            ("vnd.docker.ai.model.file", LayerKind::ModelConfig, Format::Raw),
            ("vnd.docker.ai.vllm.config.tar", LayerKind::ModelConfig, Format::Tar),
            ("vnd.docker.ai.dir.tar", LayerKind::ModelConfig, Format::Tar),
            ("vnd.docker.ai.license", LayerKind::Docs, Format::Raw),
        ] {
            let media = Media::of(Family::DockerModel, &format!("application/{text}"));
            assert_eq!(media, Some(Media { kind, format, coding: Coding::None }), "{text}");
        }
        for text in [
            "application/vnd.docker.ai.gguf.v4",
            "application/vnd.docker.ai.license+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
        ] {
            assert_eq!(Media::of(Family::DockerModel, text), None, "{text}");
        }
    }
}
