//! A frame as the programs see it: the [`Headers`] read from an skb, and the link it belongs to.

use crate::{
    maps::FRAGMENTS,
    scratch::{Forgotten, Scratch, scratch},
};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_skb_load_bytes, bpf_skb_store_bytes},
};
use core::{
    mem::MaybeUninit,
    ops::{Deref, DerefMut},
};
use pv_net_common::{
    DropReason, FlowKey, FragmentInfo, FragmentKey, LinkId,
    endpoint::INDEX_CHECKED,
    flow::{FRAGMENT_SHARE, FRAGMENT_SHARE_OUTSIDE},
    headers::{Frame, Headers, Plain},
};

pub use pv_net_common::{
    headers::{
        ETH_LEN, ETH_P_8021AD, ETH_P_8021Q, ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN,
    },
    ip_proto::{IPPROTO_FRAGMENT, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_IGMP, IPPROTO_PIM, IPPROTO_TCP, IPPROTO_UDP},
};

/// The Ethernet header. Its alignment is what the verifier assumes for a frame's start, so that it is read in words.
#[repr(C, align(2))]
#[derive(Clone, Copy)]
pub struct Eth {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    pub proto_be: u16,
}

/// The frame of an skb, as [`Headers`] reads it. All reads are bounds-checked by [`read`] and [`load`].
struct Skb(*mut __sk_buff);

impl Frame for Skb {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: a context field.
        unsafe { (*self.0).len }
    }

    #[inline(always)]
    fn is_gso(&self) -> bool {
        // SAFETY: a context field (kernel 5.7).
        unsafe { (*self.0).gso_size > 0 }
    }

    #[inline(always)]
    fn read<T: Plain>(&self, offset: u32) -> Option<T> {
        read(self.0, offset).ok()
    }

    #[inline(always)]
    fn load<T: Plain>(&self, offset: u32) -> Option<T> {
        load(self.0, offset).ok()
    }
}

/// The kind of a frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// IPv4 or IPv6, with readable headers.
    Ip,
    /// ARP.
    Arp,
    /// A VLAN tag with VLAN 0, which carries only a priority (IEEE 802.1Q section 6.9): the frame behind it is
    /// untagged.
    PriorityTag,
    /// Any other VLAN tag.
    Vlan,
    /// Another EtherType.
    Other,
    /// Too short, or with contradictory lengths.
    Unreadable,
}

/// What the stages need to know of a frame.
pub struct Packet {
    pub skb: *mut __sk_buff,
    pub eth: Eth,
    headers: Headers,
    /// Link that the packet came in on, or at egress the link that it leaves by.
    pub link: u32,
}

impl Deref for Packet {
    type Target = Headers;

    #[inline(always)]
    fn deref(&self) -> &Headers {
        &self.headers
    }
}

impl DerefMut for Packet {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Headers {
        &mut self.headers
    }
}

/// Makes a bool without a branch: the BPF target has no instruction that turns a comparison into a value.
#[inline(always)]
fn bit(byte: u8) -> bool {
    // SAFETY: 0 or 1.
    unsafe { core::mem::transmute(byte & 1) }
}

/// Reads a `T` at `offset`, which must be a constant: straight from the frame's linear part, else by [`load`].
#[inline(always)]
pub fn read<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Result<T, DropReason> {
    // SAFETY: the verifier proves `data + offset + size <= data_end` from the comparison below. On machines that need
    // alignment it proves that too, with IP headers at word boundaries (`NET_IP_ALIGN`); an unaligned read would go
    // byte by byte.
    unsafe {
        let at = (*skb).data as usize + offset as usize;
        if at + size_of::<T>() <= (*skb).data_end as usize {
            return Ok((at as *const T).read());
        }
    }
    load(skb, offset)
}

