//! Why a packet was dropped: one closed list for counters, events, CLI text and metric labels.

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident = $n:literal, $label:literal;)*) => {
        /// Why a packet was dropped. The number is the index in the `drops` map and never changes meaning.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum DropReason { $($(#[$doc])* $variant = $n,)* }

        impl DropReason {
            /// All reasons, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Short name for people and metric labels.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }

            /// The reason with this number.
            #[must_use]
            pub const fn from_number(n: u32) -> Option<Self> {
                match n { $($n => Some(Self::$variant),)* _ => None }
            }
        }
    };
}

reasons! {
    /// The frame is shorter than its own headers say, or its lengths contradict each other.
    Malformed = 0, "malformed";
    /// The interface is not one the daemon configured.
    UnknownInterface = 1, "unknown-interface";
    /// Source MAC is not the container's.
    SpoofedMac = 2, "spoofed-mac";
    /// IPv4 source is not the container's.
    SpoofedIpv4 = 3, "spoofed-ipv4";
    /// IPv6 source is not the container's.
    SpoofedIpv6 = 4, "spoofed-ipv6";
    /// ARP whose sender is not the container.
    SpoofedArp = 5, "spoofed-arp";
    /// Neighbour solicitation or advertisement for an address or MAC that is not the container's.
    SpoofedNd = 6, "spoofed-nd";
    /// Router advertisement or redirect from a container (RFC 6105).
    RogueRa = 7, "rogue-ra";
    /// DHCP or DHCPv6 answer from a container, or a question from one that has the device's MAC.
    RogueDhcp = 8, "rogue-dhcp";
    /// Neither ARP, IPv4 nor IPv6.
    Ethertype = 9, "ethertype";
    /// A VLAN tag from a container.
    VlanTag = 10, "vlan-tag";
    /// The pools of sender and receiver are isolated from each other.
    PoolIsolated = 11, "pool-isolated";
    /// The kernel could not rewrite the packet.
    Rewrite = 12, "rewrite-failed";
    /// TTL or hop limit ran out on the way between pools.
    TtlExpired = 13, "ttl-expired";
    /// Larger than the next link takes.
    TooBig = 14, "too-big";
    /// No route leads to the destination.
    NoRoute = 15, "no-route";
    /// Every port that masquerade tried for the destination is taken.
    NatExhausted = 16, "nat-exhausted";
    /// The pool's `host_access` does not allow it.
    HostAccess = 17, "host-access";
    /// From outside to a container's port that is not published.
    Unpublished = 18, "unpublished";
    /// A later fragment whose first one was not seen, on a way that needs its ports.
    FragmentLost = 19, "fragment-lost";
    /// Late or made up: about no flow that is known.
    NoFlow = 20, "no-flow";
    /// A rule denies it.
    PolicyDenied = 21, "policy-denied";
    /// A protocol that masquerade has no way to tell apart.
    Unsupported = 22, "unsupported-protocol";
    /// XDP: the source is on the deny list.
    DenyListed = 23, "deny-listed";
    /// XDP: from outside with a source address of a pool.
    SpoofedPool = 24, "spoofed-pool";
    /// XDP: above the source's rate.
    RateLimited = 25, "rate-limited";
    /// A source or destination that is never on a wire: loopback, or a source that is a group (RFC 6890, RFC 1812
    /// section 5.3.7).
    Martian = 26, "martian";
    /// By an uplink, or another link that is no container's, with a source that is the device's own or a pool's. Or for an
    /// ipvlan interface, and no program has let it pass.
    ForgedSource = 27, "forged-source";
    /// A unicast packet in a frame to somebody who has not its destination address.
    NotAddressed = 28, "not-addressed";
    /// IGMP or MLD query from a container: it would become the querier, or its link a router port (RFC 4541).
    RogueQuerier = 29, "rogue-querier";
    /// More packets to neighbours that are not known yet than the sender may have asked for.
    NeighbourLimit = 30, "neighbour-limit";
    /// More IGMP or MLD reports than a container may send.
    GroupLimit = 31, "group-limit";
    /// An ICMP error that is about no known flow of its link, or a redirect or request for information in ICMP that
    /// nobody needs from there.
    ForgedIcmp = 32, "forged-icmp";
}

/// Slots of the `drops` map; room to grow without a new layout.
pub const DROP_SLOTS: u32 = 64;

const _: () = assert!(DropReason::ALL.len() <= DROP_SLOTS as usize);

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn numbers_are_positions_and_labels_differ() {
        for (i, r) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*r as usize, i);
            assert_eq!(DropReason::from_number(i as u32), Some(*r));
            assert!(DropReason::ALL.iter().filter(|o| o.label() == r.label()).count() == 1);
        }
        assert_eq!(DropReason::from_number(DropReason::ALL.len() as u32), None);
    }
}
