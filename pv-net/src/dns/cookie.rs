//! DNS cookies (RFC 7873): who gets an answer gets one, and shows by it the next time that it has its address. A container
//! cannot take another's anyway, so nothing is refused for want of one; clients that want cookies see that they have them.

use super::wire::{Cookie, Query};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;

/// Bytes of a client's cookie.
const CLIENT: usize = 8;
/// Bytes of a server's cookie, whoever it is from (RFC 7873 section 4.2).
const OF_SERVERS: std::ops::RangeInclusive<usize> = 8..=32;

/// What cookies are made with: a secret of this process.
#[derive(Debug, Default)]
pub(super) struct Cookies {
    secret: RandomState,
}

/// The option has a length that no cookie has.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoCookie;

impl Cookies {
    /// Gives the answer to `query` its cookie, when `address` sent one. The same client gets the same from this process.
    ///
    /// # Errors
    /// When it is no cookie: the question is not well formed (RFC 7873 section 5.2.2).
    pub fn answer(&self, query: &mut Query<'_>, address: IpAddr) -> Result<(), NoCookie> {
        let option = query.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Cookie));
        let Some(EdnsOption::Unknown(_, came)) = option else { return Ok(()) };
        let (client, server) = came.split_first_chunk::<CLIENT>().ok_or(NoCookie)?;
        if !server.is_empty() && !OF_SERVERS.contains(&server.len()) {
            return Err(NoCookie);
        }
        // Keyed SipHash, as RFC 9018 has it; only this process need know its own.
        let own = self.secret.hash_one((client, address)).to_be_bytes();
        let mut cookie = Cookie::default();
        cookie[..CLIENT].copy_from_slice(client);
        cookie[CLIENT..].copy_from_slice(&own);
        query.cookie = Some(cookie);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{Edns, Message, MessageType, OpCode};

    #[test]
    fn a_client_gets_its_cookie_back_and_one_of_the_servers() {
        let cookies = Cookies::default();
        let answer = |cookie: &[u8], address: [u8; 4]| {
            let mut message = Message::new(7, MessageType::Query, OpCode::Query);
            let mut edns = Edns::new();
            edns.options_mut().insert(EdnsOption::Unknown(EdnsCode::Cookie.into(), cookie.to_vec()));
            message.add_query(hickory_proto::op::Query::new()).set_edns(edns);
            let message = message.to_vec().expect("a question");
            let mut query = Query::parse(&message).expect("a question");
            cookies.answer(&mut query, address.into()).map(|()| query.cookie.expect("a cookie"))
        };
        let first = answer(b"12345678", [10, 0, 3, 2]).expect("a cookie");
        assert_eq!(&first[..8], b"12345678");
        assert_eq!(answer(&first, [10, 0, 3, 2]), Ok(first));
        assert_ne!(answer(&first, [10, 0, 3, 3]), Ok(first), "somebody else's");
        assert_ne!(answer(b"12345679", [10, 0, 3, 2]).map(|c| c[8..].to_vec()), Ok(first[8..].to_vec()));
        for len in [0, 7, 9, 15, 41] {
            assert_eq!(answer(&vec![0; len], [10, 0, 3, 2]), Err(NoCookie), "{len} bytes");
        }
        assert!(answer(&[0; 40], [10, 0, 3, 2]).is_ok());
    }
}
