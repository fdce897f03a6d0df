//! Notes: what a scheduler says of its choice when a story is told. They are made only when somebody
//! listens; they never change a choice.

use super::PickContext;
use crate::lvs::RealServer;

/// One line of the story of a pick.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// What it is about.
    pub about: About,
    /// What was computed or why a server was passed over, in the scheduler's own terms:
    /// `(2*256 + 0)/1 = 512`, `weight 0`, `overloaded`.
    pub text: String,
}

/// What a note is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum About {
    /// The whole search: where it begins, a new lap, what was drawn or hashed.
    Search,
    /// The server of this number in `reals`, as the scheduler weighed it.
    Server(usize),
    /// The choice itself: why this one, or why nobody.
    Choice,
}

impl PickContext<'_> {
    fn tell(&mut self, about: About, text: impl FnOnce() -> String) {
        if let Some(notes) = &mut self.notes {
            let text = text();
            notes.push(Note { about, text });
        }
    }

    /// Notes `text` about server `index`; the text is only made when somebody listens.
    pub fn note(&mut self, index: usize, text: impl FnOnce() -> String) {
        self.tell(About::Server(index), text);
    }

    /// Notes something about the search as a whole.
    pub fn remark(&mut self, text: impl FnOnce() -> String) {
        self.tell(About::Search, text);
    }

    /// Notes why the choice was made, or why there is none.
    pub fn because(&mut self, text: impl FnOnce() -> String) {
        self.tell(About::Choice, text);
    }

    /// Notes why a server that is not usable was passed over.
    pub fn note_unusable(&mut self, index: usize, real: &RealServer) {
        self.note(index, || unusable_words(real).to_string());
    }

    /// Notes that `slot` of a table belongs to server `index`, which has `of` of the slots, and
    /// whether it can be chosen.
    pub(super) fn note_slot(
        &mut self,
        slot: u32,
        index: usize,
        real: &RealServer,
        of: impl FnOnce() -> usize,
    ) {
        self.note(index, || {
            let words = format!("slot {slot}, one of its {}", of());
            if real.usable() {
                words
            } else {
                format!("{words}: {}", unusable_words(real))
            }
        });
    }
}

fn unusable_words(real: &RealServer) -> &'static str {
    if real.overloaded() {
        "overloaded"
    } else {
        "weight 0"
    }
}

/// `words`, and that the first of the list was taken where there are `equals` several.
pub(super) fn of_equals(words: &str, equals: usize) -> String {
    match equals {
        0 | 1 => words.to_string(),
        _ => format!("{words}; of {equals} equals the first in the list"),
    }
}
