//! Application helpers: they follow protocols whose texts carry addresses. What a helper understands
//! becomes entries for the connections to come, and texts in which the VIP stands where the real server
//! named itself; the numbers that count the bytes follow (`ip_vs_app.c`).

use std::sync::Arc;

use super::Passage;
use super::ftp::Ftp;
use super::lane::Own;
use super::probe::Probe;
use super::verdict::{DropReason, Verdict};
use crate::conn::tcp::TcpState;
use crate::conn::{Awaits, Conn, Direction, Helped, Opening};
use crate::lvs::tuple::pack;
use crate::lvs::{Endpoint, Flow, ForwardMethod, Protocol, Tuple};
use crate::time::Instant;

/// Follows a protocol whose texts carry addresses.
pub trait AppHelper {
    /// What a segment of the client says: a connection that the real server will open.
    fn hear_client(&self, text: &[u8], ends: &Ends, awaits: &mut Awaits) -> Option<Expected>;

    /// What a segment of the real server says: a connection that the client will open, and the text
    /// that it shall read instead.
    fn hear_server(&self, text: &[u8], ends: &Ends, awaits: &mut Awaits) -> Option<Heard>;
}

/// The ends of the connection on which something is said.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Who asked.
    pub client: Endpoint,
    /// What was asked for.
    pub virt: Endpoint,
    /// Who serves.
    pub real: Endpoint,
}

impl Ends {
    /// Is it a connection of IPv4?
    pub fn is_v4(&self) -> bool {
        self.client.address.is_ipv4()
    }
}

/// A connection to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its client; port 0 where that is not known yet.
    pub client: Endpoint,
    /// Its virtual end.
    pub virt: Endpoint,
    /// Its real end.
    pub real: Endpoint,
}

/// What a real server's text meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The connection that the client will open.
    pub expected: Expected,
    /// What it shall read.
    pub rewrite: Rewrite,
}

/// A part of a text, and what is to stand there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// Where the part begins.
    pub from: usize,
    /// Where it ends.
    pub to: usize,
    /// What is to stand there.
    pub new: String,
}

/// Has a connection to this virtual port a helper? Only LVS-NAT has (`tcp_app_conn_bind`).
pub(super) fn helps(conn: &Conn, own: &Own) -> bool {
    let ports = own.snapshot.ftp_ports();
    !ports.is_empty()
        && conn.protocol() == Protocol::TCP
        && conn.method() == ForwardMethod::Masq
        && ports.contains(&conn.virt().port)
}

/// A packet of a connection with a helper, before its addresses are rewritten. A verdict if it ends here.
#[cold]
pub(super) fn help<P: Probe>(
    conn: &Arc<Conn>,
    direction: Direction,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    let mut known = own.table.with_helped(conn, |helped| *helped)?;
    let speaks = !p.packet.text().is_empty();
    let verdict = match direction {
        _ if !speaks || !is_established(conn) => None,
        Direction::Out => hear_server(conn, &mut known, p, own),
        _ => hear_client(conn, &mut known, p, own),
    };
    if !known.shift.is_none() {
        let shift = known.shift;
        match direction {
            Direction::Out => p.packet.move_sequence(|seq| shift.there(seq)),
            _ => p.packet.move_acknowledged(|ack| shift.back(ack)),
        }
    }
    verdict
}

fn is_established(conn: &Conn) -> bool {
    conn.state().number() == TcpState::Established as u8
}

fn ends_of(conn: &Conn) -> Ends {
    Ends {
        client: conn.client(),
        virt: conn.virt(),
        real: conn.real(),
    }
}

fn hear_client<P: Probe>(
    conn: &Arc<Conn>,
    known: &mut Helped,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    let mut awaits = known.awaits;
    let expected = Ftp.hear_client(p.packet.text(), &ends_of(conn), &mut awaits);
    if awaits != known.awaits {
        known.awaits = awaits;
        own.table.with_helped(conn, |helped| helped.awaits = awaits);
    }
    let expected = expected?;
    expect(conn, &expected, false, p, own)
}

