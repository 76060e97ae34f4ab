//! The failure of a request: messages for people, and the kind of fault.

use crate::config::ConfigError;
use crate::ipam::IpamError;
use crate::ipam::store::StoreError;
use crate::kernel::KernelError;
use crate::kernel::bpf::BpfError;
use crate::kernel::claim::ClaimError;
use crate::kernel::netlink::NetError;
use crate::kernel::netns::NetnsError;
use crate::kernel::own_dir::OwnDirError;
use crate::kernel::sysctl::SysctlError;
use crate::lease::LeaseError;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A fault of the caller: a wrong file or argument.
    Usage,
    /// Something that the request names does not exist.
    NotFound,
    /// The request conflicts with the present state.
    Conflict,
    /// A fault of the device or of pv-net.
    Internal,
}

/// A line `error:`, and perhaps a line `help:`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Message {
    /// What is wrong: `what: why`.
    pub error: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub help: Option<String>,
}

/// Why a request was not done. What was not restored after a failed operation is among the messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The kind of fault.
    pub kind: Kind,
    /// Everything that is wrong; at least one message.
    pub messages: Vec<Message>,
}

impl Failure {
    /// A failure with one message, without help.
    #[must_use]
    pub fn new(kind: Kind, error: impl Into<String>) -> Self {
        Self { kind, messages: vec![Message { error: error.into(), help: None }] }
    }

    /// Sets the help of the last message.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        if let Some(last) = self.messages.last_mut() {
            last.help = Some(help.into());
        }
        self
    }

    /// Puts `what: ` before each error.
    #[must_use]
    pub fn about(mut self, what: impl fmt::Display) -> Self {
        for message in &mut self.messages {
            message.error = format!("{what}: {}", message.error);
        }
        self
    }

    /// Joins the messages of both.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.messages.extend(other.messages);
        self
    }

    /// Adds what could not be restored.
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
            IpamError::Taken { .. } | IpamError::Lent { .. } | IpamError::MacTaken { .. } => {
                failure.help("choose another, or leave it out to be given one")
            }
            _ => failure,
        }
    }
}

impl From<&NetnsError> for Failure {
    fn from(e: &NetnsError) -> Self {
        let kind = match e {
            NetnsError::Enter(_) | NetnsError::Broker(_) | NetnsError::Slow { .. } | NetnsError::Busy { .. } => {
                Kind::Internal
            }
            _ => Kind::Usage,
        };
        let failure = Self::new(kind, e.to_string());
        match e {
            NetnsError::Own { .. } => failure.help("a container that shares it has network mode \"host\""),
            NetnsError::Open { .. } => failure.help("name a file such as /run/netns/NAME, or a running process"),
            NetnsError::Busy { .. } => {
                failure.help("find out what file systems the namespaces' files are on, and ask again")
            }
            _ => failure,
        }
    }
}

impl From<NetnsError> for Failure {
    fn from(e: NetnsError) -> Self {
        Self::from(&e)
    }
}

impl From<NetError> for Failure {
    fn from(e: NetError) -> Self {
        match e {
            NetError::Netns(e) => e.into(),
            NetError::Foreign { .. } | NetError::InterfaceExists { .. } => {
                Self::new(Kind::Conflict, e.to_string()).help("remove it, or choose another name")
            }
            NetError::NoNetkit { .. } => Self::new(Kind::Conflict, e.to_string())
                .help("set \"link\" of the pool to \"auto\" and reload, or use Linux 6.12 or later with CONFIG_NETKIT"),
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

impl From<ClaimError> for Failure {
    fn from(e: ClaimError) -> Self {
        match e {
            ClaimError::Taken(_) => {
                Self::new(Kind::Conflict, e.to_string()).help("stop it, or start this one elsewhere")
            }
            ClaimError::Io(_) => Self::new(Kind::Internal, e.to_string()),
        }
    }
}

impl From<SysctlError> for Failure {
    fn from(e: SysctlError) -> Self {
        Self::new(Kind::Internal, e.to_string())
    }
}

impl From<&StoreError> for Failure {
    fn from(e: &StoreError) -> Self {
        Self::new(Kind::Internal, e.to_string()).help("the state directory must be writable: see --state-dir")
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Self::from(&e)
    }
}

impl From<LeaseError> for Failure {
    fn from(e: LeaseError) -> Self {
        match e {
            LeaseError::Ipam(e) => e.into(),
            LeaseError::Store(e) => e.as_ref().into(),
            e @ (LeaseError::Held { .. } | LeaseError::Lend(_)) => Self::new(Kind::Conflict, e.to_string()),
            e @ LeaseError::Failed => {
                Self::new(Kind::Internal, e.to_string()).help("ask again: traffic is not touched")
            }
            e @ LeaseError::Ended => {
                Self::new(Kind::Internal, e.to_string()).help("restart the daemon: traffic is not touched")
            }
        }
    }
}
