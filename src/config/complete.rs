//! From a Draft to a Call: what must be there with a command, what must not, what is filled in. The
//! order of the checks is ipvsadm's, since the first complaint is the one that is shown.

use super::command::{Command, RealSpec};
use super::draft::{Draft, TunnelKind};
use super::ipvsadm::{Call, Columns, Complaint, List, SCHEDULER_DEFAULT, What, wrong};
use super::options::{Allowed, Opt, SUBJECTS};
use super::words::{FlagFault, flag_bits};
use crate::lvs::{
    Endpoint, Family, ForwardMethod, Netmask, Protocol, RealKey, ServiceFlags, ServiceKey,
    ServiceSpec, SyncDaemon, SyncRole, Tunnel, Weight,
};

impl Draft {
    /// The scheduler is known only when all options are.
    pub(super) fn resolve_flags(&mut self) -> Result<(), Complaint> {
        let word = self.seen_word("sched-flags");
        let bits = flag_bits(&self.flags_text, &self.scheduler);
        self.flags |= bits.map_err(|(fault, flag)| {
            let fault = match fault {
                FlagFault::Invalid => "invalid",
                FlagFault::Incompatible => "incompatible",
            };
            wrong(format!("{fault} scheduler flag `{flag}'"), word)
        })?;
        Ok(())
    }

    fn seen_word(&self, subject: &str) -> Option<usize> {
        let place = SUBJECTS.iter().position(|name| *name == subject);
        let place = place.expect("a name out of SUBJECTS");
        self.seen.get(&place).copied()
    }

    fn has(&self, subject: &str) -> bool {
        self.seen_word(subject).is_some()
    }

    /// Is everything there that must be, and nothing that must not?
    pub(super) fn check(&self, command: &Allowed) -> Result<(), Complaint> {
        let name = command.name;
        let whose = format!("'{name}' command");
        let of = |list: &[&str], subject: &str| list.contains(&subject);
        self.check_subjects(0..SUBJECTS.len(), &whose, |subject| {
            if of(command.required, subject) {
                Rule::Required
            } else if of(command.exclusive, subject) {
                Rule::OnlyOne
            } else if of(command.optional, subject) {
                Rule::Allowed
            } else {
                Rule::Illegal
            }
        })
    }

    fn check_subjects(
        &self,
        subjects: std::ops::Range<usize>,
        whose: &str,
        rule_of: impl Fn(&str) -> Rule,
    ) -> Result<(), Complaint> {
        let mut only: Option<&str> = None;
        for place in subjects {
            let subject = SUBJECTS[place];
            match (rule_of(subject), self.seen.get(&place).copied()) {
                (Rule::Required, None) => {
                    let verb = "You need to supply the";
                    let text = format!("{verb} '{subject}' option for the {whose}");
                    return Err(wrong(text, None));
                }
                (Rule::Illegal, Some(word)) => {
                    let text = format!("Illegal '{subject}' option with the {whose}");
                    return Err(wrong(text, Some(word)));
                }
                (Rule::OnlyOne, Some(word)) => match only {
                    Some(other) => {
                        let text = format!(
                            "The option '{subject}' conflicts with the '{other}' option in the \
                             {whose}"
                        );
                        return Err(wrong(text, Some(word)));
                    }
                    None => only = Some(subject),
                },
                _ => {}
            }
        }
        Ok(())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Required,
    OnlyOne,
    Allowed,
    Illegal,
}

impl Draft {
    /// The Call, when every option is known to be allowed with `command`.
    pub(super) fn call(self, command: Opt, role: Option<SyncRole>) -> Result<Call, Complaint> {
        Ok(match command {
            Opt::AddService => Call::Change(Command::AddService(self.service_spec()?)),
            Opt::EditService => Call::Change(Command::EditService(self.service_spec()?)),
            Opt::DeleteService => Call::Change(Command::DeleteService(self.service()?)),
            Opt::Clear => Call::Change(Command::Flush),
            Opt::AddServer => {
                let (service, real) = self.real_spec()?;
                Call::Change(Command::AddReal { service, real })
            }
            Opt::EditServer => {
                let (service, real) = self.real_spec()?;
                Call::Change(Command::EditReal { service, real })
            }
            Opt::DeleteServer => {
                let (service, real) = (self.service()?, self.real()?);
                Call::Change(Command::DeleteReal { service, real })
            }
            Opt::Zero => Call::Change(Command::Zero(self.key())),
            Opt::Set => Call::Change(Command::SetTimeouts(self.timeouts)),
            Opt::Restore => Call::Restore,
            Opt::Save => Call::Save {
                numeric: self.has("numeric"),
            },
            Opt::StartDaemon => Call::Change(Command::StartSync(self.sync_daemon(role))),
            Opt::StopDaemon => Call::Change(Command::StopSync(role.unwrap_or(SyncRole::Master))),
            _ => Call::List(self.checked_list()?),
        })
    }

    fn key(&self) -> Option<ServiceKey> {
        let family = self.family();
        match (self.protocol, self.virt, self.mark) {
            (Some(protocol), Some(virt), _) => Some(ServiceKey::Address { protocol, virt }),
            (_, _, Some(mark)) => Some(ServiceKey::Mark { mark, family }),
            _ => None,
        }
    }

    fn service(&self) -> Result<ServiceKey, Complaint> {
        let text = "illegal virtual server address[:port] specified";
        self.key().ok_or_else(|| wrong(text, None))
    }

