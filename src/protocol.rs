//! What a supervisor and its workers have to agree on when they are of two builds, as they are after an upgrade under live mounts.
//!
//! The plan, the shared page, the messages, the worker's arguments and one of its exit codes, the meaning of node ids and what a layer's descriptors hold: all of it passes from the process that
//! made the mount to each later worker. One number stands for all of that. A supervisor asks a program that took the place of its own for this number before
//! it makes it a worker, and keeps to its own program unless the two are equal.

use std::fmt;

/// The hidden command that tells [`Spoken::own`].
pub const PROTOCOL_COMMAND: &str = "__protocol";

/// The number of the protocol. Raised with every change of what passes between the two, also with one that looks harmless: a supervisor that keeps its
/// own program loses nothing.
pub const PROTOCOL: u32 = 1;

/// What a program says of itself: which protocol it speaks, and its version for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spoken {
    /// See [`PROTOCOL`].
    pub protocol: u32,
    /// The version of kitfs.
    pub version: String,
}

impl Spoken {
    /// What this program speaks.
    pub fn own() -> Self {
        Self { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Reads an answer; `None` if it is none.
    pub fn read(answer: &[u8]) -> Option<Self> {
        let rest = std::str::from_utf8(answer).ok()?.strip_prefix(PREFIX)?.strip_suffix('\n')?;
        let (protocol, version) = rest.split_once(' ')?;
        let plain = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
        let version = Some(version).filter(|version| !version.is_empty() && version.chars().all(plain))?;
        Some(Self { protocol: protocol.parse().ok()?, version: version.to_owned() })
    }
}

impl fmt::Display for Spoken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{PREFIX}{} {}", self.protocol, self.version)
    }
}

const PREFIX: &str = "kitfs worker protocol ";

#[cfg(test)]
mod tests {
    use clap::{Args as _, Command};

    use super::*;
    use crate::control::{FromSupervisor, FromWorker};
    use crate::node::NodeId;
    use crate::plan::MountPlan;
    use crate::{index, page, worker};

    /// What each protocol is about ([`facts`]), a file for each. One that was released never changes: a change that this test notices is a new file, and a
    /// new [`PROTOCOL`].
    fn recorded(number: u32) -> String {
        let path = format!("{}/tests/fixtures/protocols/{number}.txt", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}; it says now:\n{}", facts()))
    }

    #[test]
    fn what_passes_between_supervisor_and_worker_does_not_change_unnoticed() {
        let facts = facts();
        assert!(are_same(&recorded(PROTOCOL), &facts), "raise PROTOCOL and record it, supervisor and worker agree on this now:\n{facts}");
        assert!((1..PROTOCOL).all(|number| !are_same(&recorded(number), &facts)), "this protocol had another number");
    }

    /// In what order a plan has its keys is nothing that anybody relies on.
    fn are_same(recorded: &str, facts: &str) -> bool {
        let read = |line: &str| match line.strip_prefix("plan ") {
            Some(plan) => serde_json::from_str(plan).expect("JSON"),
            None => serde_json::Value::from(line),
        };
        recorded.lines().map(read).eq(facts.lines().map(read))
    }

    fn facts() -> String {
        let command = worker::Inherited::augment_args(Command::new("worker"));
        let argument = |argument: &clap::Arg| format!("{} {:?} {}", argument.get_id(), argument.get_long(), argument.is_required_set());
        let arguments: Vec<String> = command.get_arguments().map(argument).collect();
        let messages = [
            serde_json::to_string(&[
                FromWorker::Ready,
                FromWorker::Failed { message: "m".into() },
                FromWorker::Hold { slot: 1 },
                FromWorker::LetGo { slot: 2 },
                FromWorker::Stopped,
            ]),
            serde_json::to_string(&[
                FromSupervisor::Adopt { slot: 3 },
                FromSupervisor::Begin { cautious: true, stopping: false },
                FromSupervisor::Stop,
                FromSupervisor::Resume,
            ]),
        ];
        let [from_worker, from_supervisor] = messages.map(|message| message.expect("plain data"));
        let plan = serde_json::to_string(&MountPlan::full()).expect("plain data");
        let node = NodeId::new(2, 9, 1);
        [
            format!("arguments {}", arguments.join(", ")),
            format!("from worker {from_worker}"),
            format!("from supervisor {from_supervisor}"),
            format!("gives way {}", worker::GAVE_WAY),
            format!("page {}", page::layout()),
            format!("index {}", index::VERSION),
            format!("node {:x} {:x} {:x}", NodeId::ROOT.to_wire(), node.to_wire(), node.inode()),
            format!("plan {plan}\n"),
        ]
        .join("\n")
    }

    #[test]
    fn an_answer_is_read_as_it_is_given() {
        assert_eq!(Spoken::read(Spoken::own().to_string().as_bytes()), Some(Spoken::own()));
        let newer = Spoken { protocol: 7, version: "2.0.0-rc.1+g5".into() };
        assert_eq!(Spoken::read(newer.to_string().as_bytes()), Some(newer));
        for other in [
            "",
            "\n",
            "kitfs 0.1.0\n",
            "kitfs worker protocol 1\n",
            "kitfs worker protocol 1 \n",
            "kitfs worker protocol -1 0.1.0\n",
            "kitfs worker protocol 1 0.1.0",
            "kitfs worker protocol 1 0.1.0\nmore\n",
            "kitfs worker protocol 1 0.1.0 \u{1b}[31m\n",
            "kitfs worker protocol 4294967296 0.1.0\n",
        ] {
            assert_eq!(Spoken::read(other.as_bytes()), None, "{other:?}");
        }
        assert_eq!(Spoken::read(b"kitfs worker protocol 1 \xff\n"), None);
    }
}
