//! The process that owns a mount: it keeps the device, the shared page and the descriptors of open layers, and sees to it that a worker serves.
//!
//! It is small so that it does not die: one thread and a listener, no runtime, nothing from outside but what its own workers and `kitfs umount` say. It
//! mounts through fuser and then forgets fuser's session, because a worker's death must not unmount, and takes the mount down by itself ([`crate::umount`]).
//!
//! A worker's death costs its readers nothing: RESEND makes the kernel send again what the dead one had not answered. How it died decides what happens
//! next. A plain SIGKILL is somebody else's doing; any other death was its own, and if a request was in a handler at two of those, that request is answered with
//! an error from then on.

mod session;
mod worker;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use self::session::Mounted;
use self::worker::{Death, Worker};
use crate::control::{FromSupervisor, FromWorker, Received};
use crate::daemon::Ready;
use crate::limits::{
    HEARTBEAT_SILENCE_TICKS, KILLED_PATIENCE, OWN_DEATHS_MAX, OWN_DEATHS_WINDOW, RESTART_DELAY_FIRST, RESTART_DELAY_MAX, STARTS_BEFORE_READY_MAX, STOPPED_PATIENCE,
    UMOUNT_PATIENCE,
};
use crate::page::Page;
use crate::plan::MountPlan;
use crate::detach::{Detached, detach};
use crate::run::{Alive, MountDir, MountState, Phase, RunDir, RunError};
use crate::store::Held;
use crate::umount::{self, Request, Response};

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
    #[error("{what}")]
    Own {
        /// What it was for.
        what: String,
        /// What the operating system said.
        #[source]
        source: io::Error,
    },
    /// The run directory does not do.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The first worker did not come to serve.
    #[error("the mount cannot be served: {0}")]
    Worker(String),
}

/// Mounts and serves until the mount is gone. `ready` is told once whether it came about.
pub fn run(plan: &MountPlan, plan_fd: OwnedFd, ready: Ready) -> Result<(), SupervisorError> {
    let mut ready = Some(ready);
    match Supervisor::new(plan, plan_fd).and_then(|mut supervisor| supervisor.serve(&mut ready)) {
        Ok(()) => Ok(()),
        Err(error) => {
            if let Some(ready) = ready.take() {
                ready.failed(&error, 1);
            }
            Err(error)
        }
    }
}

struct Supervisor<'a> {
    plan: &'a MountPlan,
    plan_fd: OwnedFd,
    mounted: Mounted,
    page: Page,
    dir: MountDir,
    _alive: Alive,
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
    own_deaths: Vec<Instant>,
    /// How often a request was in a handler at a death that its worker brought upon itself.
    suspects: HashMap<u64, u32>,
    ticks: Ticks,
    /// The mount is being taken down for good: nobody waits any more.
    stopping: bool,
    failure: Option<String>,
}

struct Ticks {
    next: Instant,
    heartbeat: u64,
    silent: u32,
    rounds: u64,
    unwatched: u32,
}

/// One tick of the supervisor. It counts its own ticks and not the clock, so that a suspended machine or a clock that jumps is one tick.
const TICK: Duration = Duration::from_secs(1);

impl<'a> Supervisor<'a> {
    fn new(plan: &'a MountPlan, plan_fd: OwnedFd) -> Result<Self, SupervisorError> {
        let own = |what: &str| {
            let what = what.to_owned();
            move |source| SupervisorError::Own { what, source }
        };
        worker::raise_descriptor_limit();
        let signals = worker::signals().map_err(own("signals"))?;
        let run = RunDir::open(&plan.run_dir)?;
        let (dir, alive) = run.create(&plan.id)?;
        let mounted = session::mount(plan).map_err(|source| SupervisorError::Mount { mountpoint: plan.mountpoint.display().to_string(), source })?;
        // From here on a failure has to take the mount down again.
        let prepare = || -> io::Result<_> {
            let page = Page::create(mounted.agreed)?;
            let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
            let listener = umount::listen(&dir)?;
            let (sender, requests) = mpsc::sync_channel(4);
            let waker = Arc::clone(&wake);
            umount::serve(listener, move |request| {
                let (reply, answer) = mpsc::sync_channel(1);
                if sender.send((request, reply)).is_err() || rustix::io::write(&*waker, &1u64.to_ne_bytes()).is_err() {
                    return Response::Failed { message: "the supervisor is ending".into() };
                }
                answer.recv_timeout(UMOUNT_PATIENCE).unwrap_or(Response::Failed { message: "the supervisor did not answer in time".into() })
            })?;
            Ok((page, wake, requests))
        };
        match prepare() {
            Ok((page, wake, requests)) => Ok(Self {
                plan,
                plan_fd,
                page,
                dir,
                _alive: alive,
                signals,
                requests,
                wake,
                worker: None,
                lost: Vec::new(),
                held: BTreeMap::new(),
                start_at: Instant::now(),
                unready: 0,
                own_deaths: Vec::new(),
                suspects: HashMap::new(),
                ticks: Ticks { next: Instant::now() + TICK, heartbeat: 0, silent: 0, rounds: 0, unwatched: 0 },
                stopping: false,
                failure: None,
                mounted,
            }),
            Err(source) => {
                let _the_first_error_counts = detach(&plan.mountpoint, mounted.mount_id, true);
                let _the_first_error_counts = dir.remove();
                Err(SupervisorError::Own { what: "preparing the mount".into(), source })
            }
        }
    }