    fn real(&self) -> Result<RealKey, Complaint> {
        let text = "illegal real server address[:port] specified";
        let (address, port) = self.real.ok_or_else(|| wrong(text, None))?;
        Ok(RealKey(Endpoint::new(address, port.unwrap_or(0))))
    }

    fn service_spec(self) -> Result<ServiceSpec, Complaint> {
        let key = self.service()?;
        if !key.is_mark() && key.port() == 0 && self.persistence.is_none() {
            let text = "Zero port specified for non-persistent service";
            return Err(wrong(text, self.seen_word("service-address")));
        }
        let flags = ServiceFlags(self.flags);
        let not_udp = self
            .protocol
            .is_some_and(|protocol| protocol != Protocol::UDP);
        if flags.has(ServiceFlags::ONE_PACKET) && not_udp {
            let text = "One-Packet Scheduling is only for UDP virtual services";
            return Err(wrong(text, self.seen_word("ops")));
        }
        let scheduler = match self.scheduler {
            named if !named.is_empty() => named,
            _ => SCHEDULER_DEFAULT.to_string(),
        };
        Ok(ServiceSpec {
            key,
            scheduler,
            flags,
            persistence: self.persistence,
            netmask: self.netmask.unwrap_or(Netmask::full(key.family())),
            engine: self.engine,
        })
    }

    /// Without rewriting, the port of a packet stays what it is: `-g` and `-i` take the service's.
    fn real_spec(self) -> Result<(ServiceKey, RealSpec), Complaint> {
        let (service, mut key) = (self.service()?, self.real()?);
        if !service.is_mark() && !self.method.is_nat() {
            key.0.port = service.port();
        }
        let same_family = Family::of(key.0.address) == service.family();
        if !same_family && self.method != ForwardMethod::Tunnel {
            let text = "Different address family is allowed only for tunneling servers";
            return Err(wrong(text, self.seen_word("real-server")));
        }
        let real = RealSpec {
            key,
            weight: Weight(self.weight.unwrap_or(1)),
            method: self.method,
            thresholds: self.thresholds,
            tunnel: self.tunnel()?,
        };
        Ok((service, real))
    }

    fn tunnel(&self) -> Result<Tunnel, Complaint> {
        let first = SUBJECTS.iter().position(|subject| *subject == "tun-type");
        let first = first.expect("a name out of SUBJECTS");
        if self.method != ForwardMethod::Tunnel {
            let given = self.seen.range(first..).next();
            let text = "Tunnel options conflict with forward method";
            return given.map_or(Ok(Tunnel::Ipip), |(_, word)| Err(wrong(text, Some(*word))));
        }
        let (name, port, checksums): (_, _, &[&str]) = match self.tunnel.kind {
            TunnelKind::Ipip => ("ipip", Rule::Illegal, &[]),
            TunnelKind::Gue => (
                "gue",
                Rule::Required,
                &["tun-nocsum", "tun-csum", "tun-remcsum"],
            ),
            TunnelKind::Gre => ("gre", Rule::Illegal, &["tun-nocsum", "tun-csum"]),
        };
        let whose = format!("'{name}' tunnel type");
        self.check_subjects(first + 1..SUBJECTS.len(), &whose, |subject| match subject {
            "tun-port" => port,
            _ if checksums.contains(&subject) => Rule::OnlyOne,
            _ => Rule::Illegal,
        })?;
        let checksum = self.tunnel.checksum;
        Ok(match self.tunnel.kind {
            TunnelKind::Ipip => Tunnel::Ipip,
            TunnelKind::Gue => {
                let port = self.tunnel.port;
                Tunnel::Gue { port, checksum }
            }
            TunnelKind::Gre => Tunnel::Gre { checksum },
        })
    }

    fn sync_daemon(self, role: Option<SyncRole>) -> SyncDaemon {
        SyncDaemon {
            role: role.unwrap_or(SyncRole::Master),
            interface: self.sync.interface,
            sync_id: self.sync.sync_id,
            maxlen: self.sync.maxlen,
            group: self.sync.group,
            port: self.sync.port,
            ttl: self.sync.ttl,
        }
    }

    fn checked_list(&self) -> Result<List, Complaint> {
        let any = |subjects: &[&str]| subjects.iter().any(|subject| self.has(subject));
        let tables = any(&["stats", "rate", "thresholds"]);
        let settings = any(&["timeout", "daemon", "masqueraded"]);
        let conflict = (self.has("connection") || settings) && tables
            || settings && self.has("persistent-conn");
        if conflict {
            return Err(wrong("options conflicts in the list command", None));
        }
        Ok(self.list())
    }

    /// The listing asked for.
    pub(super) fn list(&self) -> List {
        let what = match () {
            () if self.has("connection") => What::Connections,
            () if self.has("masqueraded") => What::Masqueraded,
            () if self.has("timeout") => What::Timeouts,
            () if self.has("daemon") => What::Daemons,
            () => What::Services(self.key()),
        };
        let columns = [
            ("stats", Columns::Stats),
            ("rate", Columns::Rate),
            ("thresholds", Columns::Thresholds),
            ("persistent-conn", Columns::Persistent),
            ("tun-info", Columns::Tunnel),
        ];
        let wanted = columns.iter().find(|(subject, _)| self.has(subject));
        List {
            what,
            numeric: self.has("numeric"),
            exact: self.has("exact"),
            sorted: !self.has("nosort"),
            columns: wanted.map_or(Columns::Plain, |(_, columns)| *columns),
        }
    }
}
