//! What the model says of a frame, place by place.

use super::Place;

/// Whether a frame reaches a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It arrives.
    Must,
    /// It does not.
    MustNot,
    /// Somebody else decides: a kernel that takes no such packet, a bridge that floods, or an end that is gone.
    May,
}

/// A verdict a place, each with its reason.
#[derive(Clone, Debug)]
pub(crate) struct Judgement([(Verdict, &'static str); Place::ALL.len()]);

impl Judgement {
    /// Nobody gets it.
    pub(crate) fn nobody(why: &'static str) -> Self {
        Self([(Verdict::MustNot, why); Place::ALL.len()])
    }

    /// What is said of `place`, and why.
    pub(crate) fn of(&self, place: Place) -> (Verdict, &'static str) {
        self.0[place as usize]
    }

    /// Says it of `place`.
    pub(crate) fn say(&mut self, place: Place, verdict: Verdict, why: &'static str) {
        self.0[place as usize] = (verdict, why);
    }

    /// It may arrive at `place`.
    pub(crate) fn may(&mut self, place: Place, why: &'static str) {
        self.say(place, Verdict::May, why);
    }

    /// It arrives at `place` if it is `plain`; else it may.
    pub(crate) fn lets(&mut self, place: Place, plain: bool, why: &'static str) {
        self.say(place, if plain { Verdict::Must } else { Verdict::May }, why);
    }

    /// The same, but `place` does not have to get it.
    pub(crate) fn weakened_at(mut self, place: Place) -> Self {
        let (verdict, why) = self.of(place);
        if verdict == Verdict::Must {
            self.may(place, why);
        }
        self
    }

    /// The same, but nobody has to get it.
    pub(crate) fn weakened(self) -> Self {
        Place::ALL.into_iter().fold(self, Self::weakened_at)
    }

    /// What this and another judgement agree on; the rest may be.
    pub(crate) fn either(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for place in Place::ALL {
            if self.of(place).0 != other.of(place).0 {
                both.may(place, "one of two frames that look alike may");
            }
        }
        both
    }

    /// Where it has to arrive.
    pub(crate) fn musts(&self) -> impl Iterator<Item = Place> {
        Place::ALL.into_iter().filter(|place| self.of(*place).0 == Verdict::Must)
    }
}
