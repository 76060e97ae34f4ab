//! What the model says of a frame, place by place.

use super::Place;

/// Whether a frame has to arrive at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The frame arrives.
    Must,
    /// The frame does not arrive.
    MustNot,
    /// Both are right: another party decides, such as a kernel that rejects such packets, a bridge that floods, or an
    /// end that is gone.
    May,
}

/// One verdict for each place, each with its reason.
#[derive(Clone, Debug)]
pub(crate) struct Judgement([(Verdict, &'static str); Place::ALL.len()]);

impl Judgement {
    /// No place gets the frame.
    pub(crate) fn nobody(why: &'static str) -> Self {
        Self([(Verdict::MustNot, why); Place::ALL.len()])
    }

    /// The verdict on `place`, and the reason.
    pub(crate) fn of(&self, place: Place) -> (Verdict, &'static str) {
        self.0[place as usize]
    }

    /// Sets the verdict on `place`.
    pub(crate) fn say(&mut self, place: Place, verdict: Verdict, why: &'static str) {
        self.0[place as usize] = (verdict, why);
    }

    /// Sets the verdict on `place` to [`Verdict::May`].
    pub(crate) fn may(&mut self, place: Place, why: &'static str) {
        self.say(place, Verdict::May, why);
    }

    /// Sets the verdict on `place`: `Must` when the frame is `plain`, else `May`.
    pub(crate) fn lets(&mut self, place: Place, plain: bool, why: &'static str) {
        self.say(place, if plain { Verdict::Must } else { Verdict::May }, why);
    }

    /// The same judgement, but with `May` instead of `Must` for `place`.
    pub(crate) fn weakened_at(mut self, place: Place) -> Self {
        let (verdict, why) = self.of(place);
        if verdict == Verdict::Must {
            self.may(place, why);
        }
        self
    }

    /// The same judgement, but with `May` instead of `Must` for every place.
    pub(crate) fn weakened(self) -> Self {
        Place::ALL.into_iter().fold(self, Self::weakened_at)
    }

    /// The verdicts on which this judgement and `other` agree; `May` where they differ.
    pub(crate) fn either(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for place in Place::ALL {
            if self.of(place).0 != other.of(place).0 {
                both.may(place, "one of two frames that look alike may");
            }
        }
        both
    }

    /// Whether the frame may arrive anywhere.
    pub(crate) fn reaches_somebody(&self) -> bool {
        Place::ALL.into_iter().any(|place| self.of(place).0 != Verdict::MustNot)
    }

    /// The places where the frame has to arrive.
    pub(crate) fn musts(&self) -> impl Iterator<Item = Place> {
        Place::ALL.into_iter().filter(|place| self.of(*place).0 == Verdict::Must)
    }
}
