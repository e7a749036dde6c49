//! A decision while something goes wrong: it is right, or there is none. Nothing is admitted by what was not verified, and an outage is no refusal.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use crate::asked::{Answer, REPOSITORY, Scene};
use crate::common::process::run;
use crate::common::registry::{Fault, Gate, ONCE, Target, Times, fallback_tag};
use crate::common::signer::Signer;

/// Within this every decision is over, whatever happens: a minute for it, and a little for the program around it.
const LIMIT: Duration = Duration::from_secs(65);

/// Decisions that are waited for beside each other. They wait; they do not work.
const BESIDE: usize = 16;

/// Where it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spot {
    Page,
    SecondPage,
    IndexAtTag,
    BundleManifest,
    Bundle,
    LegacyManifest,
    LegacyLayer,
}

const SPOTS: [Spot; 7] =
    [Spot::Page, Spot::SecondPage, Spot::IndexAtTag, Spot::BundleManifest, Spot::Bundle, Spot::LegacyManifest, Spot::LegacyLayer];

impl Spot {
    /// A kit whose one good signature is only found by way of this, and how to break it.
    fn scene(self) -> (Scene, Target) {
        let scene = if self == Self::IndexAtTag { Scene::without_api() } else { Scene::new() };
        let digest = scene.kit.digest();
        let target = match self {
            Self::Page => {
                scene.sign();
                Target::Referrers
            }
            Self::SecondPage => {
                Signer::new().attach(&scene.registry, REPOSITORY, &digest);
                scene.sign();
                scene.registry.list_referrers(1);
                Target::Ask("?page=1".into())
            }
            Self::IndexAtTag => {
                scene.sign();
                Target::Ask(fallback_tag(&digest))
            }
            Self::BundleManifest => Target::Content(scene.sign().manifest),
            Self::Bundle => Target::Content(scene.sign().blob),
            Self::LegacyManifest | Self::LegacyLayer => {
                let attached = legacy(&scene);
                if self == Self::LegacyLayer {
                    Target::Content(attached.blob)
                } else {
                    Target::Ask(format!("{}.sig", fallback_tag(&digest)))
                }
            }
        };
        (scene, target)
    }

    /// Whether what is there has a digest that it is asked by.
    fn is_candidate(self) -> bool {
        matches!(self, Self::BundleManifest | Self::Bundle | Self::LegacyLayer)
    }
}

fn legacy(scene: &Scene) -> crate::common::signer::Attached {
    let name = format!("{}/{REPOSITORY}", scene.registry.host());
    scene.signer.attach_legacy(&scene.registry, REPOSITORY, &name, &scene.kit.digest())
}

/// What may come of a fault that lasts, as exit codes, where the one good signature is behind it.
fn outcomes(spot: Spot, fault: &Fault) -> &'static [i32] {
    match fault {
        // A registry that listed one page has the API: that it does not give the next is no answer.
        Fault::Status(404, _) if spot == Spot::SecondPage => &[1],
        // There is no such thing, which is an answer. Other codes say "no such API", but of tags they say nothing.
        Fault::Status(404, _) => &[3],
        Fault::Status(400 | 405 | 406 | 501, _) if spot == Spot::Page => &[3],
        // What came is not what it should be, so it does not count.
        Fault::Flip(_) | Fault::Truncate(_) | Fault::Append(_) | Fault::Swap(_) if spot.is_candidate() => &[3],
        // A list or tag has no digest: what came is no list, or it is a wrong one. It may not have said what to look at.
        Fault::Flip(_) | Fault::Truncate(_) | Fault::Append(_) | Fault::Swap(_) => &[1, 3],
        // The place that it leads to is another host, whose failures say that there is no such API.
        Fault::RedirectTo(_) if spot == Spot::Page => &[1, 3],
        // Slowly, but it comes.
        Fault::Slow(_) => &[0],
        _ => &[1],
    }
}

fn faults() -> Vec<Fault> {
    let mut all: Vec<_> = [400, 401, 403, 404, 405, 406, 429, 500, 501, 502, 503, 504].map(Fault::status).into();
    all.extend([
        Fault::retry_after(429, 1),
        Fault::retry_after(503, 3600),
        Fault::Reset,
        Fault::ResetAt(10),
        Fault::Cut(10),
        Fault::Flip(0),
        Fault::Flip(30),
        Fault::Truncate(0),
        Fault::Truncate(10),
        Fault::Append(b"{}".to_vec()),
        Fault::Swap(b"{}".to_vec()),
        Fault::Swap(vec![b'['; 1 << 20]),
        Fault::WrongLength(7),
        Fault::Hold(Gate::new()),
        Fault::HoldAt(5, Gate::new()),
        Fault::Slow(2000),
        Fault::RedirectLoop,
        Fault::RedirectTo("http://127.0.0.1:1/".into()),
    ]);
    all
}

#[test]
fn a_fault_that_lasts_admits_nothing_and_an_outage_is_no_refusal() {
    let jobs = SPOTS.into_iter().flat_map(|spot| faults().into_iter().map(move |fault| (spot, fault)));
    beside(jobs.collect(), |(spot, fault)| {
        // The bytes at the same place may be another hint, which decides nothing.
        let harmless = matches!(fault, Fault::Flip(30)) && !spot.is_candidate();
        let (scene, target) = spot.scene();
        scene.registry.fault(target, Times::Always, fault.clone());
        let code = explain(&scene).output.code();
        assert!(outcomes(*spot, fault).contains(&code) || (harmless && code == 0), "exit code {code}");
    });
}

