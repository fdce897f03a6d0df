"""Packets of every shape, right and wrong ones: built from all their fields, cut into fragments, quoted
in ICMP errors. Nothing in here draws anything."""
import struct

from frames import ICMP, ICMPV6, SCTP, TCP, UDP, crc32c, folded, packed

FRAGMENT = 44
FLAG_BITS = {letter: 1 << at for at, letter in enumerate("FSRPAUEC")}


def is_six(address):
    return ":" in address


def ip4(source, target, protocol, body, ttl=64, ident=0, df=True, tos=0, options=b"", word=None,
        length=None, header_words=None):
    """`word`: flags and offset, instead of DF alone; `length`, `header_words`: lies."""
    words = 5 + len(options) // 4
    whole = words * 4 + len(body) if length is None else length
    word = (0x4000 if df else 0) if word is None else word
    head = struct.pack("!BBHHHBBH", 0x40 | (words if header_words is None else header_words), tos, whole,
                       ident, word, ttl, protocol, 0) + packed(source) + packed(target) + options
    return with_header_sum(head + body, len(head))


def with_header_sum(packet, length=None):
    length = (packet[0] & 15) * 4 if length is None else length
    head = packet[:10] + b"\0\0" + packet[12:length]
    return head[:10] + struct.pack("!H", folded(head)) + head[12:] + packet[length:]


def ip6(source, target, protocol, body, ttl=64, tos=0, label=0, headers=(), length=None):
    """`headers`: extension headers as (number, bytes), whose first byte is filled in here."""
    numbers = [number for number, _ in headers] + [protocol]
    chain = b"".join(bytes([numbers[at + 1]]) + data[1:] for at, (_, data) in enumerate(headers))
    length = len(chain) + len(body) if length is None else length
    head = struct.pack("!IHBB", 6 << 28 | tos << 20 | label, length & 0xFFFF, numbers[0], ttl)
    return head + packed(source) + packed(target) + chain + body


def pseudo(source, target, protocol, length):
    return packed(source) + packed(target) + struct.pack("!II", length, protocol)


def summed(ends, protocol, body, at):
    """The body with the right checksum, which stands `at`."""
    body = body[:at] + b"\0\0" + body[at + 2:]
    total = folded(pseudo(*ends, protocol, len(body)) + body)
    if protocol == UDP and not total:
        total = 0xFFFF
    return body[:at] + struct.pack("!H", total) + body[at + 2:]


def tcp(source, target, flags, data=b"", seq=1000, ack=2000, options=b"", offset=None):
    bits = sum(FLAG_BITS[letter] for letter in flags)
    words = 5 + len(options) // 4
    body = struct.pack("!HHIIBBHHH", source[1], target[1], seq, ack if "A" in flags else 0,
                       (words if offset is None else offset) << 4, bits, 64240, 0, 0)
    return summed((source[0], target[0]), TCP, body + options + data, 16)


def udp(source, target, data=b"", sum_up=True, length=None):
    length = 8 + len(data) if length is None else length
    body = struct.pack("!HHHH", source[1], target[1], length & 0xFFFF, 0) + data
    return summed((source[0], target[0]), UDP, body, 6) if sum_up else body


def sctp(source, target, chunk, data=b"", length=None):
    length = 4 + 16 + len(data) if length is None else length
    body = struct.pack("!BBHIIHHI", chunk, 0, length & 0xFFFF, 0x11223344, 4096, 10, 10, 1) + data
    head = struct.pack("!HHI", source[1], target[1], 0x01020304)
    total = struct.pack("<I", crc32c(head + bytes(4) + body))
    return head + total + body


def icmp(source, target, kind, code, rest, quoted):
    """An ICMP message of either family: its transport part."""
    body = struct.pack("!BBHI", kind, code, 0, rest) + quoted
    if is_six(target):
        return summed((source, target), ICMPV6, body, 2)
    return body[:2] + struct.pack("!H", folded(body)) + body[4:]


def readable(quoted):
    """The same quotation as if it began an IPv4 packet with a whole header, or the first fragment of one;
    and so the packet in an envelope of IP in IP."""
    if quoted:
        quoted = bytes([0x40 | max(5, quoted[0] & 15)]) + quoted[1:]
    if len(quoted) > 7:
        quoted = quoted[:6] + bytes([quoted[6] & 0xE0, 0]) + quoted[8:]
    inner = (quoted[0] & 15) * 4 if quoted else 0
    if len(quoted) > inner and len(quoted) > 9 and quoted[9] == 4:
        quoted = quoted[:inner] + readable(quoted[inner:])
    return quoted


def icmp_number(address):
    return ICMPV6 if is_six(address) else ICMP


def damaged(body, protocol):
    """The body with a wrong checksum."""
    at = {TCP: 16, UDP: 6, SCTP: 8, ICMP: 2, ICMPV6: 2}[protocol]
    if len(body) < at + 2:
        return body
    wrong = body[at] ^ 0x55
    if protocol == UDP and not wrong and not body[at + 1]:
        wrong = 1  # none at all would be right
    return body[:at] + bytes([wrong]) + body[at + 1:]


def cut(packet, lengths, ident):
    """The packet in fragments whose payloads are so long; the last one has the rest. IPv4 fragments
    carry the packet's identification, IPv6 ones this."""
    six = packet[0] >> 4 == 6
    start = 40 if six else (packet[0] & 15) * 4
    fragments, at = [], start
    for length in lengths + [len(packet)]:
        piece = packet[at:at + length]
        more = at + len(piece) < len(packet)
        fragments.append(fragment(packet, start, at - start, more, piece, ident))
        at += len(piece)
        if not more:
            break
    return fragments


def fragment(packet, start, offset, more, piece, ident):
    head = packet[:start]
    if packet[0] >> 4 == 6:
        extra = struct.pack("!BBHI", head[6], 0, offset | more, ident)
        head = head[:4] + struct.pack("!HB", 8 + len(piece), FRAGMENT) + head[7:]
        return head + extra + piece
    word = offset // 8 | (0x2000 if more else 0)
    head = head[:2] + struct.pack("!HHH", start + len(piece), int.from_bytes(head[4:6], "big"), word)
    return with_header_sum(head + packet[8:start] + piece, start)
