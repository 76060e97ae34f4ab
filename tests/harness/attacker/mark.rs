//! A mark identifies a frame wherever it arrives, and whatever NAT has changed on the way.

const MAGIC: [u8; 4] = [0xa7, 0x5e, 0xd3, 0x91];

/// Bytes of a mark: the magic, the frame's number, and a check value, since the attacker flips bits too.
pub(crate) const LEN: usize = 12;

/// The mark of frame `number`.
pub(crate) fn of(number: u32) -> [u8; LEN] {
    let mut mark = [0; LEN];
    mark[..4].copy_from_slice(&MAGIC);
    mark[4..8].copy_from_slice(&number.to_be_bytes());
    mark[8..].copy_from_slice(&check(number).to_be_bytes());
    mark
}

/// The number of the last mark in `bytes`. A fragment that overlaps the one before contains that one's mark first.
pub(crate) fn last(bytes: &[u8]) -> Option<u32> {
    bytes
        .windows(LEN)
        .rev()
        .filter(|w| w[..4] == MAGIC)
        .filter_map(|w| {
            let word = |at: usize| u32::from_be_bytes([w[at], w[at + 1], w[at + 2], w[at + 3]]);
            (word(8) == check(word(4))).then(|| word(4))
        })
        .next()
}

fn check(number: u32) -> u32 {
    number.wrapping_mul(0x9e37_79b1) ^ 0x5bd1_e995
}
