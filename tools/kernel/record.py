"""Plays what a seed draws to the real kernel and writes down what it did, as cases of the schema of
tests/golden/README.md with three more fields: `at` (seconds since the start) in every step, `entry`
(the entries of the packet's client afterwards) in some packets, and in the head `strict` (nothing
excuses a difference) and `sums` (how much was done). Runs in the guest:

    record.py FOLDER SEED...
"""
import heapq
import json
import os
import sys
import time

import lab
from draw import (CHUNKS_CLIENT, CHUNKS_SERVER, PROBES, PROTOCOLS, SYSCTL_IDLE, SYSCTL_VALUES, Draw,
                  place)
from frames import (SCTP, TCP, TUNNELS, UDP, Seen, ethernet, icmp, ip, sctp, tcp, udp)

ACTIONS = 130
# Processes that play at the same time: mostly they wait.
PLAYERS = 4
# Without clock steps a seed begins nothing new after so many seconds, whatever it has drawn.
SECONDS_MAX = 8
# The shortest timeouts of states, and around their end the time in which nothing is looked at: kernel
# timers of 4 s were seen to be up to 0.09 s late, of 10 s up to 0.63 s.
SHORT = {SCTP: 4, TCP: 10}
BEFORE_S, BEHIND_S = 1.0, {SCTP: 0.25, TCP: 0.85}
# With clock steps all ends within 1.2 s of the last one, or waits for the next.
SECONDS_BETWEEN = 1.2


class Connection:
    """A client's port and what is known of the server that it was given."""

    def __init__(self, service, client, port, wanted):
        self.service, self.client, self.wanted = service, (client, port), wanted
        self.protocol = service.protocol
        self.real = None    # (address, port) of the server under LVS-NAT
        self.number = None  # of the machine
        self.last = None    # the last packet as the server had it


