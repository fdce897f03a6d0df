//! Quiet: keeps the kernel's own stack off our frames, by dropping them on ingress, behind the tap
//! through which we see them; undone when dropped. AF_PACKET only copies: without this the kernel
//! would forward what we forward, and answer or reset what it does not know. Two ways are known:
//! nf_tables in the netdev family (`quiet_nft`) and a filter program of traffic control (`quiet_tc`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::netlink::Refused;
use super::quiet_nft::NftTable;
use super::quiet_tc::TcFilters;
use super::{Side, sys};

/// How the kernel is to be kept off.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum KeepOff {
    /// By the first of nft and tc that works; by neither where the kernel is silent anyway.
    #[default]
    Auto,
    /// By nf_tables.
    Nft,
    /// By traffic control.
    Tc,
    /// Not at all. Refused where the kernel would not be silent by itself.
    None,
}

impl KeepOff {
    /// Every choice, in the order of their words.
    pub const ALL: [KeepOff; 4] = [KeepOff::Auto, KeepOff::Nft, KeepOff::Tc, KeepOff::None];

    /// The word people type.
    pub const fn word(self) -> &'static str {
        match self {
            KeepOff::Auto => "auto",
            KeepOff::Nft => "nft",
            KeepOff::Tc => "tc",
            KeepOff::None => "none",
        }
    }
}

impl fmt::Display for KeepOff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

impl FromStr for KeepOff {
    type Err = String;
    fn from_str(text: &str) -> Result<KeepOff, String> {
        let found = KeepOff::ALL.into_iter().find(|way| way.word() == text);
        found.ok_or_else(|| format!("`{text}` is not one of: auto, nft, tc, none"))
    }
}

/// A port to be kept quiet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuietPort {
    /// Interface name.
    pub name: String,
    /// Public: only what goes to our addresses is dropped. Private: also what real servers send
    /// through us. A port that is both is private.
    pub side: Side,
}

/// Whose frames are ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuietRules {
    /// Addresses of virtual services.
    pub vips: BTreeSet<IpAddr>,
    /// Addresses the director itself owns and answers for, such as a floating gateway. One that the
    /// kernel holds too is left to the kernel, so that nobody is locked out.
    pub own: BTreeSet<IpAddr>,
    /// Addresses of real servers. One that was ever named stays quiet until the end: what a deleted
    /// real server still sends must not get past us either.
    pub real_servers: BTreeSet<IpAddr>,
}

/// Addresses of one kind at most; beyond it `update` is refused.
pub const QUIET_ADDRESSES_MAX: usize = 4096;

/// The kernel cannot be kept off, or would not be silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QuietError {
    message: String,
}

impl fmt::Display for QuietError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for QuietError {}

impl QuietError {
    fn new(message: String) -> QuietError {
        QuietError { message }
    }
}

/// The kernel is quiet as long as this lives.
#[derive(Debug)]
pub struct Quiet {
    ports: Vec<QuietPort>,
    addresses: Addresses,
    way: Way,
}

#[derive(Debug)]
enum Way {
    Nft(NftTable),
    Tc(TcFilters),
    None,
}

impl Quiet {
    /// Begins to keep the kernel off `ports` of the calling thread's network namespace.
    ///
    /// # Errors
    /// When no way of `keep_off` works and the kernel would talk; the message says what to set.
    pub fn install(
        keep_off: KeepOff,
        ports: &[QuietPort],
        rules: &QuietRules,
    ) -> Result<Quiet, QuietError> {
        let addresses = Addresses::of(rules, &BTreeSet::new())?;
        let nft = || NftTable::install(ports, &addresses).map(Way::Nft);
        let tc = || TcFilters::install(ports, &addresses).map(Way::Tc);
        let silent = |reasons: &str| is_silent(ports, rules, reasons).map(|()| Way::None);
        let way = match keep_off {
            KeepOff::Nft => nft().map_err(|refused| cannot("nft", &refused))?,
            KeepOff::Tc => tc().map_err(|refused| cannot("tc", &refused))?,
            KeepOff::None => silent("")?,
            KeepOff::Auto => nft().or_else(|nft_refused| {
                tc().or_else(|tc_refused| {
                    let reasons = [cannot("nft", &nft_refused), cannot("tc", &tc_refused)];
                    silent(&format!("{}; {}; ", reasons[0], reasons[1]))
                })
            })?,
        };
        Ok(Quiet {
            ports: ports.to_vec(),
            addresses,
            way,
        })
    }

    /// How the kernel is kept off now: never `Auto`.
    pub fn keep_off(&self) -> KeepOff {
        match self.way {
            Way::Nft(_) => KeepOff::Nft,
            Way::Tc(_) => KeepOff::Tc,
            Way::None => KeepOff::None,
        }
    }

