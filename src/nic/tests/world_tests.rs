//! The world these tests run in: a child process with network namespaces of its own, veth pairs
//! between them, and nothing of the machine's network. Made by raw netlink, gone with the child.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Mutex;

use crate::nic::netlink::{Message, Netlink};
use crate::nic::sys::check;
use crate::wire::Mac;

/// A test may take this long before the kernel ends it.
const TEST_SECONDS_MAX: u32 = 60;
/// Exit status of a child that could not make its world.
const SKIPPED: i32 = 77;

/// Who the child is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum User {
    /// As the test runs; if that is not root, root of a user namespace.
    Same,
    /// An ordinary user, root of a user namespace of its own.
    Nobody,
}

/// Runs `body` in a child process with a fresh network namespace. Fails the test if it panics;
/// prints why and passes if namespaces are refused.
pub fn in_world(user: User, body: fn()) {
    // One child at a time: a fork copies what other tests hold open.
    static ALONE: Mutex<()> = Mutex::new(());
    let alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    // SAFETY: the child runs only this function and leaves by `_exit`.
    let child = unsafe { libc::fork() };
    assert!(child >= 0, "fork: {}", io::Error::last_os_error());
    if child == 0 {
        live(user, body);
    }
    let mut status = 0;
    // SAFETY: waits for our own child; `status` is an int.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    drop(alone);
    let code = libc::WIFEXITED(status).then(|| libc::WEXITSTATUS(status));
    match code {
        // The child has said why it skipped.
        Some(0 | SKIPPED) => {}
        _ => panic!("the test failed in its child process (status {status:#x}), see above"),
    }
}

fn live(user: User, body: fn()) -> ! {
    std::panic::set_hook(Box::new(|info| say(&format!("{info}\n"))));
    // SAFETY: plain calls on our own process: it ends with its parent, and after a while.
    unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        libc::alarm(TEST_SECONDS_MAX);
    }
    let code = match make_world(user) {
        Err(error) => {
            say(&format!(
                "skipped: network namespaces are refused here: {error}\n"
            ));
            SKIPPED
        }
        Ok(()) => i32::from(std::panic::catch_unwind(body).is_err()),
    };
    // SAFETY: ends the process without running what belongs to the parent.
    unsafe { libc::_exit(code) }
}

/// Ends the test, which cannot be done here.
pub fn skip(reason: &str) -> ! {
    say(&format!("skipped: {reason}\n"));
    // SAFETY: ends the process without running what belongs to the parent.
    unsafe { libc::_exit(SKIPPED) }
}

/// Straight to the terminal: the harness's capture is not carried over a fork.
fn say(text: &str) {
    // SAFETY: writes bytes that live through the call.
    unsafe { libc::write(2, text.as_ptr().cast(), text.len()) };
}

fn make_world(user: User) -> io::Result<()> {
    // SAFETY: plain calls on our own process, which has a single thread.
    unsafe {
        let before = space_number()?;
        if user == User::Nobody && libc::geteuid() == 0 {
            check(libc::setgroups(0, std::ptr::null()))?;
            check(libc::setresgid(65534, 65534, 65534))?;
            check(libc::setresuid(65534, 65534, 65534))?;
            // A process that changed its user may not write its own maps otherwise.
            check(libc::prctl(libc::PR_SET_DUMPABLE, 1))?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        }
        let (uid, gid) = (libc::geteuid(), libc::getegid());
        if uid == 0 {
            check(libc::unshare(libc::CLONE_NEWNET))?;
        } else {
            check(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNET))?;
            std::fs::write("/proc/self/setgroups", "deny")?;
            std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
            std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))?;
        }
        assert_ne!(before, space_number()?, "still in the machine's namespace");
    }
    quieten_ipv6();
    Ok(())
}

fn space_number() -> io::Result<u64> {
    Ok(std::fs::metadata("/proc/thread-self/ns/net")?.ino())
}

/// No router solicitations, no duplicate address detection: the tests count frames.
fn quieten_ipv6() {
    for which in ["all", "default"] {
        let path = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        let _ = std::fs::write(path, "1");
    }
}

