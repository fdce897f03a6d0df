//! The AF_PACKET receive socket that both packet backends share: its options, its filter, its place
//! in the fanout group, and how it lives through an interface that goes down, goes away and comes
//! back. See packet(7) and `net/packet/af_packet.c`.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::error::{OpenErrorKind, no_such_interface};
use super::{OpenError, OpenOptions, steer, sys};
use crate::wire::{FrameMeta, NicError};

const ETH_P_ALL: u16 = libc::ETH_P_ALL as u16;
const ETHERNET_ADDRESSES_LEN: usize = 12;
const VLAN_TAG_LEN: usize = 4;
const ETH_P_8021Q: u16 = 0x8100;

/// What to do to a fresh socket before it is bound: make a ring, for instance.
pub(super) type Prepare<T> = fn(&OwnedFd, &OpenOptions) -> Result<T, OpenError>;

/// A receive socket and what is known of its interface.
#[derive(Debug)]
pub(super) struct RxSocket {
    fd: OwnedFd,
    options: OpenOptions,
    health: Health,
    overrun: u64,
}

/// How the interface does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Fine,
    /// The kernel said that it went down; asked again at each fill until it is up.
    Down,
    /// It no longer exists; its name is looked for at each fill.
    Gone,
}

impl RxSocket {
    /// Opens and binds; `prepare` runs before the first frame can arrive.
    pub fn open<T>(options: &OpenOptions, prepare: Prepare<T>) -> Result<(RxSocket, T), OpenError> {
        let (fd, health, made) = open_socket(options, prepare)?;
        let socket = RxSocket {
            fd,
            options: options.clone(),
            health,
            overrun: 0,
        };
        Ok((socket, made))
    }

    /// The descriptor; its number never changes.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// What to wait on.
    pub fn raw_fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// The socket told `errno`, perhaps 0; `check` then says what became of the interface.
    pub fn note(&mut self, errno: i32) {
        if matches!(errno, libc::ENETDOWN | libc::ENXIO | libc::ENODEV) {
            self.health = Health::Down;
        }
    }

    /// Asks how an interface does that was in trouble. Costs nothing where none was.
    pub fn check(&mut self) -> Result<(), NicError> {
        match self.health {
            Health::Fine => return Ok(()),
            Health::Gone => return Err(NicError::Gone),
            Health::Down => {}
        }
        let index = sys::bound_index(&self.fd).unwrap_or(-1);
        let Ok(index) = u32::try_from(index) else {
            self.health = Health::Gone;
            self.leave();
            return Err(NicError::Gone);
        };
        // By its number: it may have been renamed.
        match sys::interface_flags(&self.fd, index) {
            Ok(flags) if flags & libc::IFF_UP != 0 => {
                self.health = Health::Fine;
                Ok(())
            }
            _ => Err(NicError::Down),
        }
    }

    /// Did the interface go away?
    pub fn is_gone(&self) -> bool {
        self.health == Health::Gone
    }

    /// Binds anew if an interface of this name exists again.
    pub fn rejoin<T>(&mut self, prepare: Prepare<T>) -> Result<T, NicError> {
        if sys::interface_index(&self.options.interface).is_none() {
            return Err(NicError::Gone);
        }
        let opened = open_socket(&self.options, prepare);
        // It may exist but not be up yet, which a fanout group does not accept.
        let (fd, health, made) = opened.map_err(|_| NicError::Gone)?;
        sys::replace(&self.fd, fd).map_err(|error| NicError::Errno(sys::errno(&error)))?;
        self.health = health;
        Ok(made)
    }

    /// Frames the kernel dropped because the ring or the buffer was full, since opened.
    pub fn overrun(&mut self) -> u64 {
        let name = libc::PACKET_STATISTICS;
        // Reading it sets the kernel's count back to zero.
        let statistics: io::Result<libc::tpacket_stats> =
            sys::get_option(&self.fd, libc::SOL_PACKET, name);
        self.overrun += statistics.map_or(0, |statistics| u64::from(statistics.tp_drops));
        self.overrun
    }

