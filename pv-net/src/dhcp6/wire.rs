//! Reads a client's message.

use dhcproto::v6::{Decodable, Decoder, Message};

/// Options that the server looks at: client, server, IA_NA, option request, rapid commit (RFC 8415 section 21), and the
/// client's name (RFC 4704), of which dhcproto reads nothing.
const READ: [u16; 6] = [1, 2, IA_NA, 6, RAPID_COMMIT, 39];
const IA_NA: u16 = 3;
const IA_ADDRESS: u16 = 5;
const RAPID_COMMIT: u16 = 14;
/// Bytes of an IA_NA before its options.
const IA_NA_HEAD: usize = 12;
/// Bytes of an IA Address before its options.
const IA_ADDRESS_HEAD: usize = 24;

/// The message, with only those options that the server looks at. `None` if an option ends behind the message, or is
/// shorter than its fields.
///
/// dhcproto trusts the lengths of some other options: one that is too short makes it panic. So these never reach it.
#[must_use]
pub fn read(message: &[u8]) -> Option<Message> {
    let (head, options) = message.split_at_checked(4)?;
    let mut kept = head.to_vec();
    for option in split(options) {
        let (code, data) = option?;
        match code {
            IA_NA => {
                let (fields, inner) = data.split_at_checked(IA_NA_HEAD)?;
                let mut association = fields.to_vec();
                for option in split(inner) {
                    let (code, data) = option?;
                    if code == IA_ADDRESS {
                        put(&mut association, code, data.get(..IA_ADDRESS_HEAD)?);
                    }
                }
                put(&mut kept, code, &association);
            }
            RAPID_COMMIT => put(&mut kept, code, &[]),
            _ if READ.contains(&code) => put(&mut kept, code, data),
            _ => {}
        }
    }
    Message::decode(&mut Decoder::new(&kept)).ok()
}

/// The options in `bytes`; the last one is `None` if it is cut.
fn split(mut bytes: &[u8]) -> impl Iterator<Item = Option<(u16, &[u8])>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let option = bytes.split_at_checked(4).and_then(|(head, rest)| {
            let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
            let (data, rest) = rest.split_at_checked(word(2).into())?;
            Some((word(0), data, rest))
        });
        bytes = option.map_or(&[], |(_, _, rest)| rest);
        Some(option.map(|(code, data, _)| (code, data)))
    })
}

fn put(out: &mut Vec<u8>, code: u16, data: &[u8]) {
    out.extend(code.to_be_bytes());
    // It is a part of an option that had a length of 16 bits.
    out.extend(u16::try_from(data.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use dhcproto::v6::{MessageType, OptionCode};

    #[test]
    fn options_that_nobody_looks_at_are_not_read() {
        let solicit = [1, 7, 8, 9];
        let with = |options: &[u8]| [&solicit[..], options].concat();
        let client = [0, 1, 0, 3, 0, 3, 9];
        // Status code, vendor class and vendor options without their fields; a relayed message.
        for other in [&[0, 13, 0, 0][..], &[0, 16, 0, 1, 7], &[0, 17, 0, 3, 7, 7, 7], &[0, 9, 0, 1, 12]] {
            let read = read(&with(&[other, &client].concat())).expect("a message");
            assert_eq!((read.msg_type(), read.xid()), (MessageType::Solicit, [7, 8, 9]));
            assert_eq!((read.opts().iter().count(), read.opts().get(OptionCode::ClientId).is_some()), (1, true));
            let inside = [&[0, 3, 0, 12 + other.len() as u8][..], &[0; 12], other].concat();
            assert!(super::read(&with(&inside)).is_some_and(|m| m.opts().get(OptionCode::IANA).is_some()));
        }
        let short_address = [&[0, 3, 0, 39][..], &[0; 12], &[0, 5, 0, 23], &[0; 23]].concat();
        for bad in [&[0, 1][..], &[0, 1, 0, 9, 1], &[0, 3, 0, 11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], &short_address] {
            assert!(read(&with(bad)).is_none(), "{bad:02x?}");
        }
        assert!(read(&[1, 7, 8]).is_none() && read(&solicit).is_some());
    }
}
