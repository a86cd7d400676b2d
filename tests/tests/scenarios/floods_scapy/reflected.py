"""Writes replies as reflectors send them to a file, and prints what each is: the preset, or "tx" for what is to be let through.

Usage: reflected.py FILE WEB_V4 DNS_V4 WEB_V6 DNS_V6. Replies from 203.0.113.53 and 2001:db8:53::53 were asked for.
"""

import struct
import sys
from itertools import count

from scapy.all import (
    BOOTP, DNS, DNSQR, DNSRR, DNSRROPT, IP, L2TP, RIP, SNMP, TFTP, UDP, ASN1_OID, ASN1_STRING, Ether, IPv6,
    NBNSHeader, NBNSNodeStatusResponse, NBNSNodeStatusResponseService, Raw, RIPEntry, SNMPresponse, SNMPvarbind,
    TFTP_DATA, wrpcap,
)
from scapy.contrib.coap import CoAP
from scapy.layers.ntp import NTPHeader, NTPPrivate

FILE, _, DNS_V4, _, DNS_V6 = sys.argv[1:]
packets, expected = [], []
number = count()


def add(expectation, sport, payload, asked=False):
    """From one of many reflectors, to both families."""
    n = next(number)
    payload = Raw(payload) if isinstance(payload, (bytes, str)) else payload
    v4 = "203.0.113.53" if asked else f"23.{n % 200}.{n // 200}.7"
    v6 = "2001:db8:53::53" if asked else f"2600:{n:x}::7"
    for ip in [IP(src=v4, dst=DNS_V4, id=n), IPv6(src=v6, dst=DNS_V6)]:
        cable = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02")
        packets.append(Ether(bytes(cable / ip / UDP(sport=sport, dport=53) / payload)))
        expected.append(expectation)


def ber(tag, *parts, long=False):
    """Active Directory writes every length in four bytes."""
    body = b"".join(parts)
    short = bytes([len(body)]) if len(body) < 128 else b"\x82" + struct.pack("!H", len(body))
    return bytes([tag]) + (b"\x84" + struct.pack("!I", len(body)) if long else short) + body


def texts(**pairs):
    return "".join(f"\\{key}\\{value}" for key, value in pairs.items()).encode()


def http(*lines):
    return "\r\n".join([*lines, "", ""]).encode()


add("echo", 7, b"0123456789" * 40)
add("daytime", 13, b"Monday, November 30, 2026 21:15:28-UTC\r\n")
add("qotd", 17, b'"Have more than thou showest, Speak less than thou knowest." (Shakespeare, King Lear)\r\n')
letters = bytes(range(33, 127)) * 2
add("chargen", 19, b"".join(letters[n:n + 72] + b"\r\n" for n in range(14)))

question = DNSQR(qname="example.net", qtype="ANY")
many = DNSRR(rrname="example.net", type="A", rdata="198.18.0.1", ttl=300)
for n in range(2, 25):
    many = many / DNSRR(rrname="example.net", type="A", rdata=f"198.18.0.{n}", ttl=300)
add("dns", 53, DNS(id=7, qr=1, rd=1, ra=1, qd=question, an=many, ancount=24, ar=DNSRROPT(rclass=4096)))
add("dns", 53, DNS(id=8, qr=1, aa=1, tc=1, qd=question))
add("dns", 53, DNS(id=9, qr=1, rcode=5, qd=question))
add("tftp", 69, TFTP() / TFTP_DATA(block=1) / Raw(b"#!ipxe\n" * 73))
# A dump of what is registered (RFC 1833), and how many octets a call took.
entries = b"".join(struct.pack("!5I", 1, 100000 + n, 2, 17, 111 + n) for n in range(12))
add("portmap", 111, struct.pack("!6I", 0x1234, 1, 0, 0, 0, 0) + entries + bytes(4))
add("ntp", 123, NTPPrivate(response=1, more=1, mode=7, implementation=3, request_code=42, nb_items=6, data_item_size=72)
    / Raw(b"\x00\x00\x00\x2a" * 108))
