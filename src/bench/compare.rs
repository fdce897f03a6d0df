//! Two runs side by side: what has changed beyond doubt, and what has not. A change is told only where
//! the ranges of both runs do not overlap.

use std::fmt::Write;

use super::record::{Document, MeasureRow};
use super::table::{figure, range};
use super::tally::Summary;

/// What became of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every sample of the second run is better than every sample of the first.
    Better,
    /// Every one is worse.
    Worse,
    /// The ranges overlap.
    Unclear,
}

/// A figure that both runs have.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// What was measured.
    pub measure: String,
    /// Of whom.
    pub peer: String,
    /// In the first run.
    pub before: Summary,
    /// In the second run.
    pub after: Summary,
    /// The second median as a multiple of the first.
    pub ratio: f64,
    /// What it means.
    pub verdict: Verdict,
}

/// All figures that both runs have.
pub fn rows(before: &Document, after: &Document) -> Vec<Row> {
    let mut rows = Vec::new();
    for measure in &after.measures {
        let old = before.measures.iter().find(|old| old.name == measure.name);
        let Some(old) = old.filter(|old| old.unit == measure.unit) else {
            continue;
        };
        let first = before.lines(old);
        for line in after.lines(measure) {
            let same = first.iter().find(|other| other.peer == line.peer);
            let (Some(before), Some(after)) = (same.and_then(|line| line.summary), line.summary)
            else {
                continue;
            };
            rows.push(Row {
                measure: measure.name.clone(),
                peer: line.peer,
                before,
                after,
                ratio: after.median / before.median,
                verdict: verdict(measure, &before, &after),
            });
        }
    }
    rows
}

fn verdict(measure: &MeasureRow, before: &Summary, after: &Summary) -> Verdict {
    match measure.more_is_better {
        _ if after.overlaps(before) => Verdict::Unclear,
        more if after.is_better_than(before, more) => Verdict::Better,
        _ => Verdict::Worse,
    }
}

/// What differs between the places where the runs were taken, a line each.
pub fn differences(before: &Document, after: &Document) -> Vec<String> {
    let (old, new) = (before.fingerprint.lines(), after.fingerprint.lines());
    let mut lines = Vec::new();
    for (name, value) in &new {
        let other = old.iter().find(|(known, _)| known == name);
        match other {
            Some((_, other)) if other != value && name != "load at the beginning" => {
                lines.push(format!("{name}: {other} | {value}"));
            }
            None => lines.push(format!("{name}: nothing | {value}")),
            Some(_) => {}
        }
    }
    for peer in &after.peers {
        let other = before.peers.iter().find(|other| other.name == peer.name);
        if let Some(other) = other.filter(|other| other.version != peer.version) {
            lines.push(format!(
                "{}: {} | {}",
                peer.name, other.version, peer.version
            ));
        }
    }
    if before.plan.window_s != after.plan.window_s {
        let (old, new) = (before.plan.window_s, after.plan.window_s);
        lines.push(format!("windows: {old} s | {new} s"));
    }
    lines
}

/// Both runs as text for a terminal.
pub fn text(before: &Document, after: &Document) -> String {
    let mut out = String::new();
    for line in differences(before, after) {
        let _ = writeln!(out, "differs: {line}");
    }
    let all = rows(before, after);
    let width = all.iter().map(|row| row.peer.len()).max().unwrap_or(0);
    let mut last = "";
    for row in &all {
        if row.measure != last {
            let _ = writeln!(out, "\n{}", row.measure);
            last = &row.measure;
        }
        let measure = after
            .measures
            .iter()
            .find(|measure| measure.name == row.measure);
        let unit = measure.map_or("", |measure| measure.unit.as_str());
        let word = match row.verdict {
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Unclear => "no difference seen",
        };
        let _ = writeln!(
            out,
            "  {:width$}  {:>14} ({})  {:>14} ({})  × {:.3}  {word}",
            row.peer,
            figure(row.before.median, unit),
            range(&row.before, unit),
            figure(row.after.median, unit),
            range(&row.after, unit),
            row.ratio,
        );
    }
    if all.is_empty() {
        out.push_str("nothing was measured in both runs\n");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::example;

    #[test]
    fn only_what_does_not_overlap_has_changed() {
        let before = example(&[
            ("a", &[10.0, 11.0]),
            ("b", &[10.0, 11.0]),
            ("c", &[10.0, 11.0]),
        ]);
        let after = example(&[
            ("a", &[12.0, 13.0]),
            ("b", &[8.0, 9.0]),
            ("c", &[10.5, 20.0]),
        ]);
        let rows = rows(&before, &after);
        let verdicts: Vec<Verdict> = rows.iter().map(|row| row.verdict).collect();
        assert_eq!(
            verdicts,
            [Verdict::Better, Verdict::Worse, Verdict::Unclear]
        );
        assert!((rows[0].ratio - 12.5 / 10.5).abs() < 1e-9);
        let text = text(&before, &after);
        assert!(
            text.contains("WORSE") && text.contains("no difference seen"),
            "{text}"
        );
    }

    #[test]
    fn less_time_is_better() {
        let mut before = example(&[("a", &[10.0])]);
        let mut after = example(&[("a", &[9.0])]);
        before.measures[0].more_is_better = false;
        after.measures[0].more_is_better = false;
        assert_eq!(rows(&before, &after)[0].verdict, Verdict::Better);
    }

    #[test]
    fn different_places_and_programs_are_told() {
        let before = example(&[("a", &[1.0])]);
        let mut after = example(&[("a", &[1.0])]);
        assert_eq!(differences(&before, &after), Vec::<String>::new());
        after.fingerprint.kernel = "7.0".to_string();
        after.peers[0].version = "3".to_string();
        let lines = differences(&before, &after).join("\n");
        assert!(
            lines.contains("kernel:  | 7.0") && lines.contains("a: 1 & 2 | 3"),
            "{lines}"
        );
    }

    #[test]
    fn what_only_one_run_has_is_left_out() {
        let before = example(&[("a", &[1.0])]);
        let mut after = example(&[("b", &[1.0])]);
        assert!(text(&before, &after).contains("nothing was measured in both"));
        after.measures[0].unit = "other".to_string();
        assert!(rows(&after.clone(), &example(&[("b", &[1.0])])).is_empty());
    }
}
