//! Makes a link and sets its alias in one system call.
//!
//! `RTM_NEWLINK` ignores `IFLA_IFALIAS` when it makes a link (`rtnl_create_link` in `net/core/rtnetlink.c`; seen on
//! 6.18), so the alias needs a second message. Both are sent by one `send`: the kernel handles them one after the other
//! before the call returns, and no signal can end the process in between. So a link of pv-net is never without its
//! alias.

use super::NetError;
use crate::kernel::kill_point;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use rtnetlink::LinkUnspec;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;
use std::io;
use std::os::fd::AsRawFd;

/// Makes the link that `message` describes, named `name`, with `alias` as its `ifalias`.
///
/// # Errors
/// When the kernel refuses; there is no new link then.
pub(in crate::kernel) async fn add_with_alias(
    op: &'static str,
    name: &str,
    message: LinkMessage,
    alias: &str,
) -> Result<(), NetError> {
    kill_point::pass();
    let mark = |alias: &str| LinkUnspec::new_with_name(name).alias(alias.to_owned()).build();
    let new = (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
    let mark_it = (RouteNetlinkMessage::SetLink(mark(alias)), 0);
    let answers = exchange(vec![new, mark_it]).map_err(|e| NetError::new(op, name, e))?;
    let [made, marked] = answers.as_slice() else {
        return Err(NetError::new(op, name, io::Error::other("the kernel did not answer both messages")));
    };
    match (made, marked) {
        (0, 0) => Ok(()),
        (0, error) => {
            let by_name = LinkUnspec::new_with_name(name).build();
            exchange(vec![(RouteNetlinkMessage::DelLink(by_name), 0)]).map_err(|e| NetError::new(op, name, e))?;
            Err(NetError::new("mark link", name, io::Error::from_raw_os_error(*error)))
        }
        (error, marked) => {
            if *marked == 0 && *error == libc::EEXIST {
                // Somebody has made a link of that name since it was looked for. It is not pv-net's, so its alias is
                // removed again.
                exchange(vec![(RouteNetlinkMessage::SetLink(mark("")), 0)]).map_err(|e| NetError::new(op, name, e))?;
            }
            Err(NetError::new(op, name, io::Error::from_raw_os_error(*error)))
        }
    }
}

/// Asks for a new link, and returns the errno of the answer, 0 for success.
///
/// # Errors
/// When the kernel cannot be asked.
pub(in crate::kernel) fn errno_of_new(op: &'static str, message: LinkMessage) -> Result<i32, NetError> {
    let new = (RouteNetlinkMessage::NewLink(message), NLM_F_CREATE | NLM_F_EXCL);
    let answers = exchange(vec![new]).map_err(|e| NetError::new(op, "netlink", e))?;
    Ok(answers.first().copied().unwrap_or_default())
}

/// Sends `messages` in one call. Returns the errno of each, 0 for success.
fn exchange(messages: Vec<(RouteNetlinkMessage, u16)>) -> io::Result<Vec<i32>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
    let wanted = messages.len();
    let mut bytes = Vec::new();
    for (number, (message, flags)) in (1u32..).zip(messages) {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = number;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len();
        // Messages are aligned to four bytes.
        bytes.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut bytes[start..]);
    }
    send(fd.as_raw_fd(), &bytes, MsgFlags::empty())?;
    let mut answers = Vec::new();
    let mut buffer = vec![0; 16_384];
    while answers.len() < wanted {
        // The kernel has sent all answers when `send` returns.
        let n = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            if let NetlinkPayload::Error(error) = &message.payload {
                answers.push(error.raw_code().abs());
            }
            let length = usize::try_from(message.header.length).unwrap_or(rest.len()).next_multiple_of(4);
            rest = rest.get(length.max(16)..).unwrap_or_default();
        }
    }
    Ok(answers)
}
