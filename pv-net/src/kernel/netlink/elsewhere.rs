//! Macvlan and ipvlan interfaces of containers, which are in other namespaces. The kernel changes a link there for a request that
//! has the namespace's number (`IFLA_TARGET_NETNSID`, kernel 4.20), so the namespace need not be opened.

use super::{LinkInfo, Net, NetError};
use crate::kernel::bpf::children::{self, Child};
use crate::kernel::kill_point;
use crate::model::{IfName, alias};
use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

/// Why nothing is done to an interface.
const NOT_THERE: &str =
    "its container has moved it to another namespace, or has given it another MAC or alias: it keeps its programs";

impl Net {
    /// The number that the namespace `of` has in this one; it is given one if it has none.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn numbered(&self, of: &File) -> Result<i32, NetError> {
        const WHAT: (&str, &str) = ("number", "a namespace");
        if let Some(number) = self.number_of(of).await? {
            return Ok(number);
        }
        let mut wish = NsidMessage::default();
        let fd = u32::try_from(of.as_raw_fd()).map_err(|e| NetError::new(WHAT.0, WHAT.1, io::Error::other(e)))?;
        // -1: the kernel chooses.
        wish.attributes = vec![NsidAttribute::Fd(fd), NsidAttribute::Id(-1)];
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewNsId(wish));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let mut answers = self.handle.clone().request(request).map_err(NetError::nl(WHAT.0, WHAT.1))?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(error) = answer.payload
                && error.raw_code().abs() != libc::EEXIST
                && error.code.is_some()
            {
                return Err(NetError::new(WHAT.0, WHAT.1, error.to_io()));
            }
        }
        let unnumbered = || NetError::new(WHAT.0, WHAT.1, io::Error::other("the kernel gave none"));
        self.number_of(of).await?.ok_or_else(unnumbered)
    }

    /// Moves the link with index `index` into the namespace `to` and names it `name` there. The link is down afterwards.
    ///
    /// # Errors
    /// When the kernel refuses: `EEXIST` when a link of that name is there. The link may have been moved all the same.
    pub async fn move_link(&self, link: &str, index: u32, to: &File, name: &IfName) -> Result<(), NetError> {
        let fd = to.as_raw_fd();
        self.set_link(link, index, |l| l.name(name.to_string()).setns_by_fd(fd)).await
    }

    /// The macvlan and ipvlan interfaces of containers.
    pub(super) async fn children(&self) -> Vec<LinkInfo> {
        let mut all = Vec::new();
        for child in children::all().into_iter().filter(|_| self.device) {
            all.push(self.child_info(child).await);
        }
        all
    }

    /// The interface with this number.
    pub(super) async fn child_at(&self, number: u32) -> Option<LinkInfo> {
        let child = children::at(number).filter(|_| self.device)?;
        Some(self.child_info(child).await)
    }

    /// The interface that has this name in place of a host-side link's.
    pub(super) async fn child_named(&self, name: &str) -> Option<LinkInfo> {
        let child = children::named(name).filter(|_| self.device)?;
        Some(self.child_info(child).await)
    }

    /// The link that a request about `child` would be about, if it is that interface. When the container has moved the
    /// interface to another namespace, the namespace's number may have passed on to a third one, where another link has
    /// the index. A macvlan interface is known by the MAC of its lease. An ipvlan interface has its parent's; it is known by
    /// its alias, which names the attachment.
    async fn proven(&self, child: &Child) -> Option<LinkInfo> {
        let mut request = self.handle.link().get().match_index(child.index);
        request.message_mut().attributes.push(LinkAttribute::IfNetnsId(child.ns));
        let found = LinkInfo::from(request.execute().try_next().await.ok().flatten().as_ref()?);
        let is_it = match (found.kind.as_deref(), child.mac) {
            // Nothing is known of it but where it is: nobody else may be there.
            (Some("macvlan" | "ipvlan"), None) => {
                !children::all().iter().any(|o| o.number != child.number && (o.ns, o.index) == (child.ns, child.index))
            }
            (Some("macvlan"), Some(mac)) => found.mac == Some(mac),
            (Some("ipvlan"), Some(_)) => found.alias.as_deref().map(alias::finished) == Some(child.alias.as_str()),
            _ => false,
        };
        is_it.then_some(found)
    }

    /// What is known of an interface. One that its container has moved to another namespace exists too, and has its
    /// programs, but nothing else is known of it.
    async fn child_info(&self, child: Child) -> LinkInfo {
        let found = self.proven(&child).await;
        let alias = if child.finished { child.alias.clone() } else { alias::unfinished(&child.alias) };
        LinkInfo {
            index: child.number,
            name: child.host_if.to_string(),
            kind: found.as_ref().map_or_else(|| Some("macvlan".to_owned()), |found| found.kind.clone()),
            mac: found.as_ref().and_then(|found| found.mac),
            mtu: found.as_ref().map_or(0, |found| found.mtu),
            up: true,
            carrier: true,
            alias: Some(alias),
            other_end: Some(child.index),
            other_ns: Some(child.ns),
            // The parent's index, as a bridge's is on other links. Nobody can give a macvlan another parent.
            controller: found.and_then(|found| found.other_end),
            loopback: false,
            l3s: false,
        }
    }

    /// Changes a setting of an interface.
    ///
    /// # Errors
    /// When the kernel refuses, or the interface is not where it was put.
    pub(super) async fn set_child(
        &self,
        child: &Child,
        change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
    ) -> Result<(), NetError> {
        let name = child.host_if.as_str();
        if self.proven(child).await.is_none() {
            return Err(NetError::new("change link", name, io::Error::other(NOT_THERE)));
        }
        kill_point::pass();
        let mut message: LinkMessage = change(LinkUnspec::new_with_index(child.index)).build();
        message.attributes.push(LinkAttribute::IfNetnsId(child.ns));
        self.handle.link().set(message).execute().await.map_err(NetError::nl("change link", name))
    }

    /// Deletes an interface.
    ///
    /// # Errors
    /// When the kernel refuses, or the interface is not where it was put.
    pub(super) async fn delete_child(&self, child: &Child) -> Result<(), NetError> {
        kill_point::pass();
        let name = child.host_if.as_str();
        if self.proven(child).await.is_some() {
            let mut request = self.handle.link().del(child.index);
            request.message_mut().attributes.push(LinkAttribute::IfNetnsId(child.ns));
            match request.execute().await.map_err(NetError::nl("delete link", name)) {
                // The namespace, or the interface, is gone.
                Err(e) if e.is(libc::ENODEV) || e.is(libc::EINVAL) => {}
                other => other?,
            }
        }
        if children::at(child.number).is_none() {
            return Ok(());
        }
        Err(NetError::new("delete link", name, io::Error::other(NOT_THERE)))
    }
}
