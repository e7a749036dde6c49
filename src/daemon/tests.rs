use super::*;
use std::thread;

const LONG: Duration = Duration::from_secs(60);

/// A plan in a run directory of its own, and the ends of a pipe that stands for interrupts.
struct Stage {
    home: tempfile::TempDir,
    plan: MountPlan,
    interrupts: OwnedFd,
    interrupt: OwnedFd,
}

impl Stage {
    fn new() -> Self {
        let home = tempfile::tempdir().expect("folder");
        let mut plan = MountPlan::of_nothing();
        (plan.mounting.run_dir, plan.mounting.cache_dir) = (home.path().join("run"), home.path().join("cache"));
        let (interrupts, interrupt) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        Self { home, plan, interrupts, interrupt }
    }

    /// Starts a supervisor that is a shell script; the numbers of its descriptors are in `$PLAN`, `$READY` and `$ALIVE`.
    fn start(&self, script: &str, silence: Duration, progress: &mut dyn FnMut(Progress)) -> Result<Started, StartError> {
        let script = format!("PLAN=$3 READY=$5 ALIVE=$7; say() {{ printf '%s\\n' \"$1\" >/proc/self/fd/$READY; }}\n{script}");
        let program = Program { path: "/bin/sh".into(), arguments: ["-c", &script, "sh"].map(OsString::from).to_vec(), attended: None };
        start_program(&program, &self.plan, self.interrupts.as_fd(), silence, progress)
    }

    fn fail(&self, script: &str, silence: Duration) -> StartError {
        let error = self.start(script, silence, &mut |_| {}).expect_err("it does not serve");
        assert!(std::fs::read_dir(&self.plan.mounting.run_dir).expect("run directory").next().is_none(), "something is left");
        error
    }
}

#[test]
fn a_supervisor_that_serves_has_the_plan_and_the_lock_and_nothing_else() {
    let stage = Stage::new();
    let _not_to_be_inherited = fcntl_dupfd_cloexec(&stage.interrupt, 200).map(|fd| fcntl_setfd(&fd, FdFlags::empty()).map(|()| fd));
    let report = stage.home.path().join("report");
    let script = format!(
        "exec >{0}.new; echo $0 $1 $2 $4 $6; ls -mw0 /proc/$$/fd; echo 0 1 2 $PLAN $READY $ALIVE; pwd; \
         cut -d' ' -f6 /proc/$$/stat; echo $$; cat /proc/self/fd/$PLAN; mv {0}.new {0}; echo to the log >&2; say '{{\"say\":\"ok\"}}'; sleep 60",
        report.display()
    );
    let started = stage.start(&script, LONG, &mut |_| {}).expect("it serves");
    let text = std::fs::read_to_string(&report).expect("report");
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    assert_eq!(lines[0], "sh __supervisor --plan-fd --ready-fd --alive-fd");
    let numbers = |line: &str| {
        line.replace(',', " ")
            .split_whitespace()
            .map(|number| number.parse::<u32>().expect("number"))
            .collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(numbers(lines[1]), numbers(lines[2]), "no other descriptor");
    assert_eq!(lines[3], "/");
    assert_eq!((lines[4], lines[5]), (started.pid.to_string().as_str(), started.pid.to_string().as_str()), "its own session");
    assert_eq!(serde_json::from_str::<MountPlan>(lines[6]).expect("plan").mounting.id, stage.plan.mounting.id);
    assert!(started.mount.is_alive().expect("known"), "the supervisor holds the lock now");
    assert_eq!(std::fs::read_to_string(started.mount.log_path()).expect("log"), "to the log\n");
    let pid = Pid::from_raw(started.pid as i32).expect("pid");
    rustix::process::kill_process_group(pid, Signal::KILL).expect("killed");
    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).expect("waited");
    let deadline = Instant::now() + LONG;
    while started.mount.is_alive().expect("known") {
        assert!(Instant::now() < deadline);
        thread::yield_now();
    }
}

#[test]
fn a_supervisor_that_fails_says_why() {
    let failed = "say '{\"say\":\"failed\",\"error\":\"the digest is wrong\",\"hint\":\"ask for another\",\"exit_code\":4}'; exit 4";
    let error = Stage::new().fail(failed, LONG);
    assert_eq!(error, StartError { message: "the digest is wrong".to_owned(), hint: Some("ask for another".to_owned()), exit_code: 4 });
    let error = Stage::new().fail("say '{\"say\":\"failed\",\"error\":\"x\",\"hint\":null,\"exit_code\":0}'", LONG);
    assert_eq!(error.exit_code, 1, "no failure ends with 0");
}

