//! What is measured: a name, a unit, and a kind of window for each. How a window of a kind goes is in
//! `rig`.

use super::{peer, search};

/// Connections that are held.
pub const HELD: usize = 5000;
/// Flows of which a director remembers each.
pub const MANY_FLOWS: u32 = 1_000_000;
/// Frames a second that begin them.
pub const MANY_FLOWS_RATE: f64 = 100_000.0;

/// A kind of window.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// TCP streams, so many.
    Bulk(usize),
    /// Web pages; each with a connection of its own, or on connections that stay.
    Pages {
        /// A connection for each.
        close: bool,
    },
    /// Frames, as many as go.
    Frames,
    /// The most frames of which no more than this share is lost.
    FramesWithin(f64),
    /// One question at a time on one connection, all on one processor.
    PingPong,
    /// One question at a time on each of several connections.
    Talk,
    /// Questions at so many percent of the rate that `Talk` has found.
    Latency(u8),
    /// Connections that are open at the same time.
    Held,
    /// A million flows of one frame each.
    ManyFlows,
}

/// Something that is measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measure {
    /// The name in all tables.
    pub name: &'static str,
    /// In which unit.
    pub unit: &'static str,
    /// What exactly.
    pub about: &'static str,
    /// Is more better?
    pub more_is_better: bool,
    /// How.
    pub kind: Kind,
}

impl Measure {
    const fn new(
        name: &'static str,
        unit: &'static str,
        kind: Kind,
        about: &'static str,
    ) -> Measure {
        let more_is_better = !matches!(
            kind,
            Kind::PingPong | Kind::Latency(_) | Kind::Held | Kind::ManyFlows
        );
        Measure {
            name,
            unit,
            about,
            more_is_better,
            kind,
        }
    }

    /// Is it about datagrams?
    pub const fn needs_udp(&self) -> bool {
        matches!(
            self.kind,
            Kind::Frames | Kind::FramesWithin(_) | Kind::ManyFlows
        )
    }

    /// Is it about what a peer's processes remember?
    pub const fn is_memory(&self) -> bool {
        matches!(self.kind, Kind::Held | Kind::ManyFlows)
    }

    /// What must be installed.
    pub fn needs(&self) -> Vec<peer::Need> {
        match self.kind {
            Kind::Pages { .. } => vec![peer::Need::Program("wrk", "wrk")],
            _ => vec![],
        }
    }

    /// How long one window of it takes about, in seconds.
    pub fn seconds(&self, window: f64) -> f64 {
        match self.kind {
            Kind::Pages { .. } => window.ceil() + 0.1,
            Kind::FramesWithin(_) => (window + 0.3) * f64::from(search::TRIALS_MAX) * 0.4,
            Kind::Held => 5.0,
            Kind::ManyFlows => 2.0 + f64::from(MANY_FLOWS) / MANY_FLOWS_RATE,
            _ => window + 0.3,
        }
    }
}

/// Everything that is measured, in the order in which it is: what needs a figure of another comes later.
pub const ALL: [Measure; 14] = [
    Measure::new(
        "bulk1",
        "bit/s",
        Kind::Bulk(1),
        "bytes of one TCP stream that the receiver read",
    ),
    Measure::new(
        "bulk8",
        "bit/s",
        Kind::Bulk(8),
        "bytes of eight TCP streams that the receiver read",
    ),
    Measure::new(
        "connections",
        "conn/s",
        Kind::Pages { close: true },
        "web pages with a new TCP connection for each, wrk with 64 at once",
    ),
    Measure::new(
        "requests",
        "req/s",
        Kind::Pages { close: false },
        "web pages on connections that stay, wrk with 64",
    ),
    Measure::new(
        "frames",
        "frames/s",
        Kind::Frames,
        "UDP frames of 64 bytes in 256 flows, as many as the sender can; the receiver counts",
    ),
    Measure::new(
        "pingpong",
        "s",
        Kind::PingPong,
        "median time of 64 bytes there and back on one TCP connection; both ends, and a director \
         of one worker, on one processor",
    ),
    Measure::new(
        "talk",
        "answers/s",
        Kind::Talk,
        "64 bytes there and back on 16 TCP connections, one question at a time on each",
    ),
    Measure::new(
        "latency10",
        "s",
        Kind::Latency(10),
        "99 of 100 answers within; questions at 10 % of the peer's own talk rate, whether \
         answered or not",
    ),
    Measure::new("latency50", "s", Kind::Latency(50), "the same at 50 %"),
    Measure::new("latency90", "s", Kind::Latency(90), "the same at 90 %"),
    Measure::new(
        "frames-all",
        "frames/s",
        Kind::FramesWithin(0.0),
        "highest rate found at which no frame of 64 bytes was lost (search after MLRsearch)",
    ),
    Measure::new(
        "frames-995",
        "frames/s",
        Kind::FramesWithin(0.005),
        "highest rate found at which at most 0.5 % of the frames were lost",
    ),
    Measure::new(
        "memory",
        "bytes",
        Kind::Held,
        "memory of the peer's processes for each of 5,000 open connections; what the kernel keeps \
         is not in it",
    ),
    Measure::new(
        "memory-flows",
        "bytes",
        Kind::ManyFlows,
        "the same for each of a million UDP flows of one frame, as many of them as came through",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_needs_a_figure_of_another_comes_later() {
        let at = |wanted: &str| ALL.iter().position(|measure| measure.name == wanted);
        assert!(at("talk") < at("latency10"));
        let mut names: Vec<&str> = ALL.iter().map(|measure| measure.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
