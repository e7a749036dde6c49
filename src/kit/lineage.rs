//! A kit together with the kits that it refers to, and the one list of layers that a mount of it shows.
//!
//! A kit can say that its model is another kit; then that kit's model and model parts stand in its own root. It can also say that a dataset is another
//! kit; then that kit's datasets stand below the dataset's path, if the user wants that. Both go on in the kits that are referred to. What is
//! followed, in which order and to where is decided here alone, from manifests and configs: [`Growing`] asks for one kit after the other, and
//! who answers is either the resolver, which looks for them, or a worker, which has them in its plan.

use bytes::Bytes;

use super::reference::KitReference;
use super::{Kit, KitError, KitLayer, LayerKind, RemoteDataset, settle_meanings, shared};
use crate::digest::Digest;
use crate::filter::{FilterType, Selection, Shown};
use crate::limits::{REFERENCED_KITS, REFERENCES_IN_A_ROW, REFERRING_DOCUMENT_BYTES, REMOTE_DATASETS};
use crate::node::SLOTS_MAX;
use crate::path::{PathError, RelPath};
use crate::verify::Verified;

/// A kit with all that it refers to.
#[derive(Debug, Clone)]
pub struct Lineage {
    /// The layers that are shown, in the order in which kit would unpack them: what is referred to first.
    pub layers: Vec<KitLayer>,
    /// Datasets that live elsewhere and are no part of the mount.
    pub remote: Vec<RemoteDataset>,
    /// The root's generated Kitfile, if it has one that is wanted.
    pub kitfile: Option<Bytes>,
    /// What globs let show.
    pub shown: Shown,
    members: Vec<Member>,
    /// For each layer the member that it belongs to.
    owners: Vec<usize>,
}

/// One of the kits.
#[derive(Debug, Clone)]
pub struct Member {
    /// What it is called: the reference that the user gave, or the one in the Kitfile that refers to it.
    pub name: String,
    /// Its own plan.
    pub kit: Kit,
    /// Its documents.
    pub documents: Documents,
    link: Option<Link>,
    /// What of it is wanted.
    selection: Selection,
}

/// Manifest and config of a kit.
#[derive(Debug, Clone)]
pub struct Documents {
    /// The manifest.
    pub manifest: Verified<Bytes>,
    /// The config.
    pub config: Verified<Bytes>,
}

/// What of a kit is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything.
    Whole,
    /// The model and its parts.
    Model,
    /// The datasets.
    Datasets,
}

/// How a kit is referred to.
#[derive(Debug, Clone)]
struct Link {
    from: usize,
    part: Part,
    /// The folder that stands for the kit's root.
    root: RelPath,
}

/// A kit that is wanted next.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What it is called.
    pub reference: KitReference,
    link: Link,
    selection: Selection,
}

/// A lineage that is not complete yet.
#[derive(Debug)]
pub struct Growing {
    members: Vec<Member>,
    /// What is still to be followed; the last one is next.
    open: Vec<Wanted>,
    remote: Vec<RemoteDataset>,
    include_remote: bool,
}

/// Why kits cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    /// A kit refers to itself, directly or not.
    #[error("the references of this kit go round in a circle: {}", shown(.0))]
    Circle(Vec<String>),
    /// One refers to the next too often.
    #[error("more than {REFERENCES_IN_A_ROW} references follow one another: {}", shown(.0))]
    TooLong(Vec<String>),
    /// There are too many in all.
    #[error("the kit refers to more than {REFERENCED_KITS} kits in all; the last would be {}", shown(.0))]
    TooMany(Vec<String>),
    /// Too many datasets live elsewhere.
    #[error("{0} datasets live elsewhere, {REMOTE_DATASETS} may")]
    TooManyRemote(usize),
    /// Their manifests and configs are too large.
    #[error("manifests and configs of {0} and all that it refers to have more than {REFERRING_DOCUMENT_BYTES} bytes in all")]
    Documents(String),
    /// They have too many layers.
    #[error("the kit and all that it refers to have {0} layers, {SLOTS_MAX} are possible")]
    TooManyLayers(usize),
    /// A path is one within its kit, and none below the dataset that stands for it.
    #[error("{kit} has a path that cannot stand below the dataset at `{below}`")]
    Path {
        /// The kit that has it.
        kit: String,
        /// Where the kit would stand.
        below: RelPath,
        /// What is wrong with the path there.
        #[source]
        source: PathError,
    },
    /// What two of them say of a layer does not agree.
    #[error("{0} and the kits that it refers to do not agree")]
    Disagree(String, #[source] Box<KitError>),
}