/// A network namespace.
pub struct Space {
    fd: OwnedFd,
}

impl Space {
    /// A fresh one.
    pub fn new() -> Space {
        let make = || {
            let before = space_number().unwrap();
            // SAFETY: changes the namespace of this thread only, which ends right after.
            check(unsafe { libc::unshare(libc::CLONE_NEWNET) }).unwrap();
            assert_ne!(before, space_number().unwrap());
            quieten_ipv6();
            File::open("/proc/thread-self/ns/net").unwrap()
        };
        let file = std::thread::scope(|scope| scope.spawn(make).join().unwrap());
        let space = Space { fd: file.into() };
        space.enter(|| link_up("lo"));
        space
    }

    /// Runs `body` on a thread inside.
    pub fn enter<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let go = || {
            self.come_in();
            body()
        };
        std::thread::scope(|scope| scope.spawn(go).join().expect("the thread inside panicked"))
    }

    /// Moves the calling thread inside.
    pub fn come_in(&self) {
        // SAFETY: changes the namespace of the calling thread only.
        check(unsafe { libc::setns(self.fd.as_raw_fd(), libc::CLONE_NEWNET) }).unwrap();
    }
}

/// A veth pair between two namespaces, both ends up.
pub fn veth(a: &Space, a_name: &str, b: &Space, b_name: &str) {
    a.enter(|| {
        let mut message = link_message(libc::RTM_NEWLINK, 0, libc::NLM_F_CREATE, 0);
        message.text(libc::IFLA_IFNAME, a_name);
        message.put(libc::IFLA_ADDRESS, &mac_of(a_name).0);
        message.nest(libc::IFLA_LINKINFO, |info| {
            info.text(libc::IFLA_INFO_KIND, "veth");
            info.nest(libc::IFLA_INFO_DATA, |data| {
                // VETH_INFO_PEER: an ifinfomsg, then attributes of the other end.
                data.nest(1, |peer| {
                    peer.raw(&[0; 16]);
                    peer.text(libc::IFLA_IFNAME, b_name);
                    peer.put(libc::IFLA_ADDRESS, &mac_of(b_name).0);
                    peer.native(libc::IFLA_NET_NS_FD, b.fd.as_raw_fd() as u32);
                });
            });
        });
        route_request(message);
    });
    a.enter(|| link_up(a_name));
    b.enter(|| link_up(b_name));
}

/// A MAC address made out of the interface's name.
pub fn mac_of(name: &str) -> Mac {
    let mut mac = [2, 0, 0, 0, 0, 0];
    for (to, from) in mac[1..].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    Mac(mac)
}

pub fn link_up(name: &str) {
    set_link(name, libc::IFF_UP);
}

pub fn link_down(name: &str) {
    set_link(name, 0);
}

pub fn link_delete(name: &str) {
    let index = crate::nic::sys::interface_index(name).unwrap();
    route_request(link_message(libc::RTM_DELLINK, index, 0, 0));
}

fn set_link(name: &str, flags: i32) {
    let index = crate::nic::sys::interface_index(name).unwrap();
    route_request(link_message(libc::RTM_NEWLINK, index, 0, flags));
}

pub fn set_mtu(name: &str, mtu: u32) {
    change_link(name, libc::IFLA_MTU, mtu);
}

/// Makes an interface part of a bridge.
pub fn set_master(name: &str, master: &str) {
    let master = crate::nic::sys::interface_index(master).unwrap();
    change_link(name, libc::IFLA_MASTER, master);
}

fn change_link(name: &str, attribute: u16, value: u32) {
    let index = crate::nic::sys::interface_index(name).unwrap();
    let mut message = link_message(libc::RTM_NEWLINK, index, 0, libc::IFF_UP);
    message.native(attribute, value);
    route_request(message);
}

/// A bridge; false if the kernel has none.
pub fn add_bridge(name: &str) -> bool {
    let mut message = link_message(libc::RTM_NEWLINK, 0, libc::NLM_F_CREATE, 0);
    message.text(libc::IFLA_IFNAME, name);
    message.nest(libc::IFLA_LINKINFO, |info| {
        info.text(libc::IFLA_INFO_KIND, "bridge");
    });
    let mut socket = Netlink::open(libc::NETLINK_ROUTE).unwrap();
    socket.request(message).is_ok()
}

