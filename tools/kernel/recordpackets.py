"""Plays the packets that a seed draws to the real kernel and writes down every frame that came out, as
cases of the schema of tests/golden/README.md. Runs in the guest:

    recordpackets.py FOLDER SEED...
"""
import json
import sys
import time

import lab
import shapes
from drawpackets import (CHUNKS, ERRORS4, ERRORS6, FLAGS, METHODS, OLD, SYSCTLS, TOLD_MTUS, PacketDraw,
                         place)
from frames import SCTP, TCP, UDP, packed
from recordframes import FrameRecorder

ACTIONS = 4000
PLAYERS = 3
# So long a seed plays: nothing that a packet opens ends sooner (what an ICMP error opens, after 3 s).
SECONDS_MAX = 2.4


class Talk:
    """A client's port, and what is known of the server that it was given."""

    def __init__(self, service, client, wanted):
        self.service, self.client, self.wanted = service, client, wanted
        self.protocol, self.family = service.protocol, service.family
        self.number = None   # of the machine that has it
        self.real = None     # (address, port) of the server under LVS-NAT
        self.last = None     # what came out on the server's side, as an IP packet
        self.answer = None   # what the client got from its server


class PacketRecording(FrameRecorder):
    def __init__(self, seed, director, draw):
        super().__init__(seed, director, draw)
        self.talks, self.port, self.reuses = [], 1024, False

    # -- packets

    def limits(self, side):
        """Lengths at which something changes for a packet that comes in on this side: those of both
        links, and what envelopes leave."""
        links = self.draw.mtu
        out = links["server" if side == "client" else "client"]
        over = [0] + [ip + more for ip in (20, 40) for more in (0, 4, 8, 12)]
        return [min(links[side], out - less) for less in over if out > less] + [links[side]]

    def body(self, talk, source, target, side, opening=False, data=None):
        """A transport packet of this talk, mostly right."""
        random, draw = self.random, self.draw
        head = {TCP: 20, UDP: 8, SCTP: 32}[talk.protocol] + (40 if talk.family == 6 else 20)
        if data is None:
            data = draw.text(draw.length(head, self.limits(side)))
        if talk.protocol == TCP:
            flags = "S" if opening else random.choice(FLAGS)
            options = random.choice([b"", b"", b"\x02\x04\x05\xb4", b"\x01\x01\x08\x0a" + bytes(8)])
            data = data[:max(0, len(data) - len(options))]
            return shapes.tcp(source, target, flags, data, random.getrandbits(32), random.getrandbits(32),
                              options)
        if talk.protocol == UDP:
            return shapes.udp(source, target, data, draw.chance(0.85) or talk.family == 6)
        return shapes.sctp(source, target, 1 if opening else random.choice(CHUNKS), data)

    def wrap(self, source, target, protocol, body, **fields):
        """An IP packet with fields as drawn, where nothing else is said."""
        draw = self.draw
        fields.setdefault("ttl", 64)
        if draw.chance(0.3):
            fields.setdefault("tos", self.random.getrandbits(8))
        if ":" in target:
            if draw.chance(0.2):
                fields.setdefault("label", self.random.getrandbits(20))
            fields.pop("df", None)
            return shapes.ip6(source, target, protocol, body, **fields)
        df = fields.pop("df", draw.chance(0.6))
        return shapes.ip4(source, target, protocol, body, df=df,
                          ident=0 if df and draw.chance(0.7) else draw.next_ident(), **fields)

    def plain(self, talk, side, path=None, opening=False, **fields):
        """A packet of the talk from this side, and what it may suffer by chance."""
        source, target = self.ends(talk, side)
        body = self.body(talk, source, target, side, opening)
        draw, paths = self.draw, [path] if path else []
        if draw.chance(0.12) and "ttl" not in fields:
            fields["ttl"] = draw.hops()
            if fields["ttl"] < 3:
                paths.append("ttl %d" % fields["ttl"])
        if draw.chance(0.04):
            body = shapes.damaged(body, talk.protocol)
            paths.append("wrong checksum")
        if draw.chance(0.06) and len(body) < 400 and fields.get("ttl", 64) > 2:
            if talk.family == 4:
                # What the director quotes would have been written into, too, and the time of day in an
                # envelope stands where no player looks for it.
                forwarded = talk.service.method == "masq" and talk.number
                fields["options"] = draw.options(forwarded and min(draw.mtu.values()) > 500)
                paths.append("IP options")
            elif talk.protocol == UDP:
                # Of TCP and SCTP the kernel would read the state from byte 40 (docs/differences.md).
                fields["headers"] = draw.extensions()
                paths.append("extension headers")
        packet = self.wrap(source[0], target[0], talk.protocol, body, **fields)
        return packet, ", ".join(paths)

    def ends(self, talk, side):
        if side == "client":
            return talk.client, talk.wanted
        return talk.real or talk.wanted, talk.client

    def fits(self, packet, side):
        return len(packet) <= self.draw.mtu[side]

    def path_of(self, packet, path, side):
        """The name of what happens to it, where its length makes that."""
        other = self.draw.mtu["server" if side == "client" else "client"]
        if path:
            return path
        if len(packet) > other - 60:
            return "near or above the MTU, " + ("DF" if packet[0] >> 4 == 6 or packet[6] & 0x40 else "no DF")
        return "plain"

    def from_client(self, talk, packet, path):
        out = self.put("client", packet, self.path_of(packet, path, "client"), talk)
        if self.reuses and talk.protocol != UDP:
            # An entry that this may have ended lingers until the kernel's next tick.
            self.sleep(0.025)
        self.learn(talk, out)
        return out

    def learn(self, talk, out):
        for side, packet, mac in out:
            if side == "server" and len(packet) > 20:
                talk.number, talk.last = mac, packet
                if talk.service.method == "masq":
                    talk.real = self.real_of(packet, talk) or talk.real

    def real_of(self, packet, talk):
        """Where LVS-NAT has sent this packet, if it is whole and of the talk."""
        six = packet[0] >> 4 == 6
        if packet[6 if six else 9] != talk.protocol or not six and packet[6] & 0x3F:
            return None
        start = 40 if six else (packet[0] & 15) * 4
        known = [server for server in talk.service.servers
                 if packed(server[0]) == packet[24:40] or packed(server[0]) == packet[16:20]]
        port = int.from_bytes(packet[start + 2:start + 4], "big")
        return (known[0][0], port) if known else None

    def from_server(self, talk, packet, path):
        out = self.put("server", packet, self.path_of(packet, path, "server"), talk, talk.number)
        for side, answer, _ in out:
            if side == "client":
                talk.answer = answer
        return out

    # -- what happens

    def fresh(self):
        service = self.random.choice(self.draw.services)
        self.port += self.random.randint(1, 9)
        client = self.draw.client(service.family), self.port
        return Talk(service, client, (service.address, service.port))

    def new(self):
        talk = self.fresh()
        packet, path = self.plain(talk, "client", None, opening=True)
        if not self.fits(packet, "client"):
            return
        self.from_client(talk, packet, path)
        self.talks.append(talk)
        if len(self.talks) > 24:
            self.talks.pop(0)
        if talk.number and self.draw.chance(0.7):
            self.say(talk, "server")
            self.say(talk, "client")

    def say(self, talk, side):
        if side == "server" and (talk.number is None or talk.service.method == "masq" and not talk.real):
            return
        if side == "server" and talk.service.method != "masq":
            self.direct_answer(talk)
            return
        packet, path = self.plain(talk, side)
        if self.fits(packet, side):
            (self.from_client if side == "client" else self.from_server)(talk, packet, path)

    def direct_answer(self, talk):
        """A server of LVS-DR or LVS-TUN answers through the director, short and in order: what the
        director would have to complain about it would find another way (docs/differences.md)."""
        if talk.service.mark:
            return
        source, target = self.ends(talk, "server")
        body = self.body(talk, source, target, "server", data=b"x" * self.random.randint(0, 99))
        packet = self.wrap(source[0], target[0], talk.protocol, body)
        self.from_server(talk, packet, "answer past LVS")

    def some_talk(self):
        return self.random.choice(self.talks) if self.talks else None

    def old(self):
        talk = self.some_talk()
        if talk:
            side = self.random.choice(["client", "client", "server"])
            # Answers of LVS-DR and LVS-TUN do not pass the director.
            if side == "server" and talk.service.method != "masq" and self.draw.chance(0.8):
                side = "client"
            self.say(talk, side)

    def fragments(self):
        talk = self.some_talk()
        if not talk or talk.family == 6 and talk.service.mark and talk.number is None:
            return
        # What has no entry the host routes on, fragment by fragment as far as the player is concerned.
        nat = talk.real and talk.number and not talk.service.once
        side = "server" if nat and self.draw.chance(0.4) else "client"
        source, target = self.ends(talk, side)
        draw, random = self.draw, self.random
        size = random.choice([16, 24, 40, 100, 999, 1400, 1480, 1600, 2000, 3000, 4000, 8000])
        body = self.body(talk, source, target, side, data=draw.text(size))
        packet = self.wrap(source[0], target[0], talk.protocol, body, df=False)
        six = talk.family == 6
        room = draw.mtu[side] - (48 if six else 20) & ~7
        pieces, left = [], len(body)
        while left > 0:
            step = min(room, random.choice([8, 16, 64, 512, 1024, 1400, room, room])) & ~7
            if len(pieces) > 12:
                step = room
            pieces.append(step)
            left -= step
        # With less of it, the kernel serves the first one alone (docs/differences.md).
        least = 24 if six else 8
        if len(body) <= least:
            return
        pieces[0] = max(pieces[0], least)
        if pieces[0] >= len(body):
            pieces = [max(least, len(body) // 2 & ~7)]
        ident = draw.next_ident()
        fragments = shapes.cut(packet, pieces, ident)
        path, fragments = self.disturb(fragments, six)
        for fragment in fragments:
            if self.fits(fragment, side):
                (self.from_client if side == "client" else self.from_server)(
                    talk, fragment, "fragments, " + path)

    def disturb(self, fragments, six):
        """The fragments in some order, some of them missing, twice, or on top of each other."""
        random, kind = self.random, self.random.random()
        if kind < 0.35:
            return "in order", fragments
        fragments = list(fragments)
        random.shuffle(fragments)
        if kind < 0.7:
            return "shuffled", fragments
        at = random.randrange(len(fragments))
        if kind < 0.78:
            return "one missing", fragments[:at] + fragments[at + 1:]
        if kind < 0.88:
            return "one twice", fragments[:at] + [fragments[at]] + fragments[at:]
        if six:
            word = int.from_bytes(fragments[at][42:44], "big")
            moved = max(8, (word & 0xFFF8) + random.choice([-8, 8, 16])) | word & 1
            fragments[at] = fragments[at][:42] + moved.to_bytes(2, "big") + fragments[at][44:]
        else:
            word = int.from_bytes(fragments[at][6:8], "big")
            moved = max(1, (word & 0x1FFF) + random.choice([-1, 1, 2])) | word & 0x2000
            fragments[at] = shapes.with_header_sum(
                fragments[at][:6] + moved.to_bytes(2, "big") + fragments[at][8:])
        return "one moved", fragments

    # -- ICMP

    def quote(self, packet):
        """What an error quotes of a packet: mostly a good part, as it was; and how it is called."""
        random, draw = self.random, self.draw
        kind = random.random()
        start = 40 if packet[0] >> 4 == 6 else 20
        if kind < 0.35:
            return packet[:start + 8], ""
        if kind < 0.6:
            return packet[:random.choice([64, 128, 500, 548])], ""
        if kind < 0.7:
            return packet[:1200], ""
        if kind < 0.8:
            return packet[:random.randint(0, start + 12)], " truncated"
        if kind < 0.95:
            return draw.some_bytes_wrong(packet[:random.choice([start + 8, 64, 128])]), " nonsense"
        return draw.text(random.choice([1, 8, 20, 28, 40, 48, 64])), " nonsense"

    def complain(self, source, target, packet, sums=True):
        """An ICMP error from source to target about a packet, and how the quote is called."""
        random, draw = self.random, self.draw
        quoted, path = self.quote(packet)
        if OLD and ":" not in target:
            quoted = shapes.readable(quoted)
        kind, code = random.choice(ERRORS6 if ":" in target else ERRORS4)
        rest = random.choice(TOLD_MTUS) if (kind, code) in ((3, 4), (2, 0)) else random.choice([0, 0, 7])
        body = shapes.icmp(source, target, kind, code, rest, quoted)
        if draw.chance(0.05) and sums:
            body, path = shapes.damaged(body, shapes.icmp_number(target)), path + " wrong checksum"
        ttl = draw.hops() if draw.chance(0.1) else 64
        if ttl < 3:
            path += " ttl %d" % ttl
        return self.wrap(source, target, shapes.icmp_number(target), body, ttl=ttl), path

    def known_to_be_wrong(self, talk):
        return OLD and talk.family == 6 and talk.service.method == "masq"

    def client_error(self):
        """Somebody outside complains about what the VIP has sent."""
        talk = self.some_talk()
        if not talk or self.known_to_be_wrong(talk):
            return
        about = talk.answer
        if not about or self.draw.chance(0.3):
            body = self.body(talk, talk.wanted, talk.client, "client")
            about = self.wrap(talk.wanted[0], talk.client[0], talk.protocol, body)
        source = talk.client[0] if self.draw.chance(0.8) else self.draw.client(talk.family)
        sums = not OLD or talk.service.method == "masq"
        packet, path = self.complain(source, talk.wanted[0], about, sums)
        if self.fits(packet, "client"):
            self.from_client(talk, packet, "ICMP error of the client's side" + path)

    def unknown_error(self):
        """Somebody outside complains about what was never sent."""
        talk = self.fresh()
        if self.known_to_be_wrong(talk):
            return
        about = self.wrap(talk.wanted[0], talk.client[0], talk.protocol,
                          self.body(talk, talk.wanted, talk.client, "client"))
        sums = not OLD or talk.service.method == "masq"
        packet, path = self.complain(talk.client[0], talk.wanted[0], about, sums)
        if self.fits(packet, "client"):
            self.from_client(talk, packet, "ICMP error about nothing" + path)

    def server_error(self):
        """A real server, or a router behind the director, complains about what a client has sent."""
        talk = self.some_talk()
        if not talk or not talk.last or self.known_to_be_wrong(talk):
            return
        if talk.service.method in METHODS and METHODS[talk.service.method][0][0] == "-i":
            self.envelope_error(talk)
            return
        net, number = self.director.net, talk.number
        if self.draw.chance(0.3):
            number = self.random.randint(21, 30)
        source = ("%s%x" % (net["server6"], number)) if talk.family == 6 else (
            "%s.%d" % (net["server"], number))
        if not talk.real and talk.service.method == "masq":
            return
        packet, path = self.complain(source, talk.client[0], talk.last)
        if self.fits(packet, "server"):
            self.from_server(talk, packet, "ICMP error of the server's side" + path)

    def envelope_error(self, talk):
        """A router says what became of an envelope."""
        outer = talk.last
        if OLD and talk.service.method != "ipip":
            return
        six = outer[0] >> 4 == 6
        net = self.director.net
        source = ("%s%x" % (net["server6"], 20)) if six else "%s.20" % net["server"]
        target = net["server6"] + "1" if six else net["server"] + ".1"
        packet, path = self.complain(source, target, outer)
        if self.fits(packet, "server"):
            self.from_server(talk, packet, "ICMP error about an envelope" + path)

    def echo(self):
        """Echo requests and the like, for the VIP, the director, a server."""
        random, draw, net = self.random, self.draw, self.director.net
        six = draw.six and draw.chance(0.5)
        client = draw.client(6 if six else 4)
        own = [net["vip6"], net["client6"] + "1", net["server6"] + "1"] if six else [
            net["vip"], net["client"] + ".1", net["server"] + ".1"]
        target = random.choice(own)
        kind = random.choice([128, 128, 128, 129, 200] if six else [8, 8, 8, 8, 0, 13, 15, 17, 41])
        data = draw.text(draw.length(60, self.limits("client")))
        body = shapes.icmp(client, target, kind, random.choice([0, 0, 0, 3]), random.getrandbits(32), data)
        path = "ICMP query"
        if draw.chance(0.1):
            body, path = shapes.damaged(body, shapes.icmp_number(target)), path + " wrong checksum"
        fields = dict(ttl=draw.hops()) if draw.chance(0.2) else {}
        packet = self.wrap(client, target, shapes.icmp_number(target), body, **fields)
        if self.fits(packet, "client"):
            self.put("client", packet, path)

    # -- what nobody should send

    def malformed(self):
        """A packet of a talk that is cut off, or lies about its lengths."""
        talk = self.some_talk()
        if not talk:
            return
        draw, random = self.draw, self.random
        side = "server" if talk.real and draw.chance(0.3) else "client"
        source, target = self.ends(talk, side)
        body = self.body(talk, source, target, side, data=draw.text(random.choice([0, 4, 20, 100])))
        kind = random.randrange(8)
        fields = {}
        if kind == 0:
            # With the ports alone it still follows an entry in the kernel, and without a chunk it
            # changes no state there (docs/differences.md).
            whole = {TCP: 20, UDP: 8, SCTP: 16}[talk.protocol]
            body = body[:random.choice([0, 1, 3, whole, whole + 1])]
        elif kind == 1 and talk.protocol == TCP:
            body = shapes.tcp(source, target, "PA", b"x" * 9, offset=random.choice([0, 1, 4, 6, 10, 15]))
        elif kind == 1 and talk.protocol == UDP:
            body = shapes.udp(source, target, b"x" * 9, length=random.choice([0, 1, 7, 8, 16, 18, 999]))
        elif kind == 1:
            body = shapes.sctp(source, target, 0, length=random.choice([0, 1, 3, 19, 21, 999]))
        elif kind in (2, 3):
            lie = random.choice([-9, -1, 1, 8, 500]) if len(body) > 40 else random.choice([1, 8, 500, -999])
            fields["length"] = max(0, len(body) + lie + (0 if talk.family == 6 else 20))
        elif kind == 4 and talk.family == 4:
            fields["header_words"] = random.choice([0, 4, 6, 8, 15])
        packet = self.wrap(source[0], target[0], talk.protocol, body, **fields)
        if kind == 5:
            packet = packet[:random.randint(1, len(packet))]
        elif kind == 6 and talk.family == 4:
            packet = packet[:10] + bytes([packet[10] ^ 1]) + packet[11:]
        elif kind == 7:
            packet = packet + draw.text(random.choice([1, 6, 18]))
        if self.fits(packet, side):
            (self.from_client if side == "client" else self.from_server)(talk, packet, "malformed")

    def stray(self):
        """Packets that are nobody's, or come from where they cannot."""
        random, draw, net = self.random, self.draw, self.director.net
        six = draw.six and draw.chance(0.4)
        vip = net["vip6"] if six else net["vip"]
        client = draw.client(6 if six else 4)
        kind = random.randrange(6)
        service = random.choice(draw.services)
        talk = self.fresh()
        source, target, side, path = (client, self.port), (vip, 7), "client", "stray"
        number = None
        if kind == 0:
            protocol = random.choice([2, 50, 51, 4, 41, 47, 99, 255, 33, 200])
            protocol = 99 if protocol == 2 or six and protocol in (50, 51) else protocol
            packet = self.wrap(client, vip, protocol, draw.text(random.choice([0, 8, 40])))
            self.put("client", packet, "another protocol")
            return
        if kind in (1, 2) and service.servers and service.method == "masq":
            # A real server speaks of itself.
            address, port = random.choice(service.servers)
            side, path, number = "server", "a server of itself", lab.number_of(address)
            source, target = (address, port), talk.client
            if (":" in address) != (":" in target[0]):
                return
            talk.service, talk.protocol, talk.family = service, service.protocol, service.family
        elif kind == 3:
            odd = ["::1", "ff02::1", "::", vip] if six else ["127.0.0.1", "224.0.0.1", "0.0.0.0", vip,
                                                            "255.255.255.255", net["server"] + ".1"]
            source, path = (random.choice(odd), 4000), "impossible source"
            target = (vip, service.port)
            # The kernel resets what comes from no address, too.
            talk.protocol = UDP if source[0] == "::" else talk.protocol
        elif kind == 4:
            talk.protocol, path = random.choice([TCP, UDP, SCTP]), "closed port"
        else:
            target, path = (vip, service.port), "not opened"
        talk.family = 6 if ":" in target[0] else 4
        body = self.body(talk, source, target, side, data=draw.text(random.choice([0, 5, 60])))
        if draw.chance(0.1):
            body = shapes.damaged(body, talk.protocol)
        fields = dict(ttl=draw.hops()) if draw.chance(0.2) else {}
        packet = self.wrap(source[0], target[0], talk.protocol, body, **fields)
        self.put(side, packet, path, number=number)

    def other_mac(self):
        talk = self.some_talk()
        if talk:
            packet, path = self.plain(talk, "client")
            if self.fits(packet, "client"):
                self.put("client", packet, "for another MAC address", talk, mac=b"\2\0\0\0\x77\7")

    # -- configuration

    def configure(self):
        self.draw.draw_services()
        net = self.director.net
        routes = [(4, "172.31.0.0/16", net["server"] + ".20"), (6, "fd77::/64", net["server6"] + "14")]
        for family, target, gateway in routes:
            self.command("ip %sroute add %s via %s dev rs0" % ("-6 " * (family == 6), target, gateway))
        lines, families = [], set()
        for service in self.draw.services:
            if service.mark:
                self.mark(service)
                families.add(service.family)
            once = service.protocol == UDP and service.method != "local" and self.draw.chance(0.08)
            words, service.once = ["-o"] if once else [], once
            if not words and self.draw.chance(0.08):
                words = ["-p", "300"]
            lines.append(["-A"] + service.words() + ["-s", "rr"] + words)
            for address, port in service.servers:
                server = place(address, port)
                if service.mark:
                    server = "[%s]" % address if ":" in address else address
                lines.append(["-a"] + service.words() + ["-r", server] + self.draw.method_words(service))
        for family in sorted(families):
            six = "-6 " * (family == 6)
            for service in self.draw.services:
                if service.mark and service.family == family:
                    self.command("ip %srule add iif cl0 fwmark %d lookup 100" % (six, service.mark))
            everything = "::/0" if family == 6 else "0.0.0.0/0"
            self.command("ip %sroute add local %s dev lo table 100" % (six, everything))
        self.ipvsadm(["-R"], "".join(" ".join(line) + "\n" for line in lines))
        if self.draw.chance(0.15):
            self.policy_route(net)
        self.reuses = self.draw.chance(0.15)
        if not self.reuses:
            self.sysctl(conn_reuse_mode=0)
        for _ in range(self.random.choice([0, 1, 2, 3])):
            self.tune()
        if any(service.method == "bypass" for service in self.draw.services):
            self.sysctl(cache_bypass=1)
        for _ in range(self.random.choice([0, 1, 2])):
            self.new_mtu()

    def mark(self, service):
        program = "ip6tables-legacy" if service.family == 6 else "iptables-legacy"
        self.command("%s -t mangle -A PREROUTING -i cl0 -d %s -j MARK --set-mark %d"
                     % (program, service.address, service.mark))

    def policy_route(self, net):
        """What comes from the VIP goes another way, if it is routed again."""
        self.command("ip rule add from %s lookup 201" % net["vip"])
        self.command("ip route add default via %s.9 dev cl0 table 201" % net["client"])
        if self.draw.six:
            self.command("ip -6 rule add from %s lookup 201" % net["vip6"])
            self.command("ip -6 route add default via %s9 dev cl0 table 201" % net["client6"])

    def tune(self):
        key = self.random.choice(list(SYSCTLS))
        self.sysctl(**{key: self.random.choice(SYSCTLS[key])})

    def new_mtu(self):
        side = self.random.choice(["client", "server", "server"])
        mtu = self.draw.some_mtu()
        self.draw.mtu[side] = mtu
        self.command("ip link set %s mtu %d" % ("cl0" if side == "client" else "rs0", mtu))

    # -- all of it

    def kinds(self):
        """What may happen, and how often."""
        return [(self.new, 16), (self.old, 30), (self.fragments, 5), (self.client_error, 9),
                (self.unknown_error, 3), (self.server_error, 12), (self.echo, 3), (self.malformed, 6),
                (self.stray, 6), (self.other_mac, 0.5), (self.tune, 0.3), (self.new_mtu, 0.15)]

    def play(self):
        self.configure()
        # What the commands took is not a time in which entries age.
        begin = time.monotonic()
        kinds = self.kinds()
        actions, shares = [kind for kind, _ in kinds], [share for _, share in kinds]
        for number in range(ACTIONS):
            self.random.choices(actions, shares)[0]()
            if number % 20 == 19:
                self.look()
            if time.monotonic() - begin > SECONDS_MAX:
                break
        self.look()


def play(batch, folder):
    # It builds on this file.
    from recordftp import FtpRecording
    for seed, draw, director in batch:
        director.ready()
        recording = (FtpRecording if draw.ftp else PacketRecording)(seed, director, draw)
        recording.play()
        recording.save(folder)
        print(json.dumps(dict(seed=seed, seconds=round(time.monotonic() - recording.start, 2),
                              frames=recording.sums["frames"])), flush=True)


def main():
    folder, seeds = sys.argv[1], [int(word) for word in sys.argv[2:]]
    lab.prepare()
    batch = []
    for seed in seeds:
        draw = PacketDraw(seed)
        batch.append((seed, draw, lab.Director(draw.net)))
    players = [lab.child(lambda: play(batch[k::PLAYERS], folder)) for k in range(PLAYERS)]
    sys.exit(max(lab.end_of(player) for player in players))


if __name__ == "__main__":
    main()
