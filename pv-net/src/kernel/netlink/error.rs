//! Netlink errors that name the operation and the object.

use crate::kernel::netns::NetnsError;
use crate::kernel::sysctl::SysctlError;
use std::io;

/// A netlink operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused.
    #[error("{op} {object}: {source}")]
    Kernel {
        /// What was tried.
        op: &'static str,
        /// On what.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A sysctl could not be set.
    #[error(transparent)]
    Sysctl(#[from] SysctlError),
    /// The container's namespace could not be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// There is a link of that name, and it is not pv-net's.
    #[error("link {name}: exists already, as a {kind} that pv-net did not make")]
    Foreign {
        /// Its name.
        name: String,
        /// What it is.
        kind: String,
    },
    /// There is an interface of that name in the container.
    #[error("interface {name}: exists already in the container's namespace")]
    InterfaceExists {
        /// Its name.
        name: String,
    },
    /// A link that was just made is not there.
    #[error("link {name}: gone while it was set up")]
    Vanished {
        /// Its name.
        name: String,
    },
    /// The kernel has no IPv6, and an IPv6 address is asked for.
    #[error("interface {name}: the kernel has no IPv6")]
    NoIpv6 {
        /// The interface.
        name: String,
    },
}

impl NetError {
    pub(super) fn new(op: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel { op, object: object.into(), source }
    }

    /// Maps rtnetlink's error, keeping the errno.
    pub(super) fn nl(op: &'static str, object: &str) -> impl FnOnce(rtnetlink::Error) -> Self {
        let object = object.to_owned();
        move |e| {
            let source = match e {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other.to_string()),
            };
            Self::Kernel { op, object, source }
        }
    }

    /// Whether the kernel's answer was `errno`.
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Kernel { source, .. } if source.raw_os_error() == Some(errno))
    }
}
