//! Which of a container's interfaces has the default routes, and at which addresses others reach it.

use super::{Attachment, IfName};
use std::net::{Ipv4Addr, Ipv6Addr};

/// What decides about default routes for one interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// `default_route` of the interface: it claims the routes, leaves them to others, or says nothing.
    pub wish: Option<bool>,
    /// Whether it has IPv4.
    pub ipv4: bool,
    /// Whether it has IPv6.
    pub ipv6: bool,
}

/// The places, in a container's list of interfaces, of those with the default routes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DefaultRoutes {
    /// The interface with the default route for IPv4.
    pub ipv4: Option<usize>,
    /// The interface with the default route for IPv6.
    pub ipv6: Option<usize>,
}

/// Which interfaces have the default routes: of those with the family the one that claims it, else the first that does
/// not leave it to others.
#[must_use]
pub fn default_routes(all: &[Candidate]) -> DefaultRoutes {
    let of = |has: fn(&Candidate) -> bool| {
        let find = |wish: fn(&Candidate) -> bool| all.iter().position(|c| has(c) && wish(c));
        find(|c| c.wish == Some(true)).or_else(|| find(|c| c.wish != Some(false)))
    };
    DefaultRoutes { ipv4: of(|c| c.ipv4), ipv6: of(|c| c.ipv6) }
}

impl DefaultRoutes {
    /// Those of an attached container with these interfaces.
    #[must_use]
    pub fn of<'a>(attachments: impl IntoIterator<Item = &'a Attachment>) -> Self {
        Self::of_those(attachments.into_iter().map(|a| (a, true)))
    }

    /// Those of an attached container with these interfaces, each with whether it is there. The places are those in the
    /// list.
    #[must_use]
    pub fn of_those<'a>(attachments: impl IntoIterator<Item = (&'a Attachment, bool)>) -> Self {
        let candidate = |(a, is_there): (&Attachment, bool)| Candidate {
            wish: a.default_route,
            ipv4: is_there && a.ipv4.is_some(),
            ipv6: is_there && a.ipv6.is_some(),
        };
        default_routes(&attachments.into_iter().map(candidate).collect::<Vec<_>>())
    }
}

/// The interface that counts as the container's: that with the default route, of IPv4 if there are two, else the first.
#[must_use]
pub fn main_interface(attachments: &[Attachment]) -> Option<&Attachment> {
    let routes = DefaultRoutes::of(attachments);
    attachments.get(routes.ipv4.or(routes.ipv6).unwrap_or(0))
}

/// The addresses at which the container is reached: those of `interface` if one is named, else for each family that of
/// the interface with the default route, or the first address where none has it.
#[must_use]
pub fn reached_at(attachments: &[Attachment], interface: Option<&IfName>) -> (Option<Ipv4Addr>, Option<Ipv6Addr>) {
    if let Some(name) = interface {
        let named = attachments.iter().find(|a| a.interface == *name);
        return (named.and_then(|a| a.ipv4), named.and_then(|a| a.ipv6));
    }
    let routes = DefaultRoutes::of(attachments);
    let at = |place: Option<usize>| place.and_then(|place| attachments.get(place));
    (
        at(routes.ipv4).and_then(|a| a.ipv4).or_else(|| attachments.iter().find_map(|a| a.ipv4)),
        at(routes.ipv6).and_then(|a| a.ipv6).or_else(|| attachments.iter().find_map(|a| a.ipv6)),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const V4: (bool, bool) = (true, false);
    const V6: (bool, bool) = (false, true);
    const BOTH: (bool, bool) = (true, true);

    #[test]
    fn each_family_has_one_default_route() {
        let (yes, no, silent) = (Some(true), Some(false), None);
        for (name, interfaces, want) in [
            ("no interface", vec![], (None, None)),
            ("one", vec![(silent, BOTH)], (Some(0), Some(0))),
            ("the first of two", vec![(silent, BOTH), (silent, BOTH)], (Some(0), Some(0))),
            ("the one that claims it", vec![(silent, BOTH), (yes, BOTH)], (Some(1), Some(1))),
            ("the first has only IPv4", vec![(silent, V4), (silent, BOTH)], (Some(0), Some(1))),
            ("the claim is for its family only", vec![(silent, BOTH), (yes, V6)], (Some(0), Some(1))),
            ("the first leaves it", vec![(no, BOTH), (silent, BOTH)], (Some(1), Some(1))),
            ("all leave it", vec![(no, BOTH), (no, BOTH)], (None, None)),
            ("nobody has the family", vec![(yes, V4), (silent, V4)], (Some(0), None)),
            ("who leaves it is not asked again", vec![(yes, V4), (no, V6), (silent, V6)], (Some(0), Some(2))),
        ] {
            let all: Vec<Candidate> =
                interfaces.into_iter().map(|(wish, (ipv4, ipv6))| Candidate { wish, ipv4, ipv6 }).collect();
            let routes = default_routes(&all);
            assert_eq!((routes.ipv4, routes.ipv6), want, "{name}");
        }
    }

    fn attachment(interface: &str, wish: Option<bool>, ipv4: Option<[u8; 4]>, ipv6: Option<&str>) -> Attachment {
        Attachment {
            container: "web".parse().expect("name"),
            interface: interface.parse().expect("name"),
            pool: "p".parse().expect("name"),
            host_if: format!("pv{interface}").parse().expect("name"),
            mac: "02:00:0a:00:03:07".parse().expect("MAC"),
            ipv4: ipv4.map(Into::into),
            ipv6: ipv6.map(|a| a.parse().expect("address")),
            default_route: wish,
            network: None,
        }
    }

    #[test]
    fn a_container_is_reached_where_its_default_route_is_unless_said() {
        let all = [
            attachment("eth0", None, Some([10, 0, 3, 2]), None),
            attachment("eth1", Some(false), Some([10, 0, 4, 2]), Some("fd00:4::2")),
        ];
        let eth1: IfName = "eth1".parse().expect("name");
        let (v4, v6) = (|a: [u8; 4]| Some(Ipv4Addr::from(a)), |a: &str| a.parse::<Ipv6Addr>().ok());
        assert_eq!(reached_at(&all, None), (v4([10, 0, 3, 2]), v6("fd00:4::2")));
        assert_eq!(reached_at(&all, Some(&eth1)), (v4([10, 0, 4, 2]), v6("fd00:4::2")));
        assert_eq!(reached_at(&all[..1], Some(&eth1)), (None, None));
        assert_eq!(reached_at(&[], None), (None, None));
        assert_eq!(main_interface(&all).map(|a| a.interface.as_str()), Some("eth0"));
        assert_eq!(main_interface(&all[1..]).map(|a| a.interface.as_str()), Some("eth1"));
    }
}
