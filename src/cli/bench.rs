//! `ulvs bench`: the words of the benchmark harness, its progress on the terminal, and the files it
//! writes. What it does is the room `bench`; docs/bench.md tells the method.

use std::fs;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};

mod guest;

use crate::bench::measure::{ALL, Measure};
use crate::bench::peer;
use crate::bench::record::{Document, Plan, Sample};
use crate::bench::{self, Options, Progress, compare, report, selftest, table};

/// Exit status after Ctrl-C, as shells give it.
const INTERRUPTED: u8 = 130;
/// Where results go unless told.
const OUT: &str = "ulvs-bench";
/// Rounds unless told.
const REPEATS: u32 = 5;

/// Measure a director, and what one would use instead, in networks of their own.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// Name peers and measures, and say what is missing for which
    #[arg(long)]
    list: bool,
    #[command(subcommand)]
    what: Option<What>,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// The comparison that fits into three minutes
    Quick(RunWords),
    /// Everybody and everything, with longer windows
    Full(RunWords),
    /// Put two runs side by side: what has changed beyond doubt
    Compare {
        /// The file of the first run
        before: PathBuf,
        /// The file of the second run
        after: PathBuf,
    },
    /// Make the HTML page of a run again
    Report {
        /// The file of the run
        file: PathBuf,
    },
    /// Let known rates go through the harness; status 1 if it does not find them within one percent
    Selftest,
    #[command(hide = true, subcommand)]
    Guest(guest::Guest),
}

/// What may be said of a run.
#[derive(Args, Clone, Debug)]
struct RunWords {
    /// Only these peers
    #[arg(long, value_name = "PEER", value_delimiter = ',')]
    peers: Vec<String>,
    /// Only these measures
    #[arg(long, value_name = "MEASURE", value_delimiter = ',')]
    measures: Vec<String>,
    /// Rounds: each peer is measured once in each
    #[arg(long, value_name = "N", default_value_t = REPEATS)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=100))]
    repeats: u32,
    /// Length of a window in seconds, 0.1 to 60
    #[arg(long, value_name = "SECONDS", value_parser = window)]
    window: Option<f64>,
    /// How often a noisy window is taken again
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10))]
    retries: Option<u32>,
    /// Where the results go, without the ending: FILE.json and FILE.html
    #[arg(long, value_name = "FILE", default_value = OUT)]
    out: PathBuf,
}

fn window(text: &str) -> Result<f64, String> {
    let seconds = text
        .parse::<f64>()
        .ok()
        .filter(|s| (0.1..=60.0).contains(s));
    seconds.ok_or_else(|| "a number of seconds from 0.1 to 60".to_string())
}

/// Runs it.
pub fn run(args: &BenchArgs) -> ExitCode {
    let done = match &args.what {
        _ if args.list => list(),
        None => Err(io::Error::other(
            "say what: --list, quick, full, compare, report or selftest; see `ulvs bench -h`",
        )),
        Some(What::Quick(words)) => measure("quick", words),
        Some(What::Full(words)) => measure("full", words),
        Some(What::Compare { before, after }) => side_by_side(before, after),
        Some(What::Report { file }) => again(file),
        Some(What::Selftest) => test_self(),
        Some(What::Guest(guest)) => guest.run().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("ulvs bench: {error}");
        match error.kind() {
            ErrorKind::Interrupted => ExitCode::from(INTERRUPTED),
            _ => ExitCode::FAILURE,
        }
    })
}

fn list() -> io::Result<ExitCode> {
    let mut text = "Peers\n".to_string();
    for peer in peer::all() {
        text.push_str(&format!("  {:12} {}\n", peer.name(), peer.about()));
        for need in peer.needs().iter().filter_map(|need| need.missing()) {
            text.push_str(&format!("  {:12} missing: {need}\n", ""));
        }
    }
    text.push_str("\nMeasures\n");
    for measure in ALL {
        text.push_str(&format!("  {:12} {}\n", measure.name, measure.about));
        for need in measure.needs().iter().filter_map(|need| need.missing()) {
            text.push_str(&format!("  {:12} missing: {need}\n", ""));
        }
    }
    let quick = (
        bench::QUICK_PEERS.join(" "),
        bench::QUICK_MEASURES.join(" "),
    );
    text.push_str(&format!("\nquick: {}\n       {}\n", quick.0, quick.1));
    show(&text);
    Ok(ExitCode::SUCCESS)
}