fn hear_server<P: Probe>(
    conn: &Arc<Conn>,
    known: &mut Helped,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    let mut awaits = known.awaits;
    let heard = Ftp.hear_server(p.packet.text(), &ends_of(conn), &mut awaits)?;
    // A damaged text proves nothing, and must not be made a sound one.
    if !p.packet.transport_sum_holds() {
        return None;
    }
    if let Some(verdict) = expect(conn, &heard.expected, true, p, own) {
        return Some(verdict);
    }
    let Rewrite { from, to, new } = heard.rewrite;
    let seq = p.packet.sequence();
    if !p.packet.replace_text(from, to, new.as_bytes()) {
        // No room: the real server sends it again, and finds room or not.
        return Some(Verdict::Drop(DropReason::TooLong));
    }
    p.say(|| format!("the client reads {new}"));
    let by = new.len() as i32 - (to - from) as i32;
    let change = |helped: &mut Helped| {
        helped.awaits = awaits;
        if by != 0 {
            helped.shift.change(seq, by);
        }
        *helped
    };
    *known = own.table.with_helped(conn, change).unwrap_or(*known);
    None
}

/// Makes the entry of a connection to come, unless there is one; it waits for its first packet, of a
/// client with `any_port`. A verdict if there is no room for it.
fn expect<P: Probe>(
    control: &Arc<Conn>,
    expected: &Expected,
    any_port: bool,
    p: &mut Passage<'_, '_, P>,
    own: &mut Own,
) -> Option<Verdict> {
    let flow = |source, target| Flow {
        protocol: Protocol::TCP,
        source,
        target,
    };
    let tuple = Tuple::from(flow(expected.client, expected.virt));
    let answer = Tuple::from(flow(expected.real, expected.client));
    let known = own.table.find_in(&tuple);
    let known = known.or_else(|| own.table.find_out(&answer));
    let conn = match known.filter(|conn| !conn.is_gone()) {
        Some(conn) => conn,
        None => {
            let opening = Opening {
                tuple,
                real: (pack(expected.real.address), expected.real.port),
                method: control.method(),
                server: control.server().cloned(),
                control: Some(Arc::clone(control)),
                mark: p.mark,
                template: false,
            };
            match enter(opening, any_port, p.now, own) {
                Some(conn) => conn,
                None => return Some(Verdict::Drop(DropReason::TableFull)),
            }
        }
    };
    conn.listen(&own.snapshot.timeouts, p.now);
    own.wheel.arm(&conn);
    p.say(|| {
        let Expected { client, virt, real } = expected;
        format!("expects {client} > {virt} > {real}")
    });
    None
}

fn enter(opening: Opening, awaits_client: bool, now: Instant, own: &mut Own) -> Option<Arc<Conn>> {
    let conn = Conn::open(opening, now);
    if awaits_client {
        conn.set_awaits_client();
    }
    if helps(&conn, own) {
        conn.set_helped();
    }
    own.table.insert(Arc::new(conn)).ok()
}

/// The client speaks on a connection for which its port was not known: from now on it is
/// (`ip_vs_conn_fill_cport`). The entry makes way for one that is found by that port.
#[cold]
pub(super) fn meet_client(tuple: &Tuple, now: Instant, own: &mut Own) -> Option<Arc<Conn>> {
    let waiting = own.table.find_awaiting(tuple)?;
    if waiting.is_due(now) || !own.table.withdraw(&waiting) {
        return None;
    }
    let real = waiting.real();
    let opening = Opening {
        tuple: *tuple,
        real: (pack(real.address), real.port),
        method: waiting.method(),
        server: waiting.server().cloned(),
        control: waiting.control().cloned(),
        mark: waiting.mark(),
        template: false,
    };
    let conn = enter(opening, false, now, own);
    waiting.retire();
    let conn = conn?;
    conn.listen(&own.snapshot.timeouts, now);
    own.wheel.arm(&conn);
    Some(conn)
}
