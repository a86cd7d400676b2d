//! Every key that a config may hold, by table.

/// A table and the keys it may hold.
pub(super) struct Keys {
    /// The table as a user would write it; empty for the file itself.
    pub(super) place: &'static str,
    pub(super) known: &'static [&'static str],
    /// Keys that are planned, but that this version does not have.
    pub(super) later: &'static [&'static str],
}

pub(super) const FILE: Keys = Keys {
    place: "",
    known: &[
        "pop",
        "dataplane",
        "api",
        "detect",
        "host",
        "pool",
        "vip",
        "policy",
        "rule",
        "deny",
        "allow",
        "geo",
    ],
    later: &["bgp"],
};

pub(super) const POP: Keys = Keys {
    place: "[pop]",
    known: &["name", "id", "secret_file"],
    later: &[],
};

pub(super) const DATAPLANE: Keys = Keys {
    place: "[dataplane]",
    known: &[
        "interfaces",
        "mode",
        "flows",
        "flow_idle",
        "exact_limits",
        "source_prefixes",
        "lookup_slots",
        "sketch_cells",
        "tunnel_source_v4",
        "tunnel_source_v6",
        "pin_dir",
        "state_dir",
    ],
    later: &[],
};

pub(super) const API: Keys = Keys {
    place: "[api]",
    known: &["socket", "listen", "tokens_file", "tls"],
    later: &[],
};

pub(super) const TLS: Keys = Keys {
    place: "[api.tls]",
    known: &["cert", "key", "client_ca"],
    later: &[],
};

pub(super) const POOL: Keys = Keys {
    place: "[[pool]]",
    known: &[
        "name",
        "slots",
        "all_down",
        "slow_start",
        "health",
        "backend",
    ],
    later: &[],
};

pub(super) const HEALTH: Keys = Keys {
    place: "health",
    known: &[
        "kind",
        "port",
        "path",
        "host",
        "status",
        "body",
        "ca_file",
        "interval",
        "fast_interval",
        "jitter",
        "timeout",
        "rise",
        "fall",
        "via_tunnel",
    ],
    later: &[],
};

pub(super) const BACKEND: Keys = Keys {
    place: "[[pool.backend]]",
    known: &["address", "weight", "forward"],
    later: &[],
};

pub(super) const VIP: Keys = Keys {
    place: "[[vip]]",
    known: &[
        "name", "address", "protocol", "port", "pool", "forward", "mtu", "hash", "policy",
    ],
    later: &[],
};

pub(super) const POLICY: Keys = Keys {
    place: "[[policy]]",
    known: &[
        "name",
        "mode",
        "host_v4",
        "network_v4",
        "host_v6",
        "network_v6",
        "limits",
        "detect",
        "sanity",
        "amplification",
        "out_of_state",
        "rules",
        "syn",
        "sources",
        "bogons",
        "fragments",
    ],
    later: &[],
};

pub(super) const RULE: Keys = Keys {
    place: "[[rule]]",
    known: &["text"],
    later: &[],
};

pub(super) const DENY: Keys = Keys {
    place: "[[deny]]",
    known: &[
        "name",
        "file",
        "prefixes",
        "countries",
        "asns",
        "vip",
        "mode",
        "skip_bad",
    ],
    later: &[],
};

pub(super) const ALLOW: Keys = Keys {
    place: "[[allow]]",
    known: &[
        "name",
        "file",
        "prefixes",
        "countries",
        "asns",
        "vip",
        "skip_bad",
    ],
    later: &[],
};

pub(super) const GEO: Keys = Keys {
    place: "[geo]",
    known: &["databases"],
    later: &[],
};

pub(super) const HOST: Keys = Keys {
    place: "[host]",
    known: &["protect"],
    later: &[],
};

pub(super) const AMPLIFICATION: Keys = Keys {
    place: "amplification",
    known: &["presets", "mode", "replies_from"],
    later: &[],
};

pub(super) const PRESET: Keys = Keys {
    place: "presets",
    known: &["preset", "mode", "replies_from"],
    later: &[],
};

pub(super) const OUT_OF_STATE: Keys = Keys {
    place: "out_of_state",
    known: &["pps", "burst", "mode"],
    later: &[],
};

pub(super) const SANITY: Keys = Keys {
    place: "sanity",
    known: &[
        "tcp_flags",
        "land",
        "source_invalid",
        "source_vip",
        "port_zero",
        "syn_data",
        "fragment_tiny",
        "fragment_overlap",
        "fragment_length",
    ],
    later: &[],
};

pub(super) const DETECT: Keys = Keys {
    place: "[detect]",
    known: &[
        "mode",
        "thresholds",
        "hold",
        "quiet",
        "learn",
        "sampling",
        "webhook",
    ],
    later: &[],
};

pub(super) const THRESHOLDS: Keys = Keys {
    place: "thresholds",
    known: &["pps", "bps", "factor", "cap"],
    later: &[],
};

pub(super) const SYN: Keys = Keys {
    place: "syn",
    known: &[
        "mode",
        "defence",
        "monitor",
        "above_pps",
        "hold",
        "again_pps",
        "mss",
        "window_scale",
        "window",
        "sack",
        "timestamps",
        "ecn",
    ],
    later: &[],
};

/// Those of [`SYN`] that are about one defence.
pub(super) const SYN_CHALLENGE: [&str; 1] = ["again_pps"];
pub(super) const SYN_COOKIE: [&str; 6] =
    ["mss", "window_scale", "window", "sack", "timestamps", "ecn"];

pub(super) const LIMIT: Keys = Keys {
    place: "limits",
    known: &["class", "per", "pps", "bps", "burst"],
    later: &[],
};

#[cfg(test)]
mod tests {
    use super::{
        ALLOW, AMPLIFICATION, API, BACKEND, DATAPLANE, DENY, FILE, GEO, HEALTH, HOST, LIMIT,
        OUT_OF_STATE, POLICY, POOL, POP, RULE, SANITY, SYN, TLS, VIP,
    };

    #[test]
    fn the_example_shows_every_key() {
        let example = include_str!("../../sluice.example.toml");
        let is_shown = |key: &str| {
            example.lines().any(|line| {
                line.trim_start_matches(['#', ' '])
                    .starts_with(&format!("{key} = "))
            })
        };
        let tables = [
            ("[pop]", &POP),
            ("[dataplane]", &DATAPLANE),
            ("[api]", &API),
            ("[api.tls]", &TLS),
            ("[[pool]]", &POOL),
            ("[pool.health]", &HEALTH),
            ("[[pool.backend]]", &BACKEND),
            ("[[vip]]", &VIP),
            ("[[policy]]", &POLICY),
            ("[policy.sanity]", &SANITY),
            ("[policy.amplification]", &AMPLIFICATION),
            ("[policy.out_of_state]", &OUT_OF_STATE),
            ("[host]", &HOST),
            ("[[rule]]", &RULE),
            ("[[deny]]", &DENY),
            ("[[allow]]", &ALLOW),
            ("[geo]", &GEO),
            ("[[policy.limits]]", &LIMIT),
            ("[policy.syn]", &SYN),
        ];
        for key in FILE.known {
            assert!(example.contains(&format!("[{key}]")), "no table `{key}`");
        }
        for (header, keys) in tables {
            assert!(example.contains(&format!("\n{header}\n")), "no {header}");
            for key in keys.known {
                let as_table = [
                    "health",
                    "backend",
                    "limits",
                    "tls",
                    "sanity",
                    "amplification",
                    "out_of_state",
                    "syn",
                ]
                .contains(key);
                assert!(as_table || is_shown(key), "no `{key}` of {header}");
            }
        }
    }
}
