"""FTP through LVS-NAT, for the comparison of frames: control connections whose commands and answers are
right, split, repeated, absurd, and the data connections that come of them. The helper works on connection
tracking, which wants sequence numbers that fit: both ends say what fits to what they have heard."""
import lab
import shapes
from drawpackets import OLD, Service, place
from frames import TCP
from recordpackets import PacketRecording, Talk

FTP = 21
COMMANDS = ["USER anonymous", "PASS x@", "LIST", "NOOP", "RETR f", "QUIT", "SYST", "TYPE I", "CWD " + "d" * 60]
# {p}: the six numbers of PORT; {a}, {n}: address and port of EPRT.
PASSIVE = ["PASV", "pasv", "PASV ", "XXPASV", "NOOP\r\nPASV", "PASV\r\nLIST", "EPSV", "epsv", "EPSV 1", "EPSV 2",
           "EPSV ALL", "PASV\r\nEPSV", "xEPSV 1", "EPSV  1"]
ACTIVE = ["PORT {p}", "PORT {p}", "port {p}", "PORT  {p}", "PORT,{p}", "PORT{p}", "PORT {p} junk", "PORT x{p}",
          "XX\r\nPORT {p}", "PORT {p},6", "PORT 1,2,3", "PORT 9,9,9,9,156,72", "PORT 172,,3,9,4,11",
          "EPRT |1|{a}|{n}|", "EPRT |1|{a}|{n}|", "EPRT !1!{a}!{n}!", "EPRT |1|{a}|{n}", "EPRT |2|::1|{n}|",
          "EPRT |1|{a}|99999|", "EPRT |1|{a}|0|", "EPRT  |1|{a}|{n}|", "EPRT|1|{a}|{n}|", "EPRT |||{n}|",
          "EPRT |1|1.2.3|{n}|", "eprt |1|{a}|{n}| "]
ANSWERS = ["227 Entering Passive Mode ({p}).", "227 Entering Passive Mode ({p})", "227 ({p})", "227 {p}",
           "227 Entering Passive Mode {p}", "227 ={p}", "227 (({p})", "227 ( {p})", "227-({p})", "227\t({p})",
           "200 x\r\n227 Entering Passive Mode ({p})", "227 ({p}) (9,9,9,9,9,9)", "227 (192,168,1,,4,6)",
           "227 (1,1,1,1,4,11)", "227 (192,168,1,11,4)", "227 x{p}",
           "229 Entering Extended Passive Mode (|||{n}|)", "229 x (|||{n}|)", "229 (|||{n}|)", "229 (!!!{n}!)",
           "229 |||{n}|", "229 (|||99999|)", "229 (|||0|)", "229 (|1|{o}|{n}|)", "229 (|||{n}",
           "229-(|||{n}|)", "229 ((|||{n}|)", "200 ok", "150 here", "226 done", "331 password"]
if OLD:
    # It takes a port modulo 65536, which 6.1.192 does not.
    ACTIVE, ANSWERS = ([text for text in texts if "99999" not in text] for texts in (ACTIVE, ANSWERS))
ENDS = ["\r\n"] * 12 + ["\n", "\r", ""]


class Control(Talk):
    """A control connection."""

    def __init__(self, service, client, wanted):
        super().__init__(service, client, wanted)
        self.next = {"client": 0, "server": 0}    # what each side says next
        self.heard = {"client": 0, "server": 0}   # and what it has heard, as it heard it
        self.said = {"client": [], "server": []}
        self.port = None                          # that an answer or a command has offered
        self.active = None


