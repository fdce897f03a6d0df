//! A run as one HTML page that needs nothing else: plots, tables, the method, and every raw sample.

use std::fmt::Write;

use super::plot;
use super::record::{Document, Line, MeasureRow, REFERENCE};
use super::table::{figure, notes, place, range, times};

const STYLE: &str = "
body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;
color:#1a1a1a;background:#fff}
h1{font-size:1.6rem}
h2{font-size:1.2rem;margin:2.5rem 0 .2rem;border-top:1px solid #ddd;padding-top:1rem}
p.about{color:#555;margin:.2rem 0 .8rem}
svg{width:100%;height:auto;font:13px system-ui,sans-serif}
svg text{fill:#333}svg text.none{fill:#a00}
svg .range{stroke:#111;stroke-width:1.5;fill:none}svg .grid{stroke:#ddd;fill:none}
svg .curve{fill:none;stroke-width:2}
table{border-collapse:collapse;font-size:.9rem;margin:.5rem 0 1rem}
th,td{text-align:left;padding:.2rem .9rem .2rem 0;border-bottom:1px solid #eee;vertical-align:top}
td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.warn{background:#fff3cd;border:1px solid #e0c060;padding:.6rem 1rem;border-radius:4px}
details{margin:.5rem 0}summary{cursor:pointer;color:#555}
";

const METHOD: &str = "\
Every peer has a network of its own in namespaces of one machine: a client, the peer, and \
one machine with the addresses of two real servers, on veth pairs. All are up at the same \
time; windows are taken in turns, one of each peer in each round, every other round \
backwards. The receiver counts, in the middle of each load. A bar is the median of the \
rounds, the line across it reaches from the lowest to the highest. Who is better than whom \
is told by places; where ranges overlap, a peer has several, and is not ranked against those \
who share them. A window is noisy if processes of others or the host took more than 5 % of \
the processors meanwhile, or the clock stood still for over a millisecond beside it; it is \
taken again while there is time, and both stand among the samples. Bars of which most \
windows stayed noisy are pale.";

/// The page.
pub fn html(document: &Document) -> String {
    let mut out =
        String::from("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    out.push_str("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n");
    out.push_str("<title>ulvs bench</title><style>");
    out.push_str(STYLE);
    out.push_str(
        "</style></head><body>
",
    );
    let plan = &document.plan;
    let _ = writeln!(
        out,
        "<h1>ulvs bench {}: {} rounds, windows of {} s</h1>",
        escape(&plan.name),
        plan.repeats,
        plan.window_s
    );
    warnings(&mut out, document);
    places(&mut out, document);
    let _ = writeln!(out, "<p>{}</p>", escape(METHOD));
    for measure in &document.measures {
        section(&mut out, document, measure);
    }
    peers(&mut out, document);
    missing(&mut out, document);
    samples(&mut out, document);
    out.push_str("</body></html>\n");
    out
}

fn warnings(out: &mut String, document: &Document) {
    let mut warn = |text: &str| {
        let _ = writeln!(out, "<p class=\"warn\">{}</p>", escape(text));
    };
    if !document.fingerprint.optimised {
        warn(
            "ulvs was built without optimisation. These figures say nothing about how fast it is.",
        );
    }
    let windows = document.samples.len();
    let noisy = document
        .samples
        .iter()
        .filter(|sample| sample.noisy)
        .count();
    if noisy * 10 > windows {
        warn(&format!(
            "{noisy} of {windows} windows were noisy: others used this machine meanwhile. Take \
             the run again when it is quiet."
        ));
    }
    if document.plan.repeats < 5 {
        warn("Fewer than five rounds: the ranges are too small to rank by.");
    }
    if document.interrupted {
        warn("The run was interrupted; what is missing was not measured.");
    }
}

/// The machine.
fn places(out: &mut String, document: &Document) {
    out.push_str("<table>\n");
    for (name, value) in document.fingerprint.lines() {
        let _ = writeln!(
            out,
            "<tr><th>{}</th><td>{}</td></tr>",
            escape(&name),
            escape(&value)
        );
    }
    out.push_str("</table>\n");
}

fn section(out: &mut String, document: &Document, measure: &MeasureRow) {
    let numbered = document.lines(measure).into_iter().filter_map(|line| {
        let place = document
            .peers
            .iter()
            .position(|peer| peer.name == line.peer);
        Some((place?, line))
    });
    let lines: Vec<(usize, Line)> = numbered.collect();
    if lines.is_empty() {
        return;
    }
    let better = if measure.more_is_better {
        "More"
    } else {
        "Less"
    };
    let _ = writeln!(
        out,
        "<h2>{}</h2><p class=\"about\">{}. {better} is better.</p>",
        escape(&measure.name),
        escape(&capital(&measure.about))
    );
    out.push_str(&plot::bars(measure, &lines));
    if let Some(svg) = plot::curves(measure, &lines) {
        out.push_str(&svg);
    }
    let _ = writeln!(
        out,
        "<table><tr><th></th><th>median</th><th>range</th><th>place</th>\
         <th>{REFERENCE} is so many times it</th><th>beside</th></tr>"
    );
    for (_, line) in &lines {
        table_row(out, measure, line);
    }
    out.push_str("</table>\n");
}

fn table_row(out: &mut String, measure: &MeasureRow, line: &Line) {
    let (median, range, place) = match &line.summary {
        Some(summary) => (
            figure(summary.median, &measure.unit),
            range(summary, &measure.unit),
            place(line.standing),
        ),
        None => ("no figure".to_string(), String::new(), String::new()),
    };
    let beside = line.beside.iter();
    let beside = beside.map(|(name, value)| format!("{name} {}", super::tally::short(*value)));
    let mut beside: Vec<String> = beside.collect();
    beside.extend(notes(line));
    let _ = writeln!(
        out,
        "<tr><th>{}</th><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td>\
         <td class=\"n\">{}</td><td>{}</td></tr>",
        escape(&line.peer),
        escape(&median),
        escape(&range),
        escape(&place),
        line.ratio.as_ref().map_or(String::new(), times),
        escape(&beside.join(", "))
    );
}

fn peers(out: &mut String, document: &Document) {
    out.push_str("<h2>Who was measured</h2><table>\n");
    for peer in &document.peers {
        let _ = writeln!(
            out,
            "<tr><th>{}</th><td>{}</td><td>{}</td></tr>",
            escape(&peer.name),
            escape(&peer.about),
            escape(&peer.version)
        );
    }
    out.push_str("</table>\n");
}

fn missing(out: &mut String, document: &Document) {
    if document.missing.is_empty() {
        return;
    }
    out.push_str("<h2>What was not measured</h2><table>\n");
    for row in &document.missing {
        let (what, why) = (escape(&row.what), escape(&row.why));
        let _ = writeln!(out, "<tr><th>{what}</th><td>{why}</td></tr>");
    }
    out.push_str("</table>\n");
}

fn samples(out: &mut String, document: &Document) {
    let count = document.samples.len();
    let _ = writeln!(
        out,
        "<h2>Samples</h2><details><summary>all {count}</summary><table>"
    );
    out.push_str(
        "<tr><th>measure</th><th>peer</th><th>round</th><th>attempt</th><th>figure</th>\
         <th>others</th><th>host</th><th>clock stood still</th><th></th></tr>\n",
    );
    for sample in &document.samples {
        let value = sample
            .value
            .map_or("none".to_string(), |value| format!("{value:.6e}"));
        let mut note = sample.problem.clone().unwrap_or_default();
        if sample.noisy {
            note = format!("noisy {note}");
        }
        let _ = writeln!(
            out,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"n\">{value}</td>\
             <td class=\"n\">{:.1} %</td><td class=\"n\">{:.1} %</td><td class=\"n\">{:.0} µs</td>\
             <td>{}</td></tr>",
            escape(&sample.measure),
            escape(&sample.peer),
            sample.round + 1,
            sample.attempt + 1,
            sample.noise.foreign * 100.0,
            sample.noise.steal * 100.0,
            sample.noise.gap_us,
            escape(note.trim()),
        );
    }
    out.push_str("</table></details>\n");
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Text as it may stand in HTML and SVG, in attributes too.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::Missing;
    use crate::bench::record::tests::example;

    #[test]
    fn nothing_that_was_measured_becomes_markup() {
        let mut document = example(&[("<script>alert(1)</script>", &[1.0, 2.0])]);
        document.samples[0].problem = Some("\"quoted\" & <b>".to_string());
        document.fingerprint.processor = "<i>fast</i>".to_string();
        document.plan.name = "'quick'".to_string();
        let page = html(&document);
        for bad in ["<script", "<b>", "<i>", "& <"] {
            assert!(!page.contains(bad), "{bad}");
        }
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        assert_eq!(escape("<&>\"'"), "&lt;&amp;&gt;&quot;&#39;");
    }

    #[test]
    fn a_page_needs_nothing_else() {
        let mut document = example(&[("a", &[1.0]), ("b", &[2.0])]);
        document.missing.push(Missing {
            what: "nginx".to_string(),
            why: "apt-get install nginx-light".to_string(),
        });
        let page = html(&document);
        for word in ["src=", "href=", "@import", "url("] {
            assert!(!page.contains(word), "{word}");
        }
        // Every table, row and drawing that begins also ends.
        for tag in ["table", "tr", "svg", "details", "h2", "p", "body"] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
        assert!(page.contains("apt-get install nginx-light"));
    }

    #[test]
    fn a_reader_is_warned() {
        let mut document = example(&[("a", &[1.0])]);
        document.samples[0].noisy = true;
        document.interrupted = true;
        let page = html(&document);
        for word in [
            "without optimisation",
            "were noisy",
            "interrupted",
            "Fewer than five",
        ] {
            assert!(page.contains(word), "{word}");
        }
        document.samples[0].noisy = false;
        document.interrupted = false;
        document.fingerprint.optimised = true;
        document.plan.repeats = 5;
        assert!(!html(&document).contains("class=\"warn\""));
    }
}
