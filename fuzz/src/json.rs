//! Mutates JSON documents: changes, adds and removes values, fields and elements.

use crate::mutate::Stock;
use crate::random::Random;
use serde_json::{Map, Number, Value};

/// Changes `input` in one or a few places; `None` when it is no JSON.
pub fn mutate(random: &mut Random, input: &[u8], stock: &Stock<'_>) -> Option<Vec<u8>> {
    let mut document: Value = serde_json::from_slice(input).ok()?;
    for _ in 0..1 << random.below(3) {
        let mut place = random.below(count(&document));
        change(random, nth(&mut document, &mut place)?, stock);
    }
    let bytes = serde_json::to_vec(&document).ok()?;
    // A shortened document would be invalid JSON.
    (bytes.len() <= stock.max_len).then_some(bytes)
}

/// The number of values in `value`, itself included.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(list) => list.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

fn nth<'a>(value: &'a mut Value, n: &mut usize) -> Option<&'a mut Value> {
    if *n == 0 {
        return Some(value);
    }
    *n -= 1;
    match value {
        Value::Array(list) => list.iter_mut().find_map(|v| nth(v, n)),
        Value::Object(map) => map.values_mut().find_map(|v| nth(v, n)),
        _ => None,
    }
}

fn change(random: &mut Random, value: &mut Value, stock: &Stock<'_>) {
    if random.once_in(6) {
        *value = any(random, stock);
        return;
    }
    match value {
        Value::Object(map) => change_map(random, map, stock),
        Value::Array(list) => change_list(random, list, stock),
        Value::String(text) => {
            let piece = word(random, stock);
            let places: Vec<usize> = text.char_indices().map(|(at, _)| at).chain([text.len()]).collect();
            let at = random.pick(&places).copied().unwrap_or_default();
            match random.below(4) {
                0 => *text = piece,
                1 => text.insert_str(at, &piece),
                2 => text.truncate(at),
                _ => *text = digits(random, text),
            }
        }
        Value::Number(_) => *value = number(random),
        Value::Bool(yes) => *yes = !*yes,
        Value::Null => *value = any(random, stock),
    }
}

fn change_map(random: &mut Random, map: &mut Map<String, Value>, stock: &Stock<'_>) {
    let keys: Vec<String> = map.keys().cloned().collect();
    let key = random.pick(&keys).cloned().unwrap_or_default();
    match (random.below(4), map.get(&key).cloned()) {
        (0, _) => drop(map.remove(&key)),
        (1, Some(value)) => drop(map.insert(word(random, stock), value)),
        (2, Some(_)) => {
            let value = map.remove(&key).unwrap_or_default();
            map.insert(word(random, stock), value);
        }
        _ => drop(map.insert(word(random, stock), any(random, stock))),
    }
}

fn change_list(random: &mut Random, list: &mut Vec<Value>, stock: &Stock<'_>) {
    let at = random.below(list.len());
    match (random.below(4), list.get(at).cloned()) {
        (0, Some(_)) => drop(list.remove(at)),
        (1, Some(value)) => list.insert(at, value),
        // Many copies reveal code whose cost grows faster than its input.
        (2, Some(value)) => list.extend(std::iter::repeat_n(value, 1 << random.below(8))),
        _ => list.insert(at, any(random, stock)),
    }
}

/// A random value, or a part of another input.
fn any(random: &mut Random, stock: &Stock<'_>) -> Value {
    match random.below(8) {
        0 => Value::Null,
        1 => Value::Bool(random.once_in(2)),
        2 => number(random),
        3 => Value::Array(Vec::new()),
        4 => Value::Object(Map::new()),
        5 => Value::String(word(random, stock)),
        _ => other(random, stock).unwrap_or_default(),
    }
}

fn other(random: &mut Random, stock: &Stock<'_>) -> Option<Value> {
    let mut document: Value = serde_json::from_slice(random.pick(stock.corpus)?).ok()?;
    let mut place = random.below(count(&document));
    nth(&mut document, &mut place).map(std::mem::take)
}

fn word(random: &mut Random, stock: &Stock<'_>) -> String {
    const ODD: [&str; 8] = ["", ".", "[0]", "a.b", "\0", "ü", "\u{202e}", "0123456789abcdef0123456789abcdef"];
    if random.once_in(5) {
        return random.pick(&ODD).copied().unwrap_or_default().to_owned();
    }
    random.pick(stock.words).map(|w| String::from_utf8_lossy(w).into_owned()).unwrap_or_default()
}

/// The text with another number in it.
fn digits(random: &mut Random, text: &str) -> String {
    let new =
        |c: char| if c.is_ascii_digit() && random.once_in(2) { char::from(b'0' + random.below(10) as u8) } else { c };
    text.chars().map(new).collect()
}

fn number(random: &mut Random) -> Value {
    const WHOLE: [u64; 9] = [0, 1, 67, 1280, 65_535, 65_536, 1 << 31, u32::MAX as u64 + 1, u64::MAX];
    const REAL: [f64; 6] = [-1.0, -0.0, 0.5, 1e300, 5e-324, 9_007_199_254_740_993.0];
    if random.once_in(4) {
        let real = random.pick(&REAL).copied().unwrap_or_default();
        return Number::from_f64(real).map_or(Value::Null, Value::Number);
    }
    if random.once_in(4) {
        return Number::from_f64(f64::from_bits(random.next())).map_or(Value::Null, Value::Number);
    }
    Value::from(random.pick(&WHOLE).copied().unwrap_or_default())
}
