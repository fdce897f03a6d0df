"""Draws command lines of ipvsadm from a seed, right and wrong ones, calls the real program with each and
writes down what it said, as cases of topic `cli` of tests/golden/README.md. Runs in the guest:

    words.py FOLDER LINES SEED...
"""
import json
import random
import subprocess
import sys

VIPS = ["10.0.0.1", "10.0.0.2", "10.0.0.77", "[fd00::1]", "[fd00::2]"]
REALS = ["192.168.1.10", "192.168.1.11", "192.168.1.12", "10.0.0.200", "[fd00::10]", "[fd00::11]"]
PORTS = ["80", "80", "443", "53", "21", "0", "65535", "8080"]
BAD_PORTS = ["65536", "-1", "http!", "", "8 0", "99999999999"]
BAD_HOSTS = ["", "10.0.0", "10.0.0.256", "300.1.1.1", "80", "fd00::1", "[fd00::1]", "[fd00::1", "::g", "0.0.0.0",
             "224.0.0.1", "255.255.255.255", "[::]", "[ff02::1]", "[fe80::1]", "127.0.0.1", "[::1]", "[::ffff:1.2.3.4]"]
SCHEDULERS = "rr wrr lc wlc lblc lblcr dh sh sed nq fo ovf mh none".split()
BAD_SCHEDULERS = ["", "nosuch", "RR", "wlcc", "averyveryverylongname", "r r"]
FLAGS = ["flag-1", "flag-2", "flag-3", "flag-1,flag-3", "sh-port", "sh-fallback", "sh-fallback,sh-port", "mh-port",
         "mh-fallback,mh-port", "flag-4", "", "nonsense", "flag-1,flag-1"]
NUMBERS = ["0", "1", "2", "3", "10", "100", "255", "256", "300", "65535", "65536", "2147483647", "2147483648", "4294967295",
           "4294967296", "-1", "+5", "007", "0x10", "1e3", " 4", "4 ", "", "five", "18446744073709551616"]
MASKS = ["255.255.255.0", "255.255.255.255", "0.0.0.0", "255.0.255.0", "24", "64", "128", "129", "0", "300.0.0.0", "fd00::", ""]
GROUPS = ["224.0.0.81", "224.0.0.99", "239.1.2.3", "10.0.0.1", "ff02::5", "ff05::7", "fd00::1", "nonsense", ""]
LINKS = ["eth9", "eth9", "lo", "nosuch0", "", "averyverylongname0"]
# Long name and letter of each option; those with a value name what draws it.
OPTIONS = {
    "tcp": ("tcp-service", "t", "service"), "udp": ("udp-service", "u", "service"),
    "sctp": ("sctp-service", "", "service"), "mark": ("fwmark-service", "f", "mark"), "six": ("ipv6", "6", None),
    "scheduler": ("scheduler", "s", "scheduler"), "persistent": ("persistent", "p", "maybe"),
    "netmask": ("netmask", "M", "mask"), "pe": ("pe", "", "engine"), "flags": ("sched-flags", "b", "flags"),
    "ops": ("ops", "o", None), "real": ("real-server", "r", "real"), "g": ("gatewaying", "g", None),
    "i": ("ipip", "i", None), "m": ("masquerading", "m", None), "tuntype": ("tun-type", "", "tuntype"),
    "tunport": ("tun-port", "", "port"), "nocsum": ("tun-nocsum", "", None), "csum": ("tun-csum", "", None),
    "remcsum": ("tun-remcsum", "", None), "weight": ("weight", "w", "number"), "upper": ("u-threshold", "x", "number"),
    "lower": ("l-threshold", "y", "number"), "numeric": ("numeric", "n", None), "connection": ("connection", "c", None),
    "timeout": ("timeout", "", None), "daemon": ("daemon", "", None), "stats": ("stats", "", None),
    "rate": ("rate", "", None), "thresholds": ("thresholds", "", None), "pconn": ("persistent-conn", "", None),
    "tuninfo": ("tun-info", "", None), "sort": ("sort", "", None), "exact": ("exact", "X", None),
    "nosort": ("nosort", "", None), "link": ("mcast-interface", "", "link"), "syncid": ("syncid", "", "number"),
    "maxlen": ("sync-maxlen", "", "number"), "group": ("mcast-group", "", "group"), "mport": ("mcast-port", "", "number"),
    "ttl": ("mcast-ttl", "", "number"),
}
SERVICE_OPTIONS = "scheduler persistent netmask pe flags ops".split()
REAL_OPTIONS = "g i m weight upper lower tuntype tunport nocsum csum remcsum".split()
LIST_OPTIONS = "connection timeout daemon stats rate thresholds pconn tuninfo sort exact syncid".split()
SYNC_OPTIONS = "link syncid maxlen group mport ttl".split()
# Command, long name, letter, how often, and what may stand with it.
COMMANDS = [
    ("add-service", "A", 20, SERVICE_OPTIONS), ("edit-service", "E", 8, SERVICE_OPTIONS), ("delete-service", "D", 4, []),
    ("clear", "C", 1, []), ("add-server", "a", 24, REAL_OPTIONS), ("edit-server", "e", 10, REAL_OPTIONS),
    ("delete-server", "d", 5, []), ("list", "L", 12, LIST_OPTIONS), ("list", "l", 3, LIST_OPTIONS), ("zero", "Z", 3, []),
    ("set", "", 4, []), ("start-daemon", "", 3, SYNC_OPTIONS), ("stop-daemon", "", 3, ["syncid"]), ("save", "S", 3, []),
    ("restore", "R", 4, []), ("version", "v", 1, []),
]
WITH_REAL = ("add-server", "edit-server", "delete-server")
WITH_SERVICE = WITH_REAL + ("add-service", "edit-service", "delete-service")


