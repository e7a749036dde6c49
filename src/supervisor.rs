//! The process that owns a mount: it keeps the device, the shared page and the descriptors of open layers, and sees to it that a worker serves.
//!
//! It is small so that it does not die: one thread and a listener, no runtime, nothing from outside but what its own workers and `kitfs umount` say. It
//! mounts through fuser and then forgets fuser's session, because a worker's death must not unmount, and takes the mount down by itself ([`crate::umount`]).
//!
//! A worker's death costs its readers nothing: RESEND makes the kernel send again what the dead one had not answered. How it died decides what happens
//! next. A plain SIGKILL is somebody else's doing; any other death was its own, and if a request was in a handler at two of those, that request is answered with
//! an error from then on.

mod deaths;
mod program;
mod session;
mod trial;
mod worker;

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use self::deaths::{Deaths, delay};
use self::program::Program;
use self::session::Mounted;
pub use self::trial::{Trial, trial};
use self::worker::{Death, Makings, Outlets, Worker};
use crate::audit::{AuditError, Trail};
use crate::clock::timespec;
use crate::control::{FromSupervisor, FromWorker, Received};
use crate::daemon::Ready;
use crate::failure::chain;
use crate::limits::{
    HEARTBEAT_SILENCE_TICKS, KILLED_PATIENCE, START_LIMIT, STARTS_BEFORE_READY_MAX, STOPPED_PATIENCE, UMOUNT_PATIENCE, UMOUNT_RETRY,
};
use crate::log::{self, Destination};
use crate::metrics::{Address, Bound};
use crate::mountinfo;
use crate::page::{IoMode, Page};
use crate::plan::{MountPlan, Mounting, Settings};
use crate::protocol::Spoken;
use crate::run::{self, Alive, MountDir, MountRecord, MountState, Phase};
use crate::store::Held;
use crate::umount::{self, Detached, Request, Response};

/// Why a mount did not come about.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The kernel or `fusermount3` refused the mount.
    #[error("cannot mount at {mountpoint}")]
    Mount {
        /// Where.
        mountpoint: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// Something that the supervisor needs for itself failed.
    #[error("cannot prepare the mount: {what}")]
    Own {
        /// What it was for.
        what: &'static str,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The address for metrics cannot be had.
    #[error("cannot tell metrics at {address}")]
    Metrics {
        /// The address.
        address: Address,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// It has to be recorded, and cannot be.
    #[error("the mount cannot be recorded, so it does not come about")]
    Audit(#[from] AuditError),
    /// No worker came to serve.
    #[error("the mount cannot be served: {0}")]
    Worker(String),
    /// It was taken down before it served.
    #[error("the mount was taken down before it served")]
    Ended,
}

impl SupervisorError {
    /// What to do next, as far as the error says.
    fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Metrics { source, .. } if source.kind() == io::ErrorKind::AddrInUse => {
                Some("each mount needs an address of its own; port 0 takes a free one, which `kitfs status` shows")
            }
            Self::Metrics { .. } => Some("name another address with `--metrics`, in a folder that is there if it is `unix:PATH`"),
            _ => None,
        }
    }
}

/// Mounts and serves until the mount is gone, and removes `dir`, whose lock is `alive`. `ready` is told once whether the mount came about; if whoever
/// waits for that is gone by then, nothing stays mounted.
pub fn run(plan: &MountPlan, dir: &MountDir, log: &Destination, alive: Alive, ready: Ready) -> Result<(), SupervisorError> {
    let mut ready = Some(ready);
    let trail = Trail::new(plan);
    let mut outcome = Supervisor::new(plan, dir, log, &trail).and_then(|mut supervisor| supervisor.serve(&mut ready));
    // It may be recorded already, and what keeps it from being recorded is in the log.
    _ = trail.end(outcome.as_ref().err().map(|error| chain(error)).as_deref());
    if let Err(error) = dir.remove() {
        tracing::warn!(error = &error as &dyn Error, "run directory of the mount");
    }
    drop(alive);
    if let Some(ready) = ready {
        let error = outcome.err().unwrap_or(SupervisorError::Ended);
        ready.failed(&chain(&error), error.hint(), 1);
        outcome = Err(error);
    }
    outcome
}

struct Supervisor<'a> {
    plan: &'a MountPlan,
    plan_fd: OwnedFd,
    program: Program,
    /// Where workers log to.
    log: &'a Destination,
    trail: &'a Trail,
    /// Where workers tell metrics.
    metrics: Option<Bound>,
    mounted: Mounted,
    page: Page,
    dir: &'a MountDir,
    since: String,
    signals: OwnedFd,
    requests: Receiver<(Request, SyncSender<Response>)>,
    wake: Arc<OwnedFd>,
    worker: Option<Worker>,
    /// Killed workers that have not ended yet: stuck in the kernel.
    lost: Vec<Worker>,
    held: BTreeMap<u16, Held>,
    /// When the next worker may start, while none runs.
    start_at: Instant,
    /// Starts in a row that did not come to serve.
    unready: u32,
    deaths: Deaths,
    ticks: Ticks,
    /// Nobody may wait: the mount is being taken down, or was, with files still open.
    stopping: bool,
    /// It is out of the tree.
    detached: bool,
    failure: Option<String>,
}

