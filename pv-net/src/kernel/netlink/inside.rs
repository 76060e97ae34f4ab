//! Works on the network of another namespace without entering it.

use super::{Net, NetError};
use crate::kernel::netns::{Inside, NetnsError, NetnsId, PATIENCE};
use crate::kernel::sysctl::{self, SysctlError};
use crate::model::IfName;
use rtnetlink::sys::TokioSocket;
use std::fs::File;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::sync::{Mutex, PoisonError};
use tokio::task::AbortHandle;

/// An open network namespace. It exists at least as long as this value.
#[derive(Debug)]
pub struct Netns {
    inside: Inside,
    /// Made on first use, since it lives on the runtime of the first user. There is only one, since two connections on
    /// one socket would take each other's answers.
    net: Mutex<Option<(Net, AbortHandle)>>,
}

impl Netns {
    /// Wraps a namespace that the broker has opened.
    #[must_use]
    pub fn new(inside: Inside) -> Self {
        Self { inside, net: Mutex::new(None) }
    }

    /// The namespace's file, for netlink attributes that take one.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.inside.file
    }

    /// The namespace's identity.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.inside.id
    }

    /// The rtnetlink connection in the namespace.
    ///
    /// # Errors
    /// When the process can open no more files.
    pub fn net(&self) -> Result<Net, NetError> {
        let mut made = self.net.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((net, _)) = &*made {
            return Ok(net.clone());
        }
        let socket = self.inside.netlink.try_clone().map_err(|e| NetError::new("open", "netlink socket", e))?;
        // SAFETY: the descriptor belongs to this value alone, and is an rtnetlink socket.
        let socket = unsafe { TokioSocket::from_raw_fd(socket.into_raw_fd()) };
        let (connection, handle, _) = rtnetlink::from_socket(socket);
        let connection = tokio::spawn(connection).abort_handle();
        Ok(made.insert((Net { handle, device: false }, connection)).0.clone())
    }

    /// Writes `net.ipv6.conf.LINK.KEY` in the namespace. Returns whether the namespace has this setting.
    ///
    /// # Errors
    /// When the file exists but cannot be written.
    pub fn set_ipv6(&self, link: &IfName, key: &str, value: &str) -> Result<bool, SysctlError> {
        match &self.inside.ipv6 {
            Some(directory) => sysctl::set_below(directory.as_fd(), link, key, value),
            None => Ok(false),
        }
    }
}

impl Drop for Netns {
    /// Ends the connection. Otherwise it would go on reading a list that nobody waits for any more, however long the
    /// container has made it.
    fn drop(&mut self) {
        let made = self.net.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, connection)) = made.take() {
            connection.abort();
        }
    }
}

/// Waits for `work` in a namespace, at most [`PATIENCE`].
///
/// # Errors
/// The error of `work`, or [`NetnsError::Slow`].
pub async fn in_time<T>(work: impl Future<Output = Result<T, NetError>>) -> Result<T, NetError> {
    let slow = |_| NetnsError::Slow { what: "inside the namespace".to_owned() };
    tokio::time::timeout(PATIENCE, work).await.map_err(slow)?
}
