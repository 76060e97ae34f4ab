//! The names that maps give to links.

/// A container's interface, or the outside: the key of the map `interfaces`, and part of the keys of `flows`.
///
/// An interface whose programs run in the device's namespace is named by the index of its host-side link. Indexes of
/// different namespaces may be equal, so an interface whose programs run in the container's namespace (macvlan, ipvlan)
/// gets a number from the daemon, marked so that it equals no index.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId {
    number: u32,
}

/// Where a program meets a packet of an interface in a container's namespace: at the interface's egress. The program
/// that is attached there writes this number into the packet's `cb[1]`.
pub const CHILD_OUT: u32 = 0;
/// At the interface's ingress.
pub const CHILD_IN: u32 = 1;
/// At the egress of the interface's parent.
pub const CHILD_PARENT: u32 = 2;
/// At the egress of the device's own interface beside those of containers.
pub const CHILD_DEVICE_OUT: u32 = 3;
/// At its ingress.
pub const CHILD_DEVICE_IN: u32 = 4;

/// Set in the numbers that the daemon gives. The kernel's indexes are positive `int`s and never have it.
const ASSIGNED: u32 = 1 << 31;

impl LinkId {
    /// The outside, whatever uplink a packet comes in on.
    pub const OUTSIDE: Self = Self { number: 0 };

    /// The link with this index in the device's namespace.
    #[inline(always)]
    #[must_use]
    pub const fn of_index(index: u32) -> Self {
        Self { number: index }
    }

    /// The interface that the daemon has given this number, which is below 2³¹.
    #[inline(always)]
    #[must_use]
    pub const fn assigned(number: u32) -> Self {
        Self { number: ASSIGNED | number }
    }

    /// The index in the device's namespace; `None` for the outside and for an interface that is not there.
    #[inline(always)]
    #[must_use]
    pub const fn index(self) -> Option<u32> {
        if self.number == 0 || self.number & ASSIGNED != 0 { None } else { Some(self.number) }
    }

    /// Whether this is the outside.
    #[inline(always)]
    #[must_use]
    pub const fn is_outside(self) -> bool {
        self.number == 0
    }

    /// Whether the daemon has given the number: the interface is in its container's namespace.
    #[inline(always)]
    #[must_use]
    pub const fn is_assigned(self) -> bool {
        self.number & ASSIGNED != 0
    }

    /// The number as it stands in maps.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u32 {
        self.number
    }
}

impl core::fmt::Display for LinkId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_assigned_number_is_no_index() {
        for number in [0, 1, 7, (1 << 31) - 1] {
            let assigned = LinkId::assigned(number);
            assert_eq!((assigned.index(), assigned.is_outside(), assigned.is_assigned()), (None, false, true));
            assert_ne!(assigned, LinkId::of_index(number));
        }
        assert_eq!(LinkId::of_index(7).index(), Some(7));
        assert_eq!(LinkId::of_index(0), LinkId::OUTSIDE);
        assert_eq!(LinkId::OUTSIDE.index(), None);
    }
}
