"""Every table of the lake: its columns, their dtype, unit, and what null means.

This file is the truth. `podtap schema` prints it, `docs/tables.md` is held equal to it by a test, and every
writer builds its Arrow table from `TABLES[name].schema`. A table is stored under `lake/<name>/date=.../node=.../`;
`date` (UTC day of the row's own time) and `node` live in the path only.
"""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from analysis.schema_parts import NAME as NAME
from analysis.schema_parts import TEXT as TEXT
from analysis.schema_parts import TIME as TIME
from analysis.schema_parts import Column as Column
from analysis.schema_parts import Table as Table
from analysis.schema_parts import identity_columns as identity_columns
from analysis.schema_parts import point_columns as point_columns

CLUSTER = Column("cluster", NAME, "cluster of the recording", null="no agent recorded it")
FLOW_UID = Column("flow_uid", NAME, "the flow this row belongs to", null="the packet belongs to no flow")
INTERFACE = Column("interface", NAME, "interface of the observation point", null="the capture does not name interfaces")
FLOW_FIRST_SEEN = Column("flow_first_seen", TIME, "first packet of the flow: its addresses are looked up as of then")

PACKETS: Final = Table(
    "packets",
    "one frame seen at one observation point; where it is tunnelled, of its innermost packet",
    (
        Column("ts", TIME, "when the frame was captured"),
        INTERFACE,
        Column("direction", NAME, "in or out, as the interface's host sees it", null="the capture does not say"),
        Column("segment", NAME, "the capture file"),
        Column("file_offset", pa.int64(), "where the record begins in the (uncompressed) capture file", "bytes"),
        Column("frame_number", pa.int64(), "1-based number of the frame in its capture file, as Wireshark counts"),
        FLOW_UID,
        Column("is_copy", pa.bool_(), "the same packet, or a larger one that it was cut out of, was seen just before in this file, which does not say at which interface"),
        Column("src_ip", NAME, "source address", null="not IP"),
        Column("dst_ip", NAME, "destination address", null="not IP"),
        Column("src_port", pa.uint16(), "source port", null="no ports (or a fragment whose first part was not seen)"),
        Column("dst_port", pa.uint16(), "destination port", null="as src_port"),
        Column("protocol", NAME, "TCP, UDP, SCTP, ICMP, ICMPv6, ESP, ARP ...; IP protocols without a name here are ip-<number>", null="neither IP nor ARP"),
        Column("ip_id", pa.uint32(), "IPv4 identification, or that of the IPv6 fragment header", null="not IPv4 and not an IPv6 fragment"),
        Column("ttl", pa.uint8(), "IPv4 time to live or IPv6 hop limit", "hops", null="not IP"),
        Column("length", pa.uint32(), "length of the frame on the wire", "bytes"),
        Column("payload_length", pa.uint32(), "transport payload on the wire, whatever the snaplen left of it", "bytes", null="not IP"),
        Column("tcp_flags", pa.uint16(), "TCP flags as a number, 12 bits as in Wireshark's tcp.flags", null="not TCP"),
        Column("tcp_seq", pa.uint32(), "raw sequence number", null="not TCP"),
        Column("tcp_ack", pa.uint32(), "raw acknowledgment number", null="not TCP"),
        Column("tcp_window", pa.uint16(), "raw window field, unscaled", null="not TCP"),
        Column("tcp_tsval", pa.uint32(), "TSval of the TCP timestamps option", null="not TCP, or no such option"),
        Column("encapsulation", NAME, "tunnel the packet was in, outermost first, joined by '+': vxlan, geneve, gre, ipip, 4in6, 6in4, mpls ...; wireguard and esp are opaque", null="not tunnelled"),
        Column("vni", pa.uint32(), "VXLAN or Geneve network identifier of the innermost tunnel", null="no such tunnel"),
        Column("outer_src_ip", NAME, "source address of the outermost IP header", null="not tunnelled in IP"),
        Column("outer_dst_ip", NAME, "destination address of the outermost IP header", null="not tunnelled in IP"),
        Column("vlan", pa.uint16(), "innermost VLAN identifier", null="no tag"),
        Column("icmp_type", pa.uint8(), "ICMP or ICMPv6 type", null="not ICMP"),
        Column("icmp_code", pa.uint8(), "ICMP or ICMPv6 code", null="not ICMP"),
        Column("quoted_protocol", NAME, "protocol of the packet that an ICMP error quotes", null="not an ICMP error"),
        Column("quoted_src_ip", NAME, "source address of the quoted packet", null="not an ICMP error"),
        Column("quoted_src_port", pa.uint16(), "source port of the quoted packet", null="not an ICMP error, or no ports quoted"),
        Column("quoted_dst_ip", NAME, "destination address of the quoted packet", null="not an ICMP error"),
        Column("quoted_dst_port", pa.uint16(), "destination port of the quoted packet", null="not an ICMP error, or no ports quoted"),
        Column("malformed", NAME, "what is wrong with the packet: the header whose bytes or lengths make no sense", null="nothing"),
    ),
    time="ts",
)

