//! kitfs is replaced on disk while mounts live: which program the next worker is, and what commands of one version say to a supervisor of another.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::kitfs::{Host, Mode, Mount, SOON, binary};
use crate::common::pack::Kit;
use crate::common::process::{make_program, require, run, within};
use crate::common::registry::Registry;
use crate::common::shown::{assert_shows, of_tree, read};
use crate::kits::standard;

const LIMIT: Duration = Duration::from_secs(60);

/// A mount by a kitfs that is installed on the host, and can be replaced there.
struct Installed {
    mount: Mount,
    kit: Kit,
    program: PathBuf,
    /// What the supervisor was made of.
    old: u64,
    /// Open since the mount was made.
    held: File,
    _registry: Registry,
}

impl Installed {
    fn new() -> Self {
        let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start(), standard());
        let reference = kit.serve(&registry, "acme/standard", "v1");
        let program = host.root().join("usr/bin/kitfs");
        fs::create_dir_all(program.parent().expect("a folder")).expect("room");
        copy(&program, 0o755);
        let point = host.folder("mnt");
        let mut command = Command::new(&program);
        host.environment(&mut command).args(["mount", "--plain-http", "--prefetch", "none", &reference]).arg(&point);
        let mount = host.guard(&point);
        run(&mut command, SOON).ok();
        let path = mount.path("model/model.safetensors");
        let held = within(LIMIT, "an open", move || File::open(path)).expect("readable");
        let old = fs::metadata(&program).expect("there").ino();
        assert_eq!(program_of(mount.worker_pid()), old);
        Self { mount, kit, program, old, held, _registry: registry }
    }

    /// Puts what `make` makes into the program's place, as package managers do it.
    fn replace(&self, make: impl FnOnce(&Path)) {
        let new = self.program.with_extension("new");
        make(&new);
        fs::rename(new, &self.program).expect("the same folder");
    }

    /// Ends the worker, and says what the next one is made of.
    fn next(&self) -> u64 {
        let next = self.mount.await_other_worker(self.mount.kill_worker());
        assert_eq!(program_of(self.mount.supervisor_pid()), self.old, "a supervisor stays what it is");
        program_of(next)
    }

    fn end(self) {
        drop(self.held);
        self.mount.umount().ok();
    }

    fn assert_whole(&self) {
        let (point, wanted) = (self.mount.point().to_owned(), of_tree(&self.kit.tree));
        within(LIMIT, "reading everything", move || assert_shows(&point, &wanted));
        let mut held = self.held.try_clone().expect("a descriptor");
        let right = self.kit.tree.content("model/model.safetensors").to_vec();
        within(LIMIT, "reading what is open", move || {
            use std::io::{Read as _, Seek as _};
            held.rewind().expect("a file");
            let mut content = Vec::new();
            held.read_to_end(&mut content).expect("readable");
            assert!(content == right, "wrong bytes");
        });
    }
}

/// A copy of the program under test that is another file. Behind the end of a program nobody looks.
fn copy(path: &Path, mode: u32) {
    make_program("cp -- \"$2\" \"$1\" && printf 'another build' >> \"$1\"", path, binary().as_os_str());
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
}

/// A program that does something else.
fn compiled(path: &Path, code: &str) {
    require("cc", "apt-get install gcc");
    let source = path.with_extension("c");
    let spoken = run(Command::new(binary()).arg("__protocol"), SOON).ok().stdout;
    let code = format!(
        "#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\n#define SPOKEN {}\nint main(int count, char **words) {{ {code} }}\n",
        json!(spoken)
    );
    fs::write(&source, code).expect("room");
    run(Command::new("cc").arg("-o").arg(path).arg(&source), SOON).ok();
    fs::remove_file(source).expect("ours");
}

fn program_of(pid: i32) -> u64 {
    fs::metadata(format!("/proc/{pid}/exe")).expect("it runs").ino()
}

#[test]
fn the_next_worker_is_the_new_program_if_it_speaks_the_same_protocol() {
    let installed = Installed::new();
    assert_eq!(installed.next(), installed.old, "nothing was replaced");
    installed.replace(|new| copy(new, 0o755));
    let new = fs::metadata(&installed.program).expect("there").ino();
    assert_ne!(new, installed.old);
    assert_eq!(program_of(installed.mount.worker_pid()), installed.old, "a worker that serves is left alone");
    for _ in 0..2 {
        assert_eq!(installed.next(), new);
        installed.assert_whole();
    }
    let status = installed.mount.status();
    assert_eq!(
        (&status["worker_version"], &status["supervisor_version"]),
        (&json!(env!("CARGO_PKG_VERSION")), &json!(env!("CARGO_PKG_VERSION")))
    );
    // And the one after that.
    installed.replace(|new| copy(new, 0o755));
    assert_eq!(installed.next(), fs::metadata(&installed.program).expect("there").ino());
    installed.assert_whole();
    let log = installed.mount.log();
    assert_eq!(log.matches("workers are of the new one from now on").count(), 2, "once for each: {log}");
    fs::remove_file(&installed.program).expect("ours");
    assert_eq!(installed.next(), installed.old);
    installed.assert_whole();
    installed.end();
}