#[test]
fn a_supervisor_that_dies_without_a_word_is_quoted_from_its_log() {
    let error = Stage::new().fail("echo first >&2; printf 'panicked at \\033[31m\\n\\n' >&2; exit 7", LONG);
    assert!(error.message.contains("exit status: 7") && error.message.contains("it last said: panicked at \\u{1b}[31m"), "{error}");
    let error = Stage::new().fail("kill -9 $$", LONG);
    assert!(error.message.contains("signal: 9"), "{error}");
}

#[test]
fn a_supervisor_that_is_silent_or_talks_nonsense_is_ended() {
    let error = Stage::new().fail("exec sleep 60", Duration::from_millis(100));
    assert!(error.message.contains("said nothing"), "{error}");
    for nonsense in ["say nonsense; exec sleep 60", "head -c 70000 /dev/zero >/proc/self/fd/$READY; exec sleep 60"] {
        let error = Stage::new().fail(nonsense, LONG);
        assert!(error.message.contains("understand"), "{error}");
    }
}

#[test]
fn progress_comes_before_readiness_and_keeps_the_wait_going() {
    let stage = Stage::new();
    let mut seen = Vec::new();
    let script =
        "for n in 1 2 3; do say \"{\\\"say\\\":\\\"progress\\\",\\\"fetched\\\":$n,\\\"total\\\":3}\"; done; say '{\"say\":\"ok\"}'";
    stage.start(script, LONG, &mut |progress| seen.push((progress.fetched, progress.total))).expect("it serves");
    assert_eq!(seen, [(1, 3), (2, 3), (3, 3)]);
}

#[test]
fn an_interrupt_ends_what_does_not_serve_yet() {
    let stage = Stage::new();
    rustix::io::write(&stage.interrupt, b"x").expect("written");
    let error = stage.fail("exec sleep 60", LONG);
    assert!(error.message.contains("interrupted"), "{error}");
}

#[test]
fn what_a_supervisor_says_is_what_is_understood() {
    let said = |say: &dyn Fn(Ready)| {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
        say(Ready::from_fd(theirs));
        let mut lines = Lines { pipe: File::from(ours), pending: Vec::new() };
        let mut all = Vec::new();
        loop {
            match lines.next().expect("understood") {
                Line::Said(said) => all.push(said),
                Line::Part => {}
                Line::End => break all,
            }
        }
    };
    let half = Progress { fetched: 1, total: 2 };
    let all = said(&|ready| {
        ready.progress(half).expect("heard");
        ready.progress(half).expect("not passed on, so soon");
        ready.ok().expect("heard");
    });
    assert_eq!(all, [Said::Progress(half), Said::Ok]);
    let bad = "\u{1b}".repeat(100_000);
    let all = said(&|ready| ready.failed(&bad, Some(&bad), 5));
    let cut = "\u{1b}".repeat(READY_TEXT_CHARS);
    assert_eq!(all, [Said::Failed { error: cut.clone(), hint: Some(cut), exit_code: 5 }]);
}

#[test]
fn a_supervisor_learns_that_nobody_waits_any_more() {
    let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC).expect("pipe");
    let ready = Ready::from_fd(theirs);
    drop(ours);
    assert!(ready.progress(Progress { fetched: 1, total: 2 }).is_err());
    assert!(ready.ok().is_err());
}

#[test]
fn what_was_passed_is_taken_once_and_not_passed_on() {
    let stage = Stage::new();
    let (mount, alive) = RunDir::open(&stage.plan.mounting.run_dir).expect("run directory").create(&stage.plan.mounting.id).expect("made");
    let sealed = stage.plan.seal().expect("sealed");
    let (_ours, theirs) = pipe_with(PipeFlags::empty()).expect("pipe");
    let pass = |fd: OwnedFd| std::os::fd::IntoRawFd::into_raw_fd(fd);
    let args = SupervisorArgs { plan_fd: pass(sealed), alive_fd: pass(alive), ready_fd: Some(pass(theirs)), foreground: false };
    let inherited = inherit(&args).expect("all there");
    assert_eq!((inherited.plan.mounting.id.as_str(), inherited.log), (mount.id(), Destination::File(mount.log_path())));
    for fd in [inherited.alive.as_fd(), inherited.ready.pipe.as_ref().expect("a pipe").as_fd()] {
        assert_eq!(fcntl_getfd(fd).expect("open"), FdFlags::CLOEXEC);
    }
    for (plan_fd, alive_fd, ready_fd) in [(0, 5, Some(6)), (5, 5, Some(6)), (5, 6, Some(6)), (5, 6, Some(-1)), (1_000_000, 6, Some(7))] {
        assert!(inherit(&SupervisorArgs { plan_fd, alive_fd, ready_fd, foreground: false }).is_err());
    }
}

#[test]
fn a_supervisor_in_the_foreground_escaped_control_characters_alone() {
    assert_eq!(escaped("a\u{1b}[31m\n\u{202e}gnp\u{2066}\u{9b}é"), "a\\u{1b}[31m\\n\\u{202e}gnp\\u{2066}\\u{9b}é");
}
