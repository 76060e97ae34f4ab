//! What is said on the runner's socket: a JSON object on a line for each request, and one for its answer.

use crate::failure::{Failure, Kind, Message};
use crate::model::{ContainerName, RunStatus};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Most bytes of a request.
pub const MOST_REQUEST: u64 = 1024;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "do", deny_unknown_fields)]
pub enum Request {
    /// Start a container.
    Start {
        /// Its name.
        name: ContainerName,
    },
    /// Stop a container.
    Stop {
        /// Its name.
        name: ContainerName,
        /// The daemon wants it, and no person: the next automatic start may start it.
        #[serde(default)]
        is_own: bool,
    },
    /// Stop a container if it runs, and start it.
    Restart {
        /// Its name.
        name: ContainerName,
    },
    /// Ask the runtime about a container.
    Look {
        /// Its name.
        name: ContainerName,
        /// A process that was its first one. The answer says whether that is gone.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        pid: Option<u32>,
    },
    /// Run the health check that a container's `run.json` declares as a command.
    Check {
        /// Its name.
        name: ContainerName,
    },
    /// Start all containers with `"start": "auto"` that do not run, and were not stopped by a request. There are two
    /// answers: that this has begun, and when each start has come to its end, that it is over.
    Auto,
    /// Tell the state of all containers, now and after each change.
    Watch,
}

/// The answer to a request.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Reply {
    /// It is done; the container's state after it.
    Done(RunStatus),
    /// The container's state, and whether the process of the request is gone.
    Looked {
        /// The state.
        status: RunStatus,
        /// Whether that process has ended.
        is_gone: bool,
    },
    /// What has come of a health check.
    Checked(Checked),
    /// The automatic starts have begun.
    Begun,
    /// The automatic starts are over, whatever has become of each.
    Over,
    /// The states of all containers that can be started.
    All(BTreeMap<ContainerName, Told>),
    /// It was not done.
    Failed(Refusal),
}

/// What is told of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Its state.
    #[serde(flatten)]
    pub status: RunStatus,
    /// This runner has started its process. Otherwise that was found, and whoever has started it may attach it later.
    #[serde(default)]
    pub is_started: bool,
}

/// What has come of a health check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    /// The exit status of its command; none when that was killed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exit_status: Option<i32>,
    /// It has taken too long, and was killed.
    #[serde(default)]
    pub is_late: bool,
    /// The beginning of what the command has said. A container may say anything.
    #[serde(default)]
    pub output: String,
}

/// A [`Failure`] on its way.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refusal {
    kind: String,
    messages: Vec<Message>,
}

const KINDS: [(&str, Kind); 4] =
    [("usage", Kind::Usage), ("not found", Kind::NotFound), ("conflict", Kind::Conflict), ("internal", Kind::Internal)];

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let kind = KINDS.iter().find(|(_, kind)| *kind == failure.kind).map_or("internal", |(name, _)| name);
        Self { kind: kind.to_owned(), messages: failure.messages }
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        let kind = KINDS.iter().find(|(name, _)| *name == refusal.kind).map_or(Kind::Internal, |(_, kind)| *kind);
        Self { kind, messages: refusal.messages }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_names_a_container_and_nothing_to_execute() {
        let read = |text: &str| serde_json::from_str::<Request>(text);
        let web = || "web".parse().expect("a name");
        assert_eq!(read(r#"{"do": "start", "name": "web"}"#).expect("read"), Request::Start { name: web() });
        assert_eq!(read(r#"{"do": "auto"}"#).expect("read"), Request::Auto);
        assert_eq!(read(r#"{"do": "check", "name": "web"}"#).expect("read"), Request::Check { name: web() });
        for wrong in [
            r#"{"do": "start", "name": "../web"}"#,
            r#"{"do": "start", "name": "web", "command": "sh"}"#,
            r#"{"do": "exec", "name": "web"}"#,
            r#"{"do": "check", "name": "web", "command": ["sh"]}"#,
            r#"{"do": "check", "name": "web", "timeout": 3600}"#,
            r#"{"do": "start"}"#,
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_failure_arrives_as_it_was_sent() {
        for (_, kind) in KINDS {
            let failure = Failure::new(kind, "what: why").help("what to do");
            assert_eq!(Failure::from(Refusal::from(failure.clone())), failure);
        }
    }
}
