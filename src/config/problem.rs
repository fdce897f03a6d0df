//! Problem: what is wrong with a text a person wrote, and where. All problems of a text are gathered
//! and shown together, each with file, line, column and the offending word underlined.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// Most problems shown of one text; the rest is counted. A person mends the first ones first.
const PROBLEMS_SHOWN_MAX: usize = 20;

/// Longest word that is compared with known ones; longer than any key or option.
const WORD_BYTES_MAX: usize = 64;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where, in bytes of the text; never across a line end.
    pub span: Range<usize>,
    /// What is wrong, as one sentence without a full stop.
    pub what: String,
    /// A word or two beside the underlined place; may be empty.
    pub label: String,
    /// How to mend it.
    pub hint: Option<String>,
}

/// All problems of one text. Displays as a report for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    name: String,
    text: String,
    list: Vec<Problem>,
}

impl Problems {
    /// No problems yet in `text`, which came from the file `name`.
    pub fn new(name: &str, text: &str) -> Problems {
        Problems {
            name: name.to_string(),
            text: text.to_string(),
            list: Vec::new(),
        }
    }

    /// Notes a problem; a span across lines is cut at its first line end.
    pub fn add(&mut self, span: Range<usize>, what: impl Into<String>, label: impl Into<String>) {
        let span = self.within_line(span);
        self.list.push(Problem {
            span,
            what: what.into(),
            label: label.into(),
            hint: None,
        });
    }

    /// Says how to mend the problem noted last.
    pub fn hint(&mut self, hint: impl Into<String>) {
        let last = self.list.last_mut().expect("a hint follows a problem");
        last.hint = Some(hint.into());
    }

    /// Nothing wrong?
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// The problems, in the order of the text.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// `Ok(value)` if nothing is wrong, or all problems in the order of the text.
    pub fn or<T>(mut self, value: T) -> Result<T, Problems> {
        if self.list.is_empty() {
            return Ok(value);
        }
        self.list.sort_by_key(|problem| problem.span.start);
        Err(self)
    }

    /// Line and column, both counted from 1; columns in characters.
    pub fn line_and_column(&self, at: usize) -> (usize, usize) {
        let start = self.line_start(at);
        let line = self.text[..start].matches('\n').count() + 1;
        (line, self.text[start..at].chars().count() + 1)
    }

    fn within_line(&self, span: Range<usize>) -> Range<usize> {
        let start = self.char_floor(span.start);
        let line_end = self.text[start..]
            .find('\n')
            .map_or(self.text.len(), |at| start + at);
        let end = self.char_floor(span.end.max(start)).min(line_end);
        start..end
    }

    fn char_floor(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    fn line_start(&self, at: usize) -> usize {
        self.text[..at].rfind('\n').map_or(0, |newline| newline + 1)
    }

    fn write_one(&self, f: &mut fmt::Formatter<'_>, problem: &Problem) -> fmt::Result {
        let start = self.line_start(problem.span.start);
        let line = self.text[start..].lines().next().unwrap_or("");
        let (number, _) = self.line_and_column(problem.span.start);
        let end = (problem.span.end - start).min(line.len());
        let span =
            (problem.span.start - start).min(line.len())..end.max(problem.span.start - start);
        let mut mark = AnnotationKind::Primary.span(span);
        if !problem.label.is_empty() {
            mark = mark.label(problem.label.as_str());
        }
        let snippet = Snippet::source(line)
            .path(self.name.as_str())
            .line_start(number)
            .annotation(mark);
        let mut group = Group::with_title(Level::ERROR.primary_title(problem.what.as_str()));
        group = group.element(snippet);
        if let Some(hint) = &problem.hint {
            group = group.element(Level::HELP.message(hint.as_str()));
        }
        writeln!(f, "{}", Renderer::plain().render(&[group]))
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in self.list.iter().take(PROBLEMS_SHOWN_MAX) {
            self.write_one(f, problem)?;
        }
        match self.list.len().checked_sub(PROBLEMS_SHOWN_MAX) {
            Some(more) if more > 0 => writeln!(f, "and {more} more"),
            _ => Ok(()),
        }
    }
}

impl std::error::Error for Problems {}

/// The candidate that `word` was most likely meant to be, if any is near enough: a third of the letters
/// may differ, and two at least.
pub fn nearest<'a>(word: &str, candidates: &[&'a str]) -> Option<&'a str> {
    if word.len() > WORD_BYTES_MAX {
        return None;
    }
    let most = |name: &str| (word.len().max(name.len()) / 3).max(2);
    let scored = candidates.iter().map(|name| (distance(word, name), *name));
    let best = scored.min_by_key(|(distance, _)| *distance);
    best.filter(|(distance, name)| *distance <= most(name) && *distance < name.len())
        .map(|(_, name)| name)
}

/// How many letters must be put in, taken out, changed or swapped with their neighbour.
fn distance(one: &str, other: &str) -> usize {
    let one: Vec<char> = one.to_lowercase().chars().collect();
    let other: Vec<char> = other.to_lowercase().chars().collect();
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for i in 0..=one.len() {
        for j in 0..=other.len() {
            rows[i][j] = match (i, j) {
                (_, 0) | (0, _) => i + j,
                _ => {
                    let change = usize::from(one[i - 1] != other[j - 1]);
                    let single = (rows[i - 1][j - 1] + change)
                        .min(rows[i - 1][j] + 1)
                        .min(rows[i][j - 1] + 1);
                    let swapped =
                        i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1];
                    match swapped {
                        true => single.min(rows[i - 2][j - 2] + 1),
                        false => single,
                    }
                }
            };
        }
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_names_the_place_and_underlines_the_word() {
        let mut problems = Problems::new("ulvs.toml", "one\n  grün = bad\n");
        problems.add(14..17, "no such thing", "here");
        problems.hint("try good");
        let report = problems.or(()).unwrap_err().to_string();
        assert!(report.contains("error: no such thing"), "{report}");
        assert!(report.contains("--> ulvs.toml:2:10"), "{report}");
        assert!(report.contains("^^^ here"), "{report}");
        assert!(report.contains("help: try good"), "{report}");
    }

    #[test]
    fn spans_out_of_the_text_or_inside_a_letter_do_not_panic() {
        let mut problems = Problems::new("f", "ü\n");
        for span in [0..1, 1..2, 1..99, 3..3, 9..12, 2..3] {
            problems.add(span, "w", "l");
        }
        assert!(!problems.to_string().is_empty());
        let mut empty = Problems::new("f", "");
        empty.add(0..5, "w", "");
        assert!(!empty.to_string().is_empty());
    }

    #[test]
    fn the_nearest_word_is_near() {
        let keys = ["interface", "side", "addresses"];
        assert_eq!(nearest("interfaces", &keys), Some("interface"));
        assert_eq!(nearest("adresses", &keys), Some("addresses"));
        assert_eq!(nearest("adress", &keys), Some("addresses"));
        assert_eq!(nearest("wcl", &["wrr", "lc", "wlc"]), Some("wlc"));
        assert_eq!(nearest("colour", &keys), None);
        assert_eq!(nearest("x", &["a", "b"]), None);
    }

    #[test]
    fn many_problems_are_counted() {
        let mut problems = Problems::new("f", "x");
        for _ in 0..PROBLEMS_SHOWN_MAX + 3 {
            problems.add(0..1, "w", "");
        }
        assert!(problems.to_string().ends_with("and 3 more\n"));
    }
}
