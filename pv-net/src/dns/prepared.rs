//! Answers that are kept for the same questions from the same clients: an answer about the device's own names depends on
//! nothing but the names, the socket, the client's address and the question's bytes, and one from the cache on the second
//! too. Most clients ask for few names, again and again, and a copy takes a tenth of the time that it takes to make the
//! answer. Pure.

use super::metrics::Ended;
use super::wire::{Query, RecordType};
use super::zone::{Part, Zone};
use std::net::IpAddr;
use std::sync::{Arc, Weak};
use std::time::Instant;

/// How many answers are kept: in so many sets, each with so many answers. A new answer takes the place of the oldest one
/// in its set, so that a flood of names takes no more memory. One from the cache takes no place of an own name's.
const SETS: usize = 128;
const WAYS: usize = 4;
/// Longer questions and answers are not kept.
const LARGEST: usize = 256;
/// Bytes of the id, with which a question and its answer begin, and which differs from question to question.
const ID: usize = 2;

/// Answers that were given by one thread.
#[derive(Debug, Default)]
pub struct Prepared {
    /// The names that the answers were made from. Only the pointer is kept: it stays unique as long as this exists.
    zone: Weak<Zone>,
    sets: Vec<Vec<Answer>>,
}

/// An answer that was given, and what it was given to.
#[derive(Debug)]
pub struct Answer {
    /// The socket's number: on another link the same address is another client.
    place: u64,
    address: IpAddr,
    /// The question without its id.
    question: Box<[u8]>,
    /// The answer without its id.
    answer: Box<[u8]>,
    /// The part of a share to which such a question counts.
    pub part: Part,
    /// When it is another one, if it is from the cache.
    until: Option<Instant>,
    /// The type of the question's records.
    pub kind: RecordType,
    /// How the question ended.
    pub ended: Ended,
}

impl Answer {
    fn is_to(&self, place: u64, address: IpAddr, question: &[u8]) -> bool {
        (self.place, self.address) == (place, address) && *self.question == *question
    }

    /// Writes the answer to this question.
    pub fn write(&self, question: &[u8], out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(question.get(..ID).unwrap_or_default());
        out.extend_from_slice(&self.answer);
    }
}

impl Prepared {
    /// From now on answers are made from `zone`: those that were made from other names are forgotten.
    pub fn follow(&mut self, zone: &Arc<Zone>) {
        if !std::ptr::eq(self.zone.as_ptr(), Arc::as_ptr(zone)) {
            self.zone = Arc::downgrade(zone);
            self.sets.clear();
        }
    }

    /// The answer that this question of `address` had on socket `place`, and has at the time `now`.
    #[must_use]
    pub fn get(&self, place: u64, address: IpAddr, question: &[u8], now: Instant) -> Option<&Answer> {
        let question = question.get(ID..)?;
        let set = self.sets.get(set(place, address, question))?;
        let there = set.iter().find(|there| there.is_to(place, address, question))?;
        there.until.is_none_or(|until| now < until).then_some(there)
    }

    /// Keeps the answer to this question of `address` on socket `place`, if it is about a name that the device has, or is
    /// from the cache and the same until a time that is given. What is said of names that the device does not have is not
    /// kept: there is no end of these.
    pub fn keep(
        &mut self,
        place: u64,
        address: IpAddr,
        question: &[u8],
        answer: &[u8],
        part: Part,
        (ended, until): (Ended, Option<Instant>),
    ) {
        let Ok(kind) = Query::parse(question).map(|query| query.rtype()) else { return };
        let (Some(question), Some(answer)) = (question.get(ID..), answer.get(ID..)) else { return };
        let is_kept = match ended {
            Ended::Own | Ended::NoData => until.is_none(),
            Ended::Cache => until.is_some(),
            _ => false,
        };
        if !is_kept || question.len() > LARGEST || answer.len() > LARGEST {
            return;
        }
        if self.sets.is_empty() {
            self.sets.resize_with(SETS, Vec::new);
        }
        let Some(set) = self.sets.get_mut(set(place, address, question)) else { return };
        let is_old = |there: &Answer| there.is_to(place, address, question);
        let oldest = || set.iter().position(|there| there.until.is_some()).or(until.is_none().then_some(0));
        match set.iter().position(is_old) {
            Some(old) => drop(set.remove(old)),
            None if set.len() < WAYS => {}
            None => match oldest() {
                Some(oldest) => drop(set.remove(oldest)),
                None => return,
            },
        }
        set.push(Answer { place, address, question: question.into(), answer: answer.into(), part, until, kind, ended });
    }
}

