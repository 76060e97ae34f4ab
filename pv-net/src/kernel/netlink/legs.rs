//! Reads and writes the routes and rules of a container's interfaces. What there should be is decided in `plan`.

use super::{Net, NetError};
use crate::kernel::kill_point;
use crate::plan::{FIRST_TABLE, Inside, InsideStep, LegRoute, MAIN_TABLE, SourceRule};
use futures_util::TryStreamExt;
use ipnetwork::IpNetwork;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{IpVersion, RouteMessageBuilder};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The protocol number of pv-net's rules and of the routes in their tables. No other program has it in iproute2's list.
const PROTOCOL: RouteProtocol = RouteProtocol::Other(112);
/// Where pv-net's rules stand: behind the local table, before the main one (32766).
const PRIORITY: u32 = 20_000;
/// The metric of IPv6 routes that name none (`IP6_RT_PRIO_USER`).
const USUAL_METRIC: u32 = 1024;

impl Net {
    /// What this namespace has of rules, and with `routes` also of routes; their list may be long.
    ///
    /// # Errors
    /// When the kernel refuses to list them.
    pub async fn inside(&self, routes: impl FnOnce(&Inside) -> bool) -> Result<Inside, NetError> {
        let mut inside = Inside::default();
        inside.keeps_out4 = self.read_rules(IpVersion::V4, &mut inside.rules).await?;
        inside.keeps_out6 = self.read_rules(IpVersion::V6, &mut inside.rules).await?;
        if routes(&inside) {
            let v4 = RouteMessageBuilder::<Ipv4Addr>::new().build();
            let v6 = RouteMessageBuilder::<Ipv6Addr>::new().build();
            for family in [v4, v6] {
                let mut all = self.handle.route().get(family).execute();
                while let Some(route) = all.try_next().await.map_err(NetError::nl("list", "routes"))? {
                    inside.routes.extend(leg_route(&route));
                }
            }
        }
        Ok(inside)
    }

    /// Adds pv-net's rules of a family to `ours`. Returns whether there are rules of somebody else, or none can be made.
    async fn read_rules(&self, family: IpVersion, ours: &mut Vec<SourceRule>) -> Result<bool, NetError> {
        let all: Result<Vec<RuleMessage>, _> = self.handle.rule().get(family).execute().try_collect().await;
        let all = match all.map_err(NetError::nl("list", "routing rules")) {
            // A kernel without policy routing, or without the family.
            Err(e) if e.is(libc::EOPNOTSUPP) || e.is(libc::EAFNOSUPPORT) => return Ok(true),
            other => other?,
        };
        let mut others = false;
        for rule in &all {
            match protocol_of(rule) {
                Some(RouteProtocol::Kernel) => {}
                Some(PROTOCOL) => ours.extend(source_rule(rule)),
                _ => others = true,
            }
        }
        Ok(others)
    }

    /// Makes one change; one that is made already is fine.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub async fn arrange(&self, step: &InsideStep) -> Result<(), NetError> {
        kill_point::pass();
        let what = step.to_string();
        let (done, fine) = match step {
            InsideStep::AddRoute(route) => {
                (self.handle.route().add(route_message(route)).execute().await, &[libc::EEXIST][..])
            }
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
}

fn protocol_of(rule: &RuleMessage) -> Option<RouteProtocol> {
    rule.attributes.iter().find_map(|a| if let RuleAttribute::Protocol(p) = a { Some(*p) } else { None })
}

fn source_rule(rule: &RuleMessage) -> Option<SourceRule> {
    let from = rule.attributes.iter().find_map(|a| if let RuleAttribute::Source(a) = a { Some(*a) } else { None })?;
    let table = rule.attributes.iter().find_map(|a| if let RuleAttribute::Table(t) = a { Some(*t) } else { None });
    Some(SourceRule { from, table: table.unwrap_or(rule.header.table.into()) })
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
        RuleAttribute::Priority(PRIORITY),
        RuleAttribute::Protocol(PROTOCOL),
    ];
    message
}

