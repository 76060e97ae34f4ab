//! The client, frame by frame and second by second.

mod v4;
mod v6;

use super::frame::{self, Heard};
use super::*;
use crate::model::Mac;
use std::net::Ipv6Addr;

const OWN: Mac = Mac([2, 0, 0, 0, 0, 7]);
const SERVER_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

fn asker() -> Asker {
    Asker { mac: OWN, hostname: "web".to_owned() }
}

fn start() -> Now {
    Now { unix: 1000, at: Instant::now() }
}

fn after(start: Now, secs: f64) -> Now {
    Now { unix: start.unix + secs as u64, at: start.at + Duration::from_secs_f64(secs) }
}

#[test]
fn it_speaks_for_its_link_local_address_alone() {
    let begun = start();
    let client = Client::asking(&asker(), &Terms::default(), begun, 7);
    let own = frame::link_local(OWN);
    let answer = client.speak_for_itself(&frame::solicitation(SERVER_MAC, own).expect("a frame")).expect("an answer");
    assert_eq!(frame::read(&answer), Some(Heard::Said { from: OWN, target: own }));
    let other = frame::solicitation(SERVER_MAC, ROUTER).expect("a frame");
    assert_eq!(client.speak_for_itself(&other), None);
}
