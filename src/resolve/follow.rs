//! From one kit to all that it refers to, and the one place that says where a reference of a Kitfile is looked for.

use std::collections::HashMap;

use super::{Asking, One, Pinned, ResolveError};
use crate::failure::ErrorClass;
use crate::kit::{Growing, KitReference, Wanted};
use crate::oci::Reference;

/// Finds the kit at `root` and follows its references.
pub(super) fn lineage(asking: &Asking<'_>, root: &Reference, include_remote: bool) -> Result<Pinned, ResolveError> {
    let One { found, kit, documents } = asking.one(root)?;
    let mut growing = Growing::new(root.to_string(), kit, documents, include_remote)?;
    let mut all = vec![found];
    // What a reference means is decided once, however often it is met.
    let mut known: HashMap<Reference, One> = HashMap::new();
    while let Some(wanted) = growing.wanted()? {
        let meant = wanted.reference.meant();
        let one = match known.get(meant) {
            Some(one) => one.clone(),
            None => referred(asking, root, &wanted).map_err(|source| {
                let chain = growing.chain(&wanted);
                ResolveError::Reference { chain, source: Box::new(source) }
            })?,
        };
        known.insert(meant.clone(), one.clone());
        growing.add(wanted, one.kit, one.documents)?;
        all.push(one.found);
    }
    Ok(Pinned { lineage: growing.finish()?, found: all })
}

/// Finds a kit that another one refers to.
fn referred(asking: &Asking<'_>, root: &Reference, wanted: &Wanted) -> Result<One, ResolveError> {
    let places = places(root, &wanted.reference);
    let reference = wanted.reference.to_string();
    for (tried, place) in places.iter().enumerate() {
        match asking.one(place) {
            Err(error) if error.class() == ErrorClass::Missing && tried + 1 < places.len() => {}
            Err(error) if tried > 0 => {
                let looked_for = places.iter().map(ToString::to_string).collect();
                return Err(ResolveError::Nowhere { reference, looked_for, source: Box::new(error) });
            }
            outcome => return outcome,
        }
    }
    Err(ResolveError::LocalStorage { reference })
}

/// Where a kit is looked for that a Kitfile calls `reference`, the first place first; nowhere, if that is kit's own storage, which is not read.
///
/// Whoever gave a layout by name wants the kits in it, so what stands beside the root goes before everything else, whoever it is that refers to it. Then
/// comes the registry that the reference names. A reference without one means kit's own storage.
fn places(root: &Reference, reference: &KitReference) -> Vec<Reference> {
    let meant = reference.meant();
    let mut places: Vec<Reference> = reference.names().iter().filter_map(|name| root.beside(name, meant.digest())).collect();
    if !reference.is_local() {
        places.push(meant.clone());
    }
    places
}