    fn serve(&mut self, ready: &mut Option<Ready>) -> Result<(), SupervisorError> {
        let outcome = loop {
            if self.worker.is_none() && Instant::now() >= self.start_at {
                self.start_worker();
            }
            if self.is_gone() {
                break Ok(());
            }
            if ready.is_some() && self.unready >= STARTS_BEFORE_READY_MAX {
                let message = self.failure.take().unwrap_or_else(|| format!("its worker ended {} times, see {}", self.unready, self.dir.log_path().display()));
                self.detach(true);
                break Err(SupervisorError::Worker(message));
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
            if let Some(worker) = &self.worker
                && worker.ready
                && let Some(ready) = ready.take()
            {
                ready.ok();
            }
            if Instant::now() >= self.ticks.next {
                self.ticks.next = Instant::now() + TICK;
                self.tick();
            }
        };
        tracing::info!(mountpoint = %self.plan.mountpoint.display(), "unmounted");
        if let Err(error) = self.dir.remove() {
            tracing::warn!(%error, "run directory of the mount");
        }
        outcome
    }

    /// True once the kernel has forgotten the mount. That `umount2` returned says nothing: a copy in another mount namespace goes on.
    fn is_gone(&self) -> bool {
        let mut fds = [PollFd::new(&self.mounted.device, PollFlags::IN)];
        let polled = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        self.worker.is_none() && polled.is_ok() && fds[0].revents().contains(PollFlags::ERR)
    }

    fn wait(&self) {
        let mut until = self.ticks.next;
        if self.worker.is_none() {
            until = until.min(self.start_at);
        }
        let rest = until.saturating_duration_since(Instant::now());
        let timeout = Timespec { tv_sec: rest.as_secs() as i64, tv_nsec: i64::from(rest.subsec_nanos()) };
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN), PollFd::new(&*self.wake, PollFlags::IN)];
        if let Some(worker) = &self.worker {
            fds.push(PollFd::new(&worker.control, PollFlags::IN));
        }
        // An interrupted poll is an early look around.
        let _interrupted = poll(&mut fds, Some(&timeout));
        let mut number = [0; 8];
        let _nothing_to_read = rustix::io::read(&*self.wake, &mut number);
    }

    fn start_worker(&mut self) {
        let cautious = self.is_cautious();
        match Worker::start(self.plan, &self.plan_fd, &self.mounted, &self.page, &self.held, cautious, self.stopping) {
            Ok(worker) => {
                tracing::debug!(pid = worker.pid(), "worker started");
                self.worker = Some(worker);
                (self.ticks.silent, self.ticks.unwatched) = (0, 0);
            }
            Err(error) => {
                tracing::error!(%error, "cannot start a worker");
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
                        self.unready = 0;
                        self.write_record();
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
                    (FromWorker::Failed { message }, _) => self.failure = Some(message),
                },
                // Nothing more to hear now; or nothing ever, and then it has ended or is about to.
                Ok(None | Some(None)) => return,
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
        // What it said before it died counts.
        self.hear();
        let Some(worker) = self.worker.take() else { return };
        if self.is_gone() {
            return;
        }
        self.succeed(&worker, &death);
    }

    /// After a worker that is gone or given up: frees its requests, and decides when the next one starts.
    fn succeed(&mut self, worker: &Worker, death: &Death) {
        self.mounted.resend();
        tracing::warn!(pid = worker.pid(), %death, "worker ended, the next one goes on");
        let handled = self.page.take_handled();
        self.page.count_restart();
        if death.is_own_fault() {
            self.own_deaths.push(Instant::now());
            for unique in handled {
                let times = self.suspects.entry(unique).or_default();
                *times += 1;
                if *times >= 2 {
                    tracing::error!(unique, "request was being handled when two workers died, it is answered with an error");
                    self.page.poison(unique);
                }
            }
        }
        let cautious = self.is_cautious();
        self.start_at = Instant::now();
        if worker.ready && cautious {
            self.start_at += delay(self.own_deaths.len().saturating_sub(OWN_DEATHS_MAX - 1) as u32);
        } else if !worker.ready {
            self.unready += 1;
            self.start_at += delay(self.unready);
        }
        if self.stopping {
            self.start_at = Instant::now();
        }
        self.write_state();
    }

    fn is_cautious(&mut self) -> bool {
        self.own_deaths.retain(|at| at.elapsed() < OWN_DEATHS_WINDOW);
        self.own_deaths.len() >= OWN_DEATHS_MAX
    }

    fn tick(&mut self) {
        let heartbeat = self.page.heartbeat();
        let still = std::mem::replace(&mut self.ticks.heartbeat, heartbeat) == heartbeat;
        let rounds = self.page.rounds();
        let unwatched = std::mem::replace(&mut self.ticks.rounds, rounds) == rounds && self.page.parked() > 0;
        let Some(worker) = &mut self.worker else { return };
        if let Some(killed) = worker.killed {
            // Stuck in the kernel and not to be reaped: somebody else goes on meanwhile.
            if killed.elapsed() >= KILLED_PATIENCE
                && let Some(worker) = self.worker.take()
            {
                self.succeed(&worker, &Death::Stuck);
                self.lost.push(worker);
            }
            return;
        }
        let mut fds = [PollFd::new(&self.mounted.device, PollFlags::IN)];
        let waiting = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok() && fds[0].revents().contains(PollFlags::IN);
        self.ticks.silent = if still && waiting { self.ticks.silent + 1 } else { 0 };
        self.ticks.unwatched = if unwatched { self.ticks.unwatched + 1 } else { 0 };
        let silence = self.ticks.silent.max(self.ticks.unwatched);
        if silence >= HEARTBEAT_SILENCE_TICKS {
            tracing::error!(pid = worker.pid(), seconds = silence, "worker hangs while requests wait, it is replaced");
            worker.kill();
            (self.ticks.silent, self.ticks.unwatched) = (0, 0);
        }
    }

    fn answer(&mut self, request: Request) -> Response {
        match request {
            Request::Umount { lazy: true } => {
                self.stop_for_good();
                Response::Done
            }
            Request::Umount { lazy: false } => self.umount(),
        }
    }

    /// Nobody waits any more, and the mount is out of the tree; open files go on until they are closed.
    fn stop_for_good(&mut self) {
        self.stopping = true;
        if let Some(worker) = &self.worker {
            worker.say(&FromSupervisor::Stop);
        }
        self.start_at = Instant::now();
        self.detach(true);
        self.write_state();
    }

    /// Takes the mount down if no file is open. Waiting opens are ended first, since they would make it busy.
    fn umount(&mut self) -> Response {
        let was_stopping = std::mem::replace(&mut self.stopping, true);
        match &mut self.worker {
            Some(worker) => {
                worker.stopped = false;
                worker.say(&FromSupervisor::Stop);
            }
            None => self.start_worker(),
        }
        let until = Instant::now() + STOPPED_PATIENCE;
        while Instant::now() < until && !self.worker.as_ref().is_some_and(|worker| worker.stopped) {
            let mut fds: Vec<PollFd<'_>> = self.worker.iter().map(|worker| PollFd::new(&worker.control, PollFlags::IN)).collect();
            let _interrupted = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 50_000_000 }));
            self.hear();
            self.reap();
        }
        // The callers that were let go may still be on their way out of the kernel.
        let until = Instant::now() + STOPPED_PATIENCE;
        loop {
            match detach(&self.plan.mountpoint, self.mounted.mount_id, false) {
                Ok(Detached::Busy) if Instant::now() < until => std::thread::sleep(Duration::from_millis(20)),
                Ok(Detached::Busy) => {
                    self.stopping = was_stopping;
                    if let Some(worker) = &self.worker
                        && !was_stopping
                    {
                        worker.say(&FromSupervisor::Resume);
                    }
                    return Response::Busy;
                }
                Ok(_) => return Response::Done,
                Err(error) => return Response::Failed { message: format!("cannot unmount {}: {error}", self.plan.mountpoint.display()) },
            }
        }
    }

    fn detach(&self, lazy: bool) {
        match detach(&self.plan.mountpoint, self.mounted.mount_id, lazy) {
            Ok(_) => {}
            Err(error) => tracing::error!(%error, mountpoint = %self.plan.mountpoint.display(), "cannot detach"),
        }
    }

    /// The mount as it is now that a worker has decided how it serves.
    fn write_record(&self) {
        if let Err(error) = self.dir.write_record(&self.mounted.record(self.plan, &self.dir, self.page.io_mode())) {
            tracing::warn!(%error, "record of the mount");
        }
    }

    fn write_state(&self) {
        let state = match &self.worker {
            _ if self.stopping => Phase::Stopping,
            Some(worker) if worker.ready => Phase::Serving,
            _ => Phase::Restarting,
        };
        let state = MountState { state, worker_pid: self.worker.as_ref().map(Worker::pid), restarts: self.page.restarts() };
        if let Err(error) = self.dir.write_state(&state) {
            tracing::warn!(%error, "state of the mount");
        }
    }
}

fn delay(failures: u32) -> Duration {
    RESTART_DELAY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(RESTART_DELAY_MAX)
}