struct Ticks {
    next: Instant,
    heartbeat: u64,
    rounds: u64,
    silent: u32,
}

/// One tick of the supervisor. It counts its own ticks and not the clock, so that a suspended machine or a clock that jumps is one tick.
const TICK: Duration = Duration::from_secs(1);

impl<'a> Supervisor<'a> {
    fn new(plan: &'a MountPlan, dir: &'a MountDir, log: &'a Destination, trail: &'a Trail) -> Result<Self, SupervisorError> {
        let own = |what| move |source| SupervisorError::Own { what, source };
        worker::raise_descriptor_limit();
        let plan_fd = plan.seal().map_err(own("its plan"))?;
        let program = Program::own().map_err(own("its own program"))?;
        let signals = worker::signals().map_err(own("signals"))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(|errno| own("an event descriptor")(errno.into()))?;
        let wake = Arc::new(wake);
        let requests = take_requests(dir, &wake).map_err(own("the socket for requests"))?;
        let bind = |address: &Address| address.bind().map_err(|source| SupervisorError::Metrics { address: address.clone(), source });
        let metrics = plan.mounting.metrics.as_ref().map(bind).transpose()?;
        if let Some(bound) = &metrics {
            tracing::info!(address = %bound.address, "metrics are told");
        }
        trail.begin()?;
        let mounted = session::mount(plan)
            .map_err(|source| SupervisorError::Mount { mountpoint: plan.mounting.mountpoint.display().to_string(), source })?;
        let page = Page::create(mounted.agreed).inspect_err(|_| detach_unserved(plan, &mounted)).map_err(own("shared memory"))?;
        let now = Instant::now();
        let supervisor = Self {
            plan,
            plan_fd,
            program,
            log,
            trail,
            metrics,
            mounted,
            page,
            dir,
            since: run::now(),
            signals,
            requests,
            wake,
            worker: None,
            lost: Vec::new(),
            held: BTreeMap::new(),
            start_at: now,
            unready: 0,
            deaths: Deaths::default(),
            ticks: Ticks { next: now + TICK, heartbeat: 0, rounds: 0, silent: 0 },
            stopping: false,
            detached: false,
            failure: None,
        };
        if let Err(error) = dir.write_record(&supervisor.record()) {
            detach_unserved(plan, &supervisor.mounted);
            return Err(SupervisorError::Own { what: "its record in the run directory", source: error.into() });
        }
        Ok(supervisor)
    }

    fn serve(&mut self, ready: &mut Option<Ready>) -> Result<(), SupervisorError> {
        let begun = Instant::now();
        loop {
            // Before a worker is started: it would find nothing to serve, end, and make room for the next one for ever.
            if self.is_gone() {
                tracing::info!(mountpoint = %self.plan.mounting.mountpoint.display(), "unmounted");
                return Ok(());
            }
            self.start_worker_if_due();
            if ready.is_some() && (self.unready >= STARTS_BEFORE_READY_MAX || begun.elapsed() >= START_LIMIT) {
                let message = self.failure.take().unwrap_or_else(|| match self.unready {
                    0 => format!("its worker does not come to serve within {} s", START_LIMIT.as_secs()),
                    times => format!("its worker ended {times} times, see {}", self.dir.log_path().display()),
                });
                _ = self.trail.end(Some(&message));
                self.give_up();
                return Err(SupervisorError::Worker(message));
            }
            self.wait();
            while let Ok((request, reply)) = self.requests.try_recv() {
                let response = self.answer(request);
                // Whoever asked may have gone away; what was asked is done all the same.
                let _gone = reply.send(response);
            }
            if worker::terminated(&self.signals) {
                tracing::info!("asked to end: detaching");
                self.stop_for_good();
            }
            self.hear();
            self.reap();
            if self.worker.as_ref().is_some_and(|worker| worker.ready)
                && let Some(ready) = ready.take()
            {
                let MountPlan { mounting: Mounting { mountpoint, .. }, reference, digest, .. } = self.plan;
                let passthrough = self.page.io_mode() == Some(IoMode::Passthrough);
                tracing::info!(mountpoint = %mountpoint.display(), reference, %digest, passthrough, "mounted");
                if let Err(error) = ready.ok() {
                    tracing::info!(%error, "nobody waits for the mount any more: detaching");
                    self.stop_for_good();
                }
            }
            if Instant::now() >= self.ticks.next {
                self.ticks.next = Instant::now() + TICK;
                self.tick();
            }
        }
    }

