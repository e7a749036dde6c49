//! What of a kit is left when the user wants only some of it.

use super::{KITFILE, KitLayer, LayerKind};
use crate::filter::{FilterType, Globs, Selection};

impl Selection {
    /// True if the generated Kitfile is wanted.
    pub fn shows_kitfile(&self) -> bool {
        self.takes(FilterType::Kitfile, &[]) && self.globs.shows(&self.globs.step(&self.globs.root(), KITFILE.as_bytes()), false)
    }
}

impl KitLayer {
    /// True if a filter takes the layer, or there is none. Code and documents have no names that one could give.
    pub fn is_taken_by(&self, selection: &Selection) -> bool {
        let name = self.name.as_deref().unwrap_or_default();
        let path = self.spelled.as_str();
        match self.kind {
            LayerKind::Model | LayerKind::ModelPart | LayerKind::ModelConfig => selection.takes(FilterType::Model, &[name, path]),
            LayerKind::Dataset => selection.takes(FilterType::Datasets, &[name, path]),
            LayerKind::Prompt => selection.takes(FilterType::Prompts, &[name, path]),
            LayerKind::McpServer => selection.takes(FilterType::McpServers, &[name, path]),
            LayerKind::Code => selection.takes(FilterType::Code, &[path]),
            LayerKind::Docs => selection.takes(FilterType::Docs, &[path]),
        }
    }

    /// True if the globs let nothing of the layer show, which its declared path alone tells.
    pub fn is_ruled_out_by(&self, globs: &Globs) -> bool {
        let reach = globs.reach(&self.path);
        // A bare file is all that stands at its path.
        globs.rules_out(&reach) || (self.file.is_some() && !globs.shows_declared(&reach, false))
    }
}
