"""Draws a configuration and packets from a seed, for the comparison of frames: every way of forwarding,
both families and across them, and whatever can be wrong with a packet. What is drawn does not depend on
what the kernel answers; what a server says or an ICMP error quotes does."""
import os
import random

from frames import ICMP, SCTP, TCP, UDP
from lab import NETS, number_of

# Of user-mode Linux 6.1.176 alone, mended in 6.1.192: ICMPv6 errors about LVS-NAT are lost, and what
# routers say of GUE and GRE envelopes is told on without counting the envelope.
OLD = os.uname().release == "6.1.176"
PROTOCOL_WORDS = {TCP: "-t", UDP: "-u", SCTP: "--sctp-service"}
PROTOCOL_NAMES = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
GUE_PORT = 6080
# The ways of forwarding: name, ipvsadm's words, bytes of the envelope behind the outer IP header.
METHODS = {
    "masq": (["-m"], 0),
    "dr": (["-g"], 0),
    "ipip": (["-i"], 0),
    "gue": (["-i", "--tun-type", "gue", "--tun-port", str(GUE_PORT)], 12),
    "gue-csum": (["-i", "--tun-type", "gue", "--tun-port", str(GUE_PORT), "--tun-csum"], 12),
    "gue-remcsum": (["-i", "--tun-type", "gue", "--tun-port", str(GUE_PORT), "--tun-remcsum"], 12),
    "gre": (["-i", "--tun-type", "gre"], 4),
    "gre-csum": (["-i", "--tun-type", "gre", "--tun-csum"], 8),
}
METHOD_SHARES = {"masq": 7, "dr": 4, "ipip": 3, "gue": 2, "gue-csum": 2, "gue-remcsum": 1, "gre": 2,
                 "gre-csum": 2, "bypass": 1.5, "local": 1.5}
PORTS = [80, 443, 53, 8080, 5060, 21000]
REAL_PORTS = [8000, 9090]
# Sysctls that change frames, or must not.
SYSCTLS = {
    "nat_icmp_send": [0, 1, 1], "snat_reroute": [0, 1], "pmtu_disc": [0, 1], "sloppy_tcp": [0, 1],
    "sloppy_sctp": [0, 1], "schedule_icmp": [0, 1, 1], "cache_bypass": [0, 1, 1],
    "expire_nodest_conn": [0, 1], "ignore_tunneled": [0, 1],
    "expire_quiescent_template": [0, 1],
}
MTUS = [1500, 1500, 1500, 1499, 1400, 1300, 1281, 1280, 1000, 600, 576, 300]
FLAGS = ["A", "PA", "PA", "PA", "FA", "R", "RA", "SA", "S", "F", "", "SF", "U", "PAU", "SE", "FSRPAUEC"]
CHUNKS = [0, 0, 0, 3, 10, 11, 2, 7, 14, 6, 4, 9, 1, 200]
# Every part of an IPv4 header may have options; the last ones are wrong.
OPTIONS = [
    b"\x01\x01\x01\x01", b"\x00\x00\x00\x00", b"\x94\x04\x00\x00", b"\x94\x04\x12\x34",
    b"\x07\x07\x04\x00\x00\x00\x00\x00", b"\x07\x0b\x08\x01\x02\x03\x04\x00\x00\x00\x00\x00",
    b"\x07\x07\x08\x01\x02\x03\x04\x00", b"\x44\x0c\x05\x00" + bytes(8), b"\x44\x0c\x0d\x00" + bytes(8),
    b"\x44\x0c\x05\x01" + bytes(8), b"\x82\x0b\x00\x00" + bytes(8), b"\x1e\x04\x12\x34",
    b"\x83\x07\x04\x0a\x00\x00\x01\x00", b"\x89\x07\x04\x0a\x00\x00\x01\x00",
    b"\x83\x07\x08\x0a\x00\x00\x01\x00", b"\x89\x07\x08\x0a\x00\x00\x01\x00",
    b"\x07\x03\x04\x00", b"\x07\x00\x00\x00", b"\x44\x02\x05\x00", b"\x94\x03\x00\x00", b"\x94\x28\x00\x00",
    b"\x07\x07\x03\x00\x00\x00\x00\x00", b"\x44\x0c\x05\x02" + bytes(8), b"\x01\x01\x01\x07",
]
# Extension headers of IPv6: number and bytes, the first of which names what follows.
EXTENSIONS = [
    (0, b"\x00\x00\x01\x04\x00\x00\x00\x00"), (0, b"\x00\x00\x05\x02\x00\x00\x01\x00"),
    (60, b"\x00\x00\x01\x04\x00\x00\x00\x00"), (60, b"\x00\x01\x1e\x0c" + bytes(12)),
    (43, b"\x00\x00\x00\x00\x00\x00\x00\x00"), (43, b"\x00\x02\x00\x00" + bytes(20)),
]
ERRORS4 = [(3, 0), (3, 1), (3, 2), (3, 3), (3, 4), (3, 4), (3, 4), (3, 13), (11, 0), (11, 1), (4, 0),
           (5, 1), (12, 0), (3, 200), (40, 0)]
