//! Messages of D-Bus: each is read as far as it is long, and no sooner than it is there.

use pv_net::dbus::{Body, Call, Incoming, read};

/// A header without its fields.
const HEAD: usize = 16;

/// Target `dbus`. The input is read as a stream of messages, and as the body of a call.
pub fn check(input: &[u8]) {
    let mut rest = input;
    while let Ok(Some((message, len))) = read(rest) {
        assert!(len >= HEAD);
        // What comes behind a message changes nothing, and half of it is none, unless it is one that is skipped.
        let whole = rest.get(..len).unwrap_or(rest);
        assert_eq!(read(whole), Ok(Some((message, len))));
        for less in [0, HEAD - 1, HEAD, len / 2, len - 1] {
            let part = rest.get(..less).unwrap_or(rest);
            assert!(matches!(read(part), Ok(None | Some((Incoming::Other, _)))), "{less} of {len} bytes");
        }
        rest = rest.get(len..).unwrap_or_default();
    }
    let text = String::from_utf8_lossy(input);
    let (destination, member) = ("org.freedesktop.resolve1", "SetLinkDomains");
    let body = Body::default().word(7).one(|domain| domain.text(&text).bytes(input).word(1));
    let call = Call { destination, path: "/", interface: destination, member, signature: "ia(sayb)", body };
    let call = call.to_bytes(3);
    assert_eq!(read(&call), Ok(Some((Incoming::Other, call.len()))));
    assert_eq!(read(&call[..HEAD - 1]), Ok(None));
}

/// Heads of messages, and fields.
pub fn words() -> Vec<Vec<u8>> {
    let pieces: [&[u8]; 8] = [
        &[b'l', 2, 1, 1, 0, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0],
        &[b'l', 4, 1, 1, 0, 0, 0, 0, 9, 0, 0, 0, 64, 0, 0, 0],
        &[b'B', 4, 1, 1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 64],
        &[5, 1, b'u', 0, 3, 0, 0, 0],
        &[3, 1, b's', 0, 16, 0, 0, 0],
        &[7, 1, b's', 0, 20, 0, 0, 0],
        &[8, 1, b'g', 0, 1, b's', 0],
        b"NameOwnerChanged\0",
    ];
    pieces.iter().map(|piece| piece.to_vec()).chain(super::own(&["org.freedesktop.DBus\0"])).collect()
}