class FtpRecording(PacketRecording):
    def configure(self):
        net = self.director.net
        self.command("modprobe ip_vs_ftp")
        service = Service(0, 4, TCP, "masq")
        service.port, service.address = FTP, net["vip"]
        lines = [["-A"] + service.words() + ["-s", "rr"]]
        for number in self.random.sample(range(10, 34), self.random.choice([1, 2, 3])):
            port = self.random.choice([FTP, FTP, 2121])
            service.servers.append(("%s.%d" % (net["server"], number), port))
            lines.append(["-a"] + service.words() + ["-r", place(*service.servers[-1]), "-m"])
        service.method, self.draw.services = "masq", [service]
        self.ipvsadm(["-R"], "".join(" ".join(line) + "\n" for line in lines))
        self.sysctl(conn_reuse_mode=0)

    def kinds(self):
        return [(self.open, 5), (self.passive, 10), (self.extended, 8), (self.chat, 8), (self.again, 4),
                (self.data, 12)]

    def segment(self, talk, side, flags, text=b"", path="FTP", seq=None, options=b""):
        """A segment of this side, with what it has heard acknowledged."""
        source, target = self.ends(talk, side)
        if seq is None:
            seq = talk.next[side]
            talk.next[side] = (seq + len(text) + ("S" in flags or "F" in flags)) % 2**32
            if text:
                talk.said[side] = talk.said[side][-3:] + [(seq, text)]
        body = shapes.tcp(source, target, flags, text, seq, talk.heard[side], options)
        packet = self.wrap(source[0], target[0], TCP, body, df=True, ttl=64)
        out = (self.from_client if side == "client" else self.from_server)(talk, packet, path)
        other = "server" if side == "client" else "client"
        for where, packet, _ in out:
            if where == other and packet[9] == TCP and len(packet) >= 40 and not packet[6] & 0x3F:
                self.hear(talk, other, packet)
        return out

    def hear(self, talk, side, packet):
        body = packet[(packet[0] & 15) * 4:]
        seq, length = int.from_bytes(body[4:8], "big"), len(body) - (body[12] >> 4) * 4
        length += bool(body[13] & 3)
        if (seq + length - talk.heard[side]) % 2**32 < 2**31 or not talk.heard[side]:
            talk.heard[side] = (seq + length) % 2**32

    def open(self):
        self.port += self.random.randint(1, 9)
        service = self.draw.services[0]
        talk = Control(service, (self.draw.client(4), self.port), (service.address, FTP))
        talk.next = {side: self.random.choice([1000, 7000, 2**32 - 60, self.random.getrandbits(32)])
                     for side in talk.next}
        self.segment(talk, "client", "S")
        if not talk.real:
            return
        self.segment(talk, "server", "SA")
        self.segment(talk, "client", "A")
        self.segment(talk, "server", "PA", b"220 ready\r\n")
        self.talks = self.talks[-6:] + [talk]

    def offered(self, talk, address):
        """Words for an end that somebody offers."""
        number = self.random.randint(1025, 60000)
        other = "%s.%d" % (self.director.net["server"], self.random.randint(10, 33))
        return number, dict(a=address, o=other, n=number, p="%s,%d,%d" % (
            address.replace(".", ","), number >> 8, number & 255))

    def line(self, talk, side, text, path):
        """A line, or what is taken for one; now and then in two segments."""
        data = (text + self.random.choice(ENDS)).encode()
        stamp = self.random.choice([b"", b"", b"\x01\x01\x08\x0a" + bytes(8)])
        if self.draw.chance(0.12) and len(data) > 2:
            at = self.random.randint(1, len(data) - 1)
            self.segment(talk, side, "A", data[:at], path + ", split", options=stamp)
            data, path = data[at:], path + ", split"
        self.segment(talk, side, "PA", data, path, options=stamp)
        if self.draw.chance(0.5):
            other = "server" if side == "client" else "client"
            self.segment(talk, other, "A", path="FTP, acknowledged", options=self.sack(talk, other))

    def sack(self, talk, side):
        """Blocks that this side says it has heard beyond what it acknowledges (RFC 2018)."""
        if self.draw.chance(0.7):
            return b""
        begin = talk.heard[side]
        edges = [(begin + more) % 2**32 for more in (10, 20, 30, 41)][:self.random.choice([2, 4])]
        blocks = b"".join(edge.to_bytes(4, "big") for edge in edges)
        return b"\x01\x01\x05" + bytes([2 + len(blocks)]) + blocks

    def passive(self):
        """A command that asks for a port, and an answer that offers one."""
        talk = self.some_talk()
        if talk:
            self.line(talk, "client", self.random.choice(PASSIVE), "FTP, passive")
            number, words = self.offered(talk, talk.real[0])
            self.line(talk, "server", self.random.choice(ANSWERS).format(**words), "FTP, passive")
            talk.port = number
            self.chat()

    def extended(self):
        """A command that offers a port."""
        talk = self.some_talk()
        if talk:
            number, words = self.offered(talk, talk.client[0])
            self.line(talk, "client", self.random.choice(ACTIVE).format(**words), "FTP, active")
            self.line(talk, "server", "200 ok", "FTP, active")
            talk.active = number

    def chat(self):
        talk = self.some_talk()
        if talk:
            self.line(talk, "client", self.random.choice(COMMANDS), "FTP, other commands")
            self.line(talk, "server", self.random.choice(ANSWERS[-4:]), "FTP, other commands")

    def again(self):
        """A segment that was said already."""
        talk = self.some_talk()
        side = self.random.choice(["client", "server"])
        # An answer that was rewritten once is not when it comes again: then the client has heard what
        # was never said, and connection tracking drops what it acknowledges.
        said = talk and [each for each in talk.said[side] if b"227" not in each[1] and b"229" not in each[1]]
        if said:
            seq, text = self.random.choice(said[-2:])
            self.segment(talk, side, "PA", text, "FTP, repeated", seq)

    def data(self):
        """The connection that was agreed on, or another one."""
        talk = self.some_talk()
        if not talk:
            return
        other = Talk(talk.service, talk.client, talk.wanted)
        other.protocol, other.family = TCP, 4
        if talk.active and (not talk.port or self.draw.chance(0.5)):
            other.client, other.wanted = (talk.client[0], talk.active), (talk.wanted[0], FTP - 1)
            other.real, other.number = (talk.real[0], talk.real[1] - 1), talk.number
            order = [("server", "S"), ("client", "SA"), ("server", "A"), ("server", "PA"), ("client", "A")]
        elif talk.port:
            self.port += 1
            other.client, other.wanted = (talk.client[0], self.port), (talk.wanted[0], talk.port)
            order = [("client", "S"), ("server", "SA"), ("client", "A"), ("client", "PA"), ("server", "A")]
        else:
            return
        for side, flags in order:
            if side == "server" and not other.real:
                return
            source, target = self.ends(other, side)
            seq = 5000 + (flags != "S" and flags != "SA")
            text = b"data" if "P" in flags else b""
            body = shapes.tcp(source, target, flags, text, seq, 5001)
            packet = self.wrap(source[0], target[0], TCP, body, df=True, ttl=64)
            (self.from_client if side == "client" else self.from_server)(other, packet, "FTP, data connection")