impl Documents {
    /// The plan of the kit.
    pub fn plan(&self) -> Result<Kit, KitError> {
        Kit::plan(&self.manifest, &self.config)
    }

    fn bytes(&self) -> u64 {
        (self.manifest.len() as u64).saturating_add(self.config.len() as u64)
    }
}

impl Part {
    /// As it is shown.
    pub fn name(self) -> &'static str {
        match self {
            Self::Whole => "everything",
            Self::Model => "model",
            Self::Datasets => "datasets",
        }
    }

    fn has(self, kind: LayerKind) -> bool {
        match self {
            Self::Whole => true,
            Self::Model => kind.is_of_model(),
            Self::Datasets => kind == LayerKind::Dataset,
        }
    }
}

impl Growing {
    /// Begins with the kit that the user named, of which `selection` is wanted. With `include_remote`, kits that stand for datasets are followed too.
    pub fn new(name: String, kit: Kit, documents: Documents, selection: Selection, include_remote: bool) -> Result<Self, LineageError> {
        let mut growing = Self { members: Vec::new(), open: Vec::new(), remote: Vec::new(), include_remote };
        growing.push(Member { name, kit, documents, link: None, selection })?;
        Ok(growing)
    }

    /// The kit that is wanted next, if there is one still.
    pub fn wanted(&mut self) -> Result<Option<Wanted>, LineageError> {
        let Some(wanted) = self.open.pop() else { return Ok(None) };
        let chain = self.chain(&wanted);
        // Neither end counts: ten references make a chain of eleven kits.
        if chain.len() - 1 > REFERENCES_IN_A_ROW {
            return Err(LineageError::TooLong(chain));
        }
        Ok(Some(wanted))
    }

    /// The names from the root's to that of `wanted`.
    pub fn chain(&self, wanted: &Wanted) -> Vec<String> {
        let mut chain: Vec<String> = self.line(&wanted.link).map(|member| member.name.clone()).collect();
        chain.reverse();
        chain.push(wanted.reference.to_string());
        chain
    }

    /// Takes the kit that was wanted.
    pub fn add(&mut self, wanted: Wanted, kit: Kit, documents: Documents) -> Result<(), LineageError> {
        // By what they are, and not by what they are called: a kit has many names.
        if self.line(&wanted.link).any(|member| member.kit.manifest.digest == kit.manifest.digest) {
            return Err(LineageError::Circle(self.chain(&wanted)));
        }
        self.push(Member { name: wanted.reference.to_string(), kit, documents, link: Some(wanted.link), selection: wanted.selection })
    }

    /// Puts them together, when none is wanted any more.
    pub fn finish(self) -> Result<Lineage, LineageError> {
        let root = &self.members[0];
        let globs = root.selection.globs.clone();
        let mut lineage = Lineage {
            layers: Vec::new(),
            remote: self.remote,
            kitfile: root.kit.kitfile.clone().filter(|_| root.selection.shows_kitfile()),
            shown: Shown { globs: globs.clone(), left_out: Vec::new() },
            members: self.members,
            owners: Vec::new(),
        };
        for member in lineage.in_order() {
            for layer in lineage.members[member].shown_layers()? {
                if layer.is_ruled_out_by(&globs) {
                    lineage.shown.left_out.push(layer.path);
                } else {
                    lineage.layers.push(layer);
                    lineage.owners.push(member);
                }
            }
        }
        if lineage.layers.len() > SLOTS_MAX {
            return Err(LineageError::TooManyLayers(lineage.layers.len()));
        }
        settle_meanings(&mut lineage.layers).map_err(|error| LineageError::Disagree(lineage.members[0].name.clone(), Box::new(error)))?;
        Ok(lineage)
    }

    /// The member that a link comes from, the one that refers to that, and so on to the root.
    fn line(&self, link: &Link) -> impl Iterator<Item = &Member> {
        let member = |position: usize| self.members.get(position);
        std::iter::successors(member(link.from), move |below| below.link.as_ref().and_then(|link| member(link.from)))
    }