#[test]
fn a_fault_that_passes_is_got_over_or_is_an_error() {
    let kinds = [Fault::status(500), Fault::status(503), Fault::retry_after(429, 1), Fault::Reset, Fault::ResetAt(10), Fault::Cut(10)];
    let jobs = SPOTS.into_iter().flat_map(|spot| kinds.clone().into_iter().map(move |fault| (spot, fault)));
    beside(jobs.collect(), |(spot, fault)| {
        let (scene, target) = spot.scene();
        scene.registry.fault(target, ONCE, fault.clone());
        let answer = explain(&scene);
        assert!([0, 1].contains(&answer.output.code()), "{answer:#?}");
        // Another try, now that all is well.
        explain(&scene).assert_admitted();
    });
}

#[test]
fn what_was_verified_admits_however_broken_the_rest() {
    let kinds = [Fault::status(404), Fault::status(500), Fault::status(403), Fault::Reset, Fault::Flip(0), Fault::Hold(Gate::new())];
    let jobs = SPOTS.into_iter().flat_map(|spot| kinds.clone().into_iter().map(move |fault| (spot, fault)));
    beside(jobs.collect(), |(spot, fault)| {
        let (scene, target) = spot.scene();
        // The other way to the same signer, which is whole.
        if matches!(spot, Spot::LegacyManifest | Spot::LegacyLayer) {
            scene.sign();
        } else {
            legacy(&scene);
        }
        scene.registry.fault(target, Times::Always, fault.clone());
        explain(&scene).assert_admitted();
    });
}

#[test]
fn what_a_fault_puts_in_the_place_of_a_signature_does_not_count() {
    // A good signature, but of another kit, and a foreign one of this kit.
    for spot in [Spot::Bundle, Spot::LegacyLayer] {
        let (scene, target) = spot.scene();
        let other = crate::asked::kit_of("Another.").digest();
        for swapped in [scene.signer.bundle(&other, crate::common::signer::SIGNATURE, &serde_json::json!({})), Vec::new()] {
            scene.registry.mend();
            scene.registry.fault(target.clone(), Times::Always, Fault::Swap(swapped));
            let answer = explain(&scene);
            assert_eq!(answer.decision(), "deny", "{spot:?}: {answer:#?}");
        }
    }
}

#[test]
fn a_refusal_needs_no_layer_and_an_outage_mounts_nothing() {
    let scene = Scene::new();
    scene.sign();
    scene.registry.fault(Target::Referrers, Times::Always, Fault::status(503));
    let output = scene.asked.mount(&scene.host).expect_err("not decided");
    assert!(output.code() == 1 && output.stderr.contains("503"), "{output:#?}");
    let output = scene.asked.pull(&scene.host);
    assert_eq!(output.code(), 1, "{output:#?}");
    assert_eq!(scene.layers_asked(), 0);
    crate::asked::assert_no_layers(&scene.host.cache());
}

/// Requests for a cold decision over a kit that is signed by a key, in a registry with the referrers API: its list, beside it the tags of the older
/// format, then the manifest around the bundle, and the bundle.
const DECIDING: [&str; 5] = ["/referrers/", ".sig", ".att", "/manifests/sha256:", "/blobs/"];

#[test]
fn the_round_trips_of_a_cold_decision_are_counted() {
    let scene = Scene::new();
    scene.sign();
    let mut plain = scene.asked.clone();
    plain.options.clear();
    scene.host.kitfs(&plain.arguments(&["inspect"])).ok();
    let without = scene.registry.log().len();
    let other = Scene { host: crate::common::kitfs::Host::new(scene.host.mode()), ..scene };
    other.registry.clear_log();
    explain(&other).assert_admitted();
    let log = other.registry.log();
    // What the kit takes is the same; the rest is the decision's.
    let mut more: Vec<_> = log.iter().skip(without).map(|request| request.path.as_str()).collect();
    assert_eq!(more.len(), DECIDING.len(), "{log:#?}");
    for wanted in DECIDING {
        let found = more.iter().position(|path| path.contains(wanted) && (wanted.starts_with('.') || !path.contains("sha256-")));
        more.remove(found.unwrap_or_else(|| panic!("{wanted} is not among {more:#?}")));
    }
}

fn explain(scene: &Scene) -> Answer {
    let output = run(&mut scene.host.command(&scene.asked.arguments(&["explain", "--json"])), LIMIT);
    let answer = Answer::read(output);
    _ = answer.decision();
    answer
}

/// Does `work` for each job, many at a time, and tells of all that failed.
fn beside(jobs: Vec<(Spot, Fault)>, work: impl Fn(&(Spot, Fault)) + Sync) {
    let (count, wrong) = (jobs.len(), Mutex::new(Vec::new()));
    let jobs = Mutex::new(jobs);
    thread::scope(|scope| {
        for _ in 0..BESIDE {
            scope.spawn(|| {
                while let Some(job) = { jobs.lock().expect("no panic with it").pop() } {
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&job))) {
                        let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                        wrong.lock().expect("no panic with it").push(format!("--- {job:?}: {text}"));
                    }
                }
            });
        }
    });
    let wrong = wrong.into_inner().expect("no panic with it");
    assert!(wrong.is_empty(), "{} of {count}:\n{}", wrong.len(), wrong.join("\n"));
}