class Recording:
    def __init__(self, seed, director, draw):
        self.seed, self.director, self.draw, self.random = seed, director, draw, draw.random
        self.steps, self.connections = [], []
        self.sums = dict(decisions=0, sequences=0, packets=0, commands=0)
        self.port = 1024
        self.last = None    # packet
        self.counted = True  # as ulvs does
        self.due = []       # spans of time in which entries may end
        self.start = self.woke = time.monotonic()

    # -- steps

    def note(self, at=None, **step):
        step["at"] = round((at or time.monotonic()) - self.start, 4)
        self.steps.append(step)

    def keep_away(self):
        """Before anything is looked at: deadlines are passed while nobody looks."""
        if self.draw.clock:
            if time.monotonic() - self.woke > SECONDS_BETWEEN:
                self.pass_time()
            return
        while self.due and time.monotonic() > self.due[0][0]:
            self.sleep(max(0, heapq.heappop(self.due)[1] - time.monotonic()))

    def note_due(self, protocol):
        """When the entry of this packet may end, if that is soon."""
        if protocol in SHORT:
            due = time.monotonic() + SHORT[protocol]
            heapq.heappush(self.due, (due - BEFORE_S, due + BEHIND_S[protocol]))

    def ipvsadm(self, words, text=None):
        self.keep_away()
        at = time.monotonic()
        done = self.director.ipvsadm(words, text or "")
        step = dict(do="ipvsadm", args=words, rc=done.returncode)
        if text:
            step["stdin"] = text
        for key, said in (("out", done.stdout), ("err", done.stderr)):
            if said:
                step[key] = said
        self.note((at + time.monotonic()) / 2, **step)
        self.sums["commands"] += text.count("\n") if text else 1
        return done.returncode == 0

    def sysctl(self, **values):
        for key, value in values.items():
            lab.write("net/ipv4/vs/" + key, value)
        self.note(do="sysctl", set={"net.ipv4.vs." + key: str(v) for key, v in values.items()})

    def probe(self, key, values):
        """What a sysctl says, whether it takes these values in turn, and what it then is."""
        path = "net/ipv4/vs/" + key
        step = dict(do="sysctl-probe", name="net.ipv4.vs." + key, default=lab.read(path), mode="0o644")
        writes = []
        for value in values:
            writes.append([value, lab.refused(path, value), lab.read(path)])
        self.note(writes=writes, **step)

    def sleep(self, seconds):
        time.sleep(seconds)

    def command(self, line):
        done = lab.run(line.split())
        if done.returncode:
            raise RuntimeError(line + ": " + done.stderr)
        self.note(do="cmd", cmd=line, rc=0)

    def show(self, conns):
        self.keep_away()
        self.sleep(0.03)
        step = dict(do="show", services=self.director.services())
        if conns:
            step["conns"] = self.director.entries()
        self.note(**step)

    def packet(self, side, packet, mac=None, entry=None, note=None, ends=None):
        source = mac or lab.MAC_GATEWAY
        frame = ethernet(lab.MAC_DIRECTOR[side], source, packet)
        self.keep_away()
        self.take_late()
        at = time.monotonic()
        out = self.director.send(side, frame)
        step = dict(do="packet", side=side, frame=frame.hex(), out=[as_step(each) for each in out])
        self.last = step
        if note:
            step["note"] = note
        # Who was chosen is in the outer header, which not every comparer has.
        if any(Seen(f).protocol in TUNNELS for _, f in out):
            entry = entry or ends
        if entry:
            step["entry"] = dict(client=lab.name(*entry), rows=self.director.entries(entry))
        self.note(at, **step)
        self.sums["packets"] += 1
        rows = step["entry"]["rows"] if entry else ()
        protocol = Seen(frame).protocol
        self.note_due(protocol)
        short = protocol != SCTP and not self.draw.clock
        if short and any(0 < row["expires"] <= 3 for row in rows):
            # What an ICMP error opened lives for three seconds; what is left of it is gone then.
            self.sleep(3.4)
        return [(where, Seen(f)) for where, f in out]

    def take_late(self):
        """Frames that the kernel left to its own thread, which came late: they are the last packet's."""
        late = self.director.drain()
        if late:
            self.last["out"] += [as_step(each) for each in late]

    # -- what clients and servers say

    def client_packet(self, c, what):
        if c.protocol == TCP:
            return tcp(c.client, c.wanted, what)
        if c.protocol == UDP:
            return udp(c.client, c.wanted, self.text(c))
        return sctp(c.client, c.wanted, what)

    def text(self, c):
        """What a datagram says."""
        return self.draw.message() if c.service.engine else b"x"

    def from_client(self, c, what, entry=False, note=None):
        packet = self.client_packet(c, what)
        out = self.packet("client", packet, entry=c.client if entry else None,
                          note=note or "c%s" % what, ends=c.client)
        opens = "S" in what if c.protocol == TCP else what == 1
        if not out or opens and c.number:
            # An entry that this may have ended lingers, counted, until the kernel's next tick.
            self.sleep(0.025)
        if opens and c.number and any(side == "client" for side, _ in out):
            # Refused over an old connection, as whose packet the kernel counts the answer.
            self.counted = False
        for side, seen in out:
            if side == "server" and seen.mac[:5] == b"\2\0\0\0\5":
                c.number, c.last = seen.mac[5], seen.packet
                masq = seen.target != c.wanted[0] and seen.protocol not in TUNNELS
                c.real = (seen.target, seen.ports[1]) if masq else None
        return out

    def from_server(self, c, what, entry=False):
        if c.number is None:
            return []
        speaker = c.real or c.wanted
        build = {TCP: tcp, SCTP: sctp}.get(c.protocol, lambda a, b, _: udp(a, b, self.text(c)))
        return self.packet("server", build(speaker, c.client, what), lab.mac_server(c.number),
                           entry=c.client if entry else None, note="s%s" % what)

    def first(self, c):
        if c.protocol == TCP:
            return "S" if self.draw.chance(0.93) else self.draw.flags()
        return 1 if self.draw.chance(0.93) else self.random.choice(CHUNKS_CLIENT)

    def fresh(self, client=None):
        live = [service for service in self.draw.services if service.there]
        service = self.random.choice(live or self.draw.services)
        self.port += self.random.randint(1, 60)
        wanted = self.random.choice(service.ports())
        client = client or self.draw.client(service.family)
        # FTP's data come from port 20 and are never scheduled.
        port = 20 if service.port == 21 and self.draw.chance(0.05) else self.port
        return Connection(service, client, port, (service.address, wanted))

    def open(self, c, entry=False):
        out = self.from_client(c, self.first(c), entry, "new")
        decided = any(side == "server" or seen.body[:2] == b"\3\3" for side, seen in out)
        self.sums["decisions"] += decided
        self.connections.append(c)
        return out

    # -- what happens

    def new(self):
        c = self.fresh()
        self.open(c, self.draw.chance(0.15))
        fate = self.random.random()
        if c.protocol == TCP and fate < 0.75:
            self.talk(c, ["sSA", "cA"])
            if fate < 0.3:
                self.talk(c, ["cFA", "sFA", "cA"])
            elif fate < 0.4:
                self.talk(c, ["cR"])
            elif fate < 0.45:
                self.talk(c, ["sR"])
        elif c.protocol == SCTP and fate < 0.5:
            self.talk(c, ["s2", "c10", "s11"])
        elif c.protocol == UDP and fate < 0.3:
            self.talk(c, ["s", "c"])

    def talk(self, c, words):
        for word in words:
            what = int(word[1:]) if c.protocol == SCTP else word[1:]
            if word[0] == "c":
                self.from_client(c, what)
            elif c.real:
                self.from_server(c, what)

    def burst(self):
        """Many new connections, as a scheduler sees them in a busy hour."""
        for _ in range(self.random.randint(3, 9)):
            self.open(self.fresh())

    def sequence(self):
        c = self.fresh()
        self.open(c, True)
        for _ in range(self.random.randint(2, 7)):
            self.any_packet(c, True)
        self.sums["sequences"] += 1

    def any_packet(self, c, entry):
        server = self.draw.chance(0.4)
        if c.protocol == SCTP:
            what = self.random.choice(CHUNKS_SERVER if server else CHUNKS_CLIENT)
        else:
            what = self.draw.flags()
        odd = self.draw.chance(0.1)
        if server and (c.real or odd):
            self.from_server(c, what, entry)
        else:
            self.from_client(c, what, entry)

    def old(self):
        """A packet of a connection that was there before."""
        if self.connections:
            self.any_packet(self.random.choice(self.connections), self.draw.chance(0.3))

    def reuse(self):
        """An old client port, used anew."""
        if not self.connections:
            return
        c = self.random.choice(self.connections)
        if c.protocol == TCP and self.draw.chance(0.5):
            self.talk(c, ["cFA", "sFA", "cA"])
        self.from_client(c, "S" if c.protocol == TCP else 1, True, "reuse")

    def stray(self):
        """Packets that belong to no service, or are none of IPVS's business."""
        net, kind = self.director.net, self.random.randint(0, 5)
        client, port = self.draw.client(4), self.random.randint(1024, 65535)
        vip, number = net["vip"], self.random.randint(10, 33)
        server = "%s.%d" % (net["server"], number)
        if kind == 0:
            self.packet("client", tcp((client, port), (vip, 7), self.draw.flags()), note="nobody's")
        elif kind == 1:
            self.packet("client", udp((client, port), (vip, 7)), note="nobody's")
        elif kind == 2:
            self.packet("client", icmp(client, vip, 8, 0, 7 << 16 | 1, b"hello"), note="ping")
        elif kind == 3:
            port_of = self.random.choice([80, 443, 53, 8080])
            build = self.random.choice([lambda a, b: tcp(a, b, "A"), udp])
            self.packet("server", build((server, port_of), (client, port)),
                        lab.mac_server(number), note="a server of itself")
        elif kind == 4 and self.connections:
            self.client_error(self.random.choice(self.connections))
        elif self.connections:
            self.server_error(self.random.choice(self.connections))

    def server_error(self, c):
        """An ICMP error of a server about the last packet it had under LVS-NAT."""
        if c.real and c.last and c.last[0] >> 4 == 4:
            kind, code = self.random.choice([(3, 3), (3, 1), (11, 0), (4, 0), (3, 13)])
            packet = icmp(c.real[0], c.client[0], kind, code, 0, c.last[:64])
            self.packet("server", packet, lab.mac_server(c.number), entry=c.client,
                        note="error of the server")

    def client_error(self, c):
        """An ICMP error of the client's side about an answer."""
        if c.service.family != 4:
            return
        answer = {TCP: lambda: tcp(c.wanted, c.client, "A"), UDP: lambda: udp(c.wanted, c.client),
                  SCTP: lambda: sctp(c.wanted, c.client, 0)}[c.protocol]()
        kind, code = self.random.choice([(3, 3), (3, 1), (11, 0), (4, 0)])
        packet = icmp(c.client[0], c.wanted[0], kind, code, 0, answer)
        self.packet("client", packet, entry=c.client, note="error of the client")

    def call(self):
        """A real server that starts a request, where an engine knows whose it is."""
        services = [service for service in self.draw.services if service.engine and service.servers]
        if not services:
            return
        c = self.fresh()
        c.service = service = self.random.choice(services)
        server = self.random.choice(service.servers)
        address, _, port = server.rpartition(":")
        c.client = self.draw.client(service.family), self.port
        c.wanted, c.protocol = (service.address, service.port), UDP
        c.real = address.strip("[]"), int(port)
        c.number = lab.number_of(c.real[0])
        self.from_server(c, "call", True)
        self.connections.append(c)
        if self.draw.chance(0.7):
            self.talk(c, ["c", "s"])

    # -- configuration

    def configure(self):
        if self.draw.shrinks:
            self.sysctl(lblcr_expiration=self.draw.shrinks)
        if self.draw.cuts:
            self.sysctl(pmtu_disc=0)
        lines = []
        for service in self.draw.draw_services(self.director.net):
            words = service.words()
            lines.append(["-A"] + words + self.draw.scheduling(service))
            for number in service.pool[:service.count]:
                lines.append(self.add_words(service, number))
            if service.mark:
                self.mark(service)
        if self.draw.clock:
            lines.append("--set 3 3 3".split())
        self.ipvsadm(["-R"], "".join(" ".join(line) + "\n" for line in lines))

    def add_words(self, service, number):
        server = self.draw.server(service, self.director.net, number)
        service.servers.append(server)
        return ["-a"] + service.words() + ["-r", server] + self.draw.server_words(service, server)

    def mark(self, service):
        """Packets for two ports have the mark: the service is a group of them."""
        program = "ip6tables-legacy" if service.family == 6 else "iptables-legacy"
        name = PROTOCOLS[service.protocol][1]
        self.command("%s -t mangle -A PREROUTING -i cl0 -p %s -d %s --dport %d:%d -j MARK --set-mark %d"
                     % (program, name, service.address, service.port, service.port + 1, service.mark))

    def edit(self):
        services = self.draw.services
        service, kind = self.random.choice(services), self.random.random()
        if not service.there:
            self.revive(service)
        elif kind < 0.35 and service.servers:
            server = self.random.choice(service.servers)
            self.ipvsadm(["-e"] + service.words() + ["-r", server] + self.draw.server_words(service, server))
        elif kind < 0.55 and service.servers:
            server = self.random.choice(service.servers)
            service.servers.remove(server)
            service.gone.append(server)
            self.ipvsadm(["-d"] + service.words() + ["-r", server])
        elif kind < 0.7 and service.gone:
            server = self.random.choice(service.gone)
            service.gone.remove(server)
            service.servers.append(server)
            self.ipvsadm(["-a"] + service.words() + ["-r", server] + self.draw.server_words(service, server))
        elif kind < 0.8:
            number = self.random.choice(service.pool)
            words = self.add_words(service, number)
            if not self.ipvsadm(words):
                service.servers.pop()
        elif kind < 0.95:
            self.ipvsadm(["-E"] + service.words() + self.draw.scheduling(service))
        elif kind < 0.98:
            service.there = False
            self.ipvsadm(["-D"] + service.words())
        else:
            self.ipvsadm(["-Z"])
        self.sweep()

    def revive(self, service):
        service.there = True
        self.ipvsadm(["-A"] + service.words() + self.draw.scheduling(service))
        for server in service.servers:
            self.ipvsadm(["-a"] + service.words() + ["-r", server] + self.draw.server_words(service, server))

    def sweep(self):
        """With expire_nodest_conn the kernel sweeps a moment after a deletion."""
        self.sleep(0.05 if self.draw.tuned else 0)

    def tune(self):
        if self.draw.chance(0.75):
            key = self.random.choice(list(SYSCTL_VALUES))
            self.sysctl(**{key: self.random.choice(SYSCTL_VALUES[key])})
        elif not self.draw.defence:
            key = self.random.choice(list(SYSCTL_IDLE))
            usual = {key: self.random.choice(SYSCTL_IDLE[key])}
            self.sysctl(**usual)
            # Without it the counters are copied no more: which were, nobody can tell.
            self.counted &= key != "run_estimation"
            value = self.random.choice(PROBES)
            # Whom drop_entry = 3 ends is chance.
            if self.draw.chance(0.3) and (key, value) != ("drop_entry", "3"):
                self.probe(key, [value])
                self.sysctl(**usual)
        self.sweep()

    def defend(self):
        """Modes that are in force whatever the memory, or because no memory is enough; the kernel
        looks once a second."""
        if self.draw.defence == "drop_packet":
            self.sysctl(am_droprate=self.random.randint(2, 12), drop_packet=3)
        elif self.draw.defence == "secure_tcp":
            self.sysctl(secure_tcp=3)
        else:
            self.sysctl(amemthresh=2147483647, secure_tcp=self.random.randint(1, 2))
        self.sleep(1.6)
        self.probe("secure_tcp", [])

    def relax(self):
        """There is memory again, in the middle."""
        self.sysctl(amemthresh=1024)
        self.sleep(1.6)
        self.probe("secure_tcp", [])

    def pass_time(self):
        """All that lives for a few seconds goes while nobody looks: close to a deadline the two sides
        may differ by what their timers are late. Templates of 2 s end surely before, and those of 5 s
        surely after their connections, which last 3 s."""
        self.sleep(6.4)
        self.woke = time.monotonic()

    # -- all of it

    def play(self):
        draw = self.draw
        self.configure()
        if draw.tuned:
            self.tune()
            self.tune()
        if draw.defence:
            self.defend()
        kinds = [(self.new, 48), (self.burst, 12), (self.sequence, 11), (self.old, 18),
                 (self.reuse, 4), (self.stray, 5), (self.call, 3), (self.edit, 5 if draw.edits else 0),
                 (self.tune, 1.2 if draw.tuned else 0), (self.pass_time, 3 if draw.clock else 0)]
        actions = ACTIONS // 2 if draw.clock else ACTIONS
        for number in range(actions):
            kind = self.random.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
            kind()
            if draw.defence == "memory" and number == actions // 2:
                self.relax()
            if number % 12 == 11:
                self.show(number % 48 == 47)
            if not draw.clock and time.monotonic() - self.start > SECONDS_MAX:
                break
        self.show(True)
        self.take_late()
        lists = (["-Sn"], ["-Ln"], ["-Ln", "--thresholds"], ["-Ln", "--persistent-conn"])
        self.ipvsadm(self.random.choice(lists))
        if draw.chance(0.4) and not draw.edits and self.counted:
            # Counters are copied every two seconds, and what an edit sets to zero is the copy.
            self.sleep(2.2)
            self.ipvsadm(["-Ln", "--stats"])

    def save(self, folder):
        case = dict(schema="ulvs-oracle/1", topic="compare", id="%d" % self.seed,
                    title="drawn from seed %d" % self.seed, kernel="Linux " + os.uname().release,
                    ipvsadm="1.31", net=self.draw.net, strict=True, sums=self.sums,
                    steps=self.steps)
        path = os.path.join(folder, "%06d.json" % self.seed)
        with open(path + ".new", "w") as file:
            file.write(json.dumps(case, separators=(",", ":")))
        os.rename(path + ".new", path)


