"""Draws a configuration and what happens to it from a seed: services, servers, edits, clients'
packets, answers, clock steps. The draws are the same whatever the kernel answers; only where a server
answers does it depend on whom the kernel had chosen."""
import random

from frames import SCTP, TCP, UDP

SCHEDULERS = ("rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh " * 3 + "none").split()
SCHEDULER_FLAGS = {"sh": ["sh-port", "sh-fallback", "sh-port,sh-fallback"],
                   "mh": ["mh-port", "mh-fallback", "mh-port,mh-fallback"]}
PROTOCOLS = {TCP: ("-t", "tcp"), UDP: ("-u", "udp"), SCTP: ("--sctp-service", "sctp")}
MASKS4 = ["255.255.255.255", "255.255.255.0", "255.255.0.0", "255.0.0.0", "255.255.255.240"]
MASKS6 = ["128", "64", "48", "120", "1"]
# Sysctls that change who is chosen or what is answered, more often than those that only could.
SYSCTL_VALUES = {
    "sloppy_tcp": [0, 1, 1], "sloppy_sctp": [0, 1, 1], "conn_reuse_mode": [0, 1, 2, 3],
    "expire_nodest_conn": [0, 1, 1], "expire_quiescent_template": [0, 1, 1],
    "nat_icmp_send": [0, 1, 1], "schedule_icmp": [0, 1, 1],
}
# Those that must change nothing here: the VIP is the host's own, no policy routing, no tunnelled
# errors, no synchronisation, memory enough.
SYSCTL_IDLE = {
    "cache_bypass": [0, 1], "snat_reroute": [0, 1], "ignore_tunneled": [0, 1], "backup_only": [0, 1],
    "run_estimation": [0, 1], "amemthresh": [0, 1, 1024], "drop_entry": [0, 1], "drop_packet": [0, 1],
    "secure_tcp": [0, 1], "am_droprate": [1, 10], "sync_version": [0, 1], "sync_persist_mode": [0, 1],
    "sync_ports": [1, 2, 4], "sync_retries": [0, 3], "sync_refresh_period": [0, 10],
    "sync_qlen_max": [16, 7861], "sync_sock_size": [0, 65536],
    "lblc_expiration": [60, 86400], "lblcr_expiration": [60, 86400],
}
# Values that some of them take and some refuse.
PROBES = ["0", "1", "2", "3", "4", "-1", "abc", "", "5 3", "2147483648"]
# Flags of segments that clients and servers really send come more often than all the others.
USUAL = ["S", "A", "PA", "FA", "R", "RA", "SA", "F"]
ODD = ["", "SF", "SR", "FR", "SRA", "SFA", "FSRA", "U", "PAU", "SE", "SEC", "SAE", "P", "FPU",
       "FSRPAU"]
CHUNKS_CLIENT = [1, 10, 0, 3, 7, 14, 6, 4, 9, 8, 12, 13]
CHUNKS_SERVER = [2, 11, 0, 3, 8, 7, 6, 5, 9, 14, 1]


class Service:
    """What the draw knows of a service; the kernel may have refused it."""

    def __init__(self, family, protocol, address, port, mark):
        self.family, self.protocol, self.mark = family, protocol, mark
        self.address, self.port = address, port
        self.servers = []   # endpoints as ipvsadm's words, which may be in the service
        self.gone = []      # those that were deleted
        self.pool = []      # numbers of the machines
        self.methods = {}   # by server
        self.scheduler = "rr"
        self.method = None
        self.real_port = 0
        self.engine = None  # of persistence
        self.there = True

    def words(self):
        if self.mark:
            return ["-f", str(self.mark)] + (["-6"] if self.family == 6 else [])
        return [PROTOCOLS[self.protocol][0], place(self.address, self.port)]

    def ports(self):
        """Ports that clients ask for, some of them in vain."""
        if self.mark:
            return [self.port, self.port + 1]
        return {0: [80, 21, 8443, 2000], 21: [21, 21, 21, 20, 1023, 1024, 40000]}.get(
            self.port, [self.port])


def place(address, port):
    return ("[%s]:%d" if ":" in address else "%s:%d") % (address, port)