    fn push(&mut self, member: Member) -> Result<(), LineageError> {
        let from = self.members.len();
        let (part, root) = (member.part(), member.root());
        let mut wanted = Vec::new();
        if let Some(reference) = member.kit.model_reference.clone().filter(|_| part.has(LayerKind::Model))
            && let Some(selection) = member.selection.of_referenced(FilterType::Model)
        {
            wanted.push(Wanted { reference, link: Link { from, part: Part::Model, root: root.clone() }, selection });
        }
        let datasets = member.selection.of_referenced(FilterType::Datasets).filter(|_| part.has(LayerKind::Dataset));
        for (set, selection) in member.kit.remote.iter().zip(std::iter::repeat(datasets).map_while(|selection| selection)) {
            let path = member.below_root(&set.path)?;
            match set.reference.clone().filter(|_| self.include_remote) {
                Some(reference) => wanted.push(Wanted { reference, link: Link { from, part: Part::Datasets, root: path }, selection }),
                None => self.remote.push(RemoteDataset { path, ..set.clone() }),
            }
        }
        self.open.extend(wanted.into_iter().rev());
        self.members.push(member);
        // The root counts for none.
        if let Some(last) = self.open.first().filter(|_| self.members.len() + self.open.len() > REFERENCED_KITS + 1) {
            return Err(LineageError::TooMany(self.chain(last)));
        }
        if self.remote.len() > REMOTE_DATASETS {
            return Err(LineageError::TooManyRemote(self.remote.len()));
        }
        let bytes = self.members.iter().map(|member| member.documents.bytes()).fold(0, u64::saturating_add);
        if bytes > REFERRING_DOCUMENT_BYTES {
            return Err(LineageError::Documents(self.members[0].name.clone()));
        }
        Ok(())
    }
}

impl Lineage {
    /// The kit that the user named.
    pub fn root(&self) -> &Kit {
        &self.members[0].kit
    }

    /// All kits, the root first, then in the order in which [`Growing`] asked for them.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Which member the layer at `position` belongs to.
    pub fn owner(&self, position: usize) -> usize {
        self.owners[position]
    }

    /// The kits that are referred to and bring nothing, neither themselves nor by what they refer to.
    pub fn empty_handed(&self) -> impl Iterator<Item = &Member> {
        let brings = |member: usize| self.owners.contains(&member) || self.members.iter().any(|other| other.is_from(member));
        self.members.iter().enumerate().skip(1).filter(move |(position, _)| !brings(*position)).map(|(_, member)| member)
    }

    /// The layers that the listing of a folder depends on which other layers share. Positions in [`Lineage::layers`].
    pub fn shared(&self) -> Vec<usize> {
        shared(&self.layers)
    }

    /// What each member refers to before itself, in the order of the members.
    fn in_order(&self) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.members.len());
        // Members were asked for depth first, so whoever refers to others stands before them, and they before whatever else its own referrer wants.
        let mut line: Vec<usize> = Vec::new();
        for (position, member) in self.members.iter().enumerate() {
            let from = member.link.as_ref().map(|link| link.from);
            while line.last().copied() != from {
                let Some(complete) = line.pop() else { break };
                order.push(complete);
            }
            line.push(position);
        }
        order.extend(line.into_iter().rev());
        order
    }
}

impl Member {
    /// What of it is shown.
    pub fn part(&self) -> Part {
        self.link.as_ref().map_or(Part::Whole, |link| link.part)
    }

    /// The folder of the mount that stands for its root.
    pub fn root(&self) -> RelPath {
        self.link.as_ref().map_or_else(RelPath::root, |link| link.root.clone())
    }

    /// The kit's digest, which is what it is pinned by.
    pub fn digest(&self) -> Digest {
        self.kit.manifest.digest
    }

    fn is_from(&self, position: usize) -> bool {
        self.link.as_ref().is_some_and(|link| link.from == position)
    }

    fn shown_layers(&self) -> Result<Vec<KitLayer>, LineageError> {
        let part = self.part();
        let layers = self.kit.layers.iter().filter(|layer| part.has(layer.kind) && layer.is_taken_by(&self.selection));
        let moved = layers.map(|layer| {
            let (path, prefix) = (self.below_root(&layer.path)?, self.below_root(&layer.prefix)?);
            Ok(KitLayer { path, prefix, ..layer.clone() })
        });
        moved.collect()
    }

    /// A path of the kit, as one of the mount.
    fn below_root(&self, path: &RelPath) -> Result<RelPath, LineageError> {
        let root = self.root();
        path.components().try_fold(root.clone(), |above, name| above.join(name)).map_err(|source| LineageError::Path {
            kit: self.name.clone(),
            below: root,
            source,
        })
    }
}

/// Names from the first to the last.
fn shown(chain: &[String]) -> String {
    chain.join(" => ")
}

#[cfg(test)]
mod tests;