ERRORS6 = [(1, 0), (1, 1), (1, 3), (1, 4), (2, 0), (2, 0), (2, 0), (3, 0), (3, 1), (4, 0), (4, 1), (4, 2),
           (100, 0), (127, 0), (1, 200)]
TOLD_MTUS = [1500, 1400, 1300, 1280, 1000, 600, 576, 552, 500, 300, 100, 68, 40, 1, 0, 1481, 9000, 65535]


class Service:
    def __init__(self, number, family, protocol, method):
        self.family, self.protocol, self.method = family, protocol, method
        self.port = PORTS[number]
        self.servers = []        # (address, port)
        self.mark, self.once = None, False
        self.address = None

    def words(self):
        if self.mark:
            return ["-f", str(self.mark)] + (["-6"] if self.family == 6 else [])
        return [PROTOCOL_WORDS[self.protocol], place(self.address, self.port)]

    def is_tunnelled(self):
        return METHODS.get(self.method, ("", 0))[0][:1] == ["-i"]

    def name(self):
        """What frames are counted by."""
        across = {family_of(server[0]) for server in self.servers} - {self.family}
        families = "v%d" % self.family + ("-in-v%d" % across.pop() if across else "")
        return "%s %s %s" % (self.method, families, PROTOCOL_NAMES[self.protocol])


def family_of(address):
    return 6 if ":" in address else 4


def place(address, port):
    return ("[%s]:%d" if ":" in address else "%s:%d") % (address, port)


