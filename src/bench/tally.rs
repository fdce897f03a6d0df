//! What several samples say together: the median, the range, and who may be said to be better than whom.
//! Whose ranges overlap are not ranked against each other.

/// The samples of one peer in one measure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Summary {
    /// The middle one; between two, their mean.
    pub median: f64,
    /// The lowest.
    pub low: f64,
    /// The highest.
    pub high: f64,
    /// How many.
    pub count: usize,
}

impl Summary {
    /// Of these; none if there are none. What is no number is left out.
    pub fn of(values: &[f64]) -> Option<Summary> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            1 => sorted[middle],
            _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
        };
        Some(Summary {
            median,
            low,
            high,
            count: sorted.len(),
        })
    }

    /// Is every sample of this one better than every sample of the other?
    pub fn is_better_than(&self, other: &Summary, more_is_better: bool) -> bool {
        match more_is_better {
            true => self.low > other.high,
            false => self.high < other.low,
        }
    }

    /// Do the ranges overlap?
    pub fn overlaps(&self, other: &Summary) -> bool {
        self.low <= other.high && other.low <= self.high
    }
}

/// From which place to which somebody may stand, both from 1. Equal if nothing overlaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Behind all that are better beyond doubt.
    pub best: usize,
    /// Before all that are worse beyond doubt.
    pub worst: usize,
}

/// Samples below which nobody is ranked: a range of one or two says nothing.
pub const RANKED_FROM: usize = 3;

/// The standing of each; none for who has no figure, or too few.
pub fn standings(all: &[Option<Summary>], more_is_better: bool) -> Vec<Option<Standing>> {
    let is_ranked = |own: &&Summary| own.count >= RANKED_FROM;
    let there: Vec<&Summary> = all.iter().flatten().filter(is_ranked).collect();
    let place = |own: &Summary| {
        let better = there
            .iter()
            .filter(|other| other.is_better_than(own, more_is_better));
        let worse = there
            .iter()
            .filter(|other| own.is_better_than(other, more_is_better));
        Standing {
            best: 1 + better.count(),
            worst: there.len() - worse.count(),
        }
    };
    let placed = |own: &Option<Summary>| own.as_ref().filter(is_ranked).map(place);
    all.iter().map(placed).collect()
}

/// A figure as people read it: three digits that count, and a word for thousands.
pub fn short(value: f64) -> String {
    let magnitude = value.abs();
    let (scaled, suffix) = match magnitude {
        m if m >= 1e9 => (value / 1e9, " G"),
        m if m >= 1e6 => (value / 1e6, " M"),
        m if m >= 1e4 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    let digits = match scaled.abs() {
        m if m >= 100.0 => 0,
        m if m >= 10.0 => 1,
        _ => 2,
    };
    format!("{scaled:.digits$}{suffix}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f64]) -> Summary {
        Summary::of(values).unwrap()
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(of(&[5.0, 1.0, 9.0]).median, 5.0);
        assert_eq!(of(&[1.0, 2.0, 4.0, 100.0]).median, 3.0);
        assert_eq!(
            (of(&[5.0, 1.0, 9.0]).low, of(&[5.0, 1.0, 9.0]).high),
            (1.0, 9.0)
        );
        assert_eq!(Summary::of(&[]), None);
        assert_eq!(Summary::of(&[f64::NAN]), None);
        assert_eq!(of(&[f64::NAN, f64::INFINITY, 2.0]).count, 1);
    }

    #[test]
    fn who_overlaps_is_not_ranked() {
        let all = [
            Some(of(&[10.0, 11.0, 12.0])),
            Some(of(&[11.0, 12.0, 13.0])),
            None,
            Some(of(&[1.0, 1.5, 2.0])),
            Some(of(&[12.5, 13.0, 20.0])),
        ];
        let place = |best, worst| Some(Standing { best, worst });
        // The last one is better than the first but not than the second.
        assert_eq!(
            standings(&all, true),
            [place(2, 3), place(1, 3), None, place(4, 4), place(1, 2)]
        );
        assert_eq!(
            standings(&all, false),
            [place(2, 3), place(2, 4), None, place(1, 1), place(3, 4)]
        );
        let same = [Some(of(&[7.0; 3])), Some(of(&[7.0; 3]))];
        assert_eq!(standings(&same, true), [place(1, 2), place(1, 2)]);
        let few = [Some(of(&[9.0, 9.0])), Some(of(&[7.0; 3]))];
        assert_eq!(standings(&few, true), [None, place(1, 1)]);
    }

    #[test]
    fn figures_are_short() {
        for (value, text) in [
            (0.0, "0.00"),
            (1.234, "1.23"),
            (16.04, "16.0"),
            (9_999.0, "9999"),
            (12_345.0, "12.3 k"),
            (654_321.0, "654 k"),
            (2_345_678.0, "2.35 M"),
            (12.5e9, "12.5 G"),
            (-12_345.0, "-12.3 k"),
        ] {
            assert_eq!(short(value), text);
        }
    }
}
