//! The generic netlink family `IPVS` as programs know it from the kernel: a request in, the messages of
//! its answer out. What there is to know and to do is asked of whoever is handed in. See
//! `include/uapi/linux/ip_vs.h` for the numbers and `ip_vs_genl_ops` in `ip_vs_ctl.c` for who answers
//! what. Nothing is sent or received in here.

use ulvs::config::{Command, Listing, Query, Refusal, Reply, Request};
use ulvs::lvs::{ServiceFlags, Timeouts};

use crate::message::{self, Attributes, Draft, Message, NLM_F_ACK, NLM_F_DUMP, NLM_F_MULTI};
use crate::read;
use crate::write;

/// The name that programs ask for.
const NAME: &str = "IPVS";
/// The number we give it: beyond those that the kernel gives to its own (`GENL_MAX_ID` is 1023).
pub const FAMILY: u16 = 0x7600;
/// Version of IPVS that all of this is the language of: 1.2.1.
const VERSION: u32 = 0x01_02_01;

/// The family that knows the others (`GENL_ID_CTRL`).
pub const CONTROL: u16 = 16;
/// Its question for one family, and its answer.
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_CMD_NEWFAMILY: u8 = 1;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
const CTRL_ATTR_VERSION: u16 = 3;
const CTRL_ATTR_HDRSIZE: u16 = 4;
const CTRL_ATTR_MAXATTR: u16 = 5;

/// `IPVS_CMD_…`
pub mod command {
    pub const NEW_SERVICE: u8 = 1;
    pub const SET_SERVICE: u8 = 2;
    pub const DEL_SERVICE: u8 = 3;
    pub const GET_SERVICE: u8 = 4;
    pub const NEW_DEST: u8 = 5;
    pub const SET_DEST: u8 = 6;
    pub const DEL_DEST: u8 = 7;
    pub const GET_DEST: u8 = 8;
    pub const NEW_DAEMON: u8 = 9;
    pub const DEL_DAEMON: u8 = 10;
    pub const GET_DAEMON: u8 = 11;
    pub const SET_CONFIG: u8 = 12;
    pub const GET_CONFIG: u8 = 13;
    pub const SET_INFO: u8 = 14;
    pub const GET_INFO: u8 = 15;
    pub const ZERO: u8 = 16;
    pub const FLUSH: u8 = 17;
}