def as_step(sent):
    """A frame that came out, as steps have it."""
    side, frame = sent
    ranges = volatile(frame)
    return dict(side=side, frame=frame.hex(), **(dict(volatile=ranges) if ranges else {}))


def volatile(frame):
    """What differs from boot to boot: in packets that the director made itself the id of IPv4, with
    the sum over it, and the flow label of IPv6. Packets that were only forwarded keep our zeros."""
    if frame[12:14] == b"\x08\x00" and frame[18:20] != b"\0\0":
        return [[18, 20], [24, 26]]
    if frame[12:14] == b"\x86\xdd" and any(frame[15:18]):
        return [[15, 18]]
    return []


def play(batch, folder):
    for seed, draw, director in batch:
        director.ready()
        recording = Recording(seed, director, draw)
        recording.play()
        recording.save(folder)
        print(json.dumps(dict(seed=seed, seconds=round(time.monotonic() - recording.start, 2),
                              **recording.sums)), flush=True)


def main():
    folder, seeds = sys.argv[1], [int(word) for word in sys.argv[2:]]
    lab.prepare()
    batch = []
    for seed in seeds:
        draw = Draw(seed)
        batch.append((seed, draw, lab.Director(draw.net)))
    players = [lab.child(lambda: play(batch[k::PLAYERS], folder)) for k in range(PLAYERS)]
    sys.exit(max(lab.end_of(player) for player in players))


if __name__ == "__main__":
    main()
