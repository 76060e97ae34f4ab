//! What is fuzzed, and what must hold for any input of each.

mod alias;
mod config;
mod dbus;
mod dhcp;
mod dhcp6;
mod dhcp_client;
mod dns;
mod events;
mod leases;
mod netlink;
mod packet;
mod pantavisor;
mod place;
mod ra;
mod runtime;
mod schema;
mod state;
mod text;

use crate::{Form, Target};

/// All targets.
pub const ALL: [Target; 18] = [
    Target { name: "packet", form: Form::Bytes, words: packet::words, check: packet::check },
    Target { name: "device", form: Form::Json, words: || schema::words(0), check: config::device },
    Target { name: "run", form: Form::Json, words: || schema::words(1), check: config::run },
    Target { name: "services", form: Form::Json, words: || schema::words(2), check: config::services },
    Target { name: "state", form: Form::Json, words: state::words, check: state::check },
    Target { name: "leases", form: Form::Bytes, words: leases::words, check: leases::check },
    Target { name: "alias", form: Form::Text, words: alias::words, check: alias::check },
    Target { name: "netlink", form: Form::Bytes, words: netlink::words, check: netlink::check },
    Target { name: "events", form: Form::Bytes, words: Vec::new, check: events::check },
    Target { name: "dns", form: Form::Bytes, words: dns::words, check: dns::check },
    Target { name: "dhcp", form: Form::Bytes, words: dhcp::words, check: dhcp::check },
    Target { name: "ra", form: Form::Bytes, words: ra::words, check: ra::check },
    Target { name: "dhcp6", form: Form::Bytes, words: dhcp6::words, check: dhcp6::check },
    Target { name: "dhcp_client", form: Form::Bytes, words: dhcp_client::words, check: dhcp_client::check },
    Target { name: "runtime", form: Form::Text, words: runtime::words, check: runtime::check },
    Target { name: "pantavisor", form: Form::Json, words: pantavisor::words, check: pantavisor::check },
    Target { name: "dbus", form: Form::Bytes, words: dbus::words, check: dbus::check },
    Target { name: "text", form: Form::Text, words: text::words, check: text::check },
];

fn own(words: &[&str]) -> Vec<Vec<u8>> {
    words.iter().map(|w| w.as_bytes().to_vec()).collect()
}
