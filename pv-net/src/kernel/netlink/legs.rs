//! Reads the rules of a container's namespace, and writes the routes and rules of its interfaces. What there should be
//! is decided in `plan`.

use super::{Net, NetError};
use crate::kernel::kill_point;
use crate::plan::{Inside, InsideStep, LegRoute, MAIN_TABLE, SourceRule};
use futures_util::{StreamExt, TryStreamExt};
use ipnetwork::IpNetwork;
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The protocol number of pv-net's rules and of the routes in their tables. No other program has it in iproute2's list.
pub(super) const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);
/// The metric of an IPv6 route that comes before others. One without a metric gets 1024 (`IP6_RT_PRIO_USER`), also those
/// of router advertisements.
const FIRST_METRIC: u32 = 1;
/// How many rules of a family are read at most. A container can have any number.
const MOST_RULES: usize = 1000;

impl Net {
    /// The rules of this namespace. When there are very many, only the first ones are read.
    ///
    /// # Errors
    /// When the kernel refuses to list them.
    pub async fn inside(&self) -> Result<Inside, NetError> {
        let mut inside = Inside::default();
        inside.keeps_out4 = self.read_rules(IpVersion::V4, &mut inside.rules).await?;
        inside.keeps_out6 = self.read_rules(IpVersion::V6, &mut inside.rules).await?;
        Ok(inside)
    }

    /// Adds pv-net's rules of a family to `ours`. Returns whether there are rules of somebody else, or none can be made.
    async fn read_rules(&self, family: IpVersion, ours: &mut Vec<SourceRule>) -> Result<bool, NetError> {
        let mut all = std::pin::pin!(self.handle.rule().get(family).execute());
        let (mut others, mut count) = (false, 0);
        loop {
            let rule = match all.try_next().await.map_err(NetError::nl("list", "routing rules")) {
                Ok(Some(rule)) => rule,
                Ok(None) => return Ok(others),
                // A kernel without policy routing, or without the family.
                Err(e) if e.is(libc::EOPNOTSUPP) || e.is(libc::EAFNOSUPPORT) => return Ok(true),
                // The list of the other family was too long, and has not come to its end yet.
                Err(e) if e.is(libc::EBUSY) => return Ok(true),
                Err(e) => return Err(e),
            };
            match protocol_of(&rule) {
                Some(RouteProtocol::Kernel) => {}
                Some(PROTOCOL) => ours.extend(source_rule(&rule)),
                _ => others = true,
            }
            count += 1;
            if count == MOST_RULES {
                return Ok(true);
            }
        }
    }

    /// Makes one change; one that is made already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn arrange(&self, step: &InsideStep) -> Result<(), NetError> {
        kill_point::pass();
        let what = step.to_string();
        let (done, fine) = match step {
            InsideStep::AddRoute(route) => return self.add_route(route).await,
            InsideStep::RemoveRoute(route) => {
                (self.handle.route().del(route_message(route)).execute().await, &[libc::ESRCH, libc::ENODEV][..])
            }
            InsideStep::AddRule(rule) => {
                let mut request = self.handle.rule().add();
                *request.message_mut() = rule_message(rule);
                (request.execute().await, &[libc::EEXIST][..])
            }
            InsideStep::RemoveRule(rule) => {
                (self.handle.rule().del(rule_message(rule)).execute().await, &[libc::ENOENT][..])
            }
        };
        match done.map_err(NetError::nl("inside the container:", &what)) {
            Err(e) if fine.iter().any(|errno| e.is(*errno)) => Ok(()),
            other => other,
        }
    }

    /// Adds a route. One that is there already is fine; and unless the new one comes first, so is another one to the same
    /// destination, which stays in force.
    async fn add_route(&self, route: &LegRoute) -> Result<(), NetError> {
        let failed = |e| NetError::nl("inside the container:", &InsideStep::AddRoute(*route).to_string())(e);
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewRoute(route_message(route)));
        // Without `NLM_F_EXCL` the kernel puts an IPv4 route before others of the same metric. For IPv6 it would share
        // the packets between the two, and a lower metric puts one first.
        let exclusive = if route.first && route.to.is_ipv4() { 0 } else { NLM_F_EXCL };
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | exclusive;
        let mut answers = self.handle.clone().request(request).map_err(failed)?;
        while let Some(answer) = answers.next().await {
            if let NetlinkPayload::Error(e) = answer.payload
                && e.raw_code().abs() != libc::EEXIST
            {
                return Err(failed(rtnetlink::Error::NetlinkError(e)));
            }
        }
        Ok(())
    }
}