variables = b'version="ntpd 4.2.6p5", processor="x86_64", system="Linux/3.10", leap=0, stratum=2, refid=198.18.0.1'
add("ntp", 123, struct.pack("!BBHHHHH", 0x16, 0x82, 1, 0x0618, 0, 0, len(variables)) + variables)
add("ntp", 123, NTPHeader(mode=4, stratum=2))
add("netbios", 137, NBNSHeader(NM_FLAGS=0x40, RESPONSE=1, OPCODE=0, ANCOUNT=1) / NBNSNodeStatusResponse(
    NODE_NAME=[NBNSNodeStatusResponseService(NETBIOS_NAME=f"HOST{n}") for n in range(4)]))
binding = [SNMPvarbind(oid=ASN1_OID(f"1.3.6.1.2.1.1.{n}.0"), value=ASN1_STRING(b"Linux router 4.9 mips" * 4)) for n in range(1, 9)]
add("snmp", 161, SNMP(version="v2c", community="public", PDU=SNMPresponse(varbindlist=binding)))
willing = b"\x00\x07" + b"\x00\x04host" + b"\x00\x10Linux 5.4 x86_64"
add("xdmcp", 177, struct.pack("!HHH", 1, 5, len(willing)) + willing)
root = b"".join(
    ber(0x30, ber(0x04, name, long=True), ber(0x31, *[ber(0x04, value, long=True)] * 8, long=True), long=True)
    for name, value in [(b"namingContexts", b"DC=example,DC=net"), (b"supportedControl", b"1.2.840.113556.1.4.319")])
for long in [True, False]:
    entry = ber(0x64, ber(0x04, b""), ber(0x30, root, long=long), long=long)
    add("cldap", 389, ber(0x30, ber(0x02, b"\x07"), entry, long=long))
url = b"service:wbem:https://198.18.0.7:5989"
reply = b"\x00" * 2 + b"\x00\x01" + b"\x00\xff\xff" + struct.pack("!H", len(url)) + url + b"\x00"
add("slp", 427, b"\x02\x02" + struct.pack("!I", 16 + len(reply))[1:] + bytes(5) + b"\x12\x34\x00\x02en" + reply)
routes = RIPEntry(addr="10.0.0.0", metric=1)
for n in range(1, 25):
    routes = routes / RIPEntry(addr=f"10.{n}.0.0", metric=1)
add("rip", 520, RIP(cmd=2, version=1) / routes)
# A pong of ASF, and what a channel can do.
add("ipmi", 623, bytes.fromhex("0600ff06 000011be 40000010 000011be 00000000 81000000 00000000"))
add("ipmi", 623, bytes.fromhex("0600ff07 00000000 00000000 00108120 00813800 01150006 00000000 1e"))
add("openvpn", 1194, b"\x40" + b"s" * 8 + b"\x01" + bytes(4) + b"c" * 8 + bytes(4))
names = b"ServerName;HOST;InstanceName;SQLEXPRESS;IsClustered;No;Version;10.50.1600.1;tcp;1433;;" * 5
add("mssql", 1434, b"\x05" + struct.pack("<H", len(names)) + names)
attributes = bytes.fromhex("8008 0000 0000 0002 8008 0000 0002 0100 800a 0000 0003 00000003 800a 0000 0007") + b"router"
add("l2tp", 1701, L2TP(hdr="control+length+sequence", version=2, tunnel_id=1, ns=0, nr=1) / Raw(attributes))
add("ssdp", 1900, http("HTTP/1.1 200 OK", "CACHE-CONTROL: max-age=120", "ST: upnp:rootdevice", "EXT:",
                       "USN: uuid:824ff22b-8c7d-41c5-a131-44f534e12555::upnp:rootdevice",
                       "SERVER: Linux/2.6 UPnP/1.0 MiniUPnPd/1.4", "LOCATION: http://192.168.0.1:1900/rootDesc.xml"))
