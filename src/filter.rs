//! What of a kit is wanted: kit's own filters, which choose layers, and globs, which choose paths.
//!
//! A [`Filter`] has the grammar and the meaning that `kit unpack --filter` gives it, so that a filter which works there works here. A layer is
//! taken if any filter takes it; names are compared letter by letter with the name of an entry of the Kitfile and with its path as it is
//! spelled there. Globs go further than kit: see [`Globs`].
//!
//! This module does not know what a layer is, nor where one stands; see `Kit::select`.

mod globs;

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::path::RelPath;

#[cfg(test)]
pub(crate) use globs::tests::ignored;
pub use globs::{Glob, GlobError, Globs, Reach};

/// What the user wants to have of a kit; everything, if he did not say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Layers are taken that any of these takes, or all if there is none.
    pub filters: Vec<Filter>,
    /// Which paths show.
    pub globs: Globs,
}

/// What shows of the layers that were taken.
#[derive(Debug, Clone, Default)]
pub struct Shown {
    /// Which paths show.
    pub globs: Globs,
    /// Declared paths of layers that were left out because nothing of them can show.
    pub left_out: Vec<RelPath>,
}

/// `TYPE[,TYPE…][:NAME[,NAME…]]`, as kit reads it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Filter {
    text: String,
    types: Vec<FilterType>,
    /// `None` takes every name.
    names: Option<Vec<String>>,
}

/// The types that a filter can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FilterType {
    /// The generated Kitfile.
    Kitfile,
    /// The model and its parts.
    Model,
    /// Datasets.
    Datasets,
    /// Code.
    Code,
    /// Prompts.
    Prompts,
    /// Documents.
    Docs,
    /// Bundles of MCP servers.
    McpServers,
}

/// Why a text is no filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// There is more than one colon.
    #[error("invalid filter: should be in format <type1>,<type2>[:<filter1>,<filter2>]")]
    Format,
    /// There is no such type.
    #[error("invalid filter type {0} (must be one of {all})", all = FilterType::ALL.map(FilterType::name).join(", "))]
    Type(String),
}

impl Selection {
    /// What is wanted of a kit that stands in for one type of another's, as the kit that a model refers to does; `None` if nothing is. As for
    /// kit, filters of other types have no say there, and those of this type go on with their names.
    pub fn of_referenced(&self, kind: FilterType) -> Option<Self> {
        let filters: Vec<Filter> = match self.filters[..] {
            [] => vec![Filter::new(vec![kind], None)],
            _ => {
                self.filters.iter().filter(|filter| filter.has(kind)).map(|filter| Filter::new(vec![kind], filter.names.clone())).collect()
            }
        };
        (!filters.is_empty()).then(|| Self { filters, globs: self.globs.clone() })
    }

    /// True if what is of this type and goes by any of `fields` is wanted. There may be globs against it still.
    pub fn takes(&self, kind: FilterType, fields: &[&str]) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| filter.takes(kind, fields))
    }
}

impl Filter {
    fn new(types: Vec<FilterType>, names: Option<Vec<String>>) -> Self {
        let types_text = types.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(",");
        let names_text = names.as_ref().map(|names| format!(":{}", names.join(","))).unwrap_or_default();
        Self { text: types_text + &names_text, types, names }
    }

    /// True if it takes what is of this type and goes by any of `fields`. The Kitfile goes by nothing: its type is enough.
    pub fn takes(&self, kind: FilterType, fields: &[&str]) -> bool {
        let named = |names: &Vec<String>| kind == FilterType::Kitfile || fields.iter().any(|field| names.iter().any(|name| name == field));
        self.types.contains(&kind) && self.names.as_ref().is_none_or(named)
    }

    /// True if it names the type.
    pub fn has(&self, kind: FilterType) -> bool {
        self.types.contains(&kind)
    }
}

impl FilterType {
    /// All of them, in kit's order.
    pub const ALL: [Self; 7] = [Self::Kitfile, Self::Model, Self::Datasets, Self::Code, Self::Prompts, Self::Docs, Self::McpServers];

    /// The type as a filter names it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kitfile => "kitfile",
            Self::Model => "model",
            Self::Datasets => "datasets",
            Self::Code => "code",
            Self::Prompts => "prompts",
            Self::Docs => "docs",
            Self::McpServers => "mcpservers",
        }
    }
}

impl FromStr for Filter {
    type Err = FilterError;

    fn from_str(text: &str) -> Result<Self, FilterError> {
        let (types, names) = match text.split(':').collect::<Vec<_>>()[..] {
            [types] => (types, None),
            [types, names] => (types, Some(names.split(',').map(str::to_owned).collect())),
            _ => return Err(FilterError::Format),
        };
        let kind = |name: &str| {
            let found = FilterType::ALL.into_iter().find(|kind| kind.name() == name);
            found.ok_or_else(|| FilterError::Type(name.to_owned()))
        };
        Ok(Self::new(types.split(',').map(kind).collect::<Result<_, _>>()?, names))
    }
}