class PacketDraw:
    # What a plain Recording asks of its draw.
    clock, tuned, defence = False, False, None

    def __init__(self, seed):
        self.random = random.Random("ulvs packets %d" % seed)
        self.net = self.random.choice("gh")
        self.six = self.chance(0.5)
        # Some seeds are about FTP alone.
        self.ftp = seed % 1000 >= 900
        self.mtu = {"client": 1500, "server": 1500}
        self.services = []
        self.tunnels = {}    # how each address is reached
        self.ident = self.random.randint(1, 60000)

    def chance(self, share):
        return self.random.random() < share

    def some_mtu(self):
        mtu = self.random.choice(MTUS)
        # A link that carries less carries no IPv6.
        return max(mtu, 1280) if self.six else mtu

    def draw_services(self):
        net = NETS[self.net]
        for number in range(self.random.choice([1, 2, 2, 3, 3, 4])):
            family = 6 if self.six and self.chance(0.65) else 4
            protocol = self.random.choice([TCP, TCP, UDP, UDP, UDP, SCTP])
            method = self.random.choices(list(METHOD_SHARES), list(METHOD_SHARES.values()))[0]
            service = Service(number, family, protocol, method)
            service.address = net["vip6"] if family == 6 else net["vip"]
            if method == "bypass" or method not in ("local", "masq") and self.chance(0.12):
                service.mark = 100 + number
                service.address = ("2001:db8:99:%d::%d" if family == 6 else "203.0.%d.%d") % (
                    112 + number, number + 7)
            self.draw_servers(service, net)
            self.services.append(service)

    def draw_servers(self, service, net):
        method = service.method
        count = 0 if method == "bypass" and self.chance(0.8) else self.random.choice([1, 1, 2, 3])
        for machine in self.random.sample(range(10, 20), count):
            across = service.is_tunnelled() and self.six and self.chance(0.35)
            family = 10 - service.family if across else service.family
            if method == "local":
                address = self.own_address(net, family)
            elif service.is_tunnelled() and self.chance(0.2):
                # Behind a router: machine 20.
                address = ("fd77::%x" if family == 6 else "172.31.7.%d") % machine
            else:
                address = ("%s%x" if family == 6 else "%s.%d") % (
                    net["server6" if family == 6 else "server"], machine)
            port = service.port
            if method == "masq" and not service.mark and self.chance(0.5):
                port = self.random.choice(REAL_PORTS)
            # Of several tunnels to one address the kernel knows the errors about one, and what it learned
            # of a tunnel's way may count for LVS-DR (docs/differences.md).
            first = self.tunnels.setdefault(address, method)
            direct = method == "dr" and METHODS.get(first, ([""], 0))[0][0] == "-i"
            taken = first != method and (service.is_tunnelled() or direct)
            if not taken and (address, port) not in service.servers:
                service.servers.append((address, port))

    def own_address(self, net, family):
        side = self.random.choice(["client", "server"])
        return net[side + "6"] + "1" if family == 6 else net[side] + ".1"

    def method_words(self, service):
        if service.method == "local":
            words = [self.random.choice(["-m", "-g", "-i"])]
            return ["-g"] if OLD and service.family == 6 else words
        if service.method == "bypass":
            return [self.random.choice(["-m", "-g"])]
        return METHODS[service.method][0]

    def client(self, family):
        draw, net = self.random.randint, NETS[self.net]
        if self.chance(0.1):
            near = draw(2, 9)
            return "%s%x" % (net["client6"], near) if family == 6 else "%s.%d" % (net["client"], near)
        if family == 6:
            return "2001:db8:%x:%x::%x" % (draw(1, 0x70), draw(1, 0xFFFF), draw(1, 0xFFFF))
        return "%d.%d.%d.%d" % (draw(198, 202), draw(16, 31), draw(0, 255), draw(1, 254))

    def next_ident(self):
        self.ident = self.ident % 65000 + 1
        return self.ident

    def text(self, length):
        return self.random.getrandbits(8 * length).to_bytes(length, "big") if length else b""

    def length(self, head, limits):
        """How much a packet carries whose headers have `head` bytes: mostly little, often so much that
        it just fits one of these limits or just does not."""
        if self.chance(0.7):
            return self.random.choice([0, 1, 2, 3, 7, 8, 9, 20, 33, 64, 100])
        limit = self.random.choice(limits) + self.random.choice([-9, -8, -1, 0, 0, 1, 2, 8, 9, 40])
        return max(0, min(limit, max(limits)) - head)

    def hops(self):
        return self.random.choices([64, 1, 2, 0, 255, 128, 3], [70, 5, 4, 1, 3, 3, 1])[0]

    def options(self, may_be_written):
        """Options of IPv4; only where that is said such as routers write into."""
        data = self.random.choice(OPTIONS)
        if data[:1] in (b"\x44", b"\x07") and not may_be_written:
            data = OPTIONS[0]
        return data + b"\x00" * (-len(data) % 4)

    def extensions(self):
        headers = [self.random.choice(EXTENSIONS) for _ in range(self.random.choice([1, 1, 1, 2, 3]))]
        # Hop-by-hop options come first or not at all (RFC 8200 section 4.1).
        first = [header for header in headers if header[0] == 0][:1]
        return first + [header for header in headers if header[0] != 0]

    def some_bytes_wrong(self, data):
        """A packet with one or two bytes changed."""
        data = bytearray(data)
        for _ in range(self.random.choice([1, 1, 2])):
            data[self.random.randrange(min(len(data), 60))] = self.random.choice(
                [0, 1, 255, self.random.getrandbits(8)])
        return bytes(data)
