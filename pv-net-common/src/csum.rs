//! Internet checksum arithmetic (RFC 1071, RFC 1624), pure.

/// Folds a 32-bit one's complement sum into 16 bits.
#[inline(always)]
#[must_use]
pub const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// One's complement sum of `words` on top of `seed`; the words keep the byte order they have in the packet.
#[inline(always)]
#[must_use]
pub fn sum_words<const N: usize>(words: &[u16; N], seed: u32) -> u32 {
    let mut sum = seed;
    let mut i = 0;
    while i < N {
        sum += words[i] as u32;
        i += 1;
    }
    sum
}

/// The checksum `check` after a 16-bit word of the packet changed from `old` to `new` (RFC 1624, equation 3).
#[inline(always)]
#[must_use]
pub const fn update(check: u16, old: u16, new: u16) -> u16 {
    !fold(!check as u32 + !old as u32 + new as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn an_update_is_the_full_computation(mut words in any::<[u16; 10]>(), at in 0usize..10, new: u16) {
            // A header of only zeros is excluded: its checksum could be written as 0 or as 0xffff. Real headers are
            // never all zero.
            prop_assume!(words.iter().any(|w| *w != 0) && words.iter().enumerate().any(|(i, w)| i != at && *w != 0));
            let before = !fold(sum_words(&words, 0));
            let old = words[at];
            words[at] = new;
            prop_assert_eq!(update(before, old, new), !fold(sum_words(&words, 0)));
        }
    }
}
