//! Plots as SVG, to stand inside an HTML page: bars with their intervals, and curves of latencies.

use std::fmt::Write;

use super::record::{Line, MeasureRow};
use super::report::escape;
use super::table::figure;

/// A colour for each peer, in their order; told apart also by who sees colours differently
/// (Okabe and Ito).
const COLOURS: [&str; 8] = [
    "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8a7500", "#444444",
];
const XMLNS: &str = "http://www.w3.org/2000/svg";
const WIDTH: f64 = 860.0;
const LABELS: f64 = 110.0;
const FIGURES: f64 = 120.0;
const ROW: f64 = 26.0;
const CURVE_HEIGHT: f64 = 320.0;
const MARGIN: f64 = 56.0;

/// The colour of the peer at this place.
pub fn colour(place: usize) -> &'static str {
    COLOURS[place % COLOURS.len()]
}

/// Medians as bars from zero, each with its range. `places` are the peers' places in the document.
pub fn bars(measure: &MeasureRow, lines: &[(usize, Line)]) -> String {
    let highest = lines
        .iter()
        .filter_map(|(_, line)| line.summary)
        .map(|all| all.high);
    let highest = highest.fold(f64::MIN_POSITIVE, f64::max);
    let span = WIDTH - LABELS - FIGURES;
    let x = |value: f64| LABELS + span * (value / highest).clamp(0.0, 1.0);
    let height = ROW * lines.len() as f64 + 4.0;
    let name = escape(&format!("{}: medians and ranges", measure.name));
    let mut svg = open(height, &name);
    for (row, (place, line)) in lines.iter().enumerate() {
        let top = ROW * row as f64 + 4.0;
        let (middle, bar) = (top + (ROW - 8.0) / 2.0, ROW - 8.0);
        let peer = escape(&line.peer);
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{peer}</text>"#,
            LABELS - 8.0,
            middle + 4.0
        );
        let Some(summary) = line.summary else {
            let _ = write!(
                svg,
                r#"<text x="{LABELS:.1}" y="{:.1}" class="none">no figure</text>"#,
                middle + 4.0
            );
            continue;
        };
        // A figure that no quiet window stands for is drawn pale.
        let pale = if line.noisy > summary.count / 2 {
            0.35
        } else {
            0.85
        };
        let _ = write!(
            svg,
            r#"<rect x="{LABELS:.1}" y="{top:.1}" width="{:.1}" height="{bar:.1}" {}/>"#,
            x(summary.median) - LABELS,
            format_args!(r#"fill="{}" fill-opacity="{pale}""#, colour(*place)),
        );
        let (low, high) = (x(summary.low), x(summary.high));
        let (upper, lower) = (middle - 4.0, middle + 4.0);
        let _ = write!(
            svg,
            r#"<path class="range" d="M{low:.1} {middle:.1}H{high:.1}{}{}"/>"#,
            format_args!("M{low:.1} {upper:.1}V{lower:.1}"),
            format_args!("M{high:.1} {upper:.1}V{lower:.1}"),
        );
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{:.1}">{}</text>"#,
            WIDTH - FIGURES + 10.0,
            middle + 4.0,
            escape(&figure(summary.median, &measure.unit)),
        );
    }
    svg.push_str("</svg>\n");
    svg
}

/// Latency over percentile: to the right ever fewer are slower (a logarithmic axis of nines), upwards
/// time, logarithmic too. Nothing if nobody has percentiles.
pub fn curves(measure: &MeasureRow, lines: &[(usize, Line)]) -> Option<String> {
    let points = lines.iter().flat_map(|(_, line)| &line.percentiles);
    let times: Vec<f64> = points
        .map(|(_, nanos)| *nanos as f64)
        .filter(|t| *t > 0.0)
        .collect();
    let lowest = times.iter().copied().fold(f64::INFINITY, f64::min);
    let highest = times.iter().copied().fold(0.0, f64::max);
    if times.is_empty() || highest <= 0.0 {
        return None;
    }
    let (floor, ceiling) = (lowest.log10().floor(), highest.log10().ceil().max(1.0));
    let decades = (ceiling - floor).max(1.0);
    let axes = Axes { floor, decades };
    let name = escape(&format!("{}: times by percentile", measure.name));
    let mut svg = open(CURVE_HEIGHT, &name);
    axes.draw(&mut svg);
    for (place, line) in lines {
        let mut path = String::new();
        for (percent, nanos) in &line.percentiles {
            if *percent >= 100.0 || *nanos == 0 {
                continue;
            }
            let letter = if path.is_empty() { 'M' } else { 'L' };
            let (x, y) = (axes.x(*percent), axes.y(*nanos as f64));
            let _ = write!(path, "{letter}{x:.1} {y:.1}");
        }
        if !path.is_empty() {
            let (colour, peer) = (colour(*place), escape(&line.peer));
            let _ = write!(
                svg,
                r#"<path class="curve" stroke="{colour}" d="{path}"><title>{peer}</title></path>"#
            );
        }
    }
    legend(&mut svg, lines);
    svg.push_str("</svg>\n");
    Some(svg)
}

fn legend(svg: &mut String, lines: &[(usize, Line)]) {
    let there = lines
        .iter()
        .filter(|(_, line)| !line.percentiles.is_empty());
    for (row, (place, line)) in there.enumerate() {
        let (x, y) = (WIDTH - FIGURES + 4.0, 20.0 + 18.0 * row as f64);
        let _ = write!(
            svg,
            r#"<rect x="{x:.1}" y="{:.1}" width="10" height="10" fill="{}"/>"#,
            y - 9.0,
            colour(*place),
        );
        let _ = write!(
            svg,
            r#"<text x="{:.1}" y="{y:.1}">{}</text>"#,
            x + 15.0,
            escape(&line.peer),
        );
    }
}

