//! Draft: what the options of one ipvsadm call have said so far. Each option is taken in the order in
//! which it was written, and its value is judged at once; what belongs together is judged in
//! `complete`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use super::ipvsadm::{Complaint, NAME_BYTES_MAX, PERSISTENCE_DEFAULT_S, TIMEOUT_MAX_S, wrong};
use super::options::{Opt, SUBJECTS};
use super::words::{HostPort, Resolver, cut, host_port, loose_ipv4, number};
use crate::lvs::{
    Endpoint, Family, ForwardMethod, Netmask, Persistence, Protocol, ServiceFlags, Thresholds,
    Timeouts, TunnelChecksum,
};

/// What the options have said so far.
#[derive(Default)]
pub(super) struct Draft {
    /// Which subjects (numbers in SUBJECTS) were given, and where: number of the option's last word.
    pub(super) seen: BTreeMap<usize, usize>,
    pub(super) protocol: Option<Protocol>,
    pub(super) virt: Option<Endpoint>,
    pub(super) mark: Option<u32>,
    pub(super) family6: bool,
    pub(super) scheduler: String,
    pub(super) persistence: Option<Persistence>,
    pub(super) netmask: Option<Netmask>,
    pub(super) engine: Option<String>,
    pub(super) flags: u32,
    pub(super) flags_text: String,
    pub(super) real: Option<HostPort>,
    pub(super) method: ForwardMethod,
    pub(super) tunnel: TunnelDraft,
    pub(super) weight: Option<i32>,
    pub(super) thresholds: Thresholds,
    pub(super) timeouts: Timeouts,
    pub(super) sync: SyncDraft,
}

#[derive(Default)]
pub(super) struct TunnelDraft {
    pub(super) kind: TunnelKind,
    pub(super) port: u16,
    pub(super) checksum: TunnelChecksum,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum TunnelKind {
    #[default]
    Ipip,
    Gue,
    Gre,
}

#[derive(Default)]
pub(super) struct SyncDraft {
    pub(super) interface: Option<String>,
    pub(super) sync_id: u8,
    pub(super) maxlen: Option<u16>,
    pub(super) group: Option<IpAddr>,
    pub(super) port: Option<u16>,
    pub(super) ttl: Option<u8>,
}

impl Draft {
    /// Takes one option that is not the first.
    pub(super) fn take(
        &mut self,
        opt: Opt,
        value: Option<&str>,
        word: usize,
        words: &[&str],
        names: &dyn Resolver,
    ) -> Result<(), Complaint> {
        if opt.as_command().is_some() || matches!(opt, Opt::Help | Opt::Version) {
            let text = format!("invalid option `{}'", words[word]);
            return Err(wrong(text, Some(word)));
        }
        if let Some(subject) = opt.subject() {
            if self.seen.contains_key(&subject) {
                let text = format!("multiple '{}' options specified", SUBJECTS[subject]);
                return Err(wrong(text, Some(word)));
            }
            self.seen.insert(subject, word);
        }
        let text = value.unwrap_or("");
        let taken = match opt {
            Opt::Tcp => self.take_service(text, Protocol::TCP, names),
            Opt::Udp => self.take_service(text, Protocol::UDP, names),
            Opt::Sctp => self.take_service(text, Protocol::SCTP, names),
            Opt::Mark => self.take_mark(text),
            Opt::Ipv6 => self.take_ipv6(),
            Opt::Persistent => return self.take_persistence(value, word),
            Opt::Netmask => self.take_netmask(text),
            Opt::RealServer => self.take_real(text, names),
            Opt::TunType | Opt::TunPort => self.take_tunnel(opt, text),
            Opt::Weight | Opt::Upper | Opt::Lower => self.take_number(opt, text),
            Opt::SyncId | Opt::SyncMaxlen | Opt::McastGroup | Opt::McastPort | Opt::McastTtl => {
                self.take_sync(opt, text)
            }
            _ => {
                self.take_plain(opt, text);
                Ok(())
            }
        };
        taken.map_err(|text| wrong(text, Some(word)))
    }

