//! What a run leaves behind, as data: where it ran, what was planned, what was missing, and every single
//! sample with the noise beside it. Tables, reports and comparisons are made from this alone.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::noise::Noise;
use super::tally::{Standing, Summary, standings};

/// Whose figures the others' are compared with, where it was measured.
pub const REFERENCE: &str = "ulvs-packet";

/// The form of the file. One that a reader does not know is refused.
pub const FORMAT: u32 = 1;

/// A whole run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// [`FORMAT`].
    pub format: u32,
    /// Which machine, which programs.
    pub fingerprint: Fingerprint,
    /// What was to be done.
    pub plan: Plan,
    /// Who was measured.
    pub peers: Vec<PeerRow>,
    /// Who could not be measured, or what could not be measured of whom.
    pub missing: Vec<Missing>,
    /// What was measured, in the order in which the tables show it.
    pub measures: Vec<MeasureRow>,
    /// Every sample, in the order in which they were taken; also those that were repeated.
    pub samples: Vec<Sample>,
    /// From the first to the last sample, in seconds.
    pub took_s: f64,
    /// Was it broken off?
    pub interrupted: bool,
}

/// What was to be done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// `quick` or `full`, or what else it was called.
    pub name: String,
    /// Rounds: each peer is measured once in each.
    pub repeats: u32,
    /// How long one window is, in seconds. A window of wrk has whole seconds.
    pub window_s: f64,
    /// How often a noisy window is repeated at most.
    pub retries: u32,
}

/// Somebody who was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerRow {
    /// The name in all tables.
    pub name: String,
    /// What it is.
    pub about: String,
    /// What it says of its own version.
    pub version: String,
}

/// What could not be had.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missing {
    /// A peer, or a peer and a measure.
    pub what: String,
    /// Why, and what to do about it.
    pub why: String,
}

/// Something that is measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MeasureRow {
    /// The name in all tables.
    pub name: String,
    /// In which unit.
    pub unit: String,
    /// What exactly.
    pub about: String,
    /// Is more better?
    pub more_is_better: bool,
}

/// One window of one peer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// What was measured.
    pub measure: String,
    /// Of whom.
    pub peer: String,
    /// In which round, from 0.
    pub round: u32,
    /// Which attempt at it, from 0; above 0 the one before was noisy.
    pub attempt: u32,
    /// The figure, in the measure's unit; none if the window failed.
    pub value: Option<f64>,
    /// Times that so many percent stay within, in nanoseconds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub percentiles: Vec<(f64, u64)>,
    /// What else was seen.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub beside: BTreeMap<String, f64>,
    /// How quiet the machine was meanwhile.
    pub noise: Noise,
    /// Too noisy to be believed?
    pub noisy: bool,
    /// Why there is no figure, or what was odd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A peer's line in the table of a measure.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    /// Who.
    pub peer: String,
    /// The figures; none if every window failed.
    pub summary: Option<Summary>,
    /// From which place to which it may stand.
    pub standing: Option<Standing>,
    /// How many times the reference's figure is of this one, round by round; none for the reference
    /// itself, and where there is none.
    pub ratio: Option<Summary>,
    /// Rounds in which no window was quiet.
    pub noisy: usize,
    /// Rounds that brought no figure.
    pub failed: usize,
    /// The median of each percentile, in nanoseconds.
    pub percentiles: Vec<(f64, u64)>,
    /// The median of what else was seen.
    pub beside: BTreeMap<String, f64>,
}

impl Document {
    /// One sample for each round of a peer: the first quiet one, else the last.
    pub fn chosen(&self, measure: &str, peer: &str) -> Vec<&Sample> {
        let mut rounds: BTreeMap<u32, &Sample> = BTreeMap::new();
        for sample in &self.samples {
            if sample.measure != measure || sample.peer != peer {
                continue;
            }
            let settled = |old: &&Sample| !old.noisy && old.value.is_some();
            if !rounds.get(&sample.round).is_some_and(settled) {
                rounds.insert(sample.round, sample);
            }
        }
        rounds.into_values().collect()
    }

