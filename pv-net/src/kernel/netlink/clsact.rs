//! The clsact qdisc of a link, and pv-net's filters on it.

use super::{Net, NetError};
use crate::kernel::kill_point;
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};

/// The priority of pv-net's filters. Filters without a given handle are numbered by the kernel from 1, so they do not
/// collide with [`HANDLE`].
pub const PRIORITY: u16 = 1;
/// The minor number of the handle of pv-net's filters: "pv" in ASCII.
pub const HANDLE: u16 = 0x7076;

/// Ids of the programs in pv-net's filters on a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OwnFilters {
    /// The program for packets that come in by the link.
    pub ingress: Option<u32>,
    /// The program for packets that leave by the link.
    pub egress: Option<u32>,
}

/// The id of the program in a filter of pv-net; `None` for another filter, 0 for one without a program.
#[must_use]
pub fn own_program(filter: &TcMessage) -> Option<u32> {
    let header = &filter.header;
    // The kernel first reports the filter chain, in a message without a handle.
    if header.info >> 16 != u32::from(PRIORITY) || header.handle != (TcHandle { major: 0, minor: HANDLE }) {
        return None;
    }
    let options = filter.attributes.iter().filter_map(|a| if let TcAttribute::Options(o) = a { Some(o) } else { None });
    let id = options.flatten().find_map(|option| match option {
        TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
        _ => None,
    });
    Some(id.unwrap_or(0))
}

/// Whether a message is about a clsact qdisc.
#[must_use]
pub fn is_clsact(qdisc: &TcMessage) -> bool {
    qdisc.header.parent == TcHandle::CLSACT
}

impl Net {
    async fn filters(&self, link: &str, index: u32, ingress: bool) -> Result<Vec<TcMessage>, NetError> {
        // Interface indexes are positive `int`s in the kernel.
        let mut filters = self.handle.traffic_filter(index.cast_signed());
        let request = if ingress { filters.get().ingress() } else { filters.get().egress() };
        match request.execute().try_collect().await.map_err(NetError::nl("list filters of", link)) {
            // The link has gone meanwhile.
            Err(e) if e.is(libc::ENODEV) => Ok(Vec::new()),
            other => other,
        }
    }

    /// The ids of the programs in pv-net's filters on a link.
    ///
    /// # Errors
    /// When the filters cannot be listed.
    pub async fn own_filters(&self, link: &str, index: u32) -> Result<OwnFilters, NetError> {
        let mut found = OwnFilters::default();
        for (ingress, place) in [(true, &mut found.ingress), (false, &mut found.egress)] {
            *place = self.filters(link, index, ingress).await?.iter().find_map(own_program);
        }
        Ok(found)
    }

    /// Deletes the clsact qdisc of a link, unless it has a filter; a missing qdisc is fine.
    ///
    /// # Errors
    /// When the filters cannot be listed, or the qdisc cannot be deleted.
    pub async fn delete_unused_clsact(&self, link: &str, index: u32) -> Result<(), NetError> {
        for ingress in [true, false] {
            if !self.filters(link, index, ingress).await?.is_empty() {
                return Ok(());
            }
        }
        kill_point::pass();
        let mut request = self.handle.qdisc().del(index.cast_signed());
        let header = &mut request.message_mut().header;
        header.parent = TcHandle::CLSACT;
        header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
        match request.execute().await.map_err(NetError::nl("delete clsact of", link)) {
            Err(e) if e.is(libc::ENOENT) || e.is(libc::EINVAL) || e.is(libc::ENODEV) => Ok(()),
            other => other,
        }
    }
}