    /// Options whose value cannot be wrong.
    fn take_plain(&mut self, opt: Opt, text: &str) {
        let name = || Some(named(text)).filter(|name| !name.is_empty());
        match opt {
            Opt::Scheduler => self.scheduler = named(text),
            Opt::Engine => self.engine = name(),
            Opt::SchedFlags => self.flags_text = text.to_string(),
            Opt::Ops => self.flags |= ServiceFlags::ONE_PACKET,
            Opt::Gatewaying => self.method = ForwardMethod::Route,
            Opt::Ipip => self.method = ForwardMethod::Tunnel,
            Opt::Masquerading => self.method = ForwardMethod::Masq,
            Opt::FullNat => self.method = ForwardMethod::FullNat,
            Opt::TunNocsum => self.tunnel.checksum = TunnelChecksum::No,
            Opt::TunCsum => self.tunnel.checksum = TunnelChecksum::Full,
            Opt::TunRemcsum => self.tunnel.checksum = TunnelChecksum::Remote,
            Opt::McastInterface => self.sync.interface = name(),
            _ => {}
        }
    }

    fn take_service(
        &mut self,
        text: &str,
        protocol: Protocol,
        names: &dyn Resolver,
    ) -> Result<(), String> {
        let found = host_port(text, protocol, names);
        let (address, port) = found.ok_or("illegal virtual server address[:port] specified")?;
        if address.is_ipv6() {
            self.netmask = Some(Netmask::V6(128));
        }
        self.protocol = Some(protocol);
        self.virt = Some(Endpoint::new(address, port.unwrap_or(0)));
        Ok(())
    }

    fn take_mark(&mut self, text: &str) -> Result<(), String> {
        let mark = ranged(text, 1, i64::from(u32::MAX));
        self.mark = Some(mark.ok_or_else(|| format!("invalid fwmark value `{text}' specified"))?);
        Ok(())
    }

    fn take_ipv6(&mut self) -> Result<(), String> {
        if self.mark.is_none() {
            return Err("-6 used before -f\n".to_string());
        }
        self.family6 = true;
        self.netmask = Some(Netmask::V6(128));
        Ok(())
    }

    fn take_persistence(&mut self, value: Option<&str>, word: usize) -> Result<(), Complaint> {
        let seconds = value.map(|text| timeout(text, 1, word)).transpose()?;
        let timeout_s = seconds.unwrap_or(PERSISTENCE_DEFAULT_S);
        self.persistence = Some(Persistence { timeout_s });
        Ok(())
    }

    fn take_netmask(&mut self, text: &str) -> Result<(), String> {
        self.netmask = Some(match self.family() {
            Family::V6 => {
                Netmask::V6(ranged(text, 1, 128).ok_or("illegal ipv6 netmask specified")?)
            }
            Family::V4 => {
                let mask = loose_ipv4(text);
                let mask = mask.ok_or("illegal virtual server persistent mask specified")?;
                Netmask::V4(u32::from(mask))
            }
        });
        Ok(())
    }

    /// Without a port of its own a server takes the service's, as far as that is known by now. Names
    /// of ports are those of its protocol, for a mark those of TCP; before `-t` there are none.
    fn take_real(&mut self, text: &str, names: &dyn Resolver) -> Result<(), String> {
        let protocol = match (self.protocol, self.mark) {
            (Some(protocol), _) => protocol,
            (None, Some(_)) => Protocol::TCP,
            (None, None) => Protocol::IP,
        };
        let found = host_port(text, protocol, names);
        let (address, port) = found.ok_or("illegal real server address[:port] specified")?;
        let default = self.virt.map_or(0, |virt| virt.port);
        self.real = Some((address, Some(port.unwrap_or(default))));
        Ok(())
    }