fn measure(name: &str, words: &RunWords) -> io::Result<ExitCode> {
    let options = options(name, words)?;
    let mut teller = Teller::new();
    let document = bench::run(options, &mut |progress| teller.tell(&progress))?;
    teller.clear();
    let json = words.out.with_extension("json");
    let html = words.out.with_extension("html");
    write(&json, &(serde_json::to_string_pretty(&document)? + "\n"))?;
    write(&html, &report::html(&document))?;
    show(&table::text(&document));
    show(&format!("\n{} {}\n", json.display(), html.display()));
    let fine = document.samples.iter().any(|sample| sample.value.is_some());
    Ok(match (document.interrupted, fine) {
        (true, _) => ExitCode::from(INTERRUPTED),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    })
}

fn options(name: &str, words: &RunWords) -> io::Result<Options> {
    let quick = name == "quick";
    let chosen = |given: &[String], quick_ones: &[&str], one: &str| match given.is_empty() {
        false => given.iter().any(|word| word == one),
        true => !quick || quick_ones.contains(&one),
    };
    let mut peers = peer::all();
    known(
        &words.peers,
        &peers.iter().map(|peer| peer.name()).collect::<Vec<_>>(),
    )?;
    known(&words.measures, &ALL.map(|measure| measure.name))?;
    peers.retain(|peer| chosen(&words.peers, &bench::QUICK_PEERS, peer.name()));
    let mut measures: Vec<Measure> = ALL.to_vec();
    measures.retain(|measure| chosen(&words.measures, &bench::QUICK_MEASURES, measure.name));
    let window_s = words.window.unwrap_or(if quick { 0.3 } else { 1.0 });
    let one_round: f64 = measures
        .iter()
        .map(|measure| measure.seconds(window_s))
        .sum();
    let expected = one_round * peers.len() as f64 * f64::from(words.repeats);
    Ok(Options {
        plan: Plan {
            name: name.to_string(),
            repeats: words.repeats,
            window_s,
            retries: words.retries.unwrap_or(if quick { 1 } else { 2 }),
        },
        peers,
        measures,
        lean: quick && words.peers.is_empty() && words.measures.is_empty(),
        // Three minutes are three minutes.
        retry_seconds: if quick { 25.0 } else { expected / 3.0 },
    })
}

fn known(given: &[String], all: &[&str]) -> io::Result<()> {
    let stranger = given.iter().find(|word| !all.contains(&word.as_str()));
    stranger.map_or(Ok(()), |word| {
        let text = format!("`{word}` is none of: {}", all.join(", "));
        Err(io::Error::new(ErrorKind::InvalidInput, text))
    })
}

fn side_by_side(before: &Path, after: &Path) -> io::Result<ExitCode> {
    let (before, after) = (read(before)?, read(after)?);
    show(&compare::text(&before, &after));
    Ok(ExitCode::SUCCESS)
}

fn again(file: &Path) -> io::Result<ExitCode> {
    let document = read(file)?;
    let html = file.with_extension("html");
    write(&html, &report::html(&document))?;
    show(&format!("{}\n", html.display()));
    Ok(ExitCode::SUCCESS)
}

