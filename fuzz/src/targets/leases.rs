//! The lease file: everything that was written is read, up to where the file was cut; anything unreadable is refused.

use pv_net::ipam::{Change, Ipam};
use pv_net::lease::record::{batch, decode, frame, snapshot};

/// Target `leases`. The input is used as a file; as the content of a frame behind a snapshot; and line by line as the
/// frames of a file.
pub fn check(input: &[u8]) {
    file(input);
    let empty = snapshot(&Ipam::new()).expect("it can be written");
    file(&[&empty, frame(input).as_slice()].concat());
    let magic = &empty[..16];
    let frames: Vec<Vec<u8>> = input.split(|b| *b == b'\n').map(frame).collect();
    file(&[magic, frames.concat().as_slice()].concat());
}

fn file(bytes: &[u8]) {
    let found = match decode(bytes) {
        Ok(found) => found,
        Err(why) => return assert!(!why.is_empty()),
    };
    assert!(found.snapshot <= found.whole && found.whole <= bytes.len());
    // An incomplete end changes nothing.
    let whole = decode(&bytes[..found.whole]).expect("whole");
    assert_eq!(whole, found);
    // A file that is cut before its last batch's end has less in it, and is not reported as complete.
    let cut = found.whole - 1;
    match decode(&bytes[..cut]) {
        Ok(less) => assert!(found.snapshot <= less.whole && less.whole <= cut),
        Err(_) => assert!(cut < found.snapshot, "a snapshot and batches are read"),
    }
    // Written again, it is the same.
    let anew = snapshot(&found.ipam).expect("what was decoded can be encoded");
    let again = decode(&anew).expect("what was encoded can be decoded");
    assert_eq!((&again.ipam, again.whole), (&found.ipam, anew.len()));
    // The same with changes appended.
    for lease in found.ipam.leases() {
        let changes = [Change::Released(lease.key.clone()), Change::Learned(lease.clone())];
        let longer = [anew.as_slice(), &batch(&changes).expect("it can be written")].concat();
        let longer = decode(&longer).expect("what was appended is read");
        assert!(longer.ipam.leases().eq(found.ipam.leases()));
    }
    for lease in found.ipam.clients() {
        let longer = [anew.as_slice(), &batch(&[Change::Ended(lease.key())]).expect("it can be written")].concat();
        let longer = decode(&longer).expect("what was appended is read");
        assert!(longer.ipam.clients().eq(found.ipam.clients().filter(|other| *other != lease)));
    }
}

/// Names of fields, and values of their kinds.
pub fn words() -> Vec<Vec<u8>> {
    let words = "leases cursors assigned released learned lease key pool container interface ipv4 ipv6 mac fixed v4 v6 turn \
        taken lent ended clients client v6 address hostname expires 0102000000000a web db eth0 internal 10.0.3.2 fd00::2 02:00:0a:00:03:02";
    words.split(' ').map(|w| w.as_bytes().to_vec()).chain([b"\n".to_vec()]).collect()
}
