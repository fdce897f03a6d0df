//! The steps of topic `sched`: clients that open connections, go on with them and close them, and
//! real servers that answer. Their packets are built here, since a case only names them.

use std::net::SocketAddr;

use ulvs::director::snapshot::Service;
use ulvs::lvs::{Endpoint, Flow, ForwardMethod, Protocol, ServiceKey};

use super::case::{Case, Decision, Ends, Side};
use super::house::{House, Sent};
use super::judge::{Trouble, differs, same};
use super::net::{GATEWAY_MAC, director_mac, server_mac};
use super::packet::{Payload, Seen, build};
use super::words;

/// Type of the SCTP chunk that opens an association (RFC 9260 section 3.2).
const SCTP_INIT: u8 = 1;

/// The clients of one service.
pub struct Clients<'a> {
    house: &'a mut House,
    key: ServiceKey,
    protocol: Protocol,
    /// Whom clients ask for unless a step says otherwise.
    virt: Endpoint,
    servers: Vec<Endpoint>,
}

impl Clients<'_> {
    /// The clients of the service that the case is about.
    ///
    /// # Errors
    /// `Cannot` if its head does not say which that is.
    pub fn of<'a>(case: &Case, house: &'a mut House) -> Result<Clients<'a>, Trouble> {
        let unclear = || Trouble::Cannot(format!("service {:?}", case.service));
        let key = words::service(&case.service).ok_or_else(unclear)?;
        let (protocol, virt) = match key {
            ServiceKey::Address { protocol, virt } => (protocol, virt),
            // The mark alone says nothing of a protocol; TCP was recorded.
            ServiceKey::Mark { .. } => (Protocol::TCP, Endpoint::new(house.net.vip(), case.vport)),
        };
        let servers = case.servers.iter().map(|name| endpoint(name));
        Ok(Clients {
            servers: servers.collect::<Result<_, _>>()?,
            house,
            key,
            protocol,
            virt,
        })
    }

    /// The first packet of a connection; the counts before it, and who is chosen or what is answered.
    pub fn new_connection(&mut self, step: &Decision) -> Result<(), Trouble> {
        self.counts(&step.n)?;
        let flow = self.flow(&step.ends)?;
        let sent = self.client_says(flow, "S");
        let conn = self.house.conn(flow);
        let server = conn.as_ref().and_then(|conn| conn.server());
        let got = match server {
            Some(server) => format!("to {}", server.endpoint),
            None => format!("answer {:?}", answers(&sent)),
        };
        let expected = match &step.to {
            Some(name) => format!("to {}", endpoint(name)?),
            None => format!("answer {:?}", step.answer),
        };
        if got != expected {
            return Err(differs(expected, format!("{got}; {}", self.load())));
        }
        match conn {
            Some(conn) => self.arrives(conn.real(), &sent),
            None => Ok(()),
        }
    }

    /// The packet left towards the chosen server: the last byte of the MAC address is its number.
    fn arrives(&self, real: Endpoint, sent: &[Sent]) -> Result<(), Trouble> {
        let number = self.house.net.server_number(real.address);
        let macs = sent
            .iter()
            .map(|sent| (sent.side, sent.frame[..6].to_vec()));
        let number = number.ok_or_else(|| Trouble::Cannot(format!("server {real}")))?;
        same(
            &vec![(Side::Server, server_mac(number).0.to_vec())],
            &macs.collect(),
        )
    }

    /// SYN-ACK of the server if the director is to see it, and the client's ACK.
    pub fn establish(&mut self, ends: &Ends) -> Result<(), Trouble> {
        let flow = self.flow(ends)?;
        self.server_says(flow, "SA");
        self.client_says(flow, "A");
        Ok(())
    }

    /// FIN of the client, of the server if the director is to see it, and the client's last ACK.
    pub fn close(&mut self, ends: &Ends) -> Result<(), Trouble> {
        let flow = self.flow(ends)?;
        self.client_says(flow, "FA");
        self.server_says(flow, "FA");
        self.client_says(flow, "A");
        Ok(())
    }

    /// RST of the client.
    pub fn reset(&mut self, ends: &Ends) -> Result<(), Trouble> {
        let flow = self.flow(ends)?;
        self.client_says(flow, "R");
        Ok(())
    }

    /// Active and inactive of each server; none for one that is not in the service.
    pub fn counts(&self, expected: &[Option<[u32; 2]>]) -> Result<(), Trouble> {
        let snapshot = self.house.snapshot();
        let reals = snapshot.service(&self.key).map(|service| &service.reals);
        let got = self.servers.iter().take(expected.len()).map(|server| {
            let real = reals?.iter().find(|real| real.key.0 == *server)?;
            Some([real.active(), real.inactive()])
        });
        let got: Vec<Option<[u32; 2]>> = got.collect();
        if got == expected {
            return Ok(());
        }
        Err(differs(
            format!("counts {expected:?}"),
            format!("counts {got:?}"),
        ))
    }

    /// The servers as a scheduler sees them, for people.
    fn load(&self) -> String {
        let snapshot = self.house.snapshot();
        let real = |service: &Service| -> Vec<String> {
            let reals = service.reals.iter();
            reals
                .map(|real| {
                    let (weight, live) = (real.weight.0, (real.active(), real.inactive()));
                    let late = if real.overloaded() { " overloaded" } else { "" };
                    format!("{} w{weight} {live:?}{late}", real.key)
                })
                .collect()
        };
        let service = snapshot.service(&self.key);
        service.map_or("no service".into(), |service| real(service).join(", "))
    }

    fn flow(&self, ends: &Ends) -> Result<Flow, Trouble> {
        let target = match &ends.d {
            Some(name) => endpoint(name)?,
            None => self.virt,
        };
        Ok(Flow {
            protocol: self.protocol,
            source: endpoint(&ends.c)?,
            target,
        })
    }

    fn payload(&self, flags: &'static str) -> Payload<'static> {
        match self.protocol {
            Protocol::UDP => Payload::Udp(b"x"),
            Protocol::SCTP => Payload::Sctp(SCTP_INIT),
            _ => Payload::Tcp(flags),
        }
    }

    fn client_says(&mut self, flow: Flow, flags: &'static str) -> Vec<Sent> {
        let macs = (GATEWAY_MAC, director_mac(Side::Client));
        let frame = build(macs, flow.source, flow.target, self.payload(flags));
        self.house.inject(Side::Client, &frame)
    }

    /// What a real server under LVS-NAT says: the others answer past the director.
    fn server_says(&mut self, flow: Flow, flags: &'static str) {
        let Some(conn) = self.house.conn(flow) else {
            return;
        };
        if conn.method() != ForwardMethod::Masq {
            return;
        }
        let number = self.house.net.server_number(conn.real().address);
        let macs = (server_mac(number.unwrap_or(0)), director_mac(Side::Server));
        let frame = build(macs, conn.real(), flow.source, self.payload(flags));
        self.house.inject(Side::Server, &frame);
    }
}

/// What was sent back, in the words of the recordings.
pub fn answers(sent: &[Sent]) -> Vec<String> {
    let seen = sent.iter().filter_map(|sent| Seen::of(&sent.frame));
    seen.map(|seen| seen.answer()).collect()
}

/// Reads `address:port`.
pub fn endpoint(text: &str) -> Result<Endpoint, Trouble> {
    let address: Result<SocketAddr, _> = text.parse();
    address
        .map(|address| Endpoint::new(address.ip(), address.port()))
        .map_err(|_| Trouble::Cannot(format!("`{text}` is no address and port")))
}