FLOWS: Final = Table(
    "flows",
    "one bidirectional, time-bounded 5-tuple at one observation point",
    (
        Column("flow_uid", TEXT, "stable id: the same input gives the same id"),
        Column("community_id", TEXT, "Community ID v1 (seed 0), to join with Zeek and Suricata"),
        INTERFACE,
        CLUSTER,
        Column("first_seen", TIME, "first packet"),
        Column("last_seen", TIME, "last packet"),
        Column("protocol", NAME, "TCP, UDP, SCTP, ICMP, ICMPv6 ...; IP protocols without a name here are ip-<number>"),
        Column("orig_ip", NAME, "address of the side that opened the flow"),
        Column("orig_port", pa.uint16(), "port of orig; ICMP: the type of orig's messages, as Zeek", null="no ports"),
        Column("resp_ip", NAME, "address of the side that answered"),
        Column("resp_port", pa.uint16(), "port of resp; ICMP: the type of the counterpart message (else the code), as Zeek", null="no ports"),
        Column("orig_packets", pa.int64(), "packets from orig", "packets"),
        Column("orig_bytes", pa.int64(), "payload from orig; TCP: new bytes by sequence number, so retransmissions do not count twice (Zeek's orig_bytes)", "bytes"),
        Column("orig_ip_bytes", pa.int64(), "IP bytes from orig, headers and retransmissions included (Zeek's orig_ip_bytes)", "bytes"),
        Column("resp_packets", pa.int64(), "packets from resp", "packets"),
        Column("resp_bytes", pa.int64(), "payload from resp, counted as orig_bytes", "bytes"),
        Column("resp_ip_bytes", pa.int64(), "IP bytes from resp, headers and retransmissions included", "bytes"),
        Column("orig_tcp_segments", pa.int64(), "TCP segments with data, SYN or FIN from orig; a GSO packet counts the TCP segments it carries", "tcp_segments"),
        Column("resp_tcp_segments", pa.int64(), "TCP segments with data, SYN or FIN from resp", "tcp_segments"),
        Column("conn_state", NAME, "Zeek's conn_state: S0 S1 SF REJ S2 S3 RSTO RSTR RSTOS0 RSTRH SH SHR OTH"),
        Column("history", TEXT, "Zeek's history: one letter a kind of packet, capitals from orig; empty unless TCP, UDP or ICMP"),
        Column("handshake_rtt_ns", pa.int64(), "SYN to the ACK that ends the handshake, as tshark's tcp.analysis.initial_rtt", "ns", null="not TCP, or no whole handshake seen"),
        Column("orig_retransmits", pa.int64(), "TCP segments that orig retransmitted", "tcp_segments"),
        Column("resp_retransmits", pa.int64(), "TCP segments that resp retransmitted", "tcp_segments"),
        Column("orig_out_of_order", pa.int64(), "packets of orig that came out of order", "packets"),
        Column("resp_out_of_order", pa.int64(), "packets of resp that came out of order", "packets"),
        Column("zero_windows", pa.int64(), "packets that closed the receive window, both sides", "packets"),
        Column("missed_bytes", pa.int64(), "bytes that a peer acknowledged but the capture never had: capture loss, not network loss", "bytes"),
        Column("loss_uncertain", pa.bool_(), "more than 1 % of the bytes were missed by the capture: retransmission figures are a lower bound"),
        Column("encapsulation", NAME, "as in packets, of the first packet", null="not tunnelled"),
        Column("orig_vni", pa.uint32(), "VNI of orig's packets", null="no such tunnel, or none seen"),
        Column("resp_vni", pa.uint32(), "VNI of resp's packets (Cilium and Weave put the sender into it)", null="no such tunnel, or none seen"),
        Column("server_name", TEXT, "TLS server name or HTTP Host of orig's first data", null="none visible"),
        *identity_columns("orig", "orig"),
        *identity_columns("resp", "resp"),
    ),
    time="first_seen",
)