    /// Gives the old socket up, and with it the place in a fanout group that is tied to the old
    /// interface: no worker could join a new group of that number while one remains in the old. The
    /// descriptor's number goes on to stand for a socket that never has anything.
    fn leave(&mut self) {
        self.overrun();
        let mute = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
        if let Ok(mute) = mute {
            // Its failure would leave the old socket, which is as mute.
            let _ = sys::replace(&self.fd, mute);
        }
    }
}

fn open_socket<T>(
    options: &OpenOptions,
    prepare: Prepare<T>,
) -> Result<(OwnedFd, Health, T), OpenError> {
    let name = &options.interface;
    let failed = |doing: &'static str| move |error| OpenError::packet(doing, name, &error);
    let index = sys::interface_index(name).ok_or_else(|| no_such_interface(name))?;
    // Protocol 0: nothing arrives before everything is in place and bind() names a protocol.
    let fd = sys::socket(libc::AF_PACKET, libc::SOCK_RAW, 0)
        .map_err(failed("open an AF_PACKET socket"))?;
    let set = |option, value: i32| sys::set_option(&fd, libc::SOL_PACKET, option, &value);
    set(libc::PACKET_VNET_HDR, 1).map_err(failed("switch vnet headers on (PACKET_VNET_HDR)"))?;
    set(libc::PACKET_IGNORE_OUTGOING, 1)
        .map_err(failed("keep our own frames out (PACKET_IGNORE_OUTGOING)"))?;
    set_buffer(&fd, Buffer::Receive, options.receive_buffer_bytes)
        .map_err(failed("set the receive buffer"))?;
    let filter = |program: &[libc::sock_filter]| {
        sys::set_program(&fd, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
            .map_err(failed("attach a filter"))
    };
    let is_shared = options.workers > 1;
    let wanted = wanted_frames(options.foreign_macs);
    // Between binding and joining the group, a socket would get what another worker gets, too.
    let nothing = [steer::op::give_back(0)];
    filter(if is_shared { &nothing } else { &wanted })?;
    let made = prepare(&fd, options)?;
    sys::bind_packet(&fd, index, ETH_P_ALL).map_err(failed("bind an AF_PACKET socket"))?;
    // Neighbour discovery asks groups that only the director knows to be in. Where the interface cannot
    // take all groups it takes those it can.
    let groups = libc::packet_mreq {
        mr_ifindex: index.cast_signed(),
        mr_type: libc::PACKET_MR_ALLMULTI as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    let _ = sys::set_option(&fd, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &groups);
    // The kernel leaves an error behind when the interface is down; it is no reason not to start.
    let down = sys::take_error(&fd) == libc::ENETDOWN;
    if is_shared {
        let group = options
            .fanout_group
            .unwrap_or_else(|| steer::default_group(index));
        steer::join(&fd, group, options.side)
            .map_err(|error| fanout_error(options, group, down, &error))?;
        filter(&wanted)?;
    }
    let health = if down { Health::Down } else { Health::Fine };
    Ok((fd, health, made))
}

fn fanout_error(options: &OpenOptions, group: u16, down: bool, error: &io::Error) -> OpenError {
    let name = &options.interface;
    if down {
        let doing = format!("cannot share interface `{name}` between workers while it is down");
        let advice = format!("bring it up: ip link set {name} up");
        return OpenError::new(OpenErrorKind::Down, &doing, &advice);
    }
    if sys::errno(error) == libc::EINVAL {
        let doing = format!("cannot join fanout group {group} on interface `{name}`: {error}");
        let advice = "another program may use this group on another interface: choose another one";
        return OpenError::new(OpenErrorKind::System(libc::EINVAL), &doing, advice);
    }
    OpenError::packet("join a fanout group", name, error)
}

/// Which of a socket's two buffers.
#[derive(Clone, Copy, Debug)]
pub(super) enum Buffer {
    Receive,
    Send,
}

/// Asks for a socket buffer: beyond the machine's limit if permitted, otherwise up to it.
pub(super) fn set_buffer(fd: &OwnedFd, which: Buffer, bytes: usize) -> io::Result<()> {
    let (force, polite) = match which {
        Buffer::Receive => (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
        Buffer::Send => (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
    };
    let bytes = i32::try_from(bytes / 2).unwrap_or(i32::MAX / 2);
    sys::set_option(fd, libc::SOL_SOCKET, force, &bytes)
        .or_else(|_| sys::set_option(fd, libc::SOL_SOCKET, polite, &bytes))
}

/// Without `foreign_macs`, drops what is addressed to another machine's MAC address: a switch floods
/// such frames, and to forward them would double them.
fn wanted_frames(foreign_macs: bool) -> [libc::sock_filter; 4] {
    use steer::op::*;
    let kind = (libc::SKF_AD_OFF + libc::SKF_AD_PKTTYPE) as u32;
    let foreign = if foreign_macs { u32::MAX } else { 0 };
    [
        load_word(kind),
        jump_if(libc::PACKET_OTHERHOST as u32, 0, 1),
        give_back(foreign),
        give_back(u32::MAX),
    ]
}

/// A VLAN tag that the kernel took out of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct VlanTag {
    pub tpid: u16,
    pub tci: u16,
}

impl VlanTag {
    /// Out of the status bits and the two fields beside a frame (auxiliary data or ring slot).
    pub fn from_status(status: u32, tpid: u16, tci: u16) -> Option<VlanTag> {
        let valid = status & libc::TP_STATUS_VLAN_VALID != 0;
        let tpid_valid = status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
        let tpid = if tpid_valid { tpid } else { ETH_P_8021Q };
        valid.then_some(VlanTag { tpid, tci })
    }

    /// Puts it back between the addresses and the EtherType; the frame grows to the front.
    pub fn put_back(self, buffer: &mut [u8], meta: &mut FrameMeta) {
        let start = meta.start as usize;
        if start < VLAN_TAG_LEN || (meta.end as usize) < start + ETHERNET_ADDRESSES_LEN {
            return;
        }
        let moved = start - VLAN_TAG_LEN;
        buffer.copy_within(start..start + ETHERNET_ADDRESSES_LEN, moved);
        let tag = moved + ETHERNET_ADDRESSES_LEN;
        buffer[tag..tag + 2].copy_from_slice(&self.tpid.to_be_bytes());
        buffer[tag + 2..tag + 4].copy_from_slice(&self.tci.to_be_bytes());
        meta.start = moved as u32;
        meta.offload.shift(VLAN_TAG_LEN as i32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Offload;

    #[test]
    fn a_tag_goes_back_where_it_was() {
        let mut buffer: Vec<u8> = (0..40).collect();
        let mut meta = FrameMeta {
            start: 8,
            end: 40,
            offload: Offload::partial(34, 16),
            ..FrameMeta::default()
        };
        let tag = VlanTag::from_status(libc::TP_STATUS_VLAN_VALID, 0, 0x2005).unwrap();
        tag.put_back(&mut buffer, &mut meta);
        let frame = &buffer[meta.start as usize..meta.end as usize];
        assert_eq!(frame[..12], (8..20).collect::<Vec<u8>>());
        assert_eq!(frame[12..16], [0x81, 0, 0x20, 5]);
        assert_eq!(frame[16..], (20..40).collect::<Vec<u8>>());
        assert_eq!(meta.offload.csum_start(), 38);
        assert_eq!(VlanTag::from_status(0, 0x88a8, 5), None);
    }

    #[test]
    fn a_frame_shorter_than_its_addresses_stays_as_it_is() {
        let mut buffer = vec![0; 40];
        let mut meta = FrameMeta {
            start: 8,
            end: 12,
            ..FrameMeta::default()
        };
        let tag = VlanTag { tpid: 1, tci: 1 };
        tag.put_back(&mut buffer, &mut meta);
        assert_eq!((meta.start, meta.end), (8, 12));
    }
}