class Draw:
    def __init__(self, seed):
        self.random = random.Random("ulvs %d" % seed)
        self.net = self.random.choice("gh")
        # What kind of run it is: most seeds touch a few things, not everything at once.
        one = self.random.random
        self.six = one() < 0.2
        self.persistent = one() < 0.4
        self.edits = one() < 0.7
        self.clock = one() < 0.06
        self.tuned = one() < 0.4
        # Are packets in tunnels cut rather than refused? A chance of its own.
        self.cuts = random.Random("ulvs pmtu %d" % seed).random() < 0.1
        # After so many seconds a set of lblcr shrinks.
        self.shrinks = 3 if self.clock and one() < 0.6 else None
        kinds = ["drop_packet", "secure_tcp", "memory"]
        self.defence = self.random.choice(kinds) if one() < 0.09 else None
        self.few_clients = one() < 0.4
        self.mixed = one() < 0.3
        self.thresholds = one() < 0.2
        self.services = []

    def chance(self, share):
        return self.random.random() < share

    def draw_services(self, net):
        kinds = [TCP] * 6 + [UDP] * 3 + [SCTP]
        ports = [80, 443, 53, 8080, 5060, 21000]
        for number in range(self.random.choice([1, 1, 1, 2, 2, 3, 4])):
            six = self.six and self.chance(0.8)
            vip = net["vip6"] if six else net["vip"]
            port = ports[number]
            mark = 100 + number if self.chance(0.15) else 0
            protocol = self.random.choice(kinds)
            service = Service(6 if six else 4, protocol, vip, port, mark)
            taken = [other.port for other in self.services]
            if self.persistent and not mark and self.chance(0.12):
                service.port = 0
            elif protocol == TCP and not mark and 21 not in taken and self.chance(0.1):
                service.port = 21
            elif self.persistent and protocol == UDP and not mark and self.chance(0.4):
                service.engine = "sip"
            machines = range(10, 34)
            count = self.random.choice([0, 1, 2, 3, 3, 4, 4, 5, 6, 8, 12])
            service.pool = self.random.sample(machines, count + 3)
            service.count = count
            service.method = self.random.choice(["-m", "-m", "-m", "-g", "-i"])
            same = service.method != "-m" or service.port == 0 or self.chance(0.6)
            service.real_port = port if same else self.random.choice([8000, 9090, port + 1])
            self.services.append(service)
        return self.services

    def scheduling(self, service):
        """Words for -A and -E behind the service's name."""
        scheduler = self.random.choice(SCHEDULERS)
        service.scheduler = scheduler
        words = ["-s", scheduler]
        flags = SCHEDULER_FLAGS.get(scheduler)
        if flags and self.chance(0.6):
            words += ["-b", self.random.choice(flags)]
        always = service.engine or service.port == 0 and not service.mark
        if self.persistent and (always or self.chance(0.75)):
            times = [2, 5] if self.clock else [60, 300, 600, 360]
            words += ["-p"] + ([str(self.random.choice(times))] if self.chance(0.8) else [])
            if self.chance(0.5):
                masks = MASKS6 if service.family == 6 else MASKS4
                words += ["-M", self.random.choice(masks)]
            if service.engine:
                words += ["--pe", service.engine]
            if service.protocol == UDP and self.chance(0.3):
                words.append("-o")
        elif service.protocol == UDP and self.chance(0.25):
            words.append("-o")
        return words

    def server(self, service, net, number):
        prefix = net["server6"] if service.family == 6 else net["server"] + "."
        address = prefix + ("%x" % number if service.family == 6 else "%d" % number)
        return place(address, service.real_port) if not service.mark else (
            "[%s]" % address if service.family == 6 else address)

    def weight(self):
        kinds = [lambda: 1, lambda: self.random.randint(1, 5), lambda: self.random.choice([2, 4, 6]),
                 lambda: self.random.randint(0, 3), lambda: 0,
                 lambda: self.random.choice([1, 100, 1000, 65535])]
        return self.random.choices(kinds, [6, 6, 3, 3, 1, 1])[0]()

    def method_of(self, service, server):
        if self.mixed and server not in service.methods and self.chance(0.5):
            service.methods[server] = self.random.choice(["-m", "-g", "-i"])
        return service.methods.setdefault(server, service.method)

    def server_words(self, service, server):
        """Words for -a and -e behind the server's name."""
        # A server keeps its method: the kernel keeps the route it found for the first one, which
        # leads nowhere for another (docs/differences.md).
        words = [self.method_of(service, server)]
        if self.chance(0.7):
            words += ["-w", str(self.weight())]
        if self.thresholds and self.chance(0.6):
            upper = self.random.randint(1, 12)
            words += ["-x", str(upper)]
            if self.chance(0.5):
                words += ["-y", str(self.random.randint(0, upper + (1 if self.chance(0.1) else 0)))]
        return words

    def client(self, family):
        """An address behind the gateway."""
        draw = self.random.randint
        if self.few_clients and self.chance(0.9):
            net, number = draw(0, 2), draw(1, 9)
            return "2001:db8:%x::%x" % (net + 1, number) if family == 6 else (
                "198.51.%d.%d" % (100 + net, number))
        if family == 6:
            return "2001:db8:%x:%x::%x" % (draw(1, 0xFFFF), draw(1, 0xFFFF), draw(1, 0xFFFF))
        return "%d.%d.%d.%d" % (draw(198, 203), draw(16, 31), draw(0, 255), draw(1, 254))

    def message(self):
        """A SIP message (RFC 3261), of one of a few calls or of none."""
        call = "%s@%s" % (self.random.choice("abcdefgh"), self.random.choice(["x", "y"]))
        header = self.random.choices(["Call-ID: " + call, "i: " + call, "CALL-ID :\t" + call,
                                      "Call-ID: " + call[0], "Call-ID:", "X-Call-ID: " + call],
                                     [12, 3, 1, 1, 1, 1])[0]
        return ("INVITE sip:b@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.1\r\n%s\r\n"
                "CSeq: 1 INVITE\r\n\r\n" % header).encode()

    def flags(self):
        return self.random.choice(USUAL if self.chance(0.8) else ODD)
