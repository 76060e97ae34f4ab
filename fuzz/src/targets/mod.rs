//! What is fuzzed, and what must hold for any input of each.

mod alias;
mod config;
mod events;
mod netlink;
mod packet;
mod place;
mod schema;
mod state;
mod text;

use crate::{Form, Target};

/// All targets.
pub const ALL: [Target; 8] = [
    Target { name: "packet", form: Form::Bytes, words: packet::words, check: packet::check },
    Target { name: "device", form: Form::Json, words: || schema::words(0), check: config::device },
    Target { name: "run", form: Form::Json, words: || schema::words(1), check: config::run },
    Target { name: "state", form: Form::Json, words: state::words, check: state::check },
    Target { name: "alias", form: Form::Text, words: alias::words, check: alias::check },
    Target { name: "netlink", form: Form::Bytes, words: netlink::words, check: netlink::check },
    Target { name: "events", form: Form::Bytes, words: Vec::new, check: events::check },
    Target { name: "text", form: Form::Text, words: text::words, check: text::check },
];

fn own(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.as_bytes().to_vec()).collect()
}