/// Percentiles that have a line of their own on the axis.
const MARKS: [f64; 7] = [0.0, 50.0, 90.0, 99.0, 99.9, 99.99, 99.999];
/// The axis ends here: `-log10(1 - p)`.
const NINES: f64 = 4.2;

struct Axes {
    /// Decade of the shortest time, in nanoseconds.
    floor: f64,
    decades: f64,
}

impl Axes {
    fn x(&self, percent: f64) -> f64 {
        let nines = -(1.0 - percent / 100.0).max(1e-9).log10();
        MARGIN + (WIDTH - FIGURES - MARGIN - 10.0) * (nines / NINES).clamp(0.0, 1.0)
    }

    fn y(&self, nanos: f64) -> f64 {
        let up = (nanos.max(1.0).log10() - self.floor) / self.decades;
        let span = CURVE_HEIGHT - MARGIN;
        10.0 + span * (1.0 - up.clamp(0.0, 1.0))
    }

    fn draw(&self, svg: &mut String) {
        let bottom = self.y(10_f64.powf(self.floor));
        let (left, right) = (self.x(0.0), self.x(100.0));
        for step in 0..=self.decades as i32 {
            let nanos = 10_f64.powf(self.floor + f64::from(step));
            let y = self.y(nanos);
            let _ = write!(
                svg,
                r#"<path class="grid" d="M{left:.1} {y:.1}H{right:.1}"/>"#,
            );
            let _ = write!(
                svg,
                r#"<text x="{:.1}" y="{:.1}" text-anchor="end">{}</text>"#,
                left - 6.0,
                y + 4.0,
                escape(&decade(nanos)),
            );
        }
        for percent in MARKS.into_iter().filter(|percent| self.x(*percent) < right) {
            let x = self.x(percent);
            let _ = write!(svg, r#"<path class="grid" d="M{x:.1} 10V{bottom:.1}"/>"#,);
            let _ = write!(
                svg,
                r#"<text x="{x:.1}" y="{:.1}" text-anchor="middle">{percent} %</text>"#,
                bottom + 18.0,
            );
        }
        let _ = write!(
            svg,
            r#"<text x="{left:.1}" y="{:.1}">so many answers came within this time</text>"#,
            bottom + 36.0,
        );
    }
}

fn decade(nanos: f64) -> String {
    match nanos {
        n if n >= 0.99e9 => format!("{:.0} s", n / 1e9),
        n if n >= 0.99e6 => format!("{:.0} ms", n / 1e6),
        n if n >= 0.99e3 => format!("{:.0} µs", n / 1e3),
        n => format!("{n:.0} ns"),
    }
}

fn open(height: f64, name: &str) -> String {
    format!(
        r#"<svg viewBox="0 0 {WIDTH} {height:.0}" role="img" aria-label="{name}" xmlns="{XMLNS}">"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::record::tests::example;

    fn lines(document: &crate::bench::record::Document) -> Vec<(usize, Line)> {
        document
            .lines(&document.measures[0])
            .into_iter()
            .enumerate()
            .collect()
    }

    #[test]
    fn the_longest_bar_is_the_highest_figure() {
        let document = example(&[("a", &[50.0, 100.0, 60.0]), ("b<", &[10.0])]);
        let svg = bars(&document.measures[0], &lines(&document));
        // The highest sample ends the axis.
        let right = WIDTH - FIGURES;
        assert!(svg.contains(&format!("H{right:.1}")), "{svg}");
        assert!(svg.contains("b&lt;") && !svg.contains("b<"), "{svg}");
        assert_eq!(svg.matches("<rect").count(), 2);
    }

    #[test]
    fn curves_stay_inside_and_are_left_out_where_there_are_none() {
        let mut document = example(&[("a", &[1.0])]);
        assert_eq!(curves(&document.measures[0], &lines(&document)), None);
        document.samples[0].percentiles = vec![
            (0.0, 9_000),
            (50.0, 12_000),
            (99.0, 80_000),
            (99.99, 3_000_000),
            (100.0, 5_000_000),
        ];
        let svg = curves(&document.measures[0], &lines(&document)).unwrap();
        let path = svg.split(r#"class="curve""#).nth(1).unwrap();
        let path = path
            .split("d=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let points: Vec<(f64, f64)> = path
            .split(['M', 'L'])
            .filter_map(|point| {
                let (x, y) = point.split_once(' ')?;
                Some((x.parse().ok()?, y.parse().ok()?))
            })
            .collect();
        assert_eq!(points.len(), 4, "{path}");
        assert!(
            points
                .windows(2)
                .all(|two| two[0].0 < two[1].0 && two[0].1 > two[1].1)
        );
        let inside =
            |(x, y): &(f64, f64)| (0.0..WIDTH).contains(x) && (0.0..CURVE_HEIGHT).contains(y);
        assert!(points.iter().all(inside), "{points:?}");
    }

    #[test]
    fn decades_have_names() {
        assert_eq!(
            [1.0, 1e3, 1e4, 1e6, 1e9].map(decade),
            ["1 ns", "1 µs", "10 µs", "1 ms", "1 s"]
        );
    }
}