fn protocol_of(rule: &RuleMessage) -> Option<RouteProtocol> {
    rule.attributes.iter().find_map(|a| if let RuleAttribute::Protocol(p) = a { Some(*p) } else { None })
}

/// A rule that pv-net has made, also one of an earlier version; `None` for one of another form.
fn source_rule(rule: &RuleMessage) -> Option<SourceRule> {
    let (mut priority, mut from, mut to, mut table) = (0, None, None, u32::from(rule.header.table));
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(number) => priority = *number,
            RuleAttribute::Source(address) => from = Some(*address),
            RuleAttribute::Destination(address) => to = Some(IpNetwork::new(*address, rule.header.dst_len).ok()?),
            RuleAttribute::Table(number) => table = *number,
            _ => {}
        }
    }
    Some(SourceRule { priority, from: from?, to, table })
}

fn rule_message(rule: &SourceRule) -> RuleMessage {
    let mut message = RuleMessage::default();
    let (family, bits) = match rule.from {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.header.family = family;
    message.header.src_len = bits;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Source(rule.from),
        RuleAttribute::Table(rule.table),
        RuleAttribute::Priority(rule.priority),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    if let Some(to) = rule.to {
        message.header.dst_len = to.prefix();
        message.attributes.push(RuleAttribute::Destination(to.ip()));
    }
    if rule.table == MAIN_TABLE {
        message.attributes.push(RuleAttribute::SuppressPrefixLen(0));
    }
    message
}

fn route_message(route: &LegRoute) -> RouteMessage {
    match (route.to, route.via) {
        (IpNetwork::V4(to), via) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.ip(), to.prefix())
                .output_interface(route.link)
                .table_id(route.table)
                .protocol(PROTOCOL);
            builder = match via {
                Some(IpAddr::V4(gateway)) => builder.gateway(gateway),
                _ => builder.scope(RouteScope::Link),
            };
            builder.build()
        }
        (IpNetwork::V6(to), via) => {
            let mut builder = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(to.ip(), to.prefix())
                .output_interface(route.link)
                .table_id(route.table)
                .protocol(PROTOCOL);
            if let Some(IpAddr::V6(gateway)) = via {
                builder = builder.gateway(gateway);
            }
            let mut message = builder.build();
            if route.first {
                message.attributes.push(RouteAttribute::Priority(FIRST_METRIC));
            }
            message
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_is_written_is_read_back() {
        for (from, to, table) in [
            ("10.0.4.2", Some("10.0.3.0/24"), 20_003),
            ("fd00:4::2", Some("fd00:3::/64"), 20_003),
            ("10.0.4.2", None, 20_003),
            ("fd00:4::2", None, MAIN_TABLE),
        ] {
            let to = to.map(|to: &str| to.parse().expect("network"));
            let rule = SourceRule { priority: 20_001, from: from.parse().expect("address"), to, table };
            let message = rule_message(&rule);
            assert_eq!((protocol_of(&message), source_rule(&message)), (Some(PROTOCOL), Some(rule)));
        }
    }

    #[test]
    fn only_a_default_route_that_is_claimed_comes_first() {
        let route = |first| LegRoute {
            table: MAIN_TABLE,
            to: "::/0".parse().expect("network"),
            via: "fd00:4::1".parse().ok(),
            link: 3,
            first,
        };
        let metric = |route: &LegRoute| {
            let message = route_message(route);
            message.attributes.iter().find_map(|a| if let RouteAttribute::Priority(n) = a { Some(*n) } else { None })
        };
        assert_eq!((metric(&route(false)), metric(&route(true))), (None, Some(FIRST_METRIC)));
    }
}