FLOW_MINUTES: Final = Table(
    "flow_minutes",
    "what one flow did in one UTC minute; figures add up to those of the flow (a second row for a minute arises only where timestamps step back)",
    (
        Column("flow_uid", TEXT, "the flow"),
        Column("minute", TIME, "start of the minute"),
        Column("first_ts", TIME, "first packet in the minute"),
        Column("last_ts", TIME, "last packet in the minute"),
        Column("orig_packets", pa.int64(), "packets from orig", "packets"),
        Column("orig_bytes", pa.int64(), "as flows.orig_bytes", "bytes"),
        Column("resp_packets", pa.int64(), "packets from resp", "packets"),
        Column("resp_bytes", pa.int64(), "as flows.resp_bytes", "bytes"),
        Column("orig_tcp_segments", pa.int64(), "as flows.orig_tcp_segments", "tcp_segments"),
        Column("resp_tcp_segments", pa.int64(), "as flows.resp_tcp_segments", "tcp_segments"),
        Column("orig_retransmits", pa.int64(), "TCP segments that orig retransmitted", "tcp_segments"),
        Column("resp_retransmits", pa.int64(), "TCP segments that resp retransmitted", "tcp_segments"),
    ),
    time="minute",
)

RETRANSMITS: Final = Table(
    "retransmits",
    "one packet that is a retransmission or looks like one; a row exists if kind or wireshark_kind is set",
    (
        Column("ts", TIME, "when the packet was captured"),
        Column("segment", NAME, "the capture file of the packet"),
        Column("frame_number", pa.int64(), "1-based frame number in it"),
        Column("flow_uid", NAME, "the flow"),
        FLOW_FIRST_SEEN,
        INTERFACE,
        CLUSTER,
        Column("sender", NAME, "orig or resp: who sent the data that was retransmitted"),
        Column("orig_ip", NAME, "address of the flow's orig"),
        Column("orig_port", pa.uint16(), "port of the flow's orig"),
        Column("resp_ip", NAME, "address of the flow's resp"),
        Column("resp_port", pa.uint16(), "port of the flow's resp"),
        Column("kind", NAME, "network_duplicate, keep_alive, zero_window_probe, syn, synack, fin, spurious, out_of_order, unseen_original, rto, rto_recovery, tlp, fast, unknown or capture_gap", null="podtap sees nothing here, Wireshark would"),
        Column("wireshark_kind", NAME, "what Wireshark calls it: retransmission, fast_retransmission, spurious_retransmission, out_of_order or keep_alive", null="Wireshark would flag nothing"),
        Column("confidence", NAME, "high, medium or low", null="kind is null"),
        Column("evidence", NAME, "what speaks for the kind, joined by '+': ip_id, tsval, sack, dsack, dup_ack, rack, acked, hole, timer, backoff, peer_window", null="kind is null, or nothing but the sequence numbers"),
        Column("seq", pa.uint32(), "first raw sequence number"),
        Column("length", pa.uint32(), "payload", "bytes"),
        Column("tcp_segments", pa.int64(), "TCP segments retransmitted, as the kernel's RetransSegs counts; 0 where the kind is no retransmission", "tcp_segments"),
        Column("original_ts", TIME, "when the same first byte was first seen", null="never seen before"),
        Column("original_segment", NAME, "capture file of that packet", null="never seen before"),
        Column("original_frame", pa.int64(), "frame number of that packet", null="never seen before"),
        Column("delay_ns", pa.int64(), "time since the previous send of the same first byte", "ns", null="never seen before"),
        Column("attempt", pa.int32(), "1 for the first retransmission of this first byte, 2 for the second ...", null="never seen before"),
        *identity_columns("orig", "orig"),
        *identity_columns("resp", "resp"),
    ),
    time="ts",
)