#[test]
fn a_program_that_cannot_go_on_is_passed_over_and_no_reader_notices() {
    type Put = fn(&Path);
    let unfit: [(&str, Put, &str); 11] = [
        (
            "another protocol",
            |new| compiled(new, r#"puts("kitfs worker protocol 4711 9.0.0"); return 0;"#),
            "it speaks protocol 4711, and the mount was made with",
        ),
        ("a program that hangs", |new| compiled(new, "pause(); return 0;"), "it does not say which protocol it speaks (it hangs)"),
        (
            "a program that crashes",
            |new| compiled(new, "fputs(SPOKEN, stdout); fflush(stdout); abort();"),
            "it does not say which protocol it speaks (it fails)",
        ),
        ("a kitfs of before", |new| compiled(new, r#"fputs("error: unrecognized subcommand", stderr); return 2;"#), "(its answer is none)"),
        ("rubbish", |new| compiled(new, r#"for (;;) puts("rubbish");"#), "(it says too much)"),
        (
            "a script",
            |new| {
                make_program("printf '#!/bin/sh\\nexec kitfs \"$@\"\\n' > \"$1\" && chmod 755 \"$1\"", new, OsStr::new(""));
            },
            "does not say which protocol",
        ),
        ("what cannot be executed", |new| copy(new, 0o644), "it cannot be run: Permission denied"),
        ("what others can write", |new| copy(new, 0o757), "can be written by others than its owner"),
        (
            "what belongs to somebody else",
            |new| {
                copy(new, 0o755);
                chown(new, Some(65_534), None).expect("root");
            },
            "belongs to user 65534, and may belong only to root",
        ),
        ("what runs as its owner", |new| copy(new, 0o4755), "it runs with the rights of its owner (mode 4755)"),
        (
            "what promises too much",
            |new| compiled(new, r#"if (count > 1 && !strcmp(words[1], "__protocol")) { fputs(SPOKEN, stdout); return 0; } return 1;"#),
            "the new program does not come to serve",
        ),
    ];
    let installed = Installed::new();
    let stop = Arc::new(AtomicBool::new(false));
    let reader = {
        let (stop, path) = (Arc::clone(&stop), installed.mount.path("model/config.json"));
        within(LIMIT, "a read", {
            let path = path.clone();
            move || read(&path)
        })
        .expect("readable");
        thread::spawn(move || {
            let mut reads = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                assert!(read(&path).is_ok_and(|text| text == br#"{"hidden_size":384}"#));
                reads += 1;
            }
            reads
        })
    };
    for (what, put, said) in unfit {
        let before = installed.mount.log().len();
        installed.replace(put);
        assert_eq!(installed.next(), installed.old, "{what}: {}", installed.mount.log());
        assert_eq!(installed.next(), installed.old, "{what}, asked again");
        let log = &installed.mount.log()[before..];
        assert_eq!(log.matches(said).count(), 1, "{what}: `{said}` once in {log}");
    }
    fs::remove_file(&installed.program).expect("ours");
    assert_eq!(installed.next(), installed.old);
    assert!(installed.mount.log().contains("there is none any more"), "{}", installed.mount.log());
    stop.store(true, Ordering::Relaxed);
    assert!(reader.join().expect("no error in any read") > 100);
    installed.assert_whole();
    installed.end();
}

/// Changes a document that a supervisor or worker wrote, as if it were of another version.
fn rewrite(host: &Host, name: &str, change: impl FnOnce(&mut Value)) {
    let mount = fs::read_dir(host.run_dir()).expect("readable").map(|entry| entry.expect("readable").path());
    let path = mount.map(|folder| folder.join(name)).find(|path| path.is_file()).expect("the document of the one mount");
    let mut document: Value = serde_json::from_slice(&fs::read(&path).expect("readable")).expect("JSON");
    change(&mut document);
    fs::write(path, document.to_string()).expect("ours");
}

#[test]
fn commands_of_one_version_deal_with_mounts_of_another() {
    let (host, registry, kit) = (Host::new(Mode::Passthrough), Registry::start(), standard());
    let reference = kit.serve(&registry, "acme/standard", "v1");
    let (newer, older) = (host.clone(), Host::new(Mode::Passthrough));
    let mount = newer.mount(&reference);
    for name in ["mount.json", "state.json"] {
        rewrite(&newer, name, |document| {
            document["a_key_of_tomorrow"] = json!({ "deep": [1] });
        });
    }
    rewrite(&newer, "layers.json", |document| {
        for layer in document.as_array_mut().expect("the layers") {
            layer["a_key_of_tomorrow"] = json!(1);
        }
    });
    assert_eq!((&mount.status()["state"], &mount.status()["digest"]), (&json!("serving"), &json!(kit.digest())));
    // What cannot be understood at all is named, and the command goes on.
    rewrite(&newer, "state.json", |document| document["state"] = json!("dreaming"));
    let output = newer.kitfs(&["status"]).ok();
    assert!(output.stderr.contains("state.json is not what kitfs writes"), "{output:#?}");
    mount.umount().ok();
    assert!(!mount.is_mounted());

    let mount = older.mount(&reference);
    rewrite(&older, "mount.json", |document| {
        for key in ["supervisor_version", "references", "remote", "access", "admissions", "audit"] {
            document.as_object_mut().expect("an object").remove(key);
        }
    });
    rewrite(&older, "state.json", |document| drop(document.as_object_mut().expect("an object").remove("worker_version")));
    let status = mount.status();
    assert_eq!(
        (&status["state"], &status["supervisor_version"], &status["worker_version"]),
        (&json!("serving"), &Value::Null, &Value::Null)
    );
    mount.umount().ok();
    assert!(!mount.is_mounted());

    older.await_quiet(LIMIT).expect("its supervisor has ended");
    // A record that says nothing to us: the mount is taken down without its supervisor, which ends with it.
    let mount = older.mount(&reference);
    rewrite(&older, "mount.json", |document| *document = json!({ "format": 2 }));
    older.kitfs(&[OsStr::new("umount"), mount.point().as_os_str()]).ok();
    assert!(!mount.is_mounted());
    older.await_quiet(LIMIT).expect("its supervisor has ended");
}
