//! Netlink errors that name the operation and the object.

use crate::kernel::netns::NetnsError;
use crate::kernel::sysctl::SysctlError;
use crate::model::InvalidName;
use std::io;

/// A netlink operation that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The kernel refused an operation.
    #[error("{op} {object}: {source}")]
    Kernel {
        /// The operation.
        op: &'static str,
        /// The object of the operation.
        object: String,
        /// The error with the kernel's errno.
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
        /// Its kind.
        kind: String,
    },
    /// The container has another interface of that name.
    #[error("interface {name}: exists already in the container's namespace")]
    InterfaceExists {
        /// Its name.
        name: String,
    },
    /// A link that was just made is not there any more.
    #[error("link {name}: gone while it was set up")]
    Vanished {
        /// Its name.
        name: String,
    },
    /// The container has given its interface a name that pv-net does not write to.
    #[error("interface {name:?}: {why}")]
    Unnamed {
        /// The name.
        name: String,
        /// What is wrong with it.
        why: InvalidName,
    },
    /// The pool is to have netkit links, and the kernel cannot make one with the MAC of its lease.
    #[error("link {name}: this kernel has no netkit links that can be given a MAC")]
    NoNetkit {
        /// The link.
        name: String,
    },
    /// The container needs an IPv6 address, and the kernel has no IPv6.
    #[error("interface {name}: the kernel has no IPv6")]
    NoIpv6 {
        /// The interface.
        name: String,
    },
}

impl NetError {
    pub(in crate::kernel) fn new(op: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        Self::Kernel { op, object: object.into(), source }
    }

    /// The error for this errno.
    pub(in crate::kernel) fn refused(op: &'static str, object: &str, errno: i32) -> Self {
        Self::new(op, object, io::Error::from_raw_os_error(errno))
    }

    /// Converts rtnetlink's error, keeping the errno.
    pub(in crate::kernel) fn nl(op: &'static str, object: &str) -> impl FnOnce(rtnetlink::Error) -> Self {
        let object = object.to_owned();
        move |e| {
            let source = match e {
                rtnetlink::Error::NetlinkError(message) => message.to_io(),
                other => io::Error::other(other.to_string()),
            };
            Self::Kernel { op, object, source }
        }
    }

    /// Whether the kernel's errno was `errno`.
    #[must_use]
    pub fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Kernel { source, .. } if source.raw_os_error() == Some(errno))
    }
}
