//! The numbers by which the kernel names other namespaces in this one (`RTM_GETNSID`).

use super::{Net, NetError};
use futures_util::StreamExt;
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

impl Net {
    /// The number that the namespace `of` has in this one. `None` when it has none: then no link of this namespace that
    /// was read before has its other end there, since the kernel gives the number when it tells of such a link.
    ///
    /// # Errors
    /// When the kernel refuses to look it up.
    pub async fn number_of(&self, of: &File) -> Result<Option<i32>, NetError> {
        const WHAT: (&str, &str) = ("number", "a namespace");
        let mut question = NsidMessage::default();
        let fd = u32::try_from(of.as_raw_fd()).expect("an open descriptor is not negative");
        question.attributes.push(NsidAttribute::Fd(fd));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetNsId(question));
        request.header.flags = NLM_F_REQUEST;
        let mut answers = self.handle.clone().request(request).map_err(NetError::nl(WHAT.0, WHAT.1))?;
        while let Some(answer) = answers.next().await {
            match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNsId(answer)) => {
                    let id = answer
                        .attributes
                        .iter()
                        .find_map(|a| if let NsidAttribute::Id(id) = a { Some(*id) } else { None });
                    // `NETNSA_NSID_NOT_ASSIGNED` is -1.
                    return Ok(id.filter(|id| *id >= 0));
                }
                NetlinkPayload::Error(error) => return Err(NetError::new(WHAT.0, WHAT.1, error.to_io())),
                _ => {}
            }
        }
        Err(NetError::new(WHAT.0, WHAT.1, io::Error::other("the kernel did not answer")))
    }
}