DNS: Final = Table(
    "dns",
    "one DNS transaction: a question with its answer, or without one",
    (
        Column("query_segment", NAME, "capture file of the first query", null="no query seen"),
        Column("query_frame", pa.int64(), "frame number of the first query (TCP: of the packet that completes it)", null="no query seen"),
        Column("response_segment", NAME, "capture file of the response", null="no response seen"),
        Column("response_frame", pa.int64(), "frame number of the response", null="no response seen"),
        Column("flow_uid", NAME, "the flow"),
        FLOW_FIRST_SEEN,
        INTERFACE,
        CLUSTER,
        Column("query_ts", TIME, "first query", null="no query seen"),
        Column("response_ts", TIME, "response", null="no response seen"),
        Column("ts", TIME, "query_ts, else response_ts"),
        Column("latency_ns", pa.int64(), "response minus first query: what the application waited", "ns", null="not answered"),
        Column("last_attempt_latency_ns", pa.int64(), "response minus last query", "ns", null="not answered"),
        Column("status", NAME, "answered, unanswered or unmatched_response"),
        Column("attempts", pa.int32(), "queries sent with this id on this 5-tuple before the answer; 0 for an unmatched response"),
        Column("transport", NAME, "udp or tcp"),
        Column("trans_id", pa.uint16(), "DNS message id"),
        Column("query", TEXT, "name asked for, lower case, without the final dot ('.' is the root); other bytes escaped as \\DDD", null="the message carries no readable question"),
        Column("qtype", NAME, "A, AAAA, SRV ...; types without a name here are TYPE<number>", null="as query"),
        Column("rcode", NAME, "NOERROR, NXDOMAIN, SERVFAIL ... (extended by EDNS); others are RCODE<number>", null="not answered"),
        Column("answers", TEXT, "answer section as text, 'type value' joined by ', '", null="not answered, or no answer records"),
        Column("truncated", pa.bool_(), "the response had the TC bit", null="not answered"),
        Column("search_expansion", pa.bool_(), "the name came from the resolver's search list (ndots): it failed and the client went on with another suffix of the same name"),
        Column("client_ip", NAME, "who asked"),
        Column("client_port", pa.uint16(), "port of the client"),
        Column("server_ip", NAME, "who was asked"),
        Column("server_port", pa.uint16(), "port of the server"),
        *identity_columns("client", "the client"),
        *identity_columns("server", "the server"),
    ),
    time="ts",
)

SEGMENTS: Final = Table(
    "segments",
    "one input file",
    (
        CLUSTER,
        Column("segment", TEXT, "the file, as named in packets.segment"),
        Column("path", TEXT, "where it was read from; '-' is standard input"),
        Column("content_hash", TEXT, "XXH3-128 of the uncompressed content: the same content is analysed once"),
        Column("first_ts", TIME, "first packet (an empty file: the time of its analysis)"),
        Column("last_ts", TIME, "last packet (an empty file: the time of its analysis)"),
        Column("format", NAME, "pcap or pcapng"),
        Column("compression", NAME, "gzip, zstd, lz4 or xz", null="not compressed"),
        Column("link_types", TEXT, "link types in it, joined by ','"),
        Column("interfaces", TEXT, "interface names in it, joined by ','", null="none named"),
        Column("bytes", pa.int64(), "uncompressed size read", "bytes"),
        Column("packets", pa.int64(), "frames read", "packets"),
        Column("arp_packets", pa.int64(), "ARP frames", "packets"),
        Column("not_ip_packets", pa.int64(), "frames that are neither IP nor ARP", "packets"),
        Column("malformed_packets", pa.int64(), "frames with malformed set", "packets"),
        Column("cut_packets", pa.int64(), "frames of which the snaplen left less than the wire had (payload only, mostly)", "packets"),
        Column("opaque_packets", pa.int64(), "WireGuard and ESP packets, whose content can't be read", "packets"),
        Column("skipped_packets", pa.int64(), "frames of a link type that can't be decoded", "packets"),
        Column("copies", pa.int64(), "frames with is_copy set, which count for nothing else", "packets"),
        Column("drops_kernel", pa.int64(), "packets dropped for want of capture buffer, by the capture's own counters", "packets", null="the capture does not say"),
        Column("drops_interface", pa.int64(), "packets dropped by interfaces, by the capture's own counters", "packets", null="the capture does not say"),
        Column("unsealed", pa.bool_(), "a .part file, or one of an agent without a manifest: it was never finished, or not yet"),
        Column("sha256_ok", pa.bool_(), "the content matches its manifest", null="no manifest beside the file"),
        Column("truncated", pa.bool_(), "the file ends inside a record or block"),
        Column("problems", TEXT, "what could not be read, with offsets", null="nothing"),
        Column("opened", TIME, "since when it was recorded, also without packets", null="no manifest"),
        Column("sealed", TIME, "until when it was recorded", null="no manifest"),
        Column("drops_libpcap", pa.int64(), "packets dropped by libpcap", "packets", null="not known: no manifest, or salvaged"),
        Column("drops_disk", pa.int64(), "packets dropped since they could not be written: the disk was full, or its folder gone", "packets", null="as drops_libpcap"),
        Column("drops_policy", pa.int64(), "packets left out on purpose: outside the pods asked for, or beyond a limit", "packets", null="as drops_libpcap"),
        Column("salvaged", pa.bool_(), "sealed by a later start of its agent, after a crash: its end may be missing, and what was dropped is not known", null="no manifest"),
        Column("gap_before_ns", pa.int64(), "how long nothing was recorded before it, as far as the agent knows", "ns", null="no gap known"),
        Column("derived_from", TEXT, "SHA-256 of the manifest of the segment that it was cut out of", null="it is whole, or has no manifest"),
        Column("only_addresses", TEXT, "the addresses whose packets were cut out, joined by ','", null="all packets of its time"),
        Column("run_id", NAME, "one for each start of the agent", null="no manifest"),
        Column("filter", NAME, "BPF filter that was asked for", null="no manifest"),
        Column("payload", NAME, "headers (headers, and DNS whole), snaplen or all", null="no manifest"),
        Column("scope", NAME, "the pods that the recording was limited to; empty: the whole node", null="no manifest"),
        Column("clock_synchronised", pa.bool_(), "the node's clock was synchronised", null="not known"),
        Column("clock_max_error_ns", pa.int64(), "by how much the node's clock may be wrong, at most", "ns", null="not known"),
        Column("clock_stepped", pa.bool_(), "the node's clock jumped", null="no manifest"),
    ),
    time="first_ts",
)

