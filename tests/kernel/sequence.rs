//! The steps that are many packets at once: a sequence of packets on one connection (topic `states`),
//! and many new connections whose spread is chance (topic `twos`).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ulvs::director::snapshot::Service;
use ulvs::lvs::{Endpoint, Family, Flow, ForwardMethod, Protocol, ServiceKey};
use ulvs::time::Duration;

use super::case::{After, Distribution, Fate, Side};
use super::clients::answers;
use super::house::{House, Sent};
use super::judge::{Trouble, differs};
use super::net::{GATEWAY_MAC, director_mac, server_mac};
use super::packet::{Payload, Seen, build};

/// Longer than any half-open connection lives.
const ALL_GONE: Duration = Duration::from_secs(300);

/// The connection of a sequence.
struct Talk {
    flow: Flow,
    /// The only real server, which speaks also before there is a connection.
    real: Endpoint,
    service: Arc<Service>,
    /// Active and inactive of the service before the first packet.
    before: (i64, i64),
}

/// Plays a sequence from a client port and compares after each packet.
///
/// # Errors
/// `Differs` after the first packet that went otherwise, `Cannot` for one nobody can build.
pub fn play(house: &mut House, port: u16, after: &[After]) -> Result<(), Trouble> {
    let talk = Talk::new(house, port)?;
    let mut so_far = Vec::new();
    for After(packet, state, expires, active, inactive, fate) in after {
        so_far.push(packet.as_str());
        let sent = talk.say(house, packet)?;
        let conn = house.conn(talk.flow);
        let got_state = conn.as_ref().map(|conn| conn.state_name());
        let got_expires = conn.map(|conn| conn.expires_in(house.now()).as_secs() as i64);
        let (on, off) = loads(&talk.service);
        let got_counts = (on - talk.before.0, off - talk.before.1);
        let got_fate = talk.fate(&sent, packet);
        let in_time = match (expires, got_expires) {
            (Some(expected), Some(got)) => (expected - got).abs() <= 1,
            (expected, got) => expected.is_none() && got.is_none(),
        };
        let fate = match fate {
            Fate::Word(word) => word.clone(),
            Fate::Answers(answers) => answers.join(","),
        };
        let alike = state.as_deref() == got_state && (*active, *inactive) == got_counts;
        if !alike || !in_time || fate != got_fate {
            let expected = format!("{state:?} {expires:?} {active} {inactive} {fate}");
            let (on, off) = got_counts;
            let got = format!("{got_state:?} {got_expires:?} {on} {off} {got_fate}");
            let said = so_far.join(" ");
            return Err(differs(format!("after {said}: {expected}"), got));
        }
    }
    Ok(())
}

impl Talk {
    fn new(house: &mut House, port: u16) -> Result<Talk, Trouble> {
        let snapshot = house.snapshot();
        let service = only_service(&snapshot.services)?;
        let (protocol, virt) = address_of(service)?;
        let real = service.reals.first().map(|real| real.key.0);
        let real = real.ok_or_else(|| Trouble::Cannot("a sequence without a server".into()))?;
        let real_port = if real.port == 0 { virt.port } else { real.port };
        // Ports come round again within a case; the clients do not.
        let client = client_address(service.spec.key.family(), house.fresh_client());
        let client = Endpoint::new(client, port);
        Ok(Talk {
            flow: Flow {
                protocol,
                source: client,
                target: virt,
            },
            real: Endpoint::new(real.address, real_port),
            before: loads(service),
            service: Arc::clone(service),
        })
    }

    /// One packet: `c` or `s` for who says it, then TCP flags, a chunk's name, or anything for UDP.
    fn say(&self, house: &mut House, packet: &str) -> Result<Vec<Sent>, Trouble> {
        let unknown = || Trouble::Cannot(format!("packet `{packet}`"));
        let what = packet.get(1..).ok_or_else(unknown)?;
        let payload = match self.flow.protocol {
            Protocol::TCP => Payload::Tcp(what),
            Protocol::UDP => Payload::Udp(b"x"),
            _ => Payload::Sctp(chunk(what).ok_or_else(unknown)?),
        };
        if packet.starts_with('c') {
            let macs = (GATEWAY_MAC, director_mac(Side::Client));
            let frame = build(macs, self.flow.source, self.flow.target, payload);
            return Ok(house.inject(Side::Client, &frame));
        }
        let conn = house.conn(self.flow);
        let masq = conn
            .as_ref()
            .is_none_or(|conn| conn.method() == ForwardMethod::Masq);
        let real = conn.map_or(self.real, |conn| conn.real());
        let number = house.net.server_number(real.address).ok_or_else(unknown)?;
        let macs = (server_mac(number), director_mac(Side::Server));
        let speaker = if masq { real } else { self.flow.target };
        let frame = build(macs, speaker, self.flow.source, payload);
        Ok(house.inject(Side::Server, &frame))
    }

    /// What became of the packet, in the recordings' words.
    fn fate(&self, sent: &[Sent], packet: &str) -> String {
        let (here, there) = if packet.starts_with('c') {
            (Side::Client, Side::Server)
        } else {
            (Side::Server, Side::Client)
        };
        let Some(first) = sent.first() else {
            return "nothing".into();
        };
        if first.side == here {
            return answers(sent).join(",");
        }
        let Some(seen) = Seen::of(&first.frame).filter(|_| first.side == there) else {
            return "something that is not IP".into();
        };
        if seen.protocol != self.flow.protocol {
            return "tunnelled".into();
        }
        // A client's packet is for the director itself: plain routing never has it.
        let unchanged = there == Side::Client && seen.source == self.real.address;
        if unchanged { "untouched" } else { "forwarded" }.into()
    }
}