    fn take_tunnel(&mut self, opt: Opt, text: &str) -> Result<(), String> {
        if opt == Opt::TunPort {
            let port = ranged(text, 1, 65535);
            self.tunnel.port = port.ok_or("illegal tunnel port specified")?;
            return Ok(());
        }
        self.tunnel.kind = match text {
            "ipip" => TunnelKind::Ipip,
            "gue" => TunnelKind::Gue,
            "gre" => TunnelKind::Gre,
            _ => return Err("illegal tunnel type specified".to_string()),
        };
        Ok(())
    }

    fn take_number(&mut self, opt: Opt, text: &str) -> Result<(), String> {
        let value: Option<i32> = ranged(text, 0, i64::from(i32::MAX));
        let unsigned = |name: &str| {
            let value = value.ok_or_else(|| format!("illegal {name} specified"))?;
            Ok::<u32, String>(value.unsigned_abs())
        };
        match opt {
            Opt::Weight => self.weight = Some(value.ok_or("illegal weight specified")?),
            Opt::Upper => self.thresholds.upper = unsigned("u_threshold")?,
            _ => self.thresholds.lower = unsigned("l_threshold")?,
        }
        Ok(())
    }

    fn take_sync(&mut self, opt: Opt, text: &str) -> Result<(), String> {
        match opt {
            Opt::SyncId => {
                self.sync.sync_id = ranged(text, 0, 255).ok_or("illegal syncid specified")?;
            }
            Opt::SyncMaxlen => {
                let maxlen = ranged(text, 1, 65507);
                self.sync.maxlen = Some(maxlen.ok_or("illegal sync-maxlen specified")?);
            }
            Opt::McastPort => {
                let port = ranged(text, 1, 65535);
                self.sync.port = Some(port.ok_or("illegal mcast-port specified")?);
            }
            Opt::McastTtl => {
                let ttl = ranged(text, 1, 255);
                self.sync.ttl = Some(ttl.ok_or("illegal mcast-ttl specified")?);
            }
            _ => self.sync.group = Some(multicast(text)?),
        }
        Ok(())
    }

    pub(super) fn family(&self) -> Family {
        match self.virt {
            Some(virt) => Family::of(virt.address),
            None if self.family6 => Family::V6,
            None => Family::V4,
        }
    }
}

/// The three numbers of `--set`, which stand among the plain words.
pub(super) fn timeouts(words: &[&str], plain: &mut Vec<usize>) -> Result<Timeouts, Complaint> {
    if plain.len() < 3 {
        return Err(wrong("--set option requires 3 timeout values", None));
    }
    let mut seconds = plain.drain(..3).map(|word| timeout(words[word], 0, word));
    let mut next = || seconds.next().expect("three were drained");
    Ok(Timeouts {
        tcp_s: next()?,
        tcp_fin_s: next()?,
        udp_s: next()?,
    })
}

fn timeout(text: &str, min: i64, word: usize) -> Result<u32, Complaint> {
    ranged(text, min, i64::from(TIMEOUT_MAX_S)).ok_or_else(|| {
        let text = format!("invalid timeout value `{text}' specified");
        wrong(text, Some(word))
    })
}

fn ranged<T: TryFrom<i64>>(text: &str, min: i64, max: i64) -> Option<T> {
    number(text, min, max).and_then(|value| T::try_from(value).ok())
}

/// A multicast group; what has a colon is meant to be IPv6.
fn multicast(text: &str) -> Result<IpAddr, String> {
    let family = if text.contains(':') { "IPv6" } else { "IPv4" };
    let address = match family {
        "IPv6" => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
        _ => text.parse().ok().map(IpAddr::V4),
    };
    let group = address.filter(IpAddr::is_multicast);
    group.ok_or_else(|| format!("invalid {family} mcast-group `{text}'"))
}

fn named(text: &str) -> String {
    cut(text, NAME_BYTES_MAX).to_string()
}
