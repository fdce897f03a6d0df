"""Frames, built from their parts, and read as far as it takes to see where one went."""
import socket
import struct

TCP, UDP, SCTP, ICMP, ICMPV6 = 6, 17, 132, 1, 58
TUNNELS = (4, 41, 47)
FLAGS = "FSRPAUEC"


def packed(address):
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


def folded(data):
    """The Internet checksum (RFC 1071)."""
    data += b"\0" * (len(data) & 1)
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    total = (total >> 16) + (total & 0xFFFF)
    return ~(total + (total >> 16)) & 0xFFFF


def crc_of_byte(byte):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    return byte


CRC_OF_BYTE = [crc_of_byte(byte) for byte in range(256)]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ CRC_OF_BYTE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def ip(source, target, protocol, body, ttl=64):
    if ":" in target:
        head = struct.pack("!IHBB", 6 << 28, len(body), protocol, ttl)
        return head + packed(source) + packed(target) + body
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, ttl, protocol, 0)
    head += packed(source) + packed(target)
    return head[:10] + struct.pack("!H", folded(head)) + head[12:] + body


def summed(source, target, protocol, body, at):
    """The body with its checksum, which stands `at`, over the pseudo header too."""
    pseudo = packed(source) + packed(target) + struct.pack("!II", len(body), protocol)
    total = folded(pseudo + body)
    if protocol == UDP and not total:
        total = 0xFFFF
    return body[:at] + struct.pack("!H", total) + body[at + 2:]


def tcp(source, target, flags, data=b""):
    bits = sum(1 << FLAGS.index(letter) for letter in flags)
    ack = 2000 if "A" in flags else 0
    body = struct.pack("!HHIIBBHHH", source[1], target[1], 1000, ack, 0x50, bits, 64240, 0, 0)
    return ip(source[0], target[0], TCP, summed(source[0], target[0], TCP, body + data, 16))


def udp(source, target, data=b"x"):
    body = struct.pack("!HHHH", source[1], target[1], 8 + len(data), 0) + data
    return ip(source[0], target[0], UDP, summed(source[0], target[0], UDP, body, 6))


def sctp(source, target, chunk):
    body = struct.pack("!BBHIIHHI", chunk, 0, 20, 0x11223344, 4096, 10, 10, 1)
    head = struct.pack("!HHI", source[1], target[1], 0)
    total = struct.pack("<I", crc32c(head + bytes(4) + body))
    return ip(source[0], target[0], SCTP, head + total + body)


def icmp(source, target, kind, code, rest, quoted):
    """An ICMP message of IPv4."""
    body = struct.pack("!BBH", kind, code, 0) + struct.pack("!I", rest) + quoted
    body = body[:2] + struct.pack("!H", folded(body)) + body[4:]
    return ip(source, target, ICMP, body)


def ethernet(target, source, packet):
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    return target + source + kind + packet


class Seen:
    """What stands in an IP frame."""

    def __init__(self, frame):
        self.mac, packet = frame[:6], frame[14:]
        if frame[12:14] == b"\x86\xdd":
            self.protocol, start = packet[6], 40
            self.source, self.target = (socket.inet_ntop(socket.AF_INET6, packet[at:at + 16])
                                        for at in (8, 24))
        else:
            self.protocol, start = packet[9], (packet[0] & 15) * 4
            self.source, self.target = (socket.inet_ntoa(packet[at:at + 4]) for at in (12, 16))
        self.packet, self.body = packet, packet[start:]
        self.ports = (0, 0)
        if self.protocol in (TCP, UDP, SCTP):
            self.ports = struct.unpack("!HH", self.body[:4])
