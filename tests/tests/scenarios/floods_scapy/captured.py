"""Writes floods as they are captured in the wild, each to a file: SYNs with the options of real stacks, replies of reflectors.

Usage: captured.py FOLDER WEB_V4 DNS_V4 WEB_V6 DNS_V6. Sources are nobody's in the lab: 203.0.113.0/24 is an attacker's network,
192.88.99.0/24 has reflectors, and what is forged is in 16.0.0.0/4 and 2600::/12.
"""

import random
import sys
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from scapy.all import (
    DNS, DNSQR, DNSRR, ICMP, IP, TCP, UDP, Ether, IPv6, Raw, fragment, wrpcap,
)
from scapy.layers.ntp import NTPPrivate

FOLDER = Path(sys.argv[1])
WEB_V4, DNS_V4, WEB_V6, DNS_V6 = sys.argv[2:]
PACKETS = 256
# A budget lets some flows in: they are to be few of all.
FLOWS = 1024
random.seed(7)


def write(name, packets):
    cable = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
    wrpcap(str(FOLDER / f"{name}.pcap"), [bytes(cable / packet) for packet in packets], linktype=1)


def forged_v4():
    return str(IPv4Address(0x10000000 | random.getrandbits(28)))


def forged_v6():
    return str(IPv6Address(0x26 << 120 | random.getrandbits(112)))


def port():
    return random.randrange(1024, 65536)


# Hop limit, window, options in the order in which the system sends them: Linux, Windows, macOS, and a bot's.
STACKS = [
    (64, 64240, [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (0x1234567, 0)), ("NOP", None), ("WScale", 7)]),
    (128, 65535, [("MSS", 1460), ("NOP", None), ("WScale", 8), ("NOP", None), ("NOP", None), ("SAckOK", b"")]),
    (64, 65535, [("MSS", 1440), ("NOP", None), ("WScale", 6), ("NOP", None), ("NOP", None), ("Timestamp", (77, 0)),
                 ("SAckOK", b""), ("EOL", None)]),
    (255, 512, []),
]


def syn(to, source, **fields):
    ttl, window, options = random.choice(STACKS)
    hops = ttl - random.randrange(5, 25)
    v6 = ":" in to
    ip = IPv6(src=source, dst=to, hlim=hops) if v6 else IP(src=source, dst=to, ttl=hops, id=random.getrandbits(16), flags="DF")
    return ip / TCP(sport=port(), dport=80, seq=random.getrandbits(32), window=window, options=options, flags="S", **fields)


def tcp(flags, payload=b""):
    ip = IP(src=forged_v4(), dst=WEB_V4, ttl=random.randrange(40, 250), id=random.getrandbits(16))
    numbers = {"seq": random.getrandbits(32), "ack": random.getrandbits(32), "window": random.getrandbits(16)}
    return ip / TCP(sport=port(), dport=80, flags=flags, **numbers) / Raw(payload)


def udp(source, payload, sport=None, to=DNS_V4):
    ip = IPv6(src=source, dst=to) if ":" in to else IP(src=source, dst=to, id=random.getrandbits(16))
    return ip / UDP(sport=sport or port(), dport=53) / payload


def noise():
    return Raw(random.randbytes(random.randrange(20, 1200)))


def network(number):
    return f"203.0.113.{number % 254 + 1}"


def reflector(number):
    return f"192.88.99.{number % 254 + 1}"


def answer(number):
    """Of a resolver that was asked for ANY."""
    question = DNSQR(qname="example.net", qtype="ANY")
    records = DNSRR(rrname="example.net", type="TXT", rdata="x" * 250, ttl=300)
    for _ in range(2):
        records = records / DNSRR(rrname="example.net", type="TXT", rdata="y" * 250, ttl=300)
    return udp(forged_v4(), DNS(id=number, qr=1, rd=1, ra=1, qd=question, an=records, ancount=3), 53)


def pieces(number):
    packet = IP(src=network(number), dst=DNS_V4, id=number) / UDP(sport=port(), dport=53) / Raw(random.randbytes(2900))
    return fragment(packet, fragsize=1480)


numbers = range(PACKETS)
write("syn_network", (syn(WEB_V4, network(n)) for n in numbers))
write("syn_anywhere", (syn(WEB_V6, forged_v6()) for _ in numbers))
write("syn_unsummed", (syn(WEB_V6, forged_v6(), chksum=0x1111) for _ in numbers))
write("ack", (tcp("A") for _ in range(FLOWS)))
write("push", (tcp("PA", random.randbytes(400)) for _ in range(FLOWS)))
write("rst", (tcp("R") for _ in range(FLOWS)))
write("udp_network", (udp(network(n), noise()) for n in numbers))
write("udp_host_v6", (udp("2600::bad", noise(), to=DNS_V6) for _ in numbers))
write("dns_replies", (answer(n) for n in numbers))
write("ntp_replies", (udp(reflector(n), NTPPrivate(response=1, mode=7, request_code=42) / Raw(b"m" * 432), 123) for n in numbers))
write("icmp_network", (IP(src=network(n), dst=WEB_V4) / ICMP(id=n, seq=1) / Raw(b"p" * 56) for n in numbers))
write("fragments", (piece for n in numbers for piece in pieces(n)))