add("arms", 3283, bytes.fromhex("000103ea 31000000 00000000") + b"Mac mini".ljust(64, b"\x00") + bytes(926))
# SYN and ACK of MS-RDPEUDP, as long as packets may be.
add("rdp", 3389, struct.pack("!IHHIHH", 0x1234, 64, 0x0005, 0x5678, 1232, 1232).ljust(1232, b"\x00"))
mapped = bytes.fromhex("0001 0008 0001 d431 c6120007 0004 0008 0001 0d96 17000007 0005 0008 0001 0d97 17000008 8022 0004") + b"Vovi"
add("stun", 3478, struct.pack("!HHI", 0x0101, len(mapped), 0x2112a442) + b"t" * 12 + mapped)
add("stun", 3478, struct.pack("!HHI", 0x0111, 16, 0x2112a442) + b"t" * 12 + b"\x00\x09\x00\x0c\x00\x00\x04\x00Too slow")
envelope = (b'<SOAP-ENV:Envelope xmlns:SOAP-ENV="http://www.w3.org/2003/05/soap-envelope" '
            b'xmlns:d="http://schemas.xmlsoap.org/ws/2005/04/discovery"><SOAP-ENV:Body><d:ProbeMatches><d:ProbeMatch>'
            b"<d:XAddrs>http://192.168.0.9/onvif/device_service</d:XAddrs></d:ProbeMatch></d:ProbeMatches></SOAP-ENV:Body></SOAP-ENV:Envelope>")
add("ws_discovery", 3702, b'<?xml version="1.0" encoding="UTF-8"?>\n' + envelope)
add("ws_discovery", 3702, envelope)
for status in ["200 OK", "404 Not Found"]:
    add("sip", 5060, http(f"SIP/2.0 {status}", "Via: SIP/2.0/UDP 192.0.2.53;branch=z9hG4bK-7", "CSeq: 1 OPTIONS",
                          "Allow: INVITE,ACK,BYE,CANCEL,OPTIONS", "Content-Length: 0"))
add("nat_pmp", 5351, struct.pack("!BBHI4s", 0, 128, 0, 1000, b"\xc6\x12\x00\x07"))
add("nat_pmp", 5351, struct.pack("!BBBBII", 2, 0x81, 0, 1, 30, 1000) + bytes(12))
pointers = DNSRR(rrname="_services._dns-sd._udp.local", type="PTR", rdata="_ipp._tcp.local", ttl=10)
add("mdns", 5353, DNS(id=0, qr=1, aa=1, qd=None, an=pointers))
for kind in [1, 2]:
    core = b"</sensors/temp>;rt=temperature;if=sensor," * 12
    add("coap", 5683, CoAP(ver=1, type=kind, code=69, msg_id=7, options=[("Content-Format", b"\x28")], paymark=b"\xff") / Raw(core))
add("bittorrent", 6881, b"d1:rd2:id20:" + b"i" * 20 + b"5:nodes208:" + b"n" * 208 + b"5:token8:tokentoke1:t2:aa1:y1:re")
add("teamspeak", 9987, b"TS3INIT1" + struct.pack("!HB", 101, 0x88) + b"\x01" + b"r" * 20)
tlv = b"\x02\x00\x0a" + bytes(6) + b"\xc0\xa8\x01\x14" + b"\x0b\x00\x08AirGrid " + b"\x0c\x00\x03LM5"
for version, command in [(1, 0), (2, 6)]:
    add("ubiquiti", 10001, struct.pack("!BBH", version, command, len(tlv)) + tlv)
for n, data in enumerate([b"VALUE a 0 100000\r\n" + b"x" * 1370, b"x" * 1392, b"STAT pid 7\r\nSTAT uptime 9\r\nEND\r\n"]):
    add("memcached", 11211, struct.pack("!4H", 0, n % 2, 72, 0) + data)
