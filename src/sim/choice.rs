//! Law 2: whom a new connection goes to. It belongs to a service that takes it, goes where its template
//! says, and otherwise never to a quiesced, overloaded or deleted real server; and a real server is
//! marked overloaded exactly when its thresholds say so.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use super::house::{Fed, House};
use super::invariant::{Broken, must};
use super::ledger::{Changes, Ledger, flow_of};
use crate::conn::{Conn, template};
use crate::director::snapshot::{Service, Snapshot};
use crate::lvs::{RealLive, RealServer, ServiceSpec};

/// How the real servers of a worker stood before a breath, by `RealLive::id`.
pub type Loads = BTreeMap<u32, Load>;

/// How one of them stood.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    total: u32,
    overloaded: bool,
    /// Connections this worker had opened there.
    opened: u64,
}

/// What a breath has done, as this law looks at it.
pub struct Choices<'a> {
    /// The second book, after the breath.
    pub ledger: &'a Ledger,
    /// What became different.
    pub changes: &'a Changes,
    /// How things stood before.
    pub loads: &'a Loads,
    /// What was read.
    pub fed: &'a [Fed],
    /// Which worker it was.
    pub worker: usize,
    /// What it went by.
    pub snapshot: &'a Snapshot,
}

/// What became of one real server in a breath.
struct Round<'a> {
    service: &'a Service,
    real: &'a RealServer,
    load: Load,
    /// Connections opened, those included that no longer show.
    opened: u64,
    /// Those that show.
    entered: u64,
    /// Entries that have left.
    left: u64,
}

/// How the real servers of worker `number` stand.
pub fn loads(house: &House, number: usize) -> Loads {
    let reals = reals_of(house.worker(number).snapshot());
    let loads = reals.map(|(_, real)| {
        let load = Load {
            total: real.live.total(),
            overloaded: real.overloaded(),
            opened: real.live.stats[number].conns.load(Relaxed),
        };
        (real.live.id, load)
    });
    loads.collect()
}

impl Choices<'_> {
    /// Judges all of it. Returns how many connections were opened, those included that no longer show.
    ///
    /// # Errors
    /// Law 2, and law 1 for a client that left its template.
    pub fn judge(&self) -> Result<u64, Broken> {
        for conn in &self.changes.opened {
            self.judge_opened(conn)?;
        }
        let mut sum = 0;
        for (service, real) in reals_of(self.snapshot) {
            let round = self.round(service, real);
            sum += round.opened;
            round.judge_mark()?;
            if round.opened > 0 && !self.speaks_first(real) {
                self.judge_picks(&round)?;
            }
        }
        Ok(sum)
    }

    fn round<'s>(&self, service: &'s Service, real: &'s RealServer) -> Round<'s> {
        let load = self.loads[&real.live.id];
        let count = |conns: &[Arc<Conn>]| conns.iter().filter(|conn| is_bound(conn, real)).count();
        Round {
            service,
            real,
            load,
            opened: real.live.stats[self.worker].conns.load(Relaxed) - load.opened,
            entered: count(&self.changes.opened) as u64,
            left: count(&self.changes.gone) as u64,
        }
    }

    /// Where a persistence engine lets real servers speak first nobody has chosen them.
    fn speaks_first(&self, real: &RealServer) -> bool {
        let mut flows = self.fed.iter().filter_map(|fed| fed.flow);
        self.snapshot.has_engines() && flows.any(|(flow, _)| flow.source == real.key.0)
    }

    /// A new connection belongs to the service that takes it, goes to a server of it, and where its
    /// client's template says.
    fn judge_opened(&self, conn: &Conn) -> Result<(), Broken> {
        let flow = flow_of(conn);
        let service = self.snapshot.service_for(&flow, conn.mark());
        let Some(live) = conn.server() else {
            // With `cache_bypass` nobody serves it, and it goes where the client wanted.
            let bypass = self.snapshot.tunables.cache_bypass != 0
                && service.is_some_and(|service| service.spec.key.is_mark());
            return must(bypass, 2, || format!("{flow} opened to nobody"));
        };
        let found = service.and_then(|service| Some((service, real_of(service, live)?)));
        let Some((service, real)) = found else {
            let text = format!(
                "{flow} opened to {}, which does not serve it",
                live.endpoint
            );
            return Err(Broken::new(2, text));
        };
        let known = self.template_of(conn, service);
        let Some(control) = conn.control() else {
            return must(
                known.is_none() && service.spec.persistence.is_none(),
                1,
                || format!("{flow} has no template, though its service is persistent"),
            );
        };
        if self.speaks_first(real) {
            return Ok(());
        }
        let same = control
            .server()
            .is_some_and(|server| Arc::ptr_eq(server, live));
        must(same, 1, || format!("{flow} does not follow its template"))?;
        must(
            known.is_none_or(|known| Arc::ptr_eq(known, control)),
            1,
            || format!("{flow} has another template than its client had"),
        )?;
        let quiescent = self.snapshot.tunables.expire_quiescent_template != 0;
        let spent = self.ledger.knew_template(control) && quiescent && real.weight.0 == 0;
        must(!spent, 2, || {
            format!("{flow} follows a template to quiesced {}", real.key)
        })
    }

    /// The template that a new connection of this service had to follow: it was there before the breath,
    /// and still is what it was.
    fn template_of(&self, conn: &Conn, service: &Service) -> Option<&Arc<Conn>> {
        if service.spec.persistence.is_none() || service.spec.engine.is_some() {
            return None;
        }
        let key = key_of(&service.spec, conn);
        self.ledger.template(&key)
    }

    /// Whom the scheduler chose could be chosen.
    fn judge_picks(&self, round: &Round<'_>) -> Result<(), Broken> {
        let Round { service, real, .. } = round;
        // Without templates every connection was a pick, also one that no longer shows.
        let picks = if service.spec.persistence.is_some() {
            let templates = self.changes.remembered.iter();
            templates.filter(|conn| is_bound(conn, real)).count() as u64
        } else {
            round.opened
        };
        must(picks == 0 || real.weight.0 > 0, 2, || {
            format!("{picks} new connections to quiesced {}", real.key)
        })?;
        // What was opened and has left again has changed the counts meanwhile.
        if service.spec.scheduler == "lblc" || round.opened > round.entered {
            return Ok(());
        }
        let room = round.room();
        must(picks <= room, 2, || {
            let total = round.load.total;
            format!(
                "{picks} new connections to {} with {total}, room was {room}",
                real.key
            )
        })
    }
}