INTERFACES: Final = Table(
    "interfaces",
    "one network interface of a node, from one change to the next, as the manifests tell",
    (
        CLUSTER,
        Column("index", pa.int32(), "its number at the node"),
        Column("name", NAME, "its name, as in packets.interface"),
        Column("kind", NAME, "veth, bridge, vxlan ...; loopback", null="hardware, or not known"),
        Column("role", NAME, "pod, bridge, overlay, tunnel, uplink or loopback: what its name and kind tell", null="not known"),
        Column("cni", NAME, "network plug-in that it belongs to: calico, cilium, flannel or weave", null="none, or not known"),
        Column("mac", TEXT, "its MAC address", null="none"),
        Column("master", pa.int32(), "index of the bridge or bond that it belongs to", null="none"),
        Column("peer", pa.int32(), "index of a veth's other end, in its own network namespace", null="no veth"),
        Column("vni", pa.uint32(), "VXLAN or Geneve network identifier", null="none"),
        Column("addresses", pa.list_(pa.string()), "its addresses, with prefix lengths"),
        Column("reaches", pa.list_(pa.string()), "addresses behind it, as routes, neighbours and the bridge's table tell: of a pod's interface, the pod's"),
        Column("start", TIME, "since when it was so (inclusive); told up to 50 ms late", null="since before it was recorded"),
        Column("end", TIME, "until when it was so (exclusive); told up to 50 ms late", null="until after it was recorded"),
        Column("seen_from", TIME, "start, or else since when it was recorded"),
        Column("seen_until", TIME, "end, or else until when it was recorded"),
    ),
    time="seen_from",
)

NODE_COUNTERS: Final = Table(
    "node_counters",
    "one counter of a node's kernel at one time, as the manifests tell",
    (
        CLUSTER,
        Column("ts", TIME, "when it was read"),
        Column("name", NAME, "softnet_dropped, conntrack_count, tcp_retrans_segs, nic_rx_dropped:<interface> ..."),
        Column("value", pa.int64(), "since the node was booted; of conntrack_count and tcp_curr_estab, at that time"),
        Column("delta", pa.int64(), "value minus the one before", null="the first one since the node was booted"),
    ),
    time="ts",
)