/// Chunk types by the recordings' names (RFC 9260 section 3.2).
fn chunk(name: &str) -> Option<u8> {
    Some(match name {
        "DATA" => 0,
        "INIT" => 1,
        "INITACK" => 2,
        "SACK" => 3,
        "HB" => 4,
        "HBACK" => 5,
        "ABORT" => 6,
        "SHUT" => 7,
        "SHUTACK" => 8,
        "ERR" => 9,
        "COOKIE" => 10,
        "COOKACK" => 11,
        "ECNE" => 12,
        "CWR" => 13,
        "SHUTDONE" => 14,
        _ => return None,
    })
}

fn only_service(services: &[Arc<Service>]) -> Result<&Arc<Service>, Trouble> {
    match services {
        [service] => Ok(service),
        _ => Err(Trouble::Cannot(format!("{} services", services.len()))),
    }
}

fn address_of(service: &Service) -> Result<(Protocol, Endpoint), Trouble> {
    match service.spec.key {
        ServiceKey::Address { protocol, virt } => Ok((protocol, virt)),
        key => Err(Trouble::Cannot(format!("many packets to {key}"))),
    }
}

/// A client of topics that name none, behind the gateway.
fn client_address(family: Family, number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    match family {
        Family::V4 => [172, 16, high, low].into(),
        Family::V6 => [0x2001, 0xdb8, 7, 0, 0, 0, 0, number].into(),
    }
}

/// Active and inactive connections of all servers.
fn loads(service: &Service) -> (i64, i64) {
    let reals = service.reals.iter();
    reals.fold((0, 0), |(on, off), real| {
        (
            on + i64::from(real.active()),
            off + i64::from(real.inactive()),
        )
    })
}

/// Opens many connections, each from a client of its own, and compares the spread: chance decides
/// single connections, but `twos` weighs loads against each other, so that the shares of two runs
/// stay within a hundredth of all connections.
///
/// # Errors
/// `Differs` if a share is too far off, or the answers to refused clients are others.
pub fn distribute(house: &mut House, step: &Distribution) -> Result<(), Trouble> {
    let snapshot = house.snapshot();
    let service = only_service(&snapshot.services)?;
    let (protocol, virt) = address_of(service)?;
    let reset = step.each.contains("RST");
    let mut chosen: BTreeMap<String, u32> = BTreeMap::new();
    let mut refused: BTreeMap<String, u32> = BTreeMap::new();
    for number in 0..step.new_connections {
        let client = client_address(service.spec.key.family(), house.fresh_client());
        let source = Endpoint::new(client, 10_000 + number as u16);
        let flow = Flow {
            protocol,
            source,
            target: virt,
        };
        let sent = client_opens(house, flow, reset)?;
        match house.conn(flow).as_ref().and_then(|conn| conn.server()) {
            Some(server) => *chosen.entry(server.endpoint.to_string()).or_default() += 1,
            None => *refused.entry(answers(&sent).join(",")).or_default() += 1,
        }
    }
    let near = |expected: u32, got: u32| expected.abs_diff(got) <= step.new_connections / 100 + 3;
    let shares = step
        .chosen
        .iter()
        .all(|(name, expected)| near(*expected, chosen.get(name).copied().unwrap_or(0)));
    let counts = service.reals.iter().all(|real| {
        let expected = step.counts.get(&real.key.to_string());
        expected.is_some_and(|(weight, active, inactive)| {
            i64::from(real.weight.0) == *weight
                && near(*active as u32, real.active())
                && *inactive == i64::from(real.inactive())
        })
    });
    // The kernel answers only so many a second; where it said nothing, it had chosen nobody either.
    let answer = step
        .not_forwarded
        .keys()
        .find(|answer| *answer != "nothing");
    let all_refused: u32 = step.not_forwarded.values().sum();
    let answered = refused.iter().all(|(got, _)| Some(got) == answer)
        && refused.values().sum::<u32>() == all_refused;
    if !shares || !counts || !answered {
        let expected = format!("about {:?}, refused {:?}", step.chosen, step.not_forwarded);
        return Err(differs(
            expected,
            format!("{chosen:?}, refused {refused:?}"),
        ));
    }
    // Each spread was recorded on an empty table.
    house.sleep(ALL_GONE);
    Ok(())
}

fn client_opens(house: &mut House, flow: Flow, reset: bool) -> Result<Vec<Sent>, Trouble> {
    let payload = |flags| match flow.protocol {
        Protocol::TCP => Ok(Payload::Tcp(flags)),
        Protocol::UDP => Ok(Payload::Udp(b"x")),
        other => Err(Trouble::Cannot(format!("many new connections by {other}"))),
    };
    let macs = (GATEWAY_MAC, director_mac(Side::Client));
    let first = build(macs, flow.source, flow.target, payload("S")?);
    let sent = house.inject(Side::Client, &first);
    if reset {
        let last = build(macs, flow.source, flow.target, payload("R")?);
        house.inject(Side::Client, &last);
    }
    Ok(sent)
}
