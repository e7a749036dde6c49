//! The kits of a plan: what the resolver decided is checked and put together again at each start of a worker, and nothing is decided anew.

use bytes::Bytes;

use crate::descriptor::Descriptor;
use crate::digest::Digest;
use crate::kit::{Documents, Growing, Lineage};
use crate::oci::Manifest;
use crate::plan::{MountPlan, PlannedKit};
use crate::verify::Unverified;

/// The kits of the plan, followed once more as the resolver followed them.
pub(super) fn lineage(plan: &MountPlan) -> Result<Lineage, Box<dyn std::error::Error>> {
    let documents = checked(plan.digest, &plan.manifest, &plan.config)?;
    let mut growing =
        Growing::new(plan.reference.clone(), documents.plan()?, documents, plan.mounting.selection.clone(), plan.mounting.include_remote)?;
    let mut planned = plan.references.iter();
    while let Some(wanted) = growing.wanted()? {
        let PlannedKit { found, manifest, config } = planned.next().ok_or("the plan lacks a kit that another one refers to")?;
        if found.reference != wanted.reference.written() {
            return Err(format!("the plan has {} where {} is referred to", found.reference, wanted.reference).into());
        }
        let documents = checked(found.digest, manifest, config)?;
        growing.add(wanted, documents.plan()?, documents)?;
    }
    if planned.next().is_some() {
        return Err("the plan has a kit that no other one refers to".into());
    }
    Ok(growing.finish()?)
}

/// Manifest and config, checked against their digests once more: they came through memory that another process wrote.
fn checked(digest: Digest, manifest: &[u8], config: &[u8]) -> Result<Documents, Box<dyn std::error::Error>> {
    let descriptor = Descriptor { media_type: String::new(), digest, size: manifest.len() as u64 };
    let manifest = Unverified::new(Bytes::copy_from_slice(manifest)).verify(&descriptor)?;
    let config = Unverified::new(Bytes::copy_from_slice(config)).verify(&Manifest::parse(&manifest)?.config)?;
    Ok(Documents { manifest, config })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{self, verified};
    use crate::kit::Kit;
    use crate::oci::IMAGE_MANIFEST;
    use crate::plan::ReferenceRecord;

    /// The plan of the fixture with three kits.
    fn plan() -> MountPlan {
        let case = fixtures::cases("kits").into_iter().find(|case| case.name == "reference-chain").expect("the case");
        let kits = case.kits();
        let planned = |name: &str| {
            let reference = format!("registry.example.com/team/{name}:v1");
            let manifest = verified(IMAGE_MANIFEST, kits[&reference].clone());
            let config = case.blob(&Kit::config(&manifest).expect("a kit"));
            let found = ReferenceRecord {
                digest: manifest.descriptor().digest,
                pinned_by: "source".into(),
                source: reference.clone(),
                part: "model".into(),
                path: ".".into(),
                reference,
            };
            PlannedKit { found, manifest: manifest.to_vec(), config: config.to_vec() }
        };
        let root = planned("top");
        let mut plan = MountPlan::of_nothing();
        (plan.reference, plan.digest) = (root.found.reference, root.found.digest);
        (plan.manifest, plan.config) = (root.manifest, root.config);
        plan.references = vec![planned("mid"), planned("base")];
        plan
    }

    #[test]
    fn what_was_planned_is_put_together_again() {
        let lineage = lineage(&plan()).expect("a lineage");
        assert_eq!((lineage.members().len(), lineage.layers.len()), (3, 6));
    }

    #[test]
    fn nothing_else_is() {
        type Change = fn(&mut MountPlan);
        let changes: [(Change, &str); 8] = [
            (|plan| plan.manifest[9] ^= 1, "digest"),
            (|plan| plan.config[9] ^= 1, "digest"),
            (|plan| plan.references[0].manifest[9] ^= 1, "digest"),
            (|plan| plan.references[1].config.push(b' '), "bytes"),
            (|plan| plan.references.swap(0, 1), "base:v1 where registry.example.com/team/mid:v1"),
            (|plan| drop(plan.references.pop()), "lacks a kit"),
            (|plan| plan.references.push(plan.references[0].clone()), "no other one refers to"),
            (|plan| plan.references[0].found.reference.push('x'), "mid:v1x where"),
        ];
        for (change, part) in changes {
            let mut changed = plan();
            change(&mut changed);
            let error = lineage(&changed).expect_err(part);
            assert!(error.to_string().contains(part), "{part}: {error}");
        }
    }
}
