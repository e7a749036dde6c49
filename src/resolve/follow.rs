//! From one kit to all that it refers to, and the one place that says where a reference of a Kitfile is looked for.

use std::collections::HashMap;

use super::{Arrived, Asking, Gate, Pinned, ResolveError};
use crate::failure::ErrorClass;
use crate::filter::Selection;
use crate::kit::{Growing, KitReference, Wanted};
use crate::oci::Reference;

/// Finds the kit at `root` and follows its references, as far as the gate lets them through.
pub(super) fn lineage(
    asking: &mut Asking<'_>,
    root: &Reference,
    selection: Selection,
    include_remote: bool,
    gate: &mut Gate<'_>,
) -> Result<Pinned, ResolveError> {
    let arrived = asking.one(root, &root.to_string())?;
    asking.pass(gate, &arrived)?;
    let Arrived { found, kit, documents, .. } = arrived;
    let mut growing = Growing::new(root.to_string(), kit, documents, selection, include_remote)?;
    let mut all = vec![found];
    // What a reference means is decided once, however often it is met.
    let mut known: HashMap<Reference, Arrived> = HashMap::new();
    while let Some(wanted) = growing.wanted()? {
        let meant = wanted.reference.meant();
        let one = match known.get(meant) {
            Some(one) => one.clone(),
            None => {
                let arrived = referred(asking, root, &wanted).and_then(|arrived| asking.pass(gate, &arrived).map(|()| arrived));
                arrived.map_err(|source| ResolveError::Reference { chain: growing.chain(&wanted), source: Box::new(source) })?
            }
        };
        known.insert(meant.clone(), one.clone());
        growing.add(wanted, one.kit, one.documents)?;
        all.push(one.found);
    }
    Ok(Pinned { lineage: growing.finish()?, found: all })
}

/// Finds a kit that another one refers to.
fn referred(asking: &Asking<'_>, root: &Reference, wanted: &Wanted) -> Result<Arrived, ResolveError> {
    let name = wanted.reference.to_string();
    let (places, last) = places(root, &wanted.reference);
    for place in &places {
        match asking.one(place, &name) {
            Err(error) if error.class() == ErrorClass::Missing => {}
            outcome => return outcome,
        }
    }
    asking.one(&last, &name).map_err(|error| match places.is_empty() {
        true => error,
        false => {
            let looked_for = places.iter().chain([&last]).map(ToString::to_string).collect();
            ResolveError::Nowhere { reference: wanted.reference.to_string(), looked_for, source: Box::new(error) }
        }
    })
}

/// Where a kit is looked for that a Kitfile calls `reference`: first in these places, one after the other, and last in that one.
///
/// Whoever gave a layout, or kit's storage, by name wants the kits in it, so what stands beside the root goes before everything else, whoever it is that
/// refers to it. Last comes what the reference itself means: the registry that it names, or kit's own storage if it names none.
fn places(root: &Reference, reference: &KitReference) -> (Vec<Reference>, Reference) {
    let last = reference.meant();
    let beside = |name: &String| root.beside(name, last.digest()).filter(|place| place != last);
    (reference.names().iter().filter_map(beside).collect(), last.clone())
}
