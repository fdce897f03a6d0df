//! Who is started in a lab by `ulvs lab exec`, beside those who are there: a SYN flood, connections that
//! stay, and one more web server. The first two print one JSON document.

use std::io::{self, Read};
use std::net::{SocketAddr, SocketAddrV4};

use super::show;
use crate::lab::exec;
use crate::lab::flood::{FRAMES_MAX, Flood, SECONDS_MAX};
use crate::lab::stay::Stay;

/// Most connections that stay.
const CONNECTIONS_MAX: i64 = 10_000;

/// What is started.
#[derive(clap::Subcommand)]
pub(super) enum Guest {
    #[command(hide = true)]
    Flood(FloodWords),
    #[command(hide = true)]
    Stay(StayWords),
    #[command(hide = true)]
    Serve(ServeWords),
}

impl Guest {
    /// Does what it is there for.
    pub fn run(&self) -> io::Result<()> {
        match self {
            Guest::Flood(words) => flood(words),
            Guest::Stay(words) => stay(words),
            Guest::Serve(words) => serve(words),
        }
    }
}

/// `ulvs lab flood`
#[derive(clap::Args)]
pub(super) struct FloodWords {
    /// Who is flooded
    target: SocketAddrV4,
    /// Frames, at most
    #[arg(long, default_value_t = FRAMES_MAX)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=FRAMES_MAX))]
    frames: u64,
    /// Seconds, at most
    #[arg(long, default_value_t = SECONDS_MAX)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Frames in a second; as many as go if left out
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    per_second: Option<u64>,
    /// Where the random sources come from
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// `ulvs lab stay`
#[derive(clap::Args)]
pub(super) struct StayWords {
    /// Whom to ask for pages
    target: SocketAddr,
    /// How many connections
    #[arg(long, default_value_t = 1000)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=CONNECTIONS_MAX))]
    connections: u32,
    /// Bytes of each page
    #[arg(long, default_value_t = 10_000)]
    bytes: u64,
}

/// `ulvs lab serve`
#[derive(clap::Args)]
pub(super) struct ServeWords {
    /// Where to listen, on every address
    port: u16,
    /// Who it says it is
    #[arg(long, default_value = "guest")]
    name: String,
}

/// Floods.
fn flood(words: &FloodWords) -> io::Result<()> {
    let flood = Flood {
        target: words.target,
        frames: words.frames,
        seconds: words.seconds,
        per_second: words.per_second,
        seed: words.seed,
    };
    let report = flood.run(&exec::inside()?)?;
    show(&format!("{}\n", serde_json::to_string(&report)?));
    Ok(())
}

/// Opens connections, says `opened N` once they are there, and keeps them busy until its input ends.
fn stay(words: &StayWords) -> io::Result<()> {
    let stay = Stay {
        target: words.target,
        connections: words.connections,
        bytes: words.bytes,
    };
    let opened = |count| show(&format!("opened {count}\n"));
    // An input that breaks has ended, too.
    let end = || drop(io::stdin().read_to_end(&mut Vec::new()));
    let report = stay.run(&exec::inside()?, opened, end)?;
    show(&format!("{}\n", serde_json::to_string(&report)?));
    Ok(())
}

/// Says `serving` once it listens, and serves IPv4 and IPv6 until it is ended.
fn serve(words: &ServeWords) -> io::Result<()> {
    exec::serve(&words.name, words.port, || show("serving\n"))
}