fn route_message(route: &LegRoute) -> RouteMessage {
    let is_main = route.table == MAIN_TABLE;
    // A default route of the main table looks like one that an administrator has added.
    let protocol = if is_main { RouteProtocol::Static } else { PROTOCOL };
    match (route.to, route.via) {
        (IpNetwork::V4(to), via) => {
            let mut builder = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(to.ip(), to.prefix())
                .output_interface(route.link)
                .table_id(route.table)
                .protocol(protocol);
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
                .protocol(protocol);
            if let Some(IpAddr::V6(gateway)) = via {
                builder = builder.gateway(gateway);
            }
            builder.build()
        }
    }
}

/// A route that pv-net may have made: in a leg's table, or a default route of the main table with the usual metric.
fn leg_route(route: &RouteMessage) -> Option<LegRoute> {
    let (mut table, mut to, mut via, mut link) = (u32::from(route.header.table), None, None, None);
    let mut metric = None;
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Table(number) => table = *number,
            RouteAttribute::Destination(address) => to = ip_of(address),
            RouteAttribute::Gateway(address) => via = ip_of(address),
            RouteAttribute::Oif(index) => link = Some(*index),
            RouteAttribute::Priority(number) => metric = Some(*number),
            _ => {}
        }
    }
    let any = match route.header.address_family {
        AddressFamily::Inet => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let to = IpNetwork::new(to.unwrap_or(any), route.header.destination_prefix_length).ok()?;
    let is_usual = metric.is_none_or(|metric| to.is_ipv6() && metric == USUAL_METRIC);
    let is_default = table == MAIN_TABLE && to.prefix() == 0 && via.is_some() && is_usual;
    let is_own = table >= FIRST_TABLE && route.header.protocol == PROTOCOL;
    let is_plain = route.header.kind == RouteType::Unicast;
    (is_plain && (is_default || is_own)).then_some(LegRoute { table, to, via, link: link? })
}

fn ip_of(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(a) => Some((*a).into()),
        RouteAddress::Inet6(a) => Some((*a).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let route = |to: &str, via: Option<&str>, table| LegRoute {
            table,
            to: to.parse().expect("network"),
            via: via.map(|a| a.parse().expect("gateway")),
            link: 3,
        };
        for route in [
            route("10.0.4.0/24", None, 20_003),
            route("fd00:4::/64", None, 20_003),
            route("0.0.0.0/0", Some("10.0.4.1"), 20_003),
            route("::/0", Some("fd00:4::1"), 20_003),
            route("0.0.0.0/0", Some("10.0.4.1"), MAIN_TABLE),
            route("::/0", Some("fd00:4::1"), MAIN_TABLE),
        ] {
            assert_eq!(leg_route(&route_message(&route)), Some(route), "{route}");
        }
        for from in ["10.0.4.2", "fd00:4::2"] {
            let rule = SourceRule { from: from.parse().expect("address"), table: 20_003 };
            let message = rule_message(&rule);
            assert_eq!((protocol_of(&message), source_rule(&message)), (Some(PROTOCOL), Some(rule)));
        }
    }

    #[test]
    fn routes_of_others_are_left_alone() {
        let own = LegRoute {
            table: MAIN_TABLE,
            to: "0.0.0.0/0".parse().expect("network"),
            via: "10.0.4.1".parse().ok(),
            link: 3,
        };
        let mut with_metric = route_message(&own);
        with_metric.attributes.push(RouteAttribute::Priority(100));
        assert_eq!(leg_route(&with_metric), None);
        let mut of_another = route_message(&LegRoute { table: 20_003, ..own });
        of_another.header.protocol = RouteProtocol::Static;
        assert_eq!(leg_route(&of_another), None);
        let mut blackhole = route_message(&own);
        blackhole.header.kind = RouteType::BlackHole;
        assert_eq!(leg_route(&blackhole), None);
    }
}
