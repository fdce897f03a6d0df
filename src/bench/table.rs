//! A run as text for a terminal.

use std::fmt::Write;

use super::record::{Document, Line, MeasureRow, REFERENCE};
use super::tally::{Standing, Summary, short};

/// The whole run, ready to print.
pub fn text(document: &Document) -> String {
    let mut out = String::new();
    for (name, value) in document.fingerprint.lines() {
        let _ = writeln!(out, "{name}: {value}");
    }
    for measure in &document.measures {
        let lines = document.lines(measure);
        if !lines.is_empty() {
            let _ = write!(out, "\n{}", section(measure, &lines));
        }
    }
    if !document.missing.is_empty() {
        let _ = writeln!(out, "\nNot measured");
        for row in &document.missing {
            let _ = writeln!(out, "  {}: {}", row.what, row.why);
        }
    }
    if document.interrupted {
        let _ = writeln!(
            out,
            "\nThis run was interrupted; what is missing was not measured."
        );
    }
    out
}

fn section(measure: &MeasureRow, lines: &[Line]) -> String {
    let better = if measure.more_is_better {
        "more"
    } else {
        "less"
    };
    let mut out = format!("{}: {} ({better} is better)\n", measure.name, measure.about);
    let width = lines.iter().map(|line| line.peer.len()).max().unwrap_or(0);
    for line in lines {
        let _ = writeln!(out, "  {}", row(measure, line, width));
    }
    out
}

fn row(measure: &MeasureRow, line: &Line, width: usize) -> String {
    let name = format!("{:width$}", line.peer);
    let Some(summary) = &line.summary else {
        return format!("{name}  no figure: all {} windows failed", line.failed);
    };
    let mut text = format!(
        "{name}  {:>14}  {:>23}  {}",
        figure(summary.median, &measure.unit),
        range(summary, &measure.unit),
        place(line.standing),
    );
    if let Some(ratio) = &line.ratio {
        let _ = write!(text, "  {REFERENCE} × {}", times(ratio));
    }
    for (name, value) in &line.beside {
        let _ = write!(text, "  {name} {}", short(*value));
    }
    for note in notes(line) {
        let _ = write!(text, "  ({note})");
    }
    text
}

/// What a reader must know beside the figures.
pub fn notes(line: &Line) -> Vec<String> {
    let mut notes = Vec::new();
    let rounds = line.summary.map_or(0, |summary| summary.count) + line.failed;
    if line.noisy > 0 {
        notes.push(format!("noisy: {} of {rounds}", line.noisy));
    }
    if line.failed > 0 {
        notes.push(format!("failed: {}", line.failed));
    }
    notes
}

/// A figure with its unit; times in what fits them.
pub fn figure(value: f64, unit: &str) -> String {
    match unit {
        "s" if value.abs() < 1e-3 => format!("{} µs", short(value * 1e6)),
        "s" if value.abs() < 1.0 => format!("{} ms", short(value * 1e3)),
        "s" => format!("{} s", short(value)),
        _ => {
            let number = short(value);
            let space = if number.ends_with(char::is_alphabetic) {
                ""
            } else {
                " "
            };
            format!("{number}{space}{unit}")
        }
    }
}

/// A ratio with its range.
pub fn times(ratio: &Summary) -> String {
    format!("{:.2} ({:.2} … {:.2})", ratio.median, ratio.low, ratio.high)
}

/// `lowest … highest`
pub fn range(summary: &Summary, unit: &str) -> String {
    let plain = |value: f64| match unit {
        "s" => figure(value, unit),
        _ => short(value),
    };
    format!("{} … {}", plain(summary.low), plain(summary.high))
}

/// `place 2`, or `place 2 to 4` where ranges overlap.
pub fn place(standing: Option<Standing>) -> String {
    match standing {
        None => "not ranked".to_string(),
        Some(Standing { best, worst }) if best == worst => format!("place {best}"),
        Some(Standing { best, worst }) => format!("place {best} to {worst}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Missing;
    use crate::bench::record::tests::example;

    #[test]
    fn a_table_says_what_is_known_and_what_is_not() {
        let mut document = example(&[
            ("slow", &[10_000.0, 11_000.0, 12_000.0]),
            ("fast", &[20_000.0, 30_000.0, 25_000.0]),
            ("same", &[24_000.0, 26_000.0, 22_000.0]),
            ("dead", &[1.0]),
        ]);
        document.samples.last_mut().unwrap().value = None;
        document.samples[0].noisy = true;
        document.missing.push(Missing {
            what: "haproxy".to_string(),
            why: "no program haproxy here; apt-get install haproxy".to_string(),
        });
        let text = text(&document);
        for wanted in [
            "slow  11.0 kframes/s          10.0 k … 12.0 k  place 3  (noisy: 1 of 3)",
            "fast  25.0 kframes/s          20.0 k … 30.0 k  place 1 to 2",
            "dead  no figure: all 1 windows failed",
            "haproxy: no program haproxy here; apt-get install haproxy",
            "(more is better)",
        ] {
            assert!(text.contains(wanted), "{wanted} in\n{text}");
        }
    }

    #[test]
    fn others_are_laid_beside_the_reference() {
        let document = example(&[(REFERENCE, &[20.0, 20.0]), ("b", &[10.0, 8.0])]);
        let text = text(&document);
        assert!(text.contains("ulvs-packet × 2.25 (2.00 … 2.50)"), "{text}");
    }

    #[test]
    fn times_are_in_units_that_fit() {
        assert_eq!(figure(0.000_012_34, "s"), "12.3 µs");
        assert_eq!(figure(0.012_34, "s"), "12.3 ms");
        assert_eq!(figure(1.5, "s"), "1.50 s");
        assert_eq!(figure(12.5e9, "bit/s"), "12.5 Gbit/s");
        assert_eq!(figure(950.0, "req/s"), "950 req/s");
    }
}
