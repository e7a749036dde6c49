//! What of a kit is left when the user wants only some of it.

use super::{KITFILE, Kit, KitLayer, LayerKind};
use crate::filter::{FilterType, Globs, Selection, Shown};

impl Kit {
    /// The kit without what is not wanted: layers that no filter takes, and those of which the globs let nothing show, whatever is in them.
    pub fn select(mut self, selection: &Selection) -> Self {
        let globs = &selection.globs;
        self.layers.retain(|layer| layer.is_taken_by(selection));
        let left_out = self.layers.extract_if(.., |layer| layer.is_ruled_out_by(globs)).map(|layer| layer.path).collect();
        self.remote.retain(|_| selection.filters.is_empty() || selection.filters.iter().any(|filter| filter.has(FilterType::Datasets)));
        let kitfile = globs.step(&globs.root(), KITFILE.as_bytes());
        self.kitfile = self.kitfile.filter(|_| selection.takes(FilterType::Kitfile, &[]) && globs.shows(&kitfile, false));
        self.shown = Shown { globs: globs.clone(), left_out };
        self
    }
}

impl KitLayer {
    /// True if a filter takes the layer, or there is none. Code and documents have no names that one could give.
    pub fn is_taken_by(&self, selection: &Selection) -> bool {
        let name = self.name.as_deref().unwrap_or_default();
        let path = self.spelled.as_str();
        match self.kind {
            LayerKind::Model | LayerKind::ModelPart => selection.takes(FilterType::Model, &[name, path]),
            LayerKind::Dataset => selection.takes(FilterType::Datasets, &[name, path]),
            LayerKind::Prompt => selection.takes(FilterType::Prompts, &[name, path]),
            LayerKind::Code => selection.takes(FilterType::Code, &[path]),
            LayerKind::Docs => selection.takes(FilterType::Docs, &[path]),
        }
    }

    /// True if the globs let nothing of the layer show, which its declared path alone tells.
    pub fn is_ruled_out_by(&self, globs: &Globs) -> bool {
        globs.rules_out(&globs.reach(&self.path))
    }
}