class Lines:
    def __init__(self, seed):
        self.random = random.Random(seed)
        # The services that lines have named, as words.
        self.known = []

    def once_in(self, count):
        return self.random.randrange(count) == 0

    def pick(self, choices):
        return self.random.choice(choices)

    def host(self, hosts, port):
        """An address and perhaps a port, mostly good."""
        if self.once_in(25):
            return self.pick(BAD_HOSTS) + (":" + self.pick(PORTS) if self.once_in(2) else "")
        host = self.pick(hosts)
        if self.once_in(25):
            return host + ":" + self.pick(BAD_PORTS)
        if not port or self.once_in(8):
            return host.strip("[]") if host[0] == "[" and not self.once_in(6) else host
        return host + ":" + self.pick(PORTS)

    def value(self, kind):
        if kind == "service":
            return self.host(VIPS, True)
        if kind == "real":
            return self.host(REALS, not self.once_in(4))
        if kind == "mark":
            return self.pick(["1", "2", "7"]) if not self.once_in(10) else self.pick(NUMBERS)
        if kind == "scheduler":
            return self.pick(SCHEDULERS) if not self.once_in(15) else self.pick(BAD_SCHEDULERS)
        if kind == "engine":
            return "sip" if not self.once_in(5) else self.pick(["", "nosuch", "SIP", "averyveryverylongname"])
        if kind == "tuntype":
            return self.pick(["ipip", "gue", "gre", "gue", "gre"]) if not self.once_in(10) else self.pick(["", "vxlan", "GUE"])
        if kind == "port":
            return self.pick(["6080", "5555", "1", "65535"]) if not self.once_in(6) else self.pick(NUMBERS)
        if kind == "number":
            return self.pick(NUMBERS[:9]) if not self.once_in(4) else self.pick(NUMBERS)
        return self.pick(dict(mask=MASKS, flags=FLAGS, group=GROUPS, link=LINKS, maybe=NUMBERS)[kind])

    def option(self, name):
        """The words of one option, in one of the ways to write it."""
        long, letter, kind = OPTIONS[name]
        short = letter and not self.once_in(4)
        if kind is None:
            return ["-" + letter if short else "--" + long]
        if kind == "maybe" and self.once_in(3):
            return ["-" + letter if short else "--" + long]
        value = self.value(kind)
        if self.once_in(5):
            return ["-" + letter + value if short else "--" + long + "=" + value]
        return ["-" + letter if short else "--" + long, value]

    def service(self, new=False):
        """A service, most of the time one that was named before."""
        if self.known and not self.once_in(3 if new else 10):
            return self.pick(self.known)
        name = self.random.choices(["tcp", "udp", "sctp", "mark"], [8, 4, 1, 3])[0]
        words = self.option(name)
        if name == "mark" and self.once_in(4):
            words += ["-6"]
        self.known = self.known[-7:] + [words]
        return words

    def real_of(self, service):
        """A server, most of the time of the service's family."""
        six = "::" in " ".join(service) or "-6" in service
        while True:
            words = self.option("real")
            if ("::" in " ".join(words)) == six or self.once_in(10):
                return words

    def options(self, allowed):
        """Some options, most of the time such that go together."""
        count = self.random.choices([0, 1, 2, 3, 4], [3, 5, 4, 2, 1])[0]
        if self.once_in(12):
            return [self.option(self.pick(allowed)) for _ in range(count)]
        names = self.random.sample(allowed, min(count, len(allowed)))
        if "g" in allowed:
            tunnel = [name for name in names if name in ("tuntype", "tunport", "nocsum", "csum", "remcsum")]
            names = [name for name in names if name not in tunnel and name not in "gim"]
            if tunnel:
                # What a tunnel needs to be one, with as much more as chance has it.
                kind = self.pick([["tuntype"], ["tuntype", "tunport"], ["tuntype", "tunport", "csum"], ["tuntype", "nocsum"]])
                names += ["i"] + kind
            elif not self.once_in(4):
                names.append(self.pick("ggimmm"))
        elif "stats" in allowed and not self.once_in(6):
            alone = ("connection", "timeout", "daemon")
            names = [name for name in names if name not in alone] or [self.pick(alone)]
        return [self.option(name) for name in names]

    def command(self):
        names = self.random.choices(COMMANDS, [weight for _, _, weight, _ in COMMANDS])[0]
        return names[0], ("-" + names[1] if names[1] and not self.once_in(5) else "--" + names[0]), names[3]

    def line(self):
        """The words of a call and what it reads from its standard input."""
        if self.once_in(60):
            return self.pick([[], ["nonsense"], ["-Q"], ["--nonsense"], ["-"], ["--"], ["-A", "-A"], ["-L", "-A"]]), ""
        name, word, allowed = self.command()
        words, parts = [word], []
        if name == "set":
            count = 3 if not self.once_in(10) else self.random.randrange(5)
            words += [self.value("number") for _ in range(count)]
        if name in ("start-daemon", "stop-daemon") and not self.once_in(20):
            words += [self.pick(["master", "backup", "backup"]) if not self.once_in(15) else "both"]
        service = []
        if name in WITH_SERVICE and not self.once_in(30) or name in ("zero", "list") and self.once_in(4):
            service = self.service(new=name == "add-service")
            parts.append(service)
        if name in WITH_REAL and not self.once_in(30):
            parts.append(self.real_of(service))
        if allowed:
            parts += self.options(allowed)
        if self.once_in(20):
            strange = [name for name in OPTIONS if name != "nosort"]
            parts.append(self.option(self.pick(strange)))
        if self.once_in(8):
            self.random.shuffle(parts)
        words += [word for part in parts for word in part]
        if name in ("list", "save"):
            # Names would be those of two machines; and of several services the kernel's own order is
            # the hash of an address in its memory.
            words += ["-n"] if not name == "list" or not self.once_in(3) else ["--numeric"]
        if self.once_in(50):
            words += [self.pick(["extra", "-", "--", "-z", "--tcp"])]
        stdin = self.rules() if name == "restore" else ""
        return words, stdin

    def rules(self):
        lines = []
        for _ in range(self.random.randrange(6)):
            words, _ = self.line()
            if self.once_in(3):
                words = ["ipvsadm"] + words
            lines.append(self.pick([" ", " ", "  ", "\t"]).join(words))
        return "\n".join(lines) + ("\n" if not self.once_in(4) else "")