/// `IPVS_CMD_ATTR_…`
pub mod attr {
    pub const SERVICE: u16 = 1;
    pub const DEST: u16 = 2;
    pub const DAEMON: u16 = 3;
    pub const TIMEOUT_TCP: u16 = 4;
    pub const TIMEOUT_TCP_FIN: u16 = 5;
    pub const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_INFO_ATTR_…`
const INFO_VERSION: u16 = 1;
const INFO_CONN_TAB_SIZE: u16 = 2;

/// Bytes of one datagram of a long answer; the kernel's are as long (`NLMSG_GOODSIZE`).
const DATAGRAM_BYTES_MAX: usize = 8 * 1024;

/// An errno.
pub type Errno = i32;

/// Asks the director.
pub type Ask<'a> = dyn FnMut(Request) -> Result<Reply, Errno> + 'a;

/// What a request comes to when it is not refused.
enum Answer {
    Done,
    One(Draft),
    Many(Vec<Draft>),
}

/// Is the message for us: the family itself, or the question for its number?
pub fn is_ours(message: &Message) -> bool {
    match (message.kind, message.generic()) {
        (FAMILY, _) => true,
        (CONTROL, Some((CTRL_CMD_GETFAMILY, attributes))) => {
            attributes.text(CTRL_ATTR_FAMILY_NAME).as_deref() == Some(NAME)
                || attributes.short(CTRL_ATTR_FAMILY_ID) == Some(FAMILY)
        }
        _ => false,
    }
}

/// The datagrams of the answer, as the kernel would send them.
pub fn answer(message: &Message, ask: &mut Ask) -> Vec<Vec<u8>> {
    let answer = match message.kind {
        FAMILY => request(message, ask),
        _ => resolve(message, ask),
    };
    match answer {
        Err(errno) => vec![message::error(message, errno)],
        Ok(Answer::Many(drafts)) => datagrams(message, drafts),
        Ok(Answer::One(draft)) => {
            let mut all = vec![draft.finish()];
            all.extend(acknowledgement(message));
            all
        }
        Ok(Answer::Done) => acknowledgement(message).into_iter().collect(),
    }
}

fn acknowledgement(message: &Message) -> Option<Vec<u8>> {
    message.has(NLM_F_ACK).then(|| message::error(message, 0))
}

/// A long answer: as many messages in a datagram as fit, and a last one that says that it is the last.
fn datagrams(message: &Message, drafts: Vec<Draft>) -> Vec<Vec<u8>> {
    let done = Draft::new(message::NLMSG_DONE, NLM_F_MULTI, message.sequence, 0);
    let done = done.raw(&0_i32.to_ne_bytes());
    let mut all: Vec<Vec<u8>> = Vec::new();
    for bytes in drafts.into_iter().chain([done]).map(Draft::finish) {
        match all.last_mut() {
            Some(last) if last.len() + bytes.len() <= DATAGRAM_BYTES_MAX => last.extend(bytes),
            _ => all.push(bytes),
        }
    }
    all
}

/// Which number has the family? Without a director there is none, as without the kernel's module.
fn resolve(message: &Message, ask: &mut Ask) -> Result<Answer, Errno> {
    match ask(Request::Ask(Query::Timeouts)) {
        // Who may not ask learns that from the first request.
        Ok(_) | Err(libc::EPERM) => {}
        Err(_) => return Err(libc::ENOENT),
    }
    let mut draft = Draft::generic(CONTROL, 0, message.sequence, CTRL_CMD_NEWFAMILY);
    draft.text(CTRL_ATTR_FAMILY_NAME, NAME);
    draft.short(CTRL_ATTR_FAMILY_ID, FAMILY);
    draft.word(CTRL_ATTR_VERSION, 1);
    draft.word(CTRL_ATTR_HDRSIZE, 0);
    draft.word(CTRL_ATTR_MAXATTR, u32::from(attr::TIMEOUT_UDP));
    Ok(Answer::One(draft))
}

fn request(message: &Message, ask: &mut Ask) -> Result<Answer, Errno> {
    let (command, attributes) = message.generic().ok_or(libc::EINVAL)?;
    let reply = |command: u8| Draft::generic(FAMILY, 0, message.sequence, command);
    if message.has(NLM_F_DUMP) {
        let row = |command: u8| Draft::generic(FAMILY, NLM_F_MULTI, message.sequence, command);
        return dump(command, attributes, &row, ask).map(Answer::Many);
    }
    match command {
        command::GET_SERVICE => one_service(attributes, reply(command::NEW_SERVICE), ask),
        command::GET_INFO => info(reply(command::SET_INFO), ask),
        command::GET_CONFIG => config(reply(command::SET_CONFIG), ask),
        _ => {
            let change = change(command, attributes, ask)?;
            act(change, ask).map(|()| Answer::Done)
        }
    }
}

/// All there are of something.
fn dump(
    command: u8,
    attributes: Attributes,
    row: &dyn Fn(u8) -> Draft,
    ask: &mut Ask,
) -> Result<Vec<Draft>, Errno> {
    let mut drafts = Vec::new();
    match command {
        command::GET_SERVICE => {
            for service in &services(Query::Services(None), ask)?.1 {
                let mut draft = row(command::NEW_SERVICE);
                write::service(&mut draft, service);
                drafts.push(draft);
            }
        }
        command::GET_DEST => {
            let service = attributes.nested(attr::SERVICE).ok_or(libc::EINVAL)?;
            let key = read::service_key(&service)?;
            let found = match services(Query::Services(Some(key)), ask) {
                Ok((_, found)) => found,
                // The kernel lists nothing then, and does not complain.
                Err(libc::ESRCH) => Vec::new(),
                Err(errno) => return Err(errno),
            };
            for real in found.iter().flat_map(|service| &service.reals) {
                let mut draft = row(command::NEW_DEST);
                write::real(&mut draft, real);
                drafts.push(draft);
            }
        }
        command::GET_DAEMON => match listing(Query::SyncDaemons, ask)? {
            Listing::SyncDaemons(daemons) => {
                for daemon in &daemons {
                    let mut draft = row(command::NEW_DAEMON);
                    write::daemon(&mut draft, daemon);
                    drafts.push(draft);
                }
            }
            _ => return Err(libc::EPROTO),
        },
        _ => return Err(libc::EOPNOTSUPP),
    }
    Ok(drafts)
}

fn one_service(attributes: Attributes, mut draft: Draft, ask: &mut Ask) -> Result<Answer, Errno> {
    let service = attributes.nested(attr::SERVICE).ok_or(libc::EINVAL)?;
    let key = read::service_key(&service)?;
    let (_, found) = services(Query::Services(Some(key)), ask)?;
    write::service(&mut draft, found.first().ok_or(libc::ESRCH)?);
    Ok(Answer::One(draft))
}

fn info(mut draft: Draft, ask: &mut Ask) -> Result<Answer, Errno> {
    let Listing::Status(status) = listing(Query::Status, ask)? else {
        return Err(libc::EPROTO);
    };
    draft.word(INFO_VERSION, VERSION);
    draft.word(INFO_CONN_TAB_SIZE, status.table_size);
    Ok(Answer::One(draft))
}

fn config(mut draft: Draft, ask: &mut Ask) -> Result<Answer, Errno> {
    let Listing::Timeouts(timeouts) = listing(Query::Timeouts, ask)? else {
        return Err(libc::EPROTO);
    };
    draft.word(attr::TIMEOUT_TCP, timeouts.tcp_s);
    draft.word(attr::TIMEOUT_TCP_FIN, timeouts.tcp_fin_s);
    draft.word(attr::TIMEOUT_UDP, timeouts.udp_s);
    Ok(Answer::One(draft))
}

/// What a request asks to be done.
fn change(command: u8, attributes: Attributes, ask: &mut Ask) -> Result<Command, Errno> {
    let service = || attributes.nested(attr::SERVICE).ok_or(libc::EINVAL);
    let real = || attributes.nested(attr::DEST).ok_or(libc::EINVAL);
    let daemon = || attributes.nested(attr::DAEMON).ok_or(libc::EINVAL);
    Ok(match command {
        command::NEW_SERVICE => Command::AddService(read::service(&service()?)?.0),
        command::SET_SERVICE => edit_service(&service()?, ask)?,
        command::DEL_SERVICE => Command::DeleteService(read::service_key(&service()?)?),
        command::NEW_DEST | command::SET_DEST => {
            let service = read::service_key(&service()?)?;
            let real = read::real(&real()?, service.family())?;
            match command {
                command::NEW_DEST => Command::AddReal { service, real },
                _ => Command::EditReal { service, real },
            }
        }
        command::DEL_DEST => {
            let service = read::service_key(&service()?)?;
            let real = read::real_key(&real()?, service.family())?;
            Command::DeleteReal { service, real }
        }
        command::NEW_DAEMON => Command::StartSync(read::daemon(&daemon()?)?),
        command::DEL_DAEMON => Command::StopSync(read::role(&daemon()?)?),
        command::SET_CONFIG => Command::SetTimeouts(Timeouts {
            tcp_s: attributes.word(attr::TIMEOUT_TCP).unwrap_or(0),
            tcp_fin_s: attributes.word(attr::TIMEOUT_TCP_FIN).unwrap_or(0),
            udp_s: attributes.word(attr::TIMEOUT_UDP).unwrap_or(0),
        }),
        command::ZERO => match attributes.nested(attr::SERVICE) {
            Some(service) => Command::Zero(Some(read::service_key(&service)?)),
            None => Command::Zero(None),
        },
        command::FLUSH => Command::Flush,
        _ => return Err(libc::EOPNOTSUPP),
    })
}

/// Flags that the request does not speak of stay as they are.
fn edit_service(service: &Attributes, ask: &mut Ask) -> Result<Command, Errno> {
    let (mut spec, untouched) = read::service(service)?;
    if untouched != 0 {
        let (_, found) = services(Query::Services(Some(spec.key)), ask)?;
        let now = &found.first().ok_or(libc::ESRCH)?.spec;
        spec.flags = ServiceFlags(spec.flags.0 | now.flags.0 & untouched);
        if untouched & read::PERSISTENT != 0 {
            spec.persistence = now.persistence;
        }
    }
    Ok(Command::EditService(spec))
}

fn act(command: Command, ask: &mut Ask) -> Result<(), Errno> {
    match ask(Request::Do(command))? {
        Reply::Done => Ok(()),
        other => Err(refused(&other)),
    }
}

type Services = (u32, Vec<ulvs::config::command::ServiceRow>);

fn services(query: Query, ask: &mut Ask) -> Result<Services, Errno> {
    match listing(query, ask)? {
        Listing::Services {
            table_size,
            services,
        } => Ok((table_size, services)),
        _ => Err(libc::EPROTO),
    }
}

fn listing(query: Query, ask: &mut Ask) -> Result<Listing, Errno> {
    match ask(Request::Ask(query))? {
        Reply::Listing(listing) => Ok(listing),
        other => Err(refused(&other)),
    }
}

/// What the kernel would return: programs tell refusals apart by it.
fn refused(reply: &Reply) -> Errno {
    match reply {
        Reply::Refused(refusal) => errno(*refusal),
        Reply::Late(_) => libc::ETIMEDOUT,
        _ => libc::EPROTO,
    }
}

const fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::ServiceExists | Refusal::DestinationExists | Refusal::SyncRunning => libc::EEXIST,
        Refusal::NoSuchService | Refusal::ServiceNotDefined | Refusal::SyncNotRunning => {
            libc::ESRCH
        }
        Refusal::NoSuchDestination | Refusal::SchedulerNotFound | Refusal::UnknownTunable => {
            libc::ENOENT
        }
        Refusal::Invalid => libc::EINVAL,
        Refusal::OutOfRange => libc::ERANGE,
        Refusal::NoSuchDevice => libc::ENODEV,
        Refusal::NetworkUnreachable => libc::ENETUNREACH,
        Refusal::OutOfMemory => libc::ENOMEM,
        Refusal::NoLocalAddress => libc::EADDRNOTAVAIL,
    }
}
