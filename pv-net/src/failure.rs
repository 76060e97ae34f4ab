//! What a request ends with when it is not done: messages for people, and what kind of fault it is.

use crate::config::ConfigError;
use crate::ipam::IpamError;
use crate::ipam::store::StoreError;
use crate::kernel::KernelError;
use crate::kernel::bpf::BpfError;
use crate::kernel::netlink::NetError;
use crate::kernel::netns::NetnsError;
use crate::kernel::own_dir::OwnDirError;
use crate::kernel::sysctl::SysctlError;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Whose fault it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The caller's: a wrong file, a wrong word.
    Usage,
    /// What it names is not there.
    NotFound,
    /// It is at odds with what is there.
    Conflict,
    /// The device's.
    Internal,
}

/// One line of `error:` and perhaps one of `help:`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Message {
    /// What is wrong: `what: why`.
    pub error: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
}

/// Why a request was not done; nothing is half done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Whose fault it is.
    pub kind: Kind,
    /// All that is wrong; at least one.
    pub messages: Vec<Message>,
}

impl Failure {
    /// One message without help.
    #[must_use]
    pub fn new(kind: Kind, error: impl Into<String>) -> Self {
        Self { kind, messages: vec![Message { error: error.into(), help: None }] }
    }

    /// The same with help on the last message.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        if let Some(last) = self.messages.last_mut() {
            last.help = Some(help.into());
        }
        self
    }

    /// The same, with `what: ` before each error.
    #[must_use]
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        for message in &mut self.messages {
            message.error = format!("{what}: {}", message.error);
        }
        self
    }

    /// Both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.messages.extend(other.messages);
        self
    }

    /// The same, and what could not be put back as it was before.
    #[must_use]
    pub fn not_restored(mut self, failures: impl IntoIterator<Item = Self>) -> Self {
        for failure in failures {
            self.messages.extend(
                failure
                    .messages
                    .into_iter()
                    .map(|m| Message { error: format!("and not put back as it was: {}", m.error), help: m.help }),
            );
        }
        self
    }

    /// All errors on one line.
    #[must_use]
    pub fn line(&self) -> String {
        self.messages.iter().map(|m| m.error.as_str()).collect::<Vec<_>>().join("; ")
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line())
    }
}

impl std::error::Error for Failure {}

impl From<Vec<ConfigError>> for Failure {
    fn from(errors: Vec<ConfigError>) -> Self {
        let messages = errors.into_iter().map(|e| Message { error: e.to_string(), help: e.help }).collect();
        Self { kind: Kind::Usage, messages }
    }
}

impl From<IpamError> for Failure {
    fn from(e: IpamError) -> Self {
        let failure = Self::new(Kind::Conflict, e.to_string());
        match e {
            IpamError::PoolFull { .. } => failure.help("detach a container, or give the pool a wider subnet"),
            IpamError::Taken { .. } | IpamError::MacTaken { .. } => {
                failure.help("choose another, or leave it out to be given one")
            }
            _ => failure,
        }
    }
}

impl From<NetnsError> for Failure {
    fn from(e: NetnsError) -> Self {
        let kind = match e {
            NetnsError::Enter(_) | NetnsError::Lost | NetnsError::Slow { .. } => Kind::Internal,
            _ => Kind::Usage,
        };
        let failure = Self::new(kind, e.to_string());
        match e {
            NetnsError::Own { .. } => failure.help("a container that shares it has network mode \"host\""),
            NetnsError::Open { .. } => failure.help("name a file such as /run/netns/NAME, or a running process"),
            _ => failure,
        }
    }
}

impl From<NetError> for Failure {
    fn from(e: NetError) -> Self {
        match e {
            NetError::Netns(e) => e.into(),
            NetError::Foreign { .. } | NetError::InterfaceExists { .. } => {
                Self::new(Kind::Conflict, e.to_string()).help("remove it, or choose another name")
            }
            e => Self::new(Kind::Internal, e.to_string()),
        }
    }
}

impl From<KernelError> for Failure {
    fn from(e: KernelError) -> Self {
        match e {
            KernelError::Net(e) => e.into(),
            KernelError::Bpf(e) => e.into(),
            e => Self::new(Kind::Internal, e.to_string()),
        }
    }
}

impl From<BpfError> for Failure {
    fn from(e: BpfError) -> Self {
        let failure = Self::new(Kind::Internal, e.to_string());
        match e.help() {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

impl From<OwnDirError> for Failure {
    fn from(e: OwnDirError) -> Self {
        let kind = if matches!(e, OwnDirError::Io { .. }) { Kind::Internal } else { Kind::Conflict };
        let failure = Self::new(kind, e.to_string());
        match e.help() {
            Some(help) => failure.help(help),
            None => failure,
        }
    }
}

impl From<SysctlError> for Failure {
    fn from(e: SysctlError) -> Self {
        Self::new(Kind::Internal, e.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Self::new(Kind::Internal, e.to_string()).help("the state directory must be writable: see --state-dir")
    }
}