def call(words, stdin=""):
    return subprocess.run(["ipvsadm"] + words, input=stdin, capture_output=True, text=True)


def begin():
    """A director as it is when it has just been loaded."""
    for words in (["-C"], ["--set", "900", "120", "300"], ["--stop-daemon", "master"], ["--stop-daemon", "backup"]):
        call(words)


def record(folder, count, seed):
    lines, steps = Lines(seed), []
    begin()
    for command in ("ip link add eth9 mtu 1500 type dummy", "ip link set eth9 up"):
        steps.append(dict(do="cmd", cmd=command, rc=0))
    while len(steps) < count + 2:
        words, stdin = lines.line()
        asks_help = any(word in ("-h", "--help") or word[:2] == "-h" for word in words)
        if asks_help or any("\0" in word for word in words):
            continue
        done = call(words, stdin)
        step = dict(do="ipvsadm", args=words, rc=done.returncode & 255, out=done.stdout, err=done.stderr)
        if stdin:
            step["stdin"] = stdin
        steps.append(step)
    head = dict(schema="ulvs-oracle/1", topic="cli", id="%06d" % seed, title="seed %d" % seed, kernel="", ipvsadm="1.31",
                net="none", strict=True, sums=dict(commands=len(steps) - 2), steps=steps)
    with open("%s/%06d.json" % (folder, seed), "w") as file:
        json.dump(head, file)


def main():
    folder, count, seeds = sys.argv[1], int(sys.argv[2]), [int(word) for word in sys.argv[3:]]
    subprocess.run("modprobe -a ip_vs; ip link set lo up; ip link add eth9 mtu 1500 type dummy; ip link set eth9 up",
                   shell=True, check=False)
    for seed in seeds:
        record(folder, count, seed)


if __name__ == "__main__":
    main()