/// Reads a `T` at any `offset` by `bpf_skb_load_bytes`, which reads paged data too.
#[inline(always)]
pub fn load<T: Copy>(skb: *mut __sk_buff, offset: u32) -> Result<T, DropReason> {
    let mut value = MaybeUninit::<T>::uninit();
    // SAFETY: the helper writes all `size_of::<T>()` bytes or fails; `T` is made of integers.
    unsafe {
        if bpf_skb_load_bytes(skb.cast(), offset, value.as_mut_ptr().cast(), size_of::<T>() as u32) != 0 {
            return Err(DropReason::Malformed);
        }
        Ok(value.assume_init())
    }
}

/// The VLAN ID of a tag; 0 means no VLAN.
#[inline(always)]
fn vlan_of(tci: u32) -> u32 {
    tci & 0xfff
}

impl Packet {
    /// The packet of `skb`, with only its Ethernet header read; `None` when the frame is too short for one.
    #[inline(always)]
    pub fn of(skb: *mut __sk_buff) -> Option<Self> {
        let eth: Eth = read(skb, 0).ok()?;
        // SAFETY: a context field.
        let link = unsafe { (*skb).ifindex };
        let headers =
            Headers { key: FlowKey { link: LinkId::of_index(link), ..FlowKey::default() }, ..Headers::default() };
        Some(Self { skb, eth, headers, link })
    }

    /// The link that this program is attached to, as maps name it.
    #[inline(always)]
    pub fn id(&self) -> LinkId {
        LinkId::of_index(self.link)
    }

    /// Reads the headers and returns the kind of frame.
    #[inline(always)]
    pub fn parse(&mut self) -> Kind {
        let skb = self.skb;
        // SAFETY: context fields.
        let tag = unsafe { ((*skb).vlan_present != 0).then(|| (*skb).vlan_tci) };
        if let Some(tci) = tag {
            return if vlan_of(tci) == 0 { Kind::PriorityTag } else { Kind::Vlan };
        }
        let parsed = match u16::from_be(self.eth.proto_be) {
            ETH_P_IP => self.headers.parse_v4(&Skb(skb)),
            ETH_P_IPV6 => self.headers.parse_v6(&Skb(skb)),
            ETH_P_ARP => return Kind::Arp,
            // The kernel moves the first tag out of the frame before it runs programs, so this tag was put back by a
            // program, or left in place by the driver.
            ETH_P_8021Q | ETH_P_8021AD => {
                let tci: u16 = read(skb, ETH_LEN).unwrap_or_default();
                return if vlan_of(u16::from_be(tci) as u32) == 0 { Kind::PriorityTag } else { Kind::Vlan };
            }
            _ => return Kind::Other,
        };
        if parsed.is_ok() { Kind::Ip } else { Kind::Unreadable }
    }

    /// Stores the headers in the scratch memory and reads them back, so that the verifier forgets what it knows about
    /// every value. Otherwise it would follow each path through the header parsing through all the rest of the stage:
    /// loading would take a multiple of the time and memory, and kernel 6.1 would not load the programs with 64 MiB
    /// left. Later stages take the stored headers by [`recall`](Self::recall).
    #[inline(always)]
    pub fn forget(&mut self) -> Option<()> {
        let Scratch { packet: slot, .. } = scratch()?;
        let bits = [self.tracked, self.fragment, self.later, self.ports];
        slot.key = self.key;
        slot.bits = u32::from_ne_bytes(bits.map(u8::from));
        slot.rest = u32::from_ne_bytes([u8::from(self.may_cut), u8::from(self.v4), self.proto, self.l4_info]);
        slot.l4 = self.l4;
        slot.end = self.end;
        slot.id_be = self.id_be;
        slot.check_ttl = u32::from(self.check) | u32::from(self.ttl) << 16;
        self.pick_up(slot);
        Some(())
    }

    /// The packet as an earlier stage of the same run stored it by [`forget`](Self::forget). The frame has not been
    /// written to since.
    #[inline(always)]
    pub fn recall(skb: *mut __sk_buff) -> Option<Self> {
        let mut packet = Self::of(skb)?;
        let Scratch { packet: slot, .. } = scratch()?;
        packet.pick_up(slot);
        Some(packet)
    }

