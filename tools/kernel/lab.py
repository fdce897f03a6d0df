"""The laboratory inside the guest: directors of the real kernel, each in a network namespace of its
own with the network of tests/golden/README.md, raw sockets at the far ends of its two interfaces, and
what the kernel says of its tables. Nothing in here draws or decides anything.

The guest has one processor: a frame is carried to its end inside the call that sends it, so that what
comes out is nearly always known as soon as the call returns.
"""
import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import time
import traceback

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET = 0x40000000
ETH_P_ALL = 3
SOL_PACKET, PACKET_IGNORE_OUTGOING = 263, 23
SIOCETHTOOL, SIOCGIFFLAGS, IFF_RUNNING = 0x8946, 0x8913, 0x40
# Offloads by which a frame would look otherwise here than on a wire: SRXCSUM STXCSUM SSG STSO SGSO SGRO.
OFFLOADS = (0x15, 0x17, 0x19, 0x1F, 0x24, 0x2C)
SERVERS = range(10, 34)
CLIENTS = range(2, 10)
DISOWNED = " FFFF "

NETS = {
    "g": dict(client="10.0.0", vip="10.0.0.100", server="192.168.1",
              client6="fd00:c::", vip6="fd00:c::100", server6="fd00:5::"),
    "h": dict(client="10.9.8", vip="10.9.8.77", server="172.20.5",
              client6="fd09:8::", vip6="fd09:8::77", server6="fd20:5::"),
}
MAC_DIRECTOR = {"client": bytes.fromhex("020000000c01"), "server": bytes.fromhex("020000000501")}
MAC_GATEWAY = bytes.fromhex("020000000cfe")

SYSCTLS = {
    "net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1, "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv4/conf/default/rp_filter": 0, "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv4/conf/default/send_redirects": 0, "net/ipv4/conf/all/arp_ignore": 8,
    "net/ipv4/icmp_ratelimit": 0, "net/ipv6/icmp/ratelimit": 0,
    "net/ipv6/conf/default/accept_dad": 0, "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/router_solicitations": 0, "net/ipv6/conf/default/autoconf": 0,
    "net/ipv6/conf/default/addr_gen_mode": 1, "net/ipv6/conf/default/accept_ra": 0,
}


def mac_server(number):
    return bytes([2, 0, 0, 0, 5, number])


def mac_client(number):
    return bytes([2, 0, 0, 0, 12, number])


def number_of(server):
    """The number of the machine with this address."""
    return int(server.rpartition(":")[2], 16) if ":" in server else int(server.rpartition(".")[2])


def run(words, text=""):
    return subprocess.run(words, input=text, capture_output=True, text=True)


def write(path, value):
    with open("/proc/sys/" + path, "w") as file:
        file.write(str(value))


def read(path):
    with open("/proc/sys/" + path) as file:
        return file.read().strip()


def refused(path, value):
    """Why it cannot be written, if so."""
    try:
        write(path, value)
    except OSError as error:
        return error.strerror
    return None


def child(work):
    """A process that does this work. It comes after the kernel's own threads, which carry frames."""
    number = os.fork()
    if number:
        return number
    os.nice(5)
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def end_of(number):
    return os.waitstatus_to_exitcode(os.waitpid(number, 0)[1])


def write_if_there(path, value):
    try:
        write(path, value)
    except OSError:
        pass  # not every kernel has every one; what matters shows in the frames


