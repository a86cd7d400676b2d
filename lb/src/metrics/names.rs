//! Every metric: its name, kind, meaning and labels. The exporter and the reference read them here.

use prometheus::proto::MetricType;

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub help: &'static str,
    pub labels: &'static [&'static str],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
}

impl Kind {
    pub(super) fn of_prometheus(self) -> MetricType {
        match self {
            Self::Counter => MetricType::COUNTER,
            Self::Gauge => MetricType::GAUGE,
        }
    }
}

macro_rules! metrics {
    ($($constant:ident = $kind:ident $name:literal $labels:tt $help:literal;)*) => {
        $(pub const $constant: Metric = Metric {
            name: $name,
            kind: Kind::$kind,
            help: $help,
            labels: &$labels,
        };)*

        /// All of them.
        pub const ALL: &[Metric] = &[$($constant),*];
    };
}

metrics! {
    PACKETS = Counter "sluice_packets_total" ["vip", "verdict"]
        "Packets to a VIP by what became of them, drops aside.";
    BYTES = Counter "sluice_bytes_total" ["vip", "verdict"]
        "Bytes of these packets, from the IP header on, as they came in.";
    DROPPED_PACKETS = Counter "sluice_dropped_packets_total" ["vip", "reason"]
        "Packets that XDP dropped. Packets handed to the host are not among them. Without a VIP: for none.";
    DROPPED_BYTES = Counter "sluice_dropped_bytes_total" ["vip", "reason"]
        "Bytes of these packets, from the IP header on.";
    MONITORED_PACKETS = Counter "sluice_monitored_packets_total" ["vip", "reason"]
        "Packets that would have been dropped if what they met did not only count.";
    AMPLIFIED_PACKETS = Counter "sluice_amplified_packets_total" ["preset", "mode"]
        "Answers that nobody asked for, of services that are abused to amplify. With mode monitor they were not dropped.";
    CHALLENGES = Counter "sluice_challenges_total" ["vip", "event"]
        "What came of SYN challenges: SYNs that were sent one, or would have been, or were let in; resets that proved their source, or did not.";
    COOKIES = Counter "sluice_cookies_total" ["vip", "event"]
        "What came of SYN cookies: SYNs that were sent one; packets of no known flow that showed a good one, or none where one was due.";
    BACKEND_PACKETS = Counter "sluice_backend_packets_total" ["pool", "backend"]
        "Packets sent to a backend.";
    BACKEND_BYTES = Counter "sluice_backend_bytes_total" ["pool", "backend"]
        "Bytes of these packets, from the IP header on, without outer headers.";
    BACKEND_UP = Gauge "sluice_backend_up" ["pool", "backend"]
        "1 if health checks say that the backend is up.";
    BACKEND_UNCHECKED = Gauge "sluice_backend_unchecked" ["pool", "backend"]
        "1 while this host cannot make a backend's health checks, for want of descriptors or the like: what is told of it is from before.";
    BACKEND_STATE = Gauge "sluice_backend_state" ["pool", "backend", "state"]
        "Always 1: the backend's state in a word.";
    BACKEND_FLOWS = Gauge "sluice_backend_flows" ["pool", "backend"]
        "Live flows of a backend.";
    BACKEND_WEIGHT = Gauge "sluice_backend_weight" ["pool", "backend"]
        "A backend's share of new flows, as configured.";
    FLOW_TABLE_CAPACITY = Gauge "sluice_flow_table_capacity" []
        "Flows that are remembered at a time.";
    FLOW_TABLE_ENTRIES = Gauge "sluice_flow_table_entries" ["state"]
        "Live flows that are remembered.";
    FLOW_INSERTS = Counter "sluice_flow_inserts_total" []
        "Flows that entered the flow table.";
    FLOW_EVICTIONS = Counter "sluice_flow_evictions_total" ["state"]
        "Flows that made room for others, by what they were.";
    FLOW_OUT_OF_STATE = Counter "sluice_flow_out_of_state_total" ["vip"]
        "TCP packets that were neither SYN nor of a known flow.";
    LIMIT_MATCHED_PACKETS = Counter "sluice_limit_matched_packets_total" ["limit"]
        "Packets that met a limit set at run time. The 100 limits that drop most by id, and other for the sum of the rest.";
    LIMIT_DROPPED_PACKETS = Counter "sluice_limit_dropped_packets_total" ["limit"]
        "Packets over that limit. With mode monitor they were not dropped.";
    RULE_MATCHED_PACKETS = Counter "sluice_rule_matched_packets_total" ["rule"]
        "Packets that a rule means. The 100 rules that drop most by id, and other for the sum of the rest.";
    RULE_DROPPED_PACKETS = Counter "sluice_rule_dropped_packets_total" ["rule"]
        "Packets that the rule dropped. With mode monitor they were not dropped.";
    SET_MATCHED_PACKETS = Counter "sluice_set_matched_packets_total" ["kind", "set"]
        "Packets from sources that are denied or allowed, by set; single prefixes are the set prefixes.";
    SET_DROPPED_PACKETS = Counter "sluice_set_dropped_packets_total" ["kind", "set"]
        "Those of them that were dropped for that.";
    LIMITER_FILL_RATIO = Gauge "sluice_limiter_fill_ratio" ["class"]
        "Part of the sketch's cells that are full for the strictest limit of a class, by a sample of its pages.";
    LIMITER_COLLATERAL_PROBABILITY = Gauge "sluice_limiter_collateral_probability" ["class"]
        "Chance that a source which sends little shares all its cells of the sketch with others that are over their limits.";
    MITIGATION_ACTIVE = Gauge "sluice_mitigation_active" ["vip", "rule"]
        "1 while a mitigation of detection acts, 0 while it only counts or is refused; by its id. Without a VIP: for all.";
    MITIGATION_MATCHED_PACKETS = Counter "sluice_mitigation_matched_packets_total" ["vip", "rule"]
        "Packets that fit a mitigation's rule.";
    ATTACK_ACTIVE = Gauge "sluice_attack_active" ["vip", "class"]
        "1 while a class of a VIP's traffic is taken for an attack. Without a VIP: of many together.";
    WEBHOOK_LOST = Counter "sluice_webhook_lost_total" []
        "Decisions of detection that the webhook never took.";
    TABLE_CHECKSUM = Gauge "sluice_table_checksum" ["vip"]
        "Upper 48 bits of the checksum of a VIP's lookup table, unless it drains. Load balancers with equal ones choose the same backends.";
    CONFIG_LAST_RELOAD_SUCCESS = Gauge "sluice_config_last_reload_success" []
        "1 if the config was taken when it was last read.";
    CONFIG_HASH = Gauge "sluice_config_hash" []
        "Upper 48 bits of the hash of the config in force.";
    BUILD_INFO = Gauge "sluice_build_info" ["version"]
        "Always 1.";
    DATAPLANE_INFO = Gauge "sluice_dataplane_info" ["interface", "mode"]
        "Always 1: an interface whose packets the program sees, and how. Generic mode is slower.";
    XDP_NS_PER_PACKET = Gauge "sluice_xdp_ns_per_packet" []
        "Mean time of the XDP program for a packet, of those that came while metrics were read.";
    POP_DRAINING = Gauge "sluice_pop_draining" []
        "1 while this PoP drains: no VIP gets new flows.";
}
