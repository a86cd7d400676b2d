"""Writes packets that make no sense, or that nobody asked for, to a file, and prints what should become of each.

Usage: packets.py FILE WEB_V4 DNS_V4 WEB_V6 DNS_V6. A line for each packet: a drop reason, "tx", or "any".
"""

import random
import sys

from scapy.all import (
    DNS, DNSQR, DNSRR, ICMP, IP, TCP, UDP, Ether, IPv6, IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment, Raw, SNMP, SNMPresponse, fragment, fuzz, wrpcap,
)
from scapy.layers.ntp import NTPHeader, NTPPrivate

FILE, WEB_V4, DNS_V4, WEB_V6, DNS_V6 = sys.argv[1:]
CLIENT_V4, CLIENT_V6 = "198.18.7.7", "3fff:7::7"
packets, expected = [], []


def add(expectation, packet):
    """Bytes, so that every length and checksum is made once."""
    packets.append(Ether(bytes(Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet)))
    expected.append(expectation)


def v4(source=CLIENT_V4, to=WEB_V4, **fields):
    return IP(src=source, dst=to, **fields)


def v6(source=CLIENT_V6, to=WEB_V6, **fields):
    return IPv6(src=source, dst=to, **fields)


for ip, web, dns in [(v4, WEB_V4, DNS_V4), (v6, WEB_V6, DNS_V6)]:
    for flags in ["S", "SEC", "A", "PA", "FA", "R", "RA", "SA", "PAU"]:
        add("tx", ip() / TCP(sport=40000, dport=80, flags=flags))
    add("tx", ip() / TCP(sport=40001, dport=80, flags="S") / Raw(b"fast open"))
    for flags in [0, "F", "P", "U", "FPU", "SF", "SR", "SFA", "FR", "FRA", "FSRPAU"]:
        add("tcp_flags", ip() / TCP(sport=40002, dport=80, flags=flags))
    add("land", ip(source=web) / TCP(sport=80, dport=80, flags="S"))
    add("source_vip", ip(source=dns) / TCP(sport=53, dport=80, flags="S"))
    add("port_zero", ip() / TCP(sport=0, dport=80, flags="S"))
    add("port_zero", ip(to=dns) / UDP(sport=0, dport=53) / Raw(b"query"))
    add("malformed_header", ip() / TCP(sport=40003, dport=80, dataofs=3))
    add("malformed_header", ip() / TCP(sport=40003, dport=80, dataofs=15))
    add("malformed_header", ip(to=dns) / UDP(sport=40003, dport=53, len=3))
    add("malformed_header", ip(to=dns) / UDP(sport=40003, dport=53, len=300))

    def answer(port, payload):
        return ip(to=dns) / UDP(sport=port, dport=53) / payload

    records = DNSRR(rrname="example.net", type="TXT", rdata="x" * 200)
    add("amplification", answer(53, DNS(qr=1, qd=DNSQR(qname="example.net", qtype="ANY"), an=records)))
    add("tx", answer(53, DNS(qr=0, rd=1, qd=DNSQR(qname="example.net"))))
    add("tx", answer(123, NTPHeader(mode=3)))
    add("amplification", answer(123, NTPHeader(mode=4)))
    add("amplification", answer(123, NTPPrivate(response=1, mode=7, request_code=42)))
    add("amplification", answer(161, SNMP(PDU=SNMPresponse())))
    add("amplification", answer(19, Raw(b" !\"#$%&'()*+,-./" * 30)))
    add("amplification", answer(1900, Raw(b"HTTP/1.1 200 OK\r\nST: upnp:rootdevice\r\n\r\n")))
    add("tx", answer(1900, Raw(b"\xc3\x00\x00\x00\x01\x08" + b"q" * 1200)))
    add("amplification", answer(11211, Raw(b"\x00\x00\x00\x00\x00\x01\x00\x00VALUE a 0 1400\r\n")))

for source in ["0.0.0.0", "127.0.0.1", "224.0.0.5", "239.255.255.250", "255.255.255.255"]:
    add("source_invalid", v4(source=source) / TCP(sport=40004, dport=80, flags="S"))
for source in ["::", "::1", "::ffff:198.18.7.7", "ff02::1"]:
    add("source_invalid", v6(source=source) / TCP(sport=40004, dport=80, flags="S"))

# By their own count the lengths go from the header to past the frame's end.
add("malformed_header", v4(ihl=4) / TCP(sport=40005, dport=80, flags="S"))
add("malformed_header", v4(len=12) / TCP(sport=40005, dport=80, flags="S"))
add("truncated", v4(len=2000) / TCP(sport=40005, dport=80, flags="S"))
add("truncated", v6(plen=2000) / TCP(sport=40005, dport=80, flags="S"))

tcp = bytes(v4() / TCP(sport=40006, dport=80, flags="S"))[20:]
add("fragment_tiny", v4(proto=6, flags="MF", id=1) / Raw(tcp[:8]))
add("fragment_tiny", v4(proto=6, flags="MF", id=2) / Raw(tcp[:16]))
add("fragment_overlap", v4(proto=6, frag=1, id=2) / Raw(b"\x00" * 24))
add("fragment_length", v4(to=DNS_V4, proto=17, frag=8189, id=3) / Raw(b"\x00" * 800))
add("fragment_length", v4(to=DNS_V4, proto=17, flags="MF", frag=100, id=4) / Raw(b"\x00" * 13))
add("fragment_protocol", v4(proto=1, flags="MF", id=5) / Raw(bytes(ICMP() / Raw(b"p" * 32))))
add("fragment_tiny", v6() / IPv6ExtHdrFragment(nh=6, m=1, id=6) / Raw(tcp[:8]))
add("fragment_overlap", v6() / IPv6ExtHdrFragment(nh=6, offset=1, id=6) / Raw(b"\x00" * 24))
for piece in fragment(v4(to=DNS_V4, id=7) / UDP(sport=40007, dport=53) / Raw(b"q" * 3000), fragsize=1400):
    add("tx", piece)

many = v6()
for _ in range(9):
    many = many / IPv6ExtHdrDestOpt()
add("ipv6_extensions", many / TCP(sport=40008, dport=80, flags="S"))

random.seed(7)
for _ in range(300):
    add("any", fuzz(v4(to=random.choice([WEB_V4, DNS_V4])) / random.choice([TCP(), UDP(), ICMP()])))

wrpcap(FILE, packets)
print("\n".join(expected))