impl Round<'_> {
    /// How many connections a scheduler may have given to the server. The first one always marks it if
    /// it is full.
    fn room(&self) -> u64 {
        if self.load.overloaded && self.left == 0 {
            return 0;
        }
        match u64::from(self.real.live.thresholds().upper) {
            0 => u64::MAX,
            upper => (upper + self.left)
                .saturating_sub(self.load.total.into())
                .max(1),
        }
    }

    /// The mark of overload is set by who comes and taken away by who leaves.
    fn judge_mark(&self) -> Result<(), Broken> {
        let live = &self.real.live;
        let (limits, total, marked) = (live.thresholds(), live.total(), self.real.overloaded());
        let quiet = self.opened == self.entered;
        let full = limits.upper != 0 && total >= limits.upper;
        let must_be = quiet && self.entered > 0 && self.left == 0 && full;
        let may_not_be = quiet && self.left > 0 && self.entered == 0 && {
            limits.upper == 0 || total < limits.lower_in_force()
        };
        let stays = quiet && self.entered + self.left == 0 && marked != self.load.overloaded;
        must(marked || !must_be, 2, || {
            self.words("is not marked overloaded")
        })?;
        must(!marked || !may_not_be, 2, || {
            self.words("is still marked overloaded")
        })?;
        // A template that comes marks, too.
        must(!stays || marked, 2, || {
            self.words("is no longer marked overloaded")
        })
    }

    fn words(&self, what: &str) -> String {
        let limits = self.real.live.thresholds();
        let (key, total, before) = (self.real.key, self.real.live.total(), self.load.total);
        let (upper, lower) = (limits.upper, limits.lower_in_force());
        format!("{key} with {total} connections (before: {before}) {what}, limits {upper}/{lower}")
    }
}

/// The key of the template that a connection of this service follows.
fn key_of(spec: &ServiceSpec, conn: &Conn) -> crate::lvs::Tuple {
    template::key(spec, &conn.in_tuple(), conn.mark())
}

fn is_bound(conn: &Conn, real: &RealServer) -> bool {
    conn.server()
        .is_some_and(|server| Arc::ptr_eq(server, &real.live))
}

fn reals_of(snapshot: &Snapshot) -> impl Iterator<Item = (&Service, &RealServer)> {
    let services = snapshot.services.iter();
    services.flat_map(|service| service.reals.iter().map(move |real| (&**service, real)))
}

fn real_of<'s>(service: &'s Service, live: &Arc<RealLive>) -> Option<&'s RealServer> {
    let mut reals = service.reals.iter();
    reals.find(|real| Arc::ptr_eq(&real.live, live))
}
