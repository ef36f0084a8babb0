//! Which slots of the key-value arena are free.

use crate::ops::attend::Segment;

/// Free runs of slots, ascending, no two of them adjacent.
pub(super) struct Room {
    free: Vec<Segment>,
}

impl Room {
    /// All of `slots` are free.
    pub(super) fn new(slots: usize) -> Self {
        Self { free: vec![Segment { start: 0, len: slots }] }
    }

    /// How many slots are free.
    pub(super) fn left(&self) -> usize {
        self.free.iter().map(|run| run.len).sum()
    }

    /// The first run that is long enough for `len` slots.
    pub(super) fn take(&mut self, len: usize) -> Option<Segment> {
        if len == 0 {
            return Some(Segment { start: 0, len });
        }
        let at = self.free.iter().position(|run| run.len >= len)?;
        let run = &mut self.free[at];
        let taken = Segment { start: run.start, len };
        (run.start, run.len) = (run.start + len, run.len - len);
        if run.len == 0 {
            self.free.remove(at);
        }
        Some(taken)
    }

    /// Gives back what was taken.
    pub(super) fn give(&mut self, run: Segment) {
        if run.len == 0 {
            return;
        }
        let at = self.free.partition_point(|other| other.start < run.start);
        self.free.insert(at, run);
        let end = |run: &Segment| run.start + run.len;
        if at + 1 < self.free.len() && end(&self.free[at]) == self.free[at + 1].start {
            self.free[at].len += self.free.remove(at + 1).len;
        }
        if at > 0 && end(&self.free[at - 1]) == self.free[at].start {
            self.free[at - 1].len += self.free.remove(at).len;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_once_and_joined_again() {
        let mut room = Room::new(10);
        let [a, b, c] = [3, 4, 3].map(|len| room.take(len).expect("room"));
        assert_eq!([a.start, b.start, c.start], [0, 3, 7]);
        assert!(room.take(1).is_none() && room.left() == 0);
        room.give(a);
        room.give(c);
        assert!(room.take(4).is_none(), "six are free, but not side by side");
        assert_eq!(room.take(2).map(|s| s.start), Some(0));
        room.give(Segment { start: 0, len: 2 });
        room.give(b);
        assert_eq!(room.take(10).map(|s| s.start), Some(0));
        assert_eq!(room.take(0).map(|s| s.len), Some(0));
    }
}