GAPS: Final = Table(
    "gaps",
    "a time of which something is missing, as recordings and journals themselves say; holes between segments are not here",
    (
        CLUSTER,
        Column("node", NAME, "the node whose packets are missing", null="of kind journal"),
        Column("kind", NAME, "evicted (there was a segment, and it is gone), not_collected (a bundle lacks it) or journal (pods may have come and gone unseen)"),
        Column("start", TIME, "since when (inclusive)"),
        Column("end", TIME, "until when (exclusive)"),
        Column("reason", TEXT, "why, as who left it out says", null="not told"),
        Column("packets", pa.int64(), "packets of it that there were", "packets", null="not known"),
    ),
    time=None,
)

COVERAGE: Final = Table(
    "coverage",
    "a time in which the same is true of what was recorded at a node: rows of a node follow each other without holes, so that any second lies in one or more; not a row a second, since what was dropped is counted by the segment, and nobody knows when in it",
    (
        CLUSTER,
        Column("node", NAME, "the node", null="of kind journal: every node"),
        Column("start", TIME, "since when (inclusive)"),
        Column("end", TIME, "until when (exclusive)"),
        Column("kind", NAME, "recorded; dropped (recorded, but packets were dropped sometime in it); unreported (recorded, and what was dropped is not known); cut_out (only packets of some addresses are there); damaged (a file is cut short, or was altered); or nothing: stopped (its agent was not running, until it was started again), crashed (the same, and it had not ended in good order), not_written (it could not write), evicted, not_collected, missing (nobody says why), unknown (no file of a capture of no agent tells of it); or journal (pods may have come and gone unseen)"),
        Column("complete", pa.bool_(), "all that there was is there; of kind journal, of the cluster's changes", null="not known"),
        Column("packets", pa.int64(), "packets recorded; of kind evicted, that there were", "packets", null="none, or not known"),
        *(
            Column(f"drops_{reason}", pa.int64(), f"as segments.drops_{reason}", "packets", null="not known")
            for reason in ("kernel", "libpcap", "disk", "interface", "policy")
        ),
        Column("reason", TEXT, "more about it, in words", null="nothing to add"),
    ),
    time=None,
)

IDENTITIES: Final = Table(
    "identities",
    "one owner of one address during one interval; those whose intervals cover the time are the candidates of an `ambiguous` answer",
    (
        Column("cluster", NAME, "cluster that it is in", null="not told: any"),
        Column("ip", NAME, "the address, or the range (CIDR) that the object gives out"),
        Column("port", pa.uint16(), "only this port (node ports, host ports, ports of load-balancer and external IPs)", null="every port"),
        Column("protocol", NAME, "only this protocol, with port", null="every protocol"),
        Column("start", TIME, "since when (inclusive)", null="known from the beginning of time: nothing bounds it"),
        Column("held", TIME, "by when it had the address for certain; before that, who had it before may have had it still", null="since its start"),
        Column("unseen_before", pa.bool_(), "before held, somebody of whom nothing is known may have had the address: the journal saw nothing then"),
        Column("kept", TIME, "until when it had the address for certain; who had it next may have it since then", null="as long as its source shows it"),
        Column("end", TIME, "until when (exclusive)", null="no end known"),
        Column("identity", NAME, "pod, service or node"),
        Column("namespace", NAME, "namespace", null="cluster-scoped or outside the cluster"),
        Column("name", NAME, "name of the object"),
        Column("uid", NAME, "UID of the object", null="no object"),
        Column("workload", NAME, "top of the pod's owner chain", null="not a pod, or no owner known"),
        Column("workload_kind", NAME, "its kind", null="as workload"),
        Column("node", NAME, "node it is, or runs on", null="none"),
        Column("labels", pa.list_(pa.string()), "labels of the object as key=value, sorted"),
        Column("source", NAME, "the dumps this is known from, each with its time; of the journal, the first and the last time that it proves it"),
    ),
    time=None,
)