/// The set of the answer to a question. This need not withstand a client that looks for questions with one set: their
/// answers only displace each other.
fn set(place: u64, address: IpAddr, question: &[u8]) -> usize {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mix = |hash: u64, word: u64| (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR);
    let address = match address {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip) as u64,
    };
    let (words, rest) = question.as_chunks::<8>();
    let hash = words.iter().fold(mix(place, address), |hash, word| mix(hash, u64::from_ne_bytes(*word)));
    let hash = rest.iter().fold(hash, |hash, byte| mix(hash, u64::from(*byte)));
    (hash >> (u64::BITS - SETS.ilog2())) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dns::name;
    use crate::dns::zone::Whose;
    use hickory_proto::op::{self, Message, MessageType, OpCode};
    use std::time::Duration;

    const PART: Part = Part::all_of(Whose::Container(1));
    const ANSWER: &[u8] = b"\0\x01answer";

    fn question(id: u16, name: &str) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.add_query(op::Query::query(name::from_text(name).expect("a name").into(), RecordType::AAAA));
        message.to_vec().expect("a question")
    }

    fn answer(prepared: &Prepared, address: [u8; 4], question: &[u8]) -> Option<Vec<u8>> {
        let mut out = vec![1, 2, 3];
        prepared.get(1, address.into(), question, Instant::now())?.write(question, &mut out);
        Some(out)
    }

    #[test]
    fn an_answer_is_for_the_same_question_of_the_same_client_while_the_names_are_the_same() {
        let (mut prepared, zone) = (Prepared::default(), Arc::new(Zone::default()));
        let (own, asked) = ([10, 0, 3, 2], question(1, "web.pv.local"));
        prepared.follow(&zone);
        assert_eq!(answer(&prepared, own, &asked), None);
        prepared.keep(1, own.into(), &asked, ANSWER, PART, (Ended::NoData, None));
        assert!(prepared.get(2, own.into(), &asked, Instant::now()).is_none(), "on another link");
        let known = prepared.get(1, own.into(), &asked, Instant::now()).expect("kept");
        assert_eq!((known.part, known.kind, known.ended), (PART, RecordType::AAAA, Ended::NoData));
        let again = question(0x0708, "web.pv.local");
        assert_eq!(answer(&prepared, own, &again), Some(b"\x07\x08answer".to_vec()));
        assert_eq!(answer(&prepared, [10, 0, 3, 3], &asked), None, "another client's");
        assert_eq!(answer(&prepared, own, &asked.to_ascii_uppercase()), None, "letters in another case");
        assert_eq!(answer(&prepared, own, &[&*asked, b"x"].concat()), None, "longer");
        assert_eq!(answer(&prepared, own, b"\0"), None, "no question");
        prepared.follow(&zone);
        assert!(answer(&prepared, own, &asked).is_some());
        // The names before are gone, so that others may be at the same place in memory.
        drop(zone);
        prepared.follow(&Arc::new(Zone::default()));
        assert_eq!(answer(&prepared, own, &asked), None, "other names");
    }

    #[test]
    fn a_flood_of_names_takes_no_memory_and_no_place() {
        let (mut prepared, zone) = (Prepared::default(), Arc::new(Zone::default()));
        prepared.follow(&zone);
        let (own, asked) = ([10, 0, 3, 2].into(), question(1, "web.pv.local"));
        prepared.keep(1, own, &asked, ANSWER, PART, (Ended::Own, None));
        let others: Vec<_> = (0..5_000).map(|n| question(1, &format!("n{n}.pv.local"))).collect();
        for other in &others {
            for ended in [Ended::NoName, Ended::Refused, Ended::Upstream, Ended::Cache] {
                prepared.keep(1, own, other, ANSWER, PART, (ended, None));
            }
        }
        assert!(prepared.get(1, own, &asked, Instant::now()).is_some());
        others.iter().for_each(|other| prepared.keep(1, own, other, ANSWER, PART, (Ended::Own, None)));
        assert_eq!(prepared.sets.iter().flatten().count(), SETS * WAYS);
        for (labels, is_kept) in [(3, true), (4, false)] {
            let long = question(1, &vec!["a".repeat(60); labels].join("."));
            prepared.keep(1, own, &long, ANSWER, PART, (Ended::Own, None));
            assert_eq!(prepared.get(1, own, &long, Instant::now()).is_some(), is_kept, "{} bytes", long.len());
        }
        prepared.keep(1, own, &asked, &[0; 300], PART, (Ended::Own, None));
        assert!(prepared.get(1, own, &asked, Instant::now()).is_none(), "a long answer");
        prepared.keep(1, own, b"\0\x01no question", ANSWER, PART, (Ended::Own, None));
        assert!(prepared.get(1, own, b"\0\x01no question", Instant::now()).is_none());
    }

    #[test]
    fn an_answer_from_the_cache_is_kept_as_long_as_it_is_the_same() {
        let (mut prepared, zone, now) = (Prepared::default(), Arc::new(Zone::default()), Instant::now());
        prepared.follow(&zone);
        let (own, second) = ([10, 0, 3, 2].into(), Duration::from_secs(1));
        let asked = question(1, "www.example");
        prepared.keep(1, own, &asked, ANSWER, PART, (Ended::Cache, Some(now + second)));
        let left = |prepared: &Prepared, at| prepared.get(1, own, &asked, at).map(|known| known.answer.to_vec());
        assert_eq!(left(&prepared, now), Some(b"answer".to_vec()));
        assert_eq!(left(&prepared, now + second), None, "its times to live are a second less");
        prepared.keep(1, own, &asked, b"\0\x01less", PART, (Ended::Cache, Some(now + second * 2)));
        assert_eq!(left(&prepared, now + second), Some(b"less".to_vec()));
        assert_eq!(prepared.sets.iter().flatten().count(), 1, "the one before has made place");
        for ended in [Ended::Stale, Ended::Upstream, Ended::Blocked, Ended::Own] {
            prepared.keep(1, own, &question(1, "other.example"), ANSWER, PART, (ended, Some(now + second)));
        }
        assert_eq!(prepared.sets.iter().flatten().count(), 1);
        // Own names have their places, however many others are asked for.
        let all = |what: &str| (0..5_000).map(|n| question(1, &format!("n{n}.{what}"))).collect::<Vec<_>>();
        let (locals, others) = (all("pv.local"), all("example"));
        others.iter().for_each(|q| prepared.keep(1, own, q, ANSWER, PART, (Ended::Cache, Some(now + second))));
        assert_eq!(prepared.sets.iter().flatten().count(), SETS * WAYS);
        locals.iter().for_each(|q| prepared.keep(1, own, q, ANSWER, PART, (Ended::Own, None)));
        others.iter().for_each(|q| prepared.keep(1, own, q, ANSWER, PART, (Ended::Cache, Some(now + second))));
        assert!(prepared.sets.iter().flatten().all(|there| there.until.is_none()));
        assert_eq!(prepared.sets.iter().flatten().count(), SETS * WAYS);
    }
}