fn test_self() -> io::Result<ExitCode> {
    let checks = selftest::run()?;
    for check in &checks {
        let word = match (check.is_right(), check.noisy) {
            (true, _) => "right",
            (false, false) => "WRONG",
            (false, true) => "WRONG, but others used the machine meanwhile:",
        };
        let off = (check.measured / check.known - 1.0) * 100.0;
        let measured = check.measured;
        show(&format!(
            "{word}  {}: {measured:.1} ({off:+.2} %)\n",
            check.what
        ));
    }
    let right = checks.iter().all(selftest::Check::is_right);
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn read(path: &Path) -> io::Result<Document> {
    let about = |text: String| io::Error::other(format!("{}: {text}", path.display()));
    let text = fs::read_to_string(path).map_err(|error| about(error.to_string()))?;
    Document::read(&text).map_err(about)
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::write(path, text).map_err(|error| {
        let text = format!("cannot write {}: {error}", path.display());
        io::Error::new(error.kind(), text)
    })
}

/// Progress: one line that changes on a terminal, else a line for what does not go as planned.
struct Teller {
    terminal: bool,
    /// The measure and round of the last line elsewhere.
    last: String,
}

impl Teller {
    fn new() -> Teller {
        Teller {
            terminal: io::stderr().is_terminal(),
            last: String::new(),
        }
    }

    fn tell(&mut self, progress: &Progress) {
        match progress {
            Progress::Starting(peer) => self.line(&format!("starting {peer}")),
            Progress::Missing(missing) => {
                self.say(&format!("not measured: {}: {}", missing.what, missing.why));
            }
            Progress::Window {
                measure,
                peer,
                round,
                done,
                all,
                left,
            } => {
                let (minutes, seconds) = (left.as_secs() / 60, left.as_secs() % 60);
                let left = format!("about {minutes}:{seconds:02} left");
                self.line(&format!("[{done}/{all}] {measure} {round}: {peer}, {left}"));
                let now = format!("{measure}, round {round}");
                if !self.terminal && now != self.last {
                    self.say(&format!("{now}: {left}"));
                    self.last = now;
                }
            }
            Progress::Took(sample) => self.took(sample),
        }
    }

    fn took(&mut self, sample: &Sample) {
        if let Some(problem) = &sample.problem {
            let (measure, peer) = (&sample.measure, &sample.peer);
            self.say(&format!(
                "{measure} of {peer}, round {}: {problem}",
                sample.round + 1
            ));
        }
    }

    fn line(&self, text: &str) {
        if self.terminal {
            eprint!("\r\x1b[K{text}");
            let _ = io::stderr().flush();
        }
    }

    fn say(&self, text: &str) {
        self.clear();
        eprintln!("{text}");
    }

    fn clear(&self) {
        self.line("");
    }
}

/// Prints; a reader that has gone away is no error of ours.
fn show(text: &str) {
    let _ = io::stdout().write_all(text.as_bytes());
}

/// A target with its port, as guests are told.
fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "an address with a port".to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::options::{Program, Ulvs};
    use clap::Parser;

    fn parse(line: &str) -> Result<BenchArgs, String> {
        let parsed = Ulvs::try_parse_from(line.split(' ')).map_err(|error| error.to_string())?;
        match parsed.program {
            Program::Bench(args) => Ok(args),
            other => Err(format!("{other:?}")),
        }
    }

    fn options_of(line: &str) -> io::Result<Options> {
        match parse(line).map_err(io::Error::other)?.what {
            Some(What::Quick(words)) => options("quick", &words),
            Some(What::Full(words)) => options("full", &words),
            other => Err(io::Error::other(format!("{other:?}"))),
        }
    }

    #[test]
    fn quick_is_what_it_says_and_fits_into_three_minutes() {
        let quick = options_of("ulvs bench quick").unwrap();
        let peers: Vec<&str> = quick.peers.iter().map(|peer| peer.name()).collect();
        assert_eq!(peers, bench::QUICK_PEERS);
        let measures: Vec<&str> = quick.measures.iter().map(|measure| measure.name).collect();
        assert_eq!(measures, bench::QUICK_MEASURES);
        assert!(quick.plan.repeats >= 5);
        let mut seconds = quick.retry_seconds;
        for measure in &quick.measures {
            let lean = quick.lean && measure.needs().iter().any(|_| true);
            let count = if lean { peers.len() - 2 } else { peers.len() };
            seconds += measure.seconds(quick.plan.window_s) * 5.0 * count as f64;
        }
        assert!(seconds < 165.0, "{seconds}");
    }

    #[test]
    fn strangers_are_refused_with_the_names_that_are_known() {
        let wrong = options_of("ulvs bench full --peers nosuch").err().unwrap();
        assert!(wrong.to_string().contains("haproxy"), "{wrong}");
        assert!(options_of("ulvs bench full --measures nosuch").is_err());
        assert!(parse("ulvs bench quick --window 0").is_err());
        assert!(parse("ulvs bench quick --repeats 0").is_err());
        let two = options_of("ulvs bench full --peers nft,haproxy --measures bulk1").unwrap();
        assert_eq!((two.peers.len(), two.measures.len()), (2, 1));
        assert!(!two.lean);
    }
}