    /// Follows a change: other VIPs or real servers, other addresses of the kernel, an interface
    /// that came back. No frame slips through meanwhile.
    ///
    /// # Errors
    /// As `install`; the old rules stay in force.
    pub fn update(&mut self, rules: &QuietRules) -> Result<(), QuietError> {
        let addresses = Addresses::of(rules, &self.addresses.real_servers)?;
        match &mut self.way {
            Way::Nft(table) => table
                .update(&self.ports, &self.addresses, &addresses)
                .map_err(|refused| cannot("nft", &refused))?,
            Way::Tc(filters) => filters
                .update(&self.ports, &addresses)
                .map_err(|refused| cannot("tc", &refused))?,
            Way::None => is_silent(&self.ports, rules, "")?,
        }
        self.addresses = addresses;
        Ok(())
    }

    /// Removes what a director left behind in this network namespace that could not clean up, and
    /// says what that was. What belongs to another process that runs stays. To be called before
    /// `install`, not beside it.
    pub fn cleanup_all() -> Vec<String> {
        let mut removed = super::quiet_nft::cleanup_all();
        removed.extend(super::quiet_tc::cleanup_all());
        removed
    }
}

fn cannot(way: &str, refused: &Refused) -> QuietError {
    let advice = match (refused.errno, way) {
        (libc::EPERM | libc::EACCES, _) => {
            ": CAP_NET_ADMIN is needed (root, or a user namespace of its own)"
        }
        (libc::EPROTONOSUPPORT | libc::EOPNOTSUPP | libc::EAFNOSUPPORT | libc::ENOENT, "nft") => {
            ": the kernel needs CONFIG_NF_TABLES_NETDEV and CONFIG_NETFILTER_INGRESS"
        }
        (libc::ENOENT | libc::EOPNOTSUPP, _) => {
            ": the kernel needs CONFIG_NET_CLS_ACT, CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"
        }
        _ => "",
    };
    QuietError::new(format!(
        "the kernel cannot be kept off our frames by {way}: {refused}{advice}"
    ))
}

/// Would the kernel keep silent by itself? It does where it does not forward and holds no VIP.
fn is_silent(ports: &[QuietPort], rules: &QuietRules, reasons: &str) -> Result<(), QuietError> {
    for port in ports {
        for sysctl in forwarding_sysctls(&port.name) {
            if sys::sysctl(&sysctl).is_some_and(|value| value != "0") {
                return Err(QuietError::new(format!(
                    "{reasons}the kernel would forward frames of `{}` besides us ({sysctl} is on): \
                     set it to 0, or keep the kernel off by nft or tc",
                    port.name
                )));
            }
        }
    }
    for interface in super::interfaces() {
        for (address, prefix_len) in &interface.addresses {
            if rules.vips.contains(address) {
                return Err(QuietError::new(format!(
                    "{reasons}the kernel would answer for {address} besides us: take it away \
                     (ip addr del {address}/{prefix_len} dev {}), or keep the kernel off \
                     by nft or tc",
                    interface.name
                )));
            }
        }
    }
    Ok(())
}

/// May what carries this process number be removed? It may be our own from an earlier life (in a
/// container the number is often the same), and must not be that of somebody who runs.
pub(super) fn is_left_over(process: u32) -> bool {
    process == std::process::id() || !std::path::Path::new(&format!("/proc/{process}")).exists()
}

/// The sysctls that make the kernel forward what arrives on this interface.
pub(super) fn forwarding_sysctls(interface: &str) -> [String; 2] {
    [
        format!("net/ipv4/conf/{interface}/forwarding"),
        format!("net/ipv6/conf/{interface}/forwarding"),
    ]
}

/// The addresses that the rules are about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    /// Nothing that goes to these, or asks for them, is for the kernel.
    pub ours: BTreeSet<IpAddr>,
    /// What these send through us is not for the kernel ...
    pub real_servers: BTreeSet<IpAddr>,
    /// ... unless it goes to one of these: the kernel's own.
    pub kernel: BTreeSet<IpAddr>,
}

impl Addresses {
    fn of(rules: &QuietRules, known: &BTreeSet<IpAddr>) -> Result<Addresses, QuietError> {
        let held: BTreeSet<IpAddr> = super::interfaces()
            .into_iter()
            .flat_map(|interface| interface.addresses)
            .map(|(address, _)| address)
            .collect();
        let own = rules.own.difference(&held).copied();
        let ours: BTreeSet<IpAddr> = rules.vips.iter().copied().chain(own).collect();
        let mut real_servers = rules.real_servers.clone();
        if real_servers.len() + known.len() <= QUIET_ADDRESSES_MAX {
            real_servers.extend(known);
        }
        let addresses = Addresses {
            kernel: held.difference(&ours).copied().collect(),
            ours,
            real_servers,
        };
        for (what, set) in [
            ("virtual and own addresses", &addresses.ours),
            ("real servers", &addresses.real_servers),
            ("addresses of this machine", &addresses.kernel),
        ] {
            if set.len() > QUIET_ADDRESSES_MAX {
                return Err(QuietError::new(format!(
                    "{} {what} are more than the {QUIET_ADDRESSES_MAX} the kernel can be kept off",
                    set.len()
                )));
            }
        }
        Ok(addresses)
    }
}
