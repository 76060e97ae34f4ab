//! Reads the host's nftables firewall by nfnetlink: base chains whose policy is drop, and the links that rules name.
//! Tables of `iptables-legacy` are not seen.

use crate::plan::{Bridged, DroppingChain};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use std::io;
use std::os::fd::AsRawFd;

/// Message types of `linux/netfilter/nfnetlink.h` and `nf_tables.h`.
const SUBSYSTEM: u16 = 10 << 8;
const NEW_CHAIN: u16 = SUBSYSTEM | 3;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const NEW_RULE: u16 = SUBSYSTEM | 6;
const GET_RULE: u16 = SUBSYSTEM | 7;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const HOOK_NUMBER: u16 = 1;
const RULE_TABLE: u16 = 1;
const POLICY_DROP: u32 = 0;
/// Bytes of a netlink header, and of the nfnetlink header before the attributes.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// Rules in the kernel's encoding, each with family and table.
pub struct Rules(Vec<(u8, String, Vec<u8>)>);

impl Rules {
    /// Whether a rule in the chain's table names `link`.
    #[must_use]
    pub fn name(&self, chain: &DroppingChain, link: &str) -> bool {
        // A name in a rule ends in a zero byte, or in `*`.
        let named =
            |body: &[u8]| body.windows(link.len() + 1).any(|w| w.starts_with(link.as_bytes()) && w[link.len()] == 0);
        self.0.iter().any(|(family, table, body)| *family == chain.family && *table == chain.table && named(body))
    }
}

/// The chains whose policy is drop; and if there are any, all rules.
///
/// # Errors
/// When the netlink socket cannot be made, written or read.
pub fn dropping() -> io::Result<(Vec<DroppingChain>, Rules)> {
    // Asking the kernel would load the module `nf_tables`, so it is not asked unless the module is loaded already.
    let loaded = std::fs::read_to_string("/proc/modules").map(|text| text.lines().any(|l| l.starts_with("nf_tables ")));
    if !loaded.unwrap_or(true) {
        return Ok((Vec::new(), Rules(Vec::new())));
    }
    let chains: Vec<_> = dump(GET_CHAIN)?.iter().filter_map(|m| dropping_chain(m)).collect();
    let rules = if chains.is_empty() { Vec::new() } else { dump(GET_RULE)?.iter().filter_map(|m| rule(m)).collect() };
    Ok((chains, Rules(rules)))
}

/// The settings of `br_netfilter`; all off where it is not loaded.
#[must_use]
pub fn bridged() -> Bridged {
    let is_on = |key: &str| {
        std::fs::read_to_string(format!("/proc/sys/net/bridge/bridge-nf-call-{key}"))
            .is_ok_and(|text| text.trim() != "0")
    };
    Bridged { ipv4: is_on("iptables"), ipv6: is_on("ip6tables"), arp: is_on("arptables") }
}

/// The messages of the kernel's answer to the dump `request`.
fn dump(request: u16) -> io::Result<Vec<Vec<u8>>> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let fd = match socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter) {
        // A kernel without nfnetlink has no nftables.
        Err(nix::errno::Errno::EPROTONOSUPPORT) => return Ok(Vec::new()),
        other => other?,
    };
    let length = u32::try_from(HEADER + FAMILY_HEADER).unwrap_or_default();
    let kind = u16::try_from(libc::NLM_F_REQUEST | libc::NLM_F_DUMP).unwrap_or_default();
    let mut message = Vec::new();
    message.extend(length.to_ne_bytes());
    message.extend(request.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend([0; 8 + FAMILY_HEADER]);
    send(fd.as_raw_fd(), &message, MsgFlags::empty())?;
    let mut buffer = vec![0; 65_536];
    let mut found = Vec::new();
    loop {
        let n = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = &buffer[..n];
        if rest.is_empty() {
            return Ok(found);
        }
        while let Some((message, after)) = split(rest) {
            rest = after;
            match i32::from(kind_of(message)) {
                libc::NLMSG_DONE => return Ok(found),
                // An error such as EOPNOTSUPP: the kernel has no nftables.
                libc::NLMSG_ERROR => return Ok(found),
                _ => found.push(message.to_vec()),
            }
        }
    }
}

/// The first message of `bytes`, and the bytes behind it.
fn split(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let message = bytes.get(..length).filter(|m| m.len() >= HEADER)?;
    Some((message, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn kind_of(message: &[u8]) -> u16 {
    u16::from_ne_bytes([message[4], message[5]])
}

/// Type and value of each attribute.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(bytes.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(bytes.get(2..4)?.try_into().ok()?) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).escape_debug().to_string()
}

fn number(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

fn dropping_chain(message: &[u8]) -> Option<DroppingChain> {
    let body = message.get(HEADER + FAMILY_HEADER..).filter(|_| kind_of(message) == NEW_CHAIN)?;
    let hook = attribute(attribute(body, CHAIN_HOOK)?, HOOK_NUMBER).and_then(number)?;
    let drops = attribute(body, CHAIN_POLICY).and_then(number) == Some(POLICY_DROP);
    drops.then_some(DroppingChain {
        family: message[HEADER],
        table: text(attribute(body, CHAIN_TABLE)?),
        name: text(attribute(body, CHAIN_NAME)?),
        hook,
    })
}

fn rule(message: &[u8]) -> Option<(u8, String, Vec<u8>)> {
    let body = message.get(HEADER + FAMILY_HEADER..).filter(|_| kind_of(message) == NEW_RULE)?;
    Some((message[HEADER], text(attribute(body, RULE_TABLE)?), body.to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_that_is_answered_panics(bytes: Vec<u8>) {
            let mut rest = &bytes[..];
            while let Some((message, after)) = split(rest) {
                let _ = (dropping_chain(message), rule(message));
                rest = after;
            }
        }
    }
}