    /// The table of a measure, in the order of the peers.
    pub fn lines(&self, measure: &MeasureRow) -> Vec<Line> {
        let lines = self.peers.iter().map(|peer| self.line(measure, &peer.name));
        let mut lines: Vec<Line> = lines.flatten().collect();
        let summaries: Vec<Option<Summary>> = lines.iter().map(|line| line.summary).collect();
        let standings = standings(&summaries, measure.more_is_better);
        for (line, standing) in lines.iter_mut().zip(standings) {
            line.standing = standing;
        }
        lines
    }

    fn line(&self, measure: &MeasureRow, peer: &str) -> Option<Line> {
        let chosen = self.chosen(&measure.name, peer);
        if chosen.is_empty() {
            return None;
        }
        let values: Vec<f64> = chosen.iter().filter_map(|sample| sample.value).collect();
        Some(Line {
            peer: peer.to_string(),
            summary: Summary::of(&values),
            standing: None,
            ratio: self.ratio(measure, &chosen),
            noisy: chosen.iter().filter(|sample| sample.noisy).count(),
            failed: chosen
                .iter()
                .filter(|sample| sample.value.is_none())
                .count(),
            percentiles: median_percentiles(&chosen),
            beside: median_beside(&chosen),
        })
    }

    /// Figures of the reference as multiples of these, each of the same round: what a round has done to
    /// both is not in it.
    fn ratio(&self, measure: &MeasureRow, samples: &[&Sample]) -> Option<Summary> {
        let reference = self.chosen(&measure.name, REFERENCE);
        let ratios = samples
            .iter()
            .filter(|sample| sample.peer != REFERENCE)
            .filter_map(|own| {
                let same = reference.iter().find(|other| other.round == own.round)?;
                let own = own.value.filter(|value| *value > 0.0)?;
                Some(same.value? / own)
            });
        Summary::of(&ratios.collect::<Vec<f64>>())
    }

    /// Reads a document.
    ///
    /// # Errors
    /// When it is none, or one of another form; in words for people.
    pub fn read(text: &str) -> Result<Document, String> {
        #[derive(Deserialize)]
        struct Form {
            format: u32,
        }
        let form: Form = serde_json::from_str(text)
            .map_err(|error| format!("this is no file of `ulvs bench`: {error}"))?;
        if form.format != FORMAT {
            let found = form.format;
            return Err(format!(
                "this file has form {found}; this ulvs reads {FORMAT}"
            ));
        }
        serde_json::from_str(text).map_err(|error| error.to_string())
    }
}

fn median_percentiles(samples: &[&Sample]) -> Vec<(f64, u64)> {
    let mut all: Vec<(f64, Vec<f64>)> = Vec::new();
    for (percent, nanos) in samples.iter().flat_map(|sample| &sample.percentiles) {
        match all.iter_mut().find(|(known, _)| known == percent) {
            Some((_, values)) => values.push(*nanos as f64),
            None => all.push((*percent, vec![*nanos as f64])),
        }
    }
    let medians = all.iter().filter_map(|(percent, values)| {
        Summary::of(values).map(|summary| (*percent, summary.median.round() as u64))
    });
    medians.collect()
}

