//! Makes a new input from a known one.

use crate::random::Random;
use crate::{Form, json};

/// Numbers at the borders of common ranges.
const EDGES: [u64; 16] =
    [0, 1, 4, 7, 8, 15, 16, 0x7f, 0xff, 0x100, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];

/// What mutations take their material from.
pub struct Stock<'a> {
    pub form: Form,
    pub words: &'a [Vec<u8>],
    pub corpus: &'a [Vec<u8>],
    pub max_len: usize,
}

/// Changes `input` in one or a few places.
pub fn mutate(random: &mut Random, input: &[u8], stock: &Stock<'_>) -> Vec<u8> {
    // Invalid JSON is worth a try too, but most of it fails in the same way.
    let as_json = stock.form == Form::Json && !random.once_in(8);
    let mut bytes = as_json.then(|| json::mutate(random, input, stock)).flatten().unwrap_or_else(|| {
        let mut bytes = input.to_vec();
        for _ in 0..1 << random.below(4) {
            change(random, &mut bytes, stock);
        }
        bytes
    });
    bytes.truncate(stock.max_len);
    bytes
}

/// A random part of a sequence of `len`; short parts are more frequent.
fn part(random: &mut Random, len: usize) -> std::ops::Range<usize> {
    let start = random.below(len);
    let longest = 1 << random.below(8);
    start..(start + 1 + random.below(longest)).min(len)
}

fn change(random: &mut Random, bytes: &mut Vec<u8>, stock: &Stock<'_>) {
    let len = bytes.len();
    let place = random.below(len + 1);
    match random.below(10) {
        0 if len > 0 => bytes[random.below(len)] ^= 1 << random.below(8),
        1 if len > 0 => {
            let at = random.below(len);
            bytes[at] = octet(random, stock.form);
        }
        2 if len > 0 => {
            let at = random.below(len);
            bytes[at] = bytes[at].wrapping_add(random.below(9) as u8).wrapping_sub(4);
        }
        3 if len > 0 => drop(bytes.drain(part(random, len))),
        4 if len > 0 => {
            let again = bytes[part(random, len)].to_vec();
            insert(bytes, place, &again);
        }
        5 => {
            let new: Vec<u8> = (0..1 + random.below(8)).map(|_| octet(random, stock.form)).collect();
            insert(bytes, place, &new);
        }
        6 => {
            if let Some(word) = random.pick(stock.words) {
                put(random, bytes, place, word);
            }
        }
        7 => {
            let number = number(random, stock.form);
            put(random, bytes, place, &number);
        }
        8 => {
            if let Some(other) = random.pick(stock.corpus).filter(|o| !o.is_empty()) {
                let piece = other[part(random, other.len())].to_vec();
                put(random, bytes, place, &piece);
            }
        }
        _ => {
            // The end of another input behind this beginning, for example another payload behind this header.
            if let Some(other) = random.pick(stock.corpus) {
                bytes.truncate(place);
                bytes.extend_from_slice(&other[place.min(other.len())..]);
            }
        }
    }
}

fn octet(random: &mut Random, form: Form) -> u8 {
    if form == Form::Bytes { random.next() as u8 } else { b' ' + random.below(95) as u8 }
}

/// A number in this form's notation, at a border or next to one.
fn number(random: &mut Random, form: Form) -> Vec<u8> {
    let edge = random.pick(&EDGES).copied().unwrap_or_default();
    let number = edge.wrapping_add(random.below(3) as u64).wrapping_sub(1);
    if form != Form::Bytes {
        return number.to_string().into_bytes();
    }
    let width = 1 << random.below(4);
    if random.once_in(2) { number.to_be_bytes()[8 - width..].to_vec() } else { number.to_le_bytes()[..width].to_vec() }
}

/// Overwrites, or inserts.
fn put(random: &mut Random, bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if random.once_in(2) && at + new.len() <= bytes.len() {
        bytes[at..at + new.len()].copy_from_slice(new);
    } else {
        insert(bytes, at, new);
    }
}

fn insert(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    bytes.splice(at..at, new.iter().copied());
}
