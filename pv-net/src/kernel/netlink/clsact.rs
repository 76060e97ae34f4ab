//! The clsact qdisc of a link.

use super::{Net, NetError};
use futures_util::TryStreamExt;
use rtnetlink::packet_route::tc::{TcHandle, TcMessage};

impl Net {
    /// Removes the clsact qdisc of a link, unless somebody has a filter there; a qdisc that is not there is fine.
    ///
    /// # Errors
    /// The kernel's.
    pub async fn delete_unused_clsact(&self, link: &str, index: u32) -> Result<(), NetError> {
        // The kernel's interface indices are positive ints.
        let index = index.cast_signed();
        for ingress in [true, false] {
            let handle = self.handle.clone();
            let mut filters = handle.traffic_filter(index);
            let request = if ingress { filters.get().ingress() } else { filters.get().egress() };
            let found: Vec<TcMessage> =
                request.execute().try_collect().await.map_err(NetError::nl("list filters of", link))?;
            if !found.is_empty() {
                return Ok(());
            }
        }
        let mut request = self.handle.qdisc().del(index);
        let header = &mut request.message_mut().header;
        header.parent = TcHandle::CLSACT;
        header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
        match request.execute().await.map_err(NetError::nl("delete clsact of", link)) {
            Err(e) if e.is(libc::ENOENT) || e.is(libc::EINVAL) || e.is(libc::ENODEV) => Ok(()),
            other => other,
        }
    }
}
