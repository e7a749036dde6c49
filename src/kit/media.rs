//! The media types of a kit's layers.

use super::LayerKind;

/// What `application/vnd.kitops.modelkit.<kind>.v1.<format>[+<coding>]` says.
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
    /// `None` for anything that is no layer of a kit.
    pub(super) fn parse(media_type: &str) -> Option<Self> {
        let (kind, coded) = media_type.strip_prefix("application/vnd.kitops.modelkit.")?.split_once(".v1.")?;
        let (format, coding) = match coded.split_once('+') {
            Some((format, coding)) => (format, Some(coding)),
            None => (coded, None),
        };
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
}
