//! What an application helper remembers of a connection (`ip_vs_app.c`, `nf_conntrack_seqadj.c`). It
//! lies beside the table: next to no connection has a helper.

/// A connection with a helper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Helped {
    /// The answer of the real server that the helper waits for.
    pub awaits: Awaits,
    /// How much longer the texts of the real server became.
    pub shift: Shift,
}

/// An answer that carries an address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Awaits {
    /// None.
    #[default]
    Nothing,
    /// That to FTP's PASV.
    Passive,
    /// That to EPSV.
    ExtendedPassive,
}

/// How far the sequence numbers of one side lie from what the other side sees. A segment that comes
/// again from before the last change is shifted as it was then; what lies two changes back is not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shift {
    /// Sequence number of the last segment whose length was changed.
    at: u32,
    before: i32,
    after: i32,
}

impl Shift {
    /// Was no length changed?
    pub const fn is_none(&self) -> bool {
        self.before == 0 && self.after == 0
    }

    /// The segment with this number became `by` bytes longer, or shorter. One from before the last
    /// change changes nothing any more (`nf_ct_seqadj_set`).
    pub fn change(&mut self, seq: u32, by: i32) {
        if self.before == self.after || is_behind(seq, self.at) {
            *self = Shift {
                at: seq,
                before: self.after,
                after: self.after.wrapping_add(by),
            };
        }
    }

    /// The number that the other side sees.
    pub const fn there(&self, seq: u32) -> u32 {
        let by = if is_behind(seq, self.at) {
            self.after
        } else {
            self.before
        };
        seq.wrapping_add_signed(by)
    }

    /// The number that the other side acknowledges, as it was sent.
    pub const fn back(&self, ack: u32) -> u32 {
        let by = if is_behind(ack.wrapping_sub(self.before as u32), self.at) {
            self.after
        } else {
            self.before
        };
        ack.wrapping_sub(by as u32)
    }
}

/// Does `a` come after `b` in the ring of sequence numbers (RFC 9293 section 3.4)?
const fn is_behind(a: u32, b: u32) -> bool {
    (b.wrapping_sub(a) as i32) < 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_move_behind_a_change_and_come_back() {
        let mut shift = Shift::default();
        assert!(shift.is_none());
        assert_eq!((shift.there(7), shift.back(7)), (7, 7));
        shift.change(5001, -2);
        assert_eq!(
            [5000, 5001, 5002, 5028].map(|seq| shift.there(seq)),
            [5000, 5001, 5000, 5026]
        );
        assert_eq!(
            [5001, 5002, 5026].map(|ack| shift.back(ack)),
            [5001, 5004, 5028]
        );
        shift.change(5042, 5);
        assert_eq!(
            [5001, 5042, 5043].map(|seq| shift.there(seq)),
            [4999, 5040, 5046]
        );
        assert_eq!([5040, 5046].map(|ack| shift.back(ack)), [5042, 5043]);
        // An old segment that comes again.
        shift.change(5001, -2);
        assert_eq!(shift.there(5043), 5046);
    }

    #[test]
    fn numbers_run_in_a_ring() {
        let mut shift = Shift::default();
        shift.change(u32::MAX - 1, 4);
        assert_eq!((shift.there(u32::MAX), shift.there(3)), (3, 7));
        assert_eq!((shift.back(3), shift.back(7)), (u32::MAX, 3));
    }
}