ENDPOINTS: Final = Table(
    "endpoints",
    "one address and port that was an endpoint of a service, in one state, during one interval, as EndpointSlices tell; start and held, kept and end differ where a change was not seen when it was made",
    (
        Column("cluster", NAME, "cluster that it is in", null="not told: any"),
        Column("namespace", NAME, "namespace of the service"),
        Column("service", NAME, "the service"),
        Column("ip", NAME, "the address"),
        Column("port", pa.uint16(), "the port there, not that of the service"),
        Column("port_name", NAME, "name of the port", null="it has none"),
        Column("protocol", NAME, "TCP, UDP or SCTP"),
        Column("pod", NAME, "the pod", null="not a pod"),
        Column("pod_uid", NAME, "UID of the pod", null="not a pod"),
        Column("node", NAME, "node on which it is", null="not told"),
        Column("ready", pa.bool_(), "new connections are for it"),
        Column("serving", pa.bool_(), "it answers, whether or not it is on its way out"),
        Column("terminating", pa.bool_(), "it is on its way out"),
        Column("start", TIME, "since when, at the earliest (inclusive)", null="nothing bounds it"),
        Column("held", TIME, "since when for certain: when the journal heard of it, or of all endpoints; the moment of a dump"),
        Column("kept", TIME, "until when for certain (exclusive): when the journal heard of its end, or of the last of all endpoints; the moment of a dump"),
        Column("end", TIME, "until when, at the latest (exclusive)", null="no end known"),
    ),
    time=None,
)

ENDPOINTS_KNOWN: Final = Table(
    "endpoints_known",
    "one time in which all endpoints were known: what the table endpoints does not have then, was none",
    (
        Column("cluster", NAME, "cluster of which", null="not told: any"),
        Column("namespace", NAME, "namespace of which", null="all namespaces"),
        Column("start", TIME, "since when (inclusive)"),
        Column("end", TIME, "until when (exclusive); of a dump its moment, as start"),
    ),
    time=None,
)

CONNECTIONS: Final = Table(
    "connections",
    "one transport connection, whatever points and NATs its packets went past: derived from flows and packets, made anew when more is analysed; empty where there is one observation point only",
    (
        Column("connection_uid", TEXT, "the flow_uid of its primary flow"),
        Column("protocol", NAME, "as flows.protocol"),
        Column("first_seen", TIME, "first packet at any point, by the reference node's clock"),
        Column("last_seen", TIME, "last packet at any point, by the reference node's clock"),
        Column("orig_ip", NAME, "who opened it, as at the point nearest to orig"),
        Column("orig_port", pa.uint16(), "port of orig there", null="no ports"),
        Column("resp_ip", NAME, "whom orig spoke to, as at the point nearest to orig: of a service, its own address"),
        Column("resp_port", pa.uint16(), "port of resp there", null="no ports"),
        Column("backend_ip", NAME, "who answered, as at the point nearest to resp: behind DNAT, the pod"),
        Column("backend_port", pa.uint16(), "port of the backend", null="no ports"),
        Column("snat_ip", NAME, "orig's address as at the point nearest to resp", null="the same: no SNAT was seen"),
        Column("snat_port", pa.uint16(), "orig's port there", null="the same address and port: no SNAT was seen"),
        Column("flows", pa.int32(), "flows that are this connection", "flows"),
        Column("path", pa.list_(pa.string()), "the points that orig's packets passed, in order, as node/interface (and the tunnel there)"),
        Column("return_path", pa.list_(pa.string()), "the points that resp's packets passed, in order"),
        Column("path_kinds", pa.list_(pa.string()), "kinds of the interfaces of path, as hops.from_kind, in the same order; null where not known"),
        Column("return_path_kinds", pa.list_(pa.string()), "the same of return_path"),
        *identity_columns("orig", "orig"),
        *identity_columns("resp", "resp"),
        *identity_columns("backend", "the backend"),
        Column("endpoint", NAME, "what the backend was to the service at first_seen, as EndpointSlices tell: ready, terminating, not_ready, removed (no endpoint any more), not_yet (none, as far as was seen, but later), never (as far as was seen), or unknown (the journal did not see it, or can't tell)", null="not to a service and its backend, as far as was seen; without a service's address: the backend was no endpoint of any, or a node opened it, as for probes"),
        Column("endpoint_of", NAME, "the service, as namespace/name; without a service's address, one of which the backend is an endpoint: of several the best, then the first by name", null="endpoint is null"),
        Column("endpoint_pod", NAME, "the pod that was the endpoint", null="endpoint is null, never or unknown, or was not a pod"),
        Column("endpoint_removed_ns", pa.int64(), "how long before first_seen the journal heard that the endpoint was removed, by its clock", "ns", null="endpoint is not removed, or nobody saw when: that was in a gap of the journal, or one came after"),
    ),
    time=None,
)