    /// Marks the packet as coming in by an uplink: its keys have link 0, in this stage and in those behind it.
    #[inline(always)]
    pub fn mark_outside(&mut self) -> Option<()> {
        let Scratch { packet: slot, .. } = scratch()?;
        slot.key.link = LinkId::OUTSIDE;
        self.key.link = LinkId::OUTSIDE;
        Some(())
    }

    #[inline(always)]
    fn pick_up(&mut self, slot: &Forgotten) {
        const WORDS: usize = size_of::<Forgotten>() / size_of::<u32>();
        let mut known = MaybeUninit::<Forgotten>::uninit();
        let (from, to) = ((&raw const *slot).cast::<u32>(), known.as_mut_ptr().cast::<u32>());
        for i in 0..WORDS {
            // SAFETY: both are whole and made of words. The read is volatile, or the compiler would use the values that
            // it has just written, and the verifier would forget nothing.
            unsafe { to.add(i).write(from.add(i).read_volatile()) };
        }
        // SAFETY: all words are written.
        let known = unsafe { known.assume_init() };
        self.key = known.key;
        (self.l4, self.end, self.id_be) = (known.l4, known.end, known.id_be);
        (self.check, self.ttl) = (known.check_ttl as u16, (known.check_ttl >> 16) as u8);
        let [tracked, fragment, later, ports] = known.bits.to_ne_bytes();
        (self.tracked, self.fragment) = (bit(tracked), bit(fragment));
        (self.later, self.ports) = (bit(later), bit(ports));
        let [may_cut, v4, proto, l4_info] = known.rest.to_ne_bytes();
        (self.may_cut, self.v4) = (bit(may_cut), bit(v4));
        (self.proto, self.l4_info) = (proto, l4_info);
    }

    /// Frame length in bytes.
    #[inline(always)]
    pub fn len(&self) -> u32 {
        Skb(self.skb).len()
    }

    /// Payload bytes of each segment when the frame is a GSO packet, else 0.
    #[inline(always)]
    pub fn gso_size(&self) -> u32 {
        // SAFETY: a context field (kernel 5.7).
        unsafe { (*self.skb).gso_size }
    }

    /// At egress: the link on which the kernel received the packet, 0 when the device itself made it. The kernel notes
    /// it in `skb_iif`, and nothing in the packet can change it.
    #[inline(always)]
    pub fn came_by(&self) -> u32 {
        // SAFETY: a context field.
        unsafe { (*self.skb).ingress_ifindex }
    }

    /// Whether a socket has sent the packet. What the device forwards has none.
    #[inline(always)]
    pub fn has_socket(&self) -> bool {
        // SAFETY: a context field.
        unsafe { !(*self.skb).__bindgen_anon_2.sk.is_null() }
    }

    /// The packet's mark, by which programs on the bridge learn what was decided:
    /// [`MARK_CONTAINER`](pv_net_common::endpoint::MARK_CONTAINER) and the like.
    #[inline(always)]
    pub fn mark(&self) -> u32 {
        // SAFETY: a context field.
        unsafe { (*self.skb).mark }
    }

    /// Whether the frame goes to a group: broadcast or multicast.
    #[inline(always)]
    pub fn is_to_all(&self) -> bool {
        self.eth.dst[0] & 1 != 0
    }

    /// Notes that a program has let the packet pass. The kernel makes the class the index where a program returns
    /// `TCX_PASS` (`tcx_action_code`), this one or one behind it.
    #[inline(always)]
    pub fn note_checked(&self) {
        // SAFETY: context fields that programs on links may write.
        unsafe {
            (*self.skb).tc_index = INDEX_CHECKED;
            (*self.skb).tc_classid = INDEX_CHECKED;
        }
    }

    /// Sets the packet's mark.
    #[inline(always)]
    pub fn set_mark(&self, mark: u32) {
        // SAFETY: a context field that programs on links may write.
        unsafe { (*self.skb).mark = mark };
    }

    /// Makes `mac` the frame's destination.
    #[inline(always)]
    pub fn send_to(&self, mac: &[u8; 6]) -> Result<(), ()> {
        // SAFETY: the helper checks offset and length.
        let failed = unsafe { bpf_skb_store_bytes(self.skb.cast(), 0, mac.as_ptr().cast(), 6, 0) };
        if failed == 0 { Ok(()) } else { Err(()) }
    }

