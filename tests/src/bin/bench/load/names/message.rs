//! Questions and answers on the wire (RFC 1035).

use super::Names;
use anyhow::{Result, ensure};
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

const HEADER: usize = 12;
/// Type `A`, class `IN`.
const KIND: [u8; 4] = [0, 1, 0, 1];
/// An `A` record about the name of the question, behind which are its time to live and its data.
const RECORD: [u8; 6] = [0xc0, 12, 0, 1, 0, 1];
/// Seconds for which an answer of a [`super::Responder`] may be kept.
const TTL: [u8; 4] = [0, 0, 1, 44];

/// A message of at most 128 bytes, such as all have that are asked here.
#[derive(Clone, Copy)]
pub struct Message {
    bytes: [u8; 128],
    len: usize,
}

impl Message {
    /// A question for an `A` record, as a C library asks it.
    pub fn question(id: u16, names: Names) -> Self {
        let mut message = Self { bytes: [0; 128], len: 0 };
        message.put(&id.to_be_bytes());
        message.put(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        let rest = match names {
            Names::One(name) => name,
            Names::Random(domain) => {
                static NEXT: AtomicU32 = AtomicU32::new(0);
                let number = NEXT.fetch_add(1, Ordering::Relaxed);
                message.put(&[8]);
                // Written by hand: `format!` would take longer than all the rest.
                for at in (0..8).rev() {
                    message.put(&[b'a' + (number >> (4 * at) & 15) as u8]);
                }
                domain
            }
        };
        for label in rest.split('.') {
            message.put(&[label.len() as u8]);
            message.put(label.as_bytes());
        }
        message.put(&[0]);
        message.put(&KIND);
        message
    }

    /// The answer to a question, with one address; `None` when it is no question that a message has room for.
    pub fn answer(question: &[u8], address: Ipv4Addr) -> Option<Self> {
        let mut end = HEADER;
        while *question.get(end)? != 0 {
            end += 1 + usize::from(question[end]);
        }
        end += 1 + KIND.len();
        let question = question.get(..end).filter(|_| end <= 100)?;
        let mut message = Self { bytes: [0; 128], len: 0 };
        message.put(&question[..2]);
        message.put(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
        message.put(&question[HEADER..]);
        message.put(&RECORD);
        message.put(&TTL);
        message.put(&[0, 4]);
        message.put(&address.octets());
        Some(message)
    }

    fn put(&mut self, bytes: &[u8]) {
        self.bytes[self.len..self.len + bytes.len()].copy_from_slice(bytes);
        self.len += bytes.len();
    }

    /// The bytes on the wire.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Whether `answer` is about this question and has the address; false when it is a refusal.
    ///
    /// # Errors
    /// When it is another message's answer, or has another address.
    pub fn is_answered(&self, answer: &[u8], expected: Ipv4Addr) -> Result<bool> {
        let own = self.bytes();
        let end = own.len();
        ensure!(answer.len() >= end && answer[..2] == own[..2], "to another question");
        ensure!(answer[2] & 0x80 != 0 && answer[HEADER..end] == own[HEADER..], "to another question");
        if answer[3] & 15 != 0 {
            return Ok(false);
        }
        let record = answer.get(end..end + 16).unwrap_or_default();
        let has = answer[7] > 0 && record.starts_with(&RECORD) && record.ends_with(&expected.octets());
        ensure!(has, "not {expected}");
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::Message as Other;

    #[test]
    fn an_answer_is_that_of_its_question_only() {
        let expected = Ipv4Addr::new(198, 51, 100, 7);
        let [first, second] = [1, 1].map(|id| Message::question(id, Names::Random("example.net")));
        let answer = Message::answer(first.bytes(), expected).expect("an answer");
        let read = Other::from_vec(answer.bytes()).expect("another library reads it");
        assert_eq!((read.queries.len(), read.answers.len(), read.answers[0].ttl), (1, 1, 300));
        assert!(first.is_answered(answer.bytes(), expected).expect("its own"));
        assert!(second.is_answered(answer.bytes(), expected).is_err(), "another name");
        assert!(first.is_answered(answer.bytes(), Ipv4Addr::LOCALHOST).is_err(), "another address");
        let mut refused = answer.bytes().to_vec();
        refused[3] |= 5;
        assert!(!first.is_answered(&refused, expected).expect("its own"));
        assert!(first.is_answered(first.bytes(), expected).is_err(), "a question");
        assert!(Message::answer(&first.bytes()[..20], expected).is_none(), "cut");
    }
}
