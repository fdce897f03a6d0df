"""In the guest: sends the packets of a comparison of frames and writes down what came out of each, without
what is chance. Nothing in here draws anything."""
import time

import lab
import shapes
from drawpackets import GUE_PORT
from frames import ICMP, UDP, ethernet, packed
from record import Recording


class FrameRecorder(Recording):
    def __init__(self, seed, director, draw):
        super().__init__(seed, director, draw)
        self.sums = dict(frames=0, out=0, silent=0, commands=0)
        self.given, self.side, self.sender = (b"", 0), "client", b""
        self.echoes = 0
        net = director.net
        self.own = [packed(net[side] + ".1") for side in ("client", "server")]
        self.near = {packed(address % number): lab.mac_client(number) for number in lab.CLIENTS
                     for address in (net["client"] + ".%d", net["client6"] + "%x")}

    def put(self, side, packet, path, talk=None, number=None, mac=None):
        """Sends one packet and books what came of it under the error path that it takes."""
        source = lab.mac_server(number) if number else self.neighbour(packet)
        frame = ethernet(mac or lab.MAC_DIRECTOR[side], source, packet)
        self.take_late()
        at = time.monotonic()
        self.given, self.side, self.sender = (frame[18:20], label_of(frame)), side, frame[26:30]
        out = self.director.send(side, frame, 0)
        if not out or any(is_fragment(each) for _, each in out):
            out += self.rest()
        name = talk.service.name() if talk else "nobody's"
        step = dict(do="packet", side=side, frame=frame.hex(), out=[self.as_step(each) for each in out],
                    note="%s: %s" % (name, path))
        self.last = step
        self.note(at, **step)
        self.book(name, path, out)
        return [(where, each[14:], each[5]) for where, each in out if each[12:14] != b"\x08\x06"]

    def neighbour(self, packet):
        """Who brings this packet: what the director says itself goes back to where it came from."""
        source = packet[8:24] if packet[:1] and packet[0] >> 4 == 6 else packet[12:16]
        return self.near.get(source, lab.MAC_GATEWAY)

    def book(self, name, path, out):
        for key, more in (("frames", 1), ("out", len(out)), ("silent", not out), ("by " + name, 1),
                          ("path " + path, 1)):
            self.sums[key] = self.sums.get(key, 0) + more

    def explain(self, reason):
        """Counts a deliberate difference (docs/differences.md) that is left out of what is compared."""
        key = "explained " + reason
        self.sums[key] = self.sums.get(key, 0) + 1

    def rest(self):
        """What is still to come out. Frames are served in the order in which they came, also those that
        the kernel leaves to its own thread: an echo that is back has nothing before it."""
        net = self.director.net
        self.echoes = (self.echoes + 1) % 65536
        body = shapes.icmp(net["client"] + ".254", net["client"] + ".1", 8, 0, 0x7E570000 | self.echoes, b"")
        echo = shapes.ip4(net["client"] + ".254", net["client"] + ".1", ICMP, body)
        target = lab.MAC_DIRECTOR["client"]
        frames = self.director.send("client", ethernet(target, lab.MAC_GATEWAY, echo), 0)
        back = bytes([0, 0]), (0x7E570000 | self.echoes).to_bytes(4, "big")
        for _ in range(500):
            for at, (_, each) in enumerate(frames):
                if (each[34:36], each[38:42]) == back:
                    return frames[:at] + frames[at + 1:]
            time.sleep(0.001)
            frames += self.director.drain()
        raise RuntimeError("the director does not answer an echo")

    def take_late(self):
        late = self.director.drain()
        if late:
            self.last["out"] += [self.as_step(each) for each in late]
            self.sums["out"] += len(late)

    def as_step(self, sent):
        side, frame = sent
        frame = self.own_words(side, frame)
        ranges = self.volatile(frame)
        return dict(side=side, frame=frame.hex(), **(dict(volatile=ranges) if ranges else {}))

    def own_words(self, side, frame):
        """What the kernel says itself, without what docs/differences.md says is deliberate: the options
        of the packet that it is about. Its flow labels are chance."""
        back = side == self.side and frame[30:34] == self.sender
        if frame[12:14] == b"\x08\x00" and back and frame[14] & 15 > 5:
            words = frame[14] & 15
            length = int.from_bytes(frame[16:18], "big") - (words - 5) * 4
            self.explain("what it says itself carries no options of the packet that it is about")
            packet = b"\x45" + frame[15:16] + length.to_bytes(2, "big") + frame[18:34] + frame[14 + words * 4:]
            return frame[:14] + shapes.with_header_sum(packet, 20)
        if frame[12:14] == b"\x86\xdd" and self.given[1] != label_of(frame):
            return frame[:15] + bytes([frame[15] & 0xF0, 0, 0]) + frame[18:]
        return frame

    def is_own(self, frame):
        """Has the kernel made this packet of IPv4? What it only sends on has lost a hop."""
        return frame[22] == 64 or frame[26:30] in self.own

    def volatile(self, frame):
        """What the kernel draws by chance: the identification of packets that it makes itself and of
        IPv6 fragments, the source port of GUE."""
        ranges, ident = [], self.given[0]
        if frame[12:14] == b"\x08\x00":
            # Where DF is set it is zero; elsewhere chance may draw zero, or the given one, as well.
            whole = frame[20] & 0x40
            if not whole and self.is_own(frame) or frame[18:20] not in (ident, b"\0\0" if whole else ident):
                ranges += [[18, 20], [24, 26]]
            at, protocol = 14 + (frame[14] & 15) * 4, frame[23]
            first = not int.from_bytes(frame[20:22], "big") & 0x1FFF
        elif frame[12:14] == b"\x86\xdd":
            at, protocol, first = 54, frame[20], True
            while protocol in (0, 43, 60):
                protocol, at = frame[at], at + 8 + frame[at + 1] * 8
            if protocol == shapes.FRAGMENT:
                ranges.append([at + 4, at + 8])
                first = not int.from_bytes(frame[at + 2:at + 4], "big") & 0xFFF8
                protocol, at = frame[at], at + 8
        else:
            return []
        if protocol == UDP and first and frame[at + 2:at + 4] == GUE_PORT.to_bytes(2, "big"):
            ranges.append([at, at + 2])
            if any(frame[at + 6:at + 8]):
                ranges.append([at + 6, at + 8])
        return ranges

    def look(self):
        """An entry that was just replaced lingers, counted, until the kernel's next tick."""
        self.sleep(0.025)
        self.take_late()
        step = dict(do="show", services=self.director.services())
        if self.draw.ftp:
            step["conns"] = self.director.entries()
        self.note(**step)


def is_fragment(frame):
    if frame[12:14] == b"\x86\xdd":
        return shapes.FRAGMENT in (frame[20:21] + frame[54:55])
    return bool(int.from_bytes(frame[20:22], "big") & 0x3FFF)


def label_of(frame):
    return int.from_bytes(frame[15:18], "big") & 0xFFFFF