    /// Gives a later fragment the protocol and ports of its first fragment, if that one passed on this link. Otherwise
    /// the fragment [is lost](Self::is_lost).
    #[inline(always)]
    pub fn settle_fragment(&mut self) {
        self.settle::<false>();
    }

    /// [`settle_fragment`](Self::settle_fragment) at the egress of a link.
    #[inline(always)]
    pub fn settle_leaving(&mut self) {
        self.settle::<true>();
    }

    #[inline(always)]
    fn settle<const LEAVES: bool>(&mut self) {
        if !self.fragment {
            return;
        }
        if !self.later {
            self.tracked = self.ports;
            return;
        }
        let Some(Scratch { fragment_key: key, .. }) = scratch() else { return };
        *key = self.fragment_key::<LEAVES>();
        let Some(first) = FRAGMENTS.get_ptr(key) else { return };
        // SAFETY: a map value stays readable for the program's run.
        let first = unsafe { &*first };
        let same = first.src == self.key.src && first.dst == self.key.dst && first.id_be == self.id_be;
        if !same || first.came_by != self.came_by() || self.v4 && first.proto != self.key.proto {
            return;
        }
        self.proto = first.proto as u8;
        self.key.proto = first.proto;
        self.key.sport_be = first.sport_be;
        self.key.dport_be = first.dport_be;
        (self.ports, self.tracked) = (bit(first.ports as u8), bit(first.ports as u8));
        self.l4_info = 1;
    }

    /// Whether this is a later fragment whose first fragment did not pass or was not seen.
    /// [`settle_fragment`](Self::settle_fragment) sets `l4_info`, which is 0 in later fragments before.
    #[inline(always)]
    pub fn is_lost(&self) -> bool {
        self.later && self.l4_info == 0
    }

    /// If this is a first fragment, lets the later fragments of the same packet pass too. Called when the packet itself
    /// passes.
    #[inline(always)]
    pub fn admit_fragments(&self) {
        self.admit::<false>();
    }

    /// [`admit_fragments`](Self::admit_fragments) at the egress of a link.
    #[inline(always)]
    pub fn admit_leaving(&self) {
        self.admit::<true>();
    }

    #[inline(always)]
    fn admit<const LEAVES: bool>(&self) {
        if !self.fragment || self.later {
            return;
        }
        let Some(Scratch { fragment_key: key, fragment, .. }) = scratch() else { return };
        *key = self.fragment_key::<LEAVES>();
        *fragment = FragmentInfo {
            src: self.key.src,
            dst: self.key.dst,
            id_be: self.id_be,
            proto: self.key.proto,
            came_by: self.came_by(),
            sport_be: self.key.sport_be,
            dport_be: self.key.dport_be,
            ports: u32::from(self.ports),
        };
        // A full LRU evicts an entry. After any other failure the later fragments are dropped.
        let _ = FRAGMENTS.insert(&*key, &*fragment, 0);
    }

    /// The place of this packet among those of its link: each link has a fixed number, so that a flood of fragments
    /// evicts only its own.
    #[inline(always)]
    fn fragment_key<const LEAVES: bool>(&self) -> FragmentKey {
        let (src, dst) = (self.key.src.words_be, self.key.dst.words_be);
        let mixed = src[3] ^ dst[3].rotate_left(16) ^ src[2] ^ dst[2];
        let slot = (mixed ^ mixed >> 16 ^ mixed >> 8) ^ self.id_be ^ self.id_be >> 8 ^ self.id_be >> 24;
        let share = if LEAVES || !self.key.link.is_outside() { FRAGMENT_SHARE } else { FRAGMENT_SHARE_OUTSIDE };
        // At egress each sender has places of its own at each receiver.
        let leaves = if LEAVES { 1 + (self.came_by() & 0x7fff) as u16 } else { 0 };
        FragmentKey { link: self.link, leaves, slot: (slot & (share - 1)) as u16 }
    }
}