CONNECTION_FLOWS: Final = Table(
    "connection_flows",
    "one flow's part in its connection",
    (
        Column("connection_uid", TEXT, "the connection"),
        Column("flow_uid", TEXT, "the flow"),
        Column("role", NAME, "orig: nearest to orig; resp: nearest to resp; only: both; between; aside: no packet of it was seen at another point"),
        Column("is_primary", pa.bool_(), "stands for the connection: its traffic and its outcome count"),
        Column("counts_orig", pa.bool_(), "its TCP segments and retransmissions of orig count: of those that saw most, the nearest to orig"),
        Column("counts_resp", pa.bool_(), "as counts_orig, of resp"),
        Column("is_reversed", pa.bool_(), "what this flow calls orig is the connection's resp"),
        Column("position", pa.int32(), "place on the path of orig's packets, 0 the first", null="no packet of that way was compared"),
        Column("return_position", pa.int32(), "place on the path of resp's packets", null="as position"),
    ),
    time=None,
)

HOPS: Final = Table(
    "hops",
    "one step of a connection's path, one way: from one observation point to the next",
    (
        Column("connection_uid", NAME, "the connection"),
        Column("sender", NAME, "orig or resp: whose packets go this way"),
        Column("position", pa.int32(), "place of the first point on the path"),
        *point_columns("from", "where the packets were first"),
        *point_columns("to", "where they came next"),
        Column("packets", pa.int64(), "packets compared: a sample of those that both points saw", "packets"),
        Column("latencies_ns", pa.list_(pa.int64()), "how long some of them took, at most 8, by the reference node's clock", "ns"),
        Column("lost_tcp_segments", pa.int64(), "TCP segments that the first point saw and the second did not, and that were sent again", "tcp_segments"),
        Column("first_seen", TIME, "first packet of the connection"),
        Column("last_seen", TIME, "last packet of the connection"),
    ),
    time=None,
)

LOSSES: Final = Table(
    "losses",
    "one send of a TCP range that was sent more than once: each that was followed by a retransmission, as the sender's nearest point tells it, and the last if it was lost",
    (
        Column("ts", TIME, "when it was sent again, as retransmits.ts; of the last send, when that was"),
        Column("resent", pa.bool_(), "it was sent again; false: it was the last send, a retransmission that was lost and was not needed"),
        Column("connection_uid", NAME, "the connection"),
        Column("flow_uid", NAME, "the flow of the retransmission"),
        Column("sender", NAME, "orig or resp of the connection: who sent it"),
        Column("seq", pa.uint32(), "as retransmits.seq"),
        Column("tcp_segments", pa.int64(), "as retransmits.tcp_segments", "tcp_segments"),
        Column("verdict", NAME, "lost: between the two points; before: the first point never saw it; arrived: the last point saw it, so it was lost beyond, or sent again for nothing"),
        Column("after_flow_uid", NAME, "the connection's flow at the last point that saw it", null="no point saw it"),
        *point_columns("after", "the last point that saw it", null="no point saw it"),
        Column("before_flow_uid", NAME, "the connection's flow at the next point", null="the last point saw it"),
        *point_columns("before", "the next point, which did not see it", null="the last point saw it"),
    ),
    time=None,
)

CLOCKS: Final = Table(
    "clocks",
    "by how much one node's clock was ahead of the reference node's, from packets that both saw",
    (
        Column("node", NAME, "the node"),
        Column("reference", NAME, "the node whose clock counts"),
        Column("start", TIME, "since when, by the node's clock"),
        Column("end", TIME, "until when, by the node's clock"),
        Column("offset_ns", pa.int64(), "ahead by, in the middle of that time", "ns"),
        Column("drift_ppb", pa.int64(), "gains so many nanoseconds a second", "ppb"),
        Column("bound_ns", pa.int64(), "the offset is right within this", "ns"),
        Column("packets", pa.int64(), "packets that say so", "packets"),
    ),
    time=None,
)

DERIVED: Final = (COVERAGE, CONNECTIONS, CONNECTION_FLOWS, HOPS, LOSSES, CLOCKS)
"""Tables that are made of the others, and anew when those change."""

TABLES: Final = {
    table.name: table
    for table in (
        PACKETS, FLOWS, FLOW_MINUTES, RETRANSMITS, DNS, SEGMENTS, INTERFACES, NODE_COUNTERS, GAPS,
        IDENTITIES, ENDPOINTS, ENDPOINTS_KNOWN, *DERIVED
    )
}