impl TryFrom<String> for Filter {
    type Error = FilterError;

    fn try_from(text: String) -> Result<Self, FilterError> {
        text.parse()
    }
}

impl From<Filter> for String {
    fn from(filter: Filter) -> Self {
        filter.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_what_kit_takes() {
        for (filter, kind, fields, taken) in [
            ("model", FilterType::Model, &["w", "./m"][..], true),
            ("model", FilterType::Docs, &["m"], false),
            ("model,docs", FilterType::Docs, &["m"], true),
            ("model:w", FilterType::Model, &["w", "./m"], true),
            ("model:./m", FilterType::Model, &["w", "./m"], true),
            ("model:m", FilterType::Model, &["w", "./m"], false),
            ("model:W", FilterType::Model, &["w", "./m"], false),
            ("model:x,w", FilterType::Model, &["w", "./m"], true),
            ("model, w:x", FilterType::Model, &["x"], false),
            ("model:", FilterType::Model, &["w", "m"], false),
            ("model:", FilterType::Model, &["", "m"], true),
            ("model:,", FilterType::Model, &["w", ""], true),
            ("model:w*", FilterType::Model, &["w", "m"], false),
            ("kitfile:whatever", FilterType::Kitfile, &[], true),
            ("kitfile", FilterType::Kitfile, &[], true),
            ("docs,docs", FilterType::Docs, &["d"], true),
            ("prompts,mcpservers:a", FilterType::McpServers, &["a"], true),
        ] {
            match filter.parse::<Filter>() {
                Ok(parsed) => assert_eq!(parsed.takes(kind, fields), taken, "{filter} on {fields:?}"),
                Err(error) => assert!(!taken && filter.contains(' '), "{filter}: {error}"),
            }
        }
        let both = ["docs:d", "model:w"].map(|text| text.parse().expect(text));
        let both = Selection { filters: both.to_vec(), globs: Globs::default() };
        assert!(both.takes(FilterType::Docs, &["d"]) && both.takes(FilterType::Model, &["w"]) && !both.takes(FilterType::Docs, &["w"]));
        assert!(Selection::default().takes(FilterType::Code, &["x"]));
    }

    #[test]
    fn what_kit_rejects_is_rejected_in_its_words() {
        for (filter, part) in [
            ("", "invalid filter type  (must be one of kitfile, model, datasets, code, prompts, docs, mcpservers)"),
            ("dataset", "invalid filter type dataset (must be"),
            ("Model", "invalid filter type Model (must be"),
            ("model, docs", "invalid filter type  docs (must be"),
            ("model,", "invalid filter type  (must be"),
            (":x", "invalid filter type  (must be"),
            ("model:a:b", "should be in format <type1>,<type2>[:<filter1>,<filter2>]"),
            ("model::", "should be in format"),
            ("nothing:a:b", "should be in format"),
        ] {
            let error = filter.parse::<Filter>().expect_err(filter).to_string();
            assert!(error.contains(part), "{filter}: {error}");
        }
    }

    #[test]
    fn a_referenced_kit_is_asked_for_its_part_alone() {
        let of = |filters: &[&str]| {
            let filters = filters.iter().map(|text| text.parse().expect(text)).collect();
            let within = Selection { filters, globs: Globs::default() }.of_referenced(FilterType::Model)?;
            Some(within.filters.into_iter().map(String::from).collect::<Vec<_>>())
        };
        let texts = |texts: &[&str]| Some(texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        assert_eq!(of(&[]), texts(&["model"]));
        assert_eq!(of(&["kitfile,model:a,b", "docs", "model"]), texts(&["model:a,b", "model"]));
        assert_eq!(of(&["model:"]), texts(&["model:"]));
        assert_eq!(of(&["kitfile", "datasets:x"]), None);
    }

    #[test]
    fn a_selection_survives_being_written_down() {
        let globs = |texts: &[&str]| texts.iter().map(|text| text.parse().expect(text)).collect::<Vec<Glob>>();
        let selection = Selection {
            filters: vec!["model,docs:a,b".parse().expect("a filter")],
            globs: Globs::new(globs(&["/m/**", "*.[ch]"]), globs(&["x/"])),
        };
        let text = serde_json::to_string(&selection).expect("plain data");
        assert_eq!(serde_json::from_str::<Selection>(&text).expect("its own text"), selection);
        assert!(serde_json::from_str::<Selection>(&text.replace("model", "motel")).is_err());
    }
}
