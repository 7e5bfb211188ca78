//! Hints that come without a use: the blocks change their class, and what becomes of them is learnt in the new one.

use super::Adaptive;
use super::class::OCTILES;
use crate::policy::Hint;

impl Adaptive {
    /// Counts a block among those of which the engine has said the same. It ages anew from now on: what the hint is worth
    /// shows in the time after it. In its class before it counts as one that nobody could go on watching.
    pub(super) fn reclassify(&mut self, at: u32, print: u64, hint: Hint) {
        // What the request at hand has used has no class yet.
        self.settle();
        let Some(record) = self.records.get(at) else { return };
        let row = self.cohorts.get(record.cohort).row;
        let family = usize::from(self.rows[usize::from(row)].family);
        if record.past.family(hint) == family {
            return;
        }
        let octile = (0..OCTILES).find(|octile| self.row_of[family * OCTILES + octile] == row).unwrap_or(0);
        if record.is_leaf() {
            self.records.unlist(at, &mut self.cohorts, &mut self.ranking);
        }
        self.cohorts.leave(record.cohort, record.past.weight());
        let of_request = std::mem::replace(&mut self.current.request.hint, hint);
        let cohort = self.join(record.past, octile);
        self.current.request.hint = of_request;
        // The learnt way is judged by what it would rank by.
        if self.choice.samples(print) {
            self.choice.reclassify(print, self.cohorts.get(cohort).row);
        }
        self.records.at(at).cohort = cohort;
        if record.is_leaf() {
            self.records.list(at, false, &mut self.cohorts, &mut self.ranking);
        }
    }
}