    /// True once the kernel has forgotten the mount. That `umount2` returned says nothing: a copy in another mount namespace goes on.
    fn is_gone(&self) -> bool {
        self.worker.is_none() && self.device_says().contains(PollFlags::ERR)
    }

    /// What the device has to say: a request that nobody took yet, or that there is no mount any more.
    fn device_says(&self) -> PollFlags {
        let mut fds = [PollFd::new(&self.mounted.device, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })) {
            Ok(_) => fds[0].revents(),
            Err(_) => PollFlags::empty(),
        }
    }

    fn wait(&self) {
        let mut until = self.ticks.next;
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&*self.wake, PollFlags::IN)];
        match &self.worker {
            // One that has closed its end is about to end, and would be heard of all the time until then.
            Some(worker) if worker.mute => {}
            Some(worker) => fds.push(PollFd::new(&worker.control, PollFlags::IN)),
            None => {
                until = until.min(self.start_at);
                // Only while nobody serves: a listener on the device is woken by each request.
                fds.push(PollFd::new(&self.mounted.device, PollFlags::empty()));
            }
        }
        // An interrupted poll is an early look around.
        let _interrupted = poll(&mut fds, Some(&timespec(until.saturating_duration_since(Instant::now()))));
        let mut number = [0; 8];
        let _nothing_to_read = rustix::io::read(&*self.wake, &mut number);
    }

    fn start_worker_if_due(&mut self) {
        if self.worker.is_some() || Instant::now() < self.start_at {
            return;
        }
        let begin = FromSupervisor::Begin { cautious: self.deaths.are_many(), stopping: self.stopping };
        let outlets = Outlets { log: self.log, metrics: self.metrics.as_ref() };
        let makings = Makings { program: self.program.next(), plan: self.plan, plan_fd: &self.plan_fd };
        match Worker::start(makings, outlets, &self.mounted, &self.page, &self.held, &begin) {
            Ok(worker) => {
                tracing::debug!(pid = worker.pid(), version = worker.version, "worker started");
                self.worker = Some(worker);
                self.ticks.silent = 0;
            }
            Err(error) => {
                tracing::error!(%error, "cannot start a worker");
                self.program.reject();
                self.failure = Some(format!("cannot start a worker: {error}"));
                self.unready += 1;
                self.start_at = Instant::now() + delay(self.unready);
            }
        }
        self.write_state();
    }

    /// Takes in what the worker says.
    fn hear(&mut self) {
        while let Some(worker) = &mut self.worker {
            match worker.control.try_receive::<FromWorker>() {
                Ok(Some(Some(Received { message, held }))) => match (message, held) {
                    (FromWorker::Ready, _) => {
                        worker.ready = true;
                        worker.stopped |= worker.began_stopping;
                        self.unready = 0;
                        self.failure = None;
                        self.write_state();
                    }
                    (FromWorker::Hold { slot }, Some(held)) => {
                        self.held.insert(slot, held);
                    }
                    (FromWorker::Hold { slot }, None) => tracing::error!(slot, "a layer to be held came without its descriptors"),
                    (FromWorker::LetGo { slot }, _) => {
                        self.held.remove(&slot);
                    }
                    (FromWorker::Stopped, _) => worker.stopped = true,
                    (FromWorker::Failed { message }, _) => {
                        tracing::error!(pid = worker.pid(), reason = message, "worker cannot serve");
                        self.failure = Some(message);
                    }
                },
                Ok(None) => return,
                Ok(Some(None)) => {
                    worker.mute = true;
                    return;
                }
                Err(error) => {
                    tracing::error!(%error, "cannot hear the worker");
                    return;
                }
            }
        }
    }

    fn reap(&mut self) {
        self.lost.retain_mut(|worker| worker.death().is_none());
        let Some(death) = self.worker.as_mut().and_then(Worker::death) else { return };
        // First of all: from here on the callers can be killed again.
        self.mounted.resend();
        // What it said before it died counts.
        self.hear();
        let Some(worker) = self.worker.take() else { return };
        if !self.is_gone() {
            self.succeed(&worker, &death);
        }
    }

    /// After a worker that is gone or given up: judges its requests, and decides when the next one starts.
    fn succeed(&mut self, worker: &Worker, death: &Death) {
        tracing::warn!(pid = worker.pid(), %death, ready = worker.ready, "worker ended, the next one goes on");
        let handled = self.page.take_handled();
        self.page.count_restart();
        for unique in self.deaths.note(death, handled) {
            tracing::error!(unique, "request was being handled when two workers died, it is answered with an error");
            self.page.poison(unique);
        }
        self.start_at = Instant::now();
        if !worker.ready {
            self.unready += 1;
            if worker.succeeds && death.is_own_fault() {
                self.program.reject();
            }
            // One that lets nobody wait has less to do, so that it is worth a try without a pause; but only one.
            if !self.stopping || worker.began_stopping {
                self.start_at += delay(self.unready);
            }
        } else {
            self.start_at += self.deaths.pause();
        }
        self.write_state();
    }

    fn tick(&mut self) {
        log::tell_left_out();
        let (heartbeat, rounds) = (self.page.heartbeat(), self.page.rounds());
        let takes_none = std::mem::replace(&mut self.ticks.heartbeat, heartbeat) == heartbeat;
        let watches_none = std::mem::replace(&mut self.ticks.rounds, rounds) == rounds;
        let Some(killed) = self.worker.as_ref().map(|worker| worker.killed) else { return };
        if let Some(killed) = killed {
            // Stuck in the kernel and not to be reaped: somebody else goes on meanwhile.
            if killed.elapsed() >= KILLED_PATIENCE {
                self.mounted.resend();
                self.hear();
                if let Some(worker) = self.worker.take() {
                    self.succeed(&worker, &Death::Stuck);
                    self.lost.push(worker);
                }
            }
            return;
        }
        // A stopped one may have taken a request that nothing shows any more: it counts whatever waits.
        let stopped = self.worker.as_ref().is_some_and(Worker::is_halted);
        let untaken = || self.device_says().contains(PollFlags::IN) || self.page.is_handling();
        let hangs = stopped || takes_none && untaken() || watches_none && self.page.parked() > 0;
        self.ticks.silent = if hangs { self.ticks.silent + 1 } else { 0 };
        if self.ticks.silent >= HEARTBEAT_SILENCE_TICKS
            && let Some(worker) = &mut self.worker
        {
            tracing::error!(pid = worker.pid(), seconds = self.ticks.silent, "worker hangs while requests wait, it is replaced");
            worker.kill();
            self.ticks.silent = 0;
        }
    }

    fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Umount { lazy: true } => self.stop_for_good(),
            Request::Umount { lazy: false } => self.umount(),
        }
    }

    /// Nobody waits any more, and the mount is out of the tree; open files go on until they are closed.
    fn stop_for_good(&mut self) -> Response {
        self.stop();
        let response = self.detach(true);
        self.write_state();
        response
    }

    /// Takes the mount down if no file is open. Waiting opens are ended first, since they would make it busy.
    fn umount(&mut self) -> Response {
        let was_stopping = self.stopping;
        self.stop();
        let until = Instant::now() + STOPPED_PATIENCE;
        while Instant::now() < until && !self.worker.as_ref().is_some_and(|worker| worker.stopped) {
            self.start_worker_if_due();
            let control = self.worker.iter().filter(|worker| !worker.mute).map(|worker| PollFd::new(&worker.control, PollFlags::IN));
            let mut fds: Vec<PollFd<'_>> = control.collect();
            let _interrupted = poll(&mut fds, Some(&timespec(UMOUNT_RETRY)));
            self.hear();
            self.reap();
        }
        // The callers that were let go may still be on their way out of the kernel.
        let until = Instant::now() + STOPPED_PATIENCE;
        let response = loop {
            match self.detach(false) {
                Response::Busy if Instant::now() < until => thread::sleep(UMOUNT_RETRY),
                response => break response,
            }
        };
        // It stays, or a copy of it in another mount namespace does: whoever comes there may wait again.
        self.stopping = was_stopping;
        if let Some(worker) = &self.worker
            && !was_stopping
        {
            worker.say(&FromSupervisor::Resume);
        }
        self.write_state();
        response
    }

    /// Lets nobody wait; if no worker runs, one is started that tells the waiting ones.
    fn stop(&mut self) {
        self.stopping = true;
        match &mut self.worker {
            Some(worker) => {
                worker.stopped = false;
                worker.say(&FromSupervisor::Stop);
            }
            None => self.start_at = Instant::now(),
        }
        self.start_worker_if_due();
    }

    fn detach(&mut self, lazy: bool) -> Response {
        let mountpoint = &self.plan.mounting.mountpoint;
        let failed = |error: &dyn std::fmt::Display| {
            tracing::error!(%error, mountpoint = %mountpoint.display(), "cannot detach");
            Response::Failed { message: format!("cannot unmount {}: {error}", mountpoint.display()) }
        };
        match umount::detach(mountpoint, self.mounted.mount_id, lazy) {
            Ok(Detached::Busy) => return Response::Busy,
            Ok(Detached::Done) => {}
            Ok(Detached::NotOurs) => match mountinfo::read() {
                Ok(mounts) if mounts.iter().any(|mount| mount.mount_id == self.mounted.mount_id && mount.mountpoint == *mountpoint) => {
                    return failed(&"something else is mounted on top of it");
                }
                Ok(_) => {} // somebody was faster
                Err(error) => return failed(&error),
            },
            Err(error) => return failed(&error),
        }
        self.detached = true;
        match self.trail.end(None) {
            Some(error) => Response::Unrecorded { message: chain(&error) },
            None => Response::Done,
        }
    }

    /// Leaves nothing behind of a mount that did not come about.
    fn give_up(&mut self) {
        self.stop_for_good();
        if let Some(worker) = &mut self.worker {
            worker.kill();
        }
    }

    fn record(&self) -> MountRecord {
        MountRecord {
            id: self.plan.mounting.id.clone(),
            mountpoint: self.plan.mounting.mountpoint.clone(),
            reference: self.plan.reference.clone(),
            digest: self.plan.digest,
            supervisor_pid: std::process::id(),
            supervisor_version: Some(Spoken::own().version),
            since: self.since.clone(),
            cache_dir: self.plan.mounting.cache_dir.clone(),
            device: self.mounted.number,
            mount_id: self.mounted.mount_id,
            log: self.dir.log_path(),
            passthrough: self.page.io_mode().map(|mode| mode == IoMode::Passthrough),
            references: self.plan.references.iter().map(|kit| kit.found.clone()).collect(),
            remote: self.plan.remote.clone(),
            access: self.plan.mounting.access.clone(),
            admissions: self.plan.admissions().to_vec(),
            audit: self.plan.mounting.audit.clone(),
            settings: Settings {
                selection: self.plan.mounting.selection.clone(),
                include_remote: self.plan.mounting.include_remote,
                prefetch: self.plan.mounting.prefetch,
                jobs: self.plan.mounting.jobs,
                connections: self.plan.mounting.access.connections,
                allow_other: self.plan.mounting.allow_other,
                metrics: self.metrics.as_ref().map(|bound| bound.address.to_string()),
            },
        }
    }

    fn write_state(&self) {
        let state = match &self.worker {
            _ if self.stopping || self.detached => Phase::Stopping,
            Some(worker) if worker.ready => Phase::Serving,
            _ => Phase::Restarting,
        };
        let (worker_pid, worker_version) = self.worker.as_ref().map(|worker| (worker.pid(), worker.version.clone())).unzip();
        let state = MountState { state, worker_pid, worker_version, restarts: self.page.restarts() };
        if let Err(error) = self.dir.write_record(&self.record()).and_then(|()| self.dir.write_state(&state)) {
            tracing::warn!(error = &error as &dyn Error, "state of the mount");
        }
    }
}

/// Hears requests of `kitfs umount` on a thread of its own, hands them over one by one, and wakes the supervisor for it.
fn take_requests(dir: &MountDir, wake: &Arc<OwnedFd>) -> io::Result<Receiver<(Request, SyncSender<Response>)>> {
    let (sender, requests) = mpsc::sync_channel(1);
    let wake = Arc::clone(wake);
    umount::serve(umount::listen(dir)?, move |request| {
        let (reply, answer) = mpsc::sync_channel(1);
        if sender.send((request, reply)).is_err() || rustix::io::write(&*wake, &1u64.to_ne_bytes()).is_err() {
            return Response::Failed { message: "the supervisor is ending".into() };
        }
        answer
            .recv_timeout(UMOUNT_PATIENCE)
            .unwrap_or_else(|_| Response::Failed { message: "the supervisor did not answer in time".into() })
    })?;
    Ok(requests)
}

/// After a failure right behind the mount call, which is what is reported.
fn detach_unserved(plan: &MountPlan, mounted: &Mounted) {
    if let Err(error) = umount::detach(&plan.mounting.mountpoint, mounted.mount_id, true) {
        tracing::error!(%error, mountpoint = %plan.mounting.mountpoint.display(), "cannot detach");
    }
}