fn link_message(kind: u16, index: u32, message_flags: i32, flags: i32) -> Message {
    let mut fixed = [0; 16];
    fixed[4..8].copy_from_slice(&index.to_ne_bytes());
    fixed[8..12].copy_from_slice(&flags.to_ne_bytes());
    fixed[12..16].copy_from_slice(&libc::IFF_UP.to_ne_bytes());
    Message::new(kind, message_flags, &fixed)
}

/// Adds an address to an interface; it is in force at once.
pub fn add_address(name: &str, address: impl Into<IpAddr>, prefix_len: u8) {
    address_request(libc::RTM_NEWADDR, name, address.into(), prefix_len);
}

/// Takes an address from an interface.
pub fn delete_address(name: &str, address: impl Into<IpAddr>, prefix_len: u8) {
    address_request(libc::RTM_DELADDR, name, address.into(), prefix_len);
}

fn address_request(kind: u16, name: &str, address: IpAddr, prefix_len: u8) {
    let index = crate::nic::sys::interface_index(name).unwrap();
    let (family, bytes) = match address {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut fixed = vec![family as u8, prefix_len, libc::IFA_F_NODAD as u8, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let mut message = Message::new(kind, libc::NLM_F_CREATE, &fixed);
    message.put(libc::IFA_LOCAL, &bytes);
    message.put(libc::IFA_ADDRESS, &bytes);
    route_request(message);
}

/// A neighbour that need not be asked.
pub fn add_neighbour(interface: &str, address: impl Into<IpAddr>, mac: Mac) {
    let index = crate::nic::sys::interface_index(interface).unwrap();
    let (family, bytes) = match address.into() {
        IpAddr::V4(address) => (libc::AF_INET, address.octets().to_vec()),
        IpAddr::V6(address) => (libc::AF_INET6, address.octets().to_vec()),
    };
    let mut fixed = vec![family as u8, 0, 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    fixed.extend_from_slice(&libc::NUD_PERMANENT.to_ne_bytes());
    fixed.extend_from_slice(&[0, 0]);
    let mut message = Message::new(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE, &fixed);
    message.put(libc::NDA_DST, &bytes);
    message.put(libc::NDA_LLADDR, &mac.0);
    route_request(message);
}

fn route_request(message: Message) {
    let mut socket = Netlink::open(libc::NETLINK_ROUTE).unwrap();
    if let Err(refused) = socket.request(message) {
        panic!("netlink: {refused}");
    }
}

/// `ethtool -K interface tso on|off`
pub fn set_tcp_segmentation(interface: &str, on: bool) {
    const ETHTOOL_STSO: u32 = 0x1f;
    set_offload(interface, ETHTOOL_STSO, on);
}

/// `ethtool -K interface tx on|off`: without it the device finishes no sum, and so cuts nothing.
pub fn set_checksumming(interface: &str, on: bool) {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    set_offload(interface, ETHTOOL_STXCSUM, on);
}

fn set_offload(interface: &str, command: u32, on: bool) {
    let mut value = [command, u32::from(on)];
    let socket = crate::nic::sys::socket(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
    let mut request = crate::nic::sys::request_for(interface).unwrap();
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the request holds a name and points at an `ethtool_value`.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) }).unwrap();
}

/// Kills a process that runs `body` in this namespace, without giving it a chance to clean up.
pub fn killed(body: fn()) {
    // SAFETY: the child runs only this function and is killed; it is waited for.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0, "fork: {}", io::Error::last_os_error());
        if child == 0 {
            let result = std::panic::catch_unwind(body);
            let signal = if result.is_ok() {
                libc::SIGKILL
            } else {
                libc::SIGTERM
            };
            libc::kill(libc::getpid(), signal);
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        assert!(libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGKILL);
    }
}

/// Writes a sysctl of the calling thread's namespace.
pub fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/{}", name.replace('.', "/"));
    std::fs::write(&path, value).unwrap_or_else(|error| panic!("{path}: {error}"));
}