def enter(namespace):
    if LIBC.setns(namespace, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def no_offloads(interface):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for what in OFFLOADS:
            value = ctypes.create_string_buffer(struct.pack("II", what, 0))
            request = struct.pack("16sP16x", interface.encode(), ctypes.addressof(value))
            try:
                fcntl.ioctl(asker, SIOCETHTOOL, request)
            except OSError:
                pass  # an offload that this interface never had


def wait_until_running(interface):
    """Before that, the queue of an interface drops what is sent, silently."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        for _ in range(500):
            answer = fcntl.ioctl(asker, SIOCGIFFLAGS, struct.pack("16s16x", interface.encode()))
            if struct.unpack("16xH", answer[:18])[0] & IFF_RUNNING:
                return
            time.sleep(0.01)
    raise RuntimeError(interface + " does not come up")


def prepare():
    """Once in a guest, before the first director."""
    done = run(["modprobe", "-a", "ipv6", "ip_vs", "ip_vs_lblc", "ip_vs_lblcr", "veth"])
    if done.returncode:
        raise RuntimeError(done.stderr)
    write("net/ipv6/conf/default/disable_ipv6", 1)  # the far ends are to be silent
    write("net/core/netdev_max_backlog", 100000)
    write("net/ipv4/icmp_msgs_per_sec", 1000000)
    write("net/ipv4/icmp_msgs_burst", 1000000)


class Director:
    """A director of the kernel's in its own namespace. `ready` is to be called before it is used:
    interfaces take a second to come up, and many can do so at the same time."""

    count = 0
    outside = None

    def __init__(self, net):
        if Director.outside is None:
            Director.outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        Director.count += 1
        self.net = NETS[net]
        self.far = {"client": "c%d" % Director.count, "server": "s%d" % Director.count}
        if LIBC.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "unshare")
        self.namespace = os.open("/proc/self/ns/net", os.O_RDONLY)
        for path, value in SYSCTLS.items():
            write_if_there(path, value)
        done = run(["ip", "-force", "-batch", "-"], self.wiring())
        if done.returncode:
            raise RuntimeError("ip: " + done.stderr)
        for interface in ("cl0", "rs0"):
            no_offloads(interface)
        enter(Director.outside)
        for interface in self.far.values():
            no_offloads(interface)
            run(["ip", "link", "set", interface, "up"])

    def wiring(self):
        net, lines = self.net, ["link set lo up"]
        for name, side in (("cl0", "client"), ("rs0", "server")):
            mac = MAC_DIRECTOR[side].hex(":")
            lines.append("link add %s mtu 1500 address %s type veth peer name %s mtu 9000 netns 1"
                         % (name, mac, self.far[side]))
            lines.append("link set %s up" % name)
        lines += ["addr add %s.1/24 dev cl0" % net["client"], "addr add %s/32 dev cl0" % net["vip"],
                  "addr add %s.1/24 dev rs0" % net["server"],
                  "addr add %s1/64 dev cl0 nodad" % net["client6"],
                  "addr add %s/128 dev cl0 nodad" % net["vip6"],
                  "addr add %s1/64 dev rs0 nodad" % net["server6"]]
        gateway, neighbour = MAC_GATEWAY.hex(":"), "neigh replace %s lladdr %s dev %s nud permanent"
        for number in CLIENTS:
            mac = mac_client(number).hex(":")
            lines.append(neighbour % ("%s.%d" % (net["client"], number), mac, "cl0"))
            lines.append(neighbour % ("%s%x" % (net["client6"], number), mac, "cl0"))
        for address in (net["client"] + ".254", net["client6"] + "fe"):
            lines.append("route add %s via %s dev cl0"
                         % ("::/0" if ":" in address else "default", address))
            lines.append(neighbour % (address, gateway, "cl0"))
        for number in SERVERS:
            mac = mac_server(number).hex(":")
            lines.append(neighbour % ("%s.%d" % (net["server"], number), mac, "rs0"))
            lines.append(neighbour % ("%s%x" % (net["server6"], number), mac, "rs0"))
        return "\n".join(lines) + "\n"

    def ready(self):
        enter(Director.outside)
        self.sockets = {}
        for side, interface in self.far.items():
            wait_until_running(interface)
            far = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
            far.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            far.bind((interface, ETH_P_ALL))
            far.setblocking(False)
            self.sockets[side] = far
        enter(self.namespace)
        for interface in ("cl0", "rs0"):
            wait_until_running(interface)
        self.drain()

    def drain(self):
        """Everything that came out since the last time, as (side, frame), without the chatter of
        ARP, IGMP and neighbour discovery."""
        frames = []
        for side, far in self.sockets.items():
            while True:
                try:
                    frame = far.recv(70000)
                except BlockingIOError:
                    break
                if not is_chatter(frame):
                    frames.append((side, frame))
        return frames

    def send(self, side, frame, waits=4):
        """What came out because of this frame, waited for so often."""
        self.sockets[side].send(frame)
        frames = self.drain()
        # Now and then the kernel leaves a frame to its own thread.
        for _ in range(waits):
            if frames:
                break
            time.sleep(0.002)
            frames = self.drain()
        return frames

    def ipvsadm(self, words, text=""):
        return run(["ipvsadm"] + words, text)

    def services(self):
        """Per service its line and its servers, in the kernel's own order."""
        listed = []
        with open("/proc/thread-self/net/ip_vs") as file:
            lines = file.read().splitlines()[3:]
        for line in lines:
            words = line.split()
            if words[:1] == ["->"]:
                row = [endpoint(*words[1].rsplit(":", 1))] + [int(words[at]) for at in (3, 4, 5)]
                listed[-1][1].append(row)
            elif words:
                listed.append([" ".join(words), []])
        return listed

    def stable(self, path, wanted):
        """The lines in which `wanted` stands. The kernel tells a long table a page at a time and
        counts its way back, so that entries of other namespaces that come or go meanwhile double or
        hide some of ours: what two looks agree on is true."""
        def look():
            with open(path) as file:
                lines = [line for line in file.read().splitlines()[1:] if wanted in line]
            # Only of templates that were disowned, whose port is 65535, can there be two alike.
            twins = [line for line in lines if DISOWNED in line]
            return sorted(twins + list({line for line in lines if DISOWNED not in line}))

        def same(one, other):
            # Seconds, the last word, may have moved on.
            return one == other or [line[:80] for line in one] == [line[:80] for line in other]
        last = look()
        for _ in range(5):
            lines = look()
            if same(lines, last):
                break
            last = lines
        return lines

    def entries(self, client=None):
        """The connection table, or what in it belongs to this client (address, port)."""
        # Most lines are other clients': only those that may be wanted are read word by word.
        wanted = "%s %04X" % (in_hexadecimal(client[0]), client[1]) if client else ""
        rows = []
        for line in self.stable("/proc/thread-self/net/ip_vs_conn", wanted):
            words = line.split()
            row = dict(proto=words[0], client=endpoint(words[1], words[2]),
                       virtual=endpoint(words[3], words[4]), dest=endpoint(words[5], words[6]),
                       state=words[7], expires=int(words[8]))
            if len(words) > 9:
                row["pe"] = words[9:11]
            if not client or row["client"] == name(*client):
                rows.append(row)
        return rows


def is_chatter(frame):
    kind = frame[12:14]
    if kind == b"\x08\x00":
        return frame[23] == 2
    if kind == b"\x86\xdd":
        return frame[0] == 0x33 or frame[20] == 58 and frame[54] in (133, 134, 135, 136, 143)
    return True


def name(address, port):
    return ("[%s]:%d" if ":" in address else "%s:%d") % (address, port)


def in_hexadecimal(address):
    """An address as the kernel's tables write it."""
    if ":" in address:
        groups = struct.unpack("!8H", socket.inet_pton(socket.AF_INET6, address))
        return ":".join("%04x" % group for group in groups)
    return socket.inet_aton(address).hex().upper()


def endpoint(address, port):
    """The kernel's hexadecimal words as address:port."""
    address = address.strip("[]")
    if ":" in address:
        raw = bytes.fromhex(address.replace(":", ""))
        return name(socket.inet_ntop(socket.AF_INET6, raw), int(port, 16))
    return name(socket.inet_ntoa(bytes.fromhex(address)), int(port, 16))