fn median_beside(samples: &[&Sample]) -> BTreeMap<String, f64> {
    let mut all: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (name, value) in samples.iter().flat_map(|sample| &sample.beside) {
        all.entry(name).or_default().push(*value);
    }
    let medians = all.into_iter().filter_map(|(name, values)| {
        Summary::of(&values).map(|summary| (name.to_string(), summary.median))
    });
    medians.collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A document with two peers and one measure, for the tests of what is made of it.
    pub fn example(values: &[(&str, &[f64])]) -> Document {
        let peer = |name: &str| PeerRow {
            name: name.to_string(),
            about: format!("about <{name}>"),
            version: "1 & 2".to_string(),
        };
        let mut samples = Vec::new();
        for (name, values) in values {
            for (round, value) in values.iter().enumerate() {
                samples.push(sample(name, round as u32, *value));
            }
        }
        Document {
            format: FORMAT,
            fingerprint: Fingerprint::default(),
            plan: Plan::default(),
            peers: values.iter().map(|(name, _)| peer(name)).collect(),
            missing: vec![],
            measures: vec![MeasureRow {
                name: "frames".to_string(),
                unit: "frames/s".to_string(),
                about: "as many as go".to_string(),
                more_is_better: true,
            }],
            samples,
            took_s: 1.0,
            interrupted: false,
        }
    }

    pub fn sample(peer: &str, round: u32, value: f64) -> Sample {
        Sample {
            measure: "frames".to_string(),
            peer: peer.to_string(),
            round,
            attempt: 0,
            value: Some(value),
            percentiles: vec![],
            beside: BTreeMap::new(),
            noise: Noise::default(),
            noisy: false,
            problem: None,
        }
    }

    #[test]
    fn a_quiet_attempt_stands_for_its_round() {
        let mut document = example(&[("a", &[1.0])]);
        document.samples[0].noisy = true;
        let mut second = sample("a", 0, 2.0);
        second.attempt = 1;
        document.samples.push(second.clone());
        second.value = Some(3.0);
        document.samples.push(second);
        let chosen = document.chosen("frames", "a");
        assert_eq!(chosen.len(), 1);
        assert_eq!(chosen[0].value, Some(2.0), "the first quiet one");
        // If none is quiet, the last one stands, and is told apart.
        document
            .samples
            .iter_mut()
            .for_each(|sample| sample.noisy = true);
        let line = &document.lines(&document.measures[0])[0];
        assert_eq!((line.noisy, line.summary.unwrap().median), (1, 3.0));
    }

    /// Both are twice as fast in the second round; their ratio is not.
    #[test]
    fn ratios_are_of_the_same_round() {
        let mut document = example(&[(REFERENCE, &[30.0, 60.0, 33.0]), ("b", &[10.0, 20.0, 0.0])]);
        let lines = document.lines(&document.measures[0]);
        assert_eq!(lines[0].ratio, None);
        let ratio = lines[1].ratio.unwrap();
        assert_eq!(
            (ratio.median, ratio.low, ratio.high, ratio.count),
            (3.0, 3.0, 3.0, 2)
        );
        document.samples.retain(|sample| sample.peer == "b");
        assert_eq!(document.lines(&document.measures[0])[0].ratio, None);
    }

    #[test]
    fn what_failed_is_counted_and_not_averaged() {
        let mut document = example(&[("a", &[1.0, 5.0, 3.0]), ("b", &[2.0])]);
        document.samples[1].value = None;
        let lines = document.lines(&document.measures[0]);
        assert_eq!((lines[0].failed, lines[0].summary.unwrap().count), (1, 2));
        document.samples[3].value = None;
        let lines = document.lines(&document.measures[0]);
        assert_eq!((lines[1].summary, lines[1].standing), (None, None));
    }

    #[test]
    fn a_document_is_read_back_whole_and_others_are_refused() {
        let mut document = example(&[("a", &[1.5]), ("b", &[2.0])]);
        document.samples[0].percentiles = vec![(50.0, 10_000), (99.99, 2_000_000)];
        document.samples[0].beside.insert("lost".to_string(), 0.25);
        let text = serde_json::to_string(&document).unwrap();
        assert_eq!(Document::read(&text).unwrap(), document);
        let newer = text.replacen("\"format\":1", "\"format\":2", 1);
        assert!(Document::read(&newer).unwrap_err().contains("form 2"));
        assert!(Document::read("{}").is_err());
        assert!(Document::read("not JSON").is_err());
    }

    #[test]
    fn percentiles_of_rounds_become_their_medians() {
        let mut document = example(&[("a", &[1.0, 1.0, 1.0])]);
        for (sample, nanos) in document.samples.iter_mut().zip([30, 10, 20]) {
            sample.percentiles = vec![(50.0, nanos), (99.0, nanos * 10)];
        }
        let line = &document.lines(&document.measures[0])[0];
        assert_eq!(line.percentiles, [(50.0, 20), (99.0, 200)]);
    }
}