raknet = bytes.fromhex("00ffff00fefefefefdfdfdfd12345678")
name = b"MCPE;Dedicated Server;390;1.14.60;0;10;13253860892328930865;Bedrock level;Survival;1;19132;19133;"
add("minecraft", 19132, b"\x1c" + bytes(7) + b"\x07" + b"g" * 8 + raknet + struct.pack("!H", len(name)) + name)
add("steam", 27015, b"\xff\xff\xff\xffI\x11A server\x00de_dust2\x00cstrike\x00Counter-Strike\x00")
add("steam", 27015, b"\xff\xff\xff\xffD\x02\x00Alice\x00\x05\x00\x00\x00" + bytes(4))
# What is longer than a packet comes in parts.
add("steam", 27015, b"\xfe\xff\xff\xff" + struct.pack("<IBBH", 7, 3, 0, 1248) + b"\xff\xff\xff\xffE\x20\x00mp_timelimit\x0030\x00" * 20)
add("quake", 27960, b"\xff\xff\xff\xffstatusResponse\n" + texts(sv_hostname="q3", mapname="q3dm17", gamename="baseq3") + b'\n7 50 "Alice"\n' * 9)
add("fivem", 30120, b"\xff\xff\xff\xffinfoResponse\n" + texts(sv_maxclients=32, clients=7, gamename="CitizenFX", protocol=4))
add("lantronix", 30718, bytes.fromhex("000000f7") + b"\x06\x10\x00\x00X9\x00\x00" + bytes(18))
for port in [32410, 32412, 32413, 32414]:
    add("plex", port, http("HTTP/1.0 200 OK", "Content-Type: plex/media-server", "Host: 1234.plex.direct", "Name: home",
                           "Port: 32400", "Resource-Identifier: 0123456789abcdef", "Version: 1.21.0.3711"))
add("jenkins", 33848, b"<hudson><version>2.204.1</version><url>http://ci.example.net/</url><server-id>7</server-id><slave-port>50000</slave-port></hudson>")
device = b'{"mac":"90:02:a9:00:00:07","method":"client.notifyDevInfo","params":{"deviceInfo":{"DeviceClass":"HCVR"}}}\n'
add("dvr", 37810, b"\x20\x00\x00\x00DHIP" + bytes(8) + struct.pack("<IIII", len(device), 0, len(device), 0) + device)
add("bacnet", 47808, bytes.fromhex("810a0032 0100 30 01 0e 0c 02000007 1e 29 4d 4e 75 1500") + b"Controller of a building" * 2)

# What was asked for, of each kind of beginning.
add("tx", 53, DNS(id=7, qr=1, rd=1, ra=1, qd=question, an=many, ancount=24), asked=True)
add("tx", 123, NTPHeader(mode=4, stratum=2), asked=True)
add("tx", 19, letters, asked=True)
# Clients have ports above 1023 too: QUIC and questions.
quic = b"\xc3\x00\x00\x00\x01\x08" + b"\x83\x94\xc8\xf0\x3e\x51\x57\x08" + b"\x00\x00\x44\x9e" + b"q" * 1182
for port in [1194, 1434, 1701, 1900, 3478, 3702, 5060, 5351, 5353, 5683, 6881, 9987, 10001, 11211, 19132, 27015, 27960, 30120,
             30718, 32410, 32412, 32413, 32414, 33848, 37810, 47808]:
    add("tx", port, quic)
add("tx", 53, DNS(id=7, rd=1, qd=question))
add("tx", 123, NTPHeader(mode=3))
add("tx", 1900, http("M-SEARCH * HTTP/1.1", 'MAN: "ssdp:discover"', "ST: ssdp:all"))
add("tx", 3478, struct.pack("!HHI", 0x0001, 0, 0x2112a442) + b"t" * 12)
add("tx", 67, BOOTP(op=2))

wrpcap(FILE, packets)
print("\n".join(expected))
