//! The config file of a lab's load balancer, in parts that a scenario can change.

use std::fmt::Write;

use crate::{Backend, DNS_V4, DNS_V6, WEB_V4, WEB_V6};

/// What the file says besides where this lab's interfaces, pins and socket are.
#[derive(Clone, Debug)]
pub struct Config {
    pub pools: Vec<Pool>,
    pub vips: Vec<Vip>,
    /// `[[policy]]` tables and whatever else, as they are.
    pub extra: String,
    pub exact_limits: u32,
    /// Room for sources in sets, a power of two.
    pub source_prefixes: u32,
    /// Room of the flow table, a power of two.
    pub flows: u32,
    /// More lines for `[dataplane]`.
    pub dataplane: String,
    /// More lines for `[api]`.
    pub api: String,
}

#[derive(Clone, Debug)]
pub struct Pool {
    pub name: String,
    /// The inline table of `health`.
    pub health: String,
    /// More keys.
    pub extra: String,
    pub backends: Vec<PoolBackend>,
}

#[derive(Clone, Debug)]
pub struct PoolBackend {
    /// Of the lab's backend.
    pub name: String,
    pub address: String,
    /// More keys.
    pub extra: String,
}

#[derive(Clone, Debug)]
pub struct Vip {
    pub name: String,
    pub address: String,
    pub protocol: &'static str,
    pub port: Option<u16>,
    pub pool: String,
    pub forward: String,
    /// More keys.
    pub extra: String,
}

impl Config {
    /// Pools `v4` and `v6` of the backends' addresses, VIPs `web4`, `web6`, `dns4` and `dns6` by `l2`.
    pub(crate) fn standard(backends: &[(String, String, String)]) -> Self {
        let pool = |name: &str, address: fn(&(String, String, String)) -> &String| {
            Pool {
            name: name.to_owned(),
            // Calm, so that a loaded machine takes no backend away; scenarios about health set their own.
            health: r#"{ kind = "http", port = 80, path = "/health", status = 200, interval = "500ms", timeout = "500ms", rise = 1, fall = 10 }"#
                .to_owned(),
            extra: String::new(),
            backends: backends
                .iter()
                .map(|backend| PoolBackend {
                    name: backend.0.clone(),
                    address: address(backend).clone(),
                    extra: String::new(),
                })
                .collect(),
        }
        };
        let vip = |name: &str, address: std::net::SocketAddr, protocol, pool: &str| Vip {
            name: name.to_owned(),
            address: address.ip().to_string(),
            protocol,
            port: Some(address.port()),
            pool: pool.to_owned(),
            forward: "l2".to_owned(),
            extra: String::new(),
        };
        Self {
            pools: vec![
                pool("v4", |backend| &backend.1),
                pool("v6", |backend| &backend.2),
            ],
            vips: vec![
                vip("web4", WEB_V4, "tcp", "v4"),
                vip("web6", WEB_V6, "tcp", "v6"),
                vip("dns4", DNS_V4, "udp", "v4"),
                vip("dns6", DNS_V6, "udp", "v6"),
            ],
            extra: String::new(),
            exact_limits: 16_384,
            source_prefixes: 16_384,
            flows: 65_536,
            dataplane: String::new(),
            api: String::new(),
        }
    }

    /// Room for so many limits of prefixes.
    #[must_use]
    pub fn exact_limits(mut self, most: u32) -> Self {
        self.exact_limits = most;
        self
    }

    /// How every VIP forwards.
    #[must_use]
    pub fn forward(mut self, forward: &str) -> Self {
        self.vips
            .iter_mut()
            .for_each(|vip| forward.clone_into(&mut vip.forward));
        self
    }

    /// Each VIP gets the pool of the other family: only tunnels can do that.
    #[must_use]
    pub fn cross_families(mut self) -> Self {
        for vip in &mut self.vips {
            vip.pool = if vip.pool == "v4" { "v6" } else { "v4" }.to_owned();
        }
        self
    }

    /// With one more backend in the pools `v4` and `v6`.
    #[must_use]
    pub fn with(mut self, backend: &Backend) -> Self {
        for pool in &mut self.pools {
            let mut added = pool.backends[0].clone();
            let address = if pool.name == "v4" {
                backend.v4()
            } else {
                backend.v6()
            };
            (added.name, added.address) = (backend.name().to_owned(), address.to_string());
            pool.backends.push(added);
        }
        self
    }

    /// Takes a backend out of every pool.
    #[must_use]
    pub fn without(mut self, backend: &str) -> Self {
        self.pools
            .iter_mut()
            .for_each(|pool| pool.backends.retain(|member| member.name != backend));
        self
    }

    /// The health check of every pool, an inline table.
    #[must_use]
    pub fn health(mut self, health: &str) -> Self {
        self.pools
            .iter_mut()
            .for_each(|pool| health.clone_into(&mut pool.health));
        self
    }

    /// More keys of every pool.
    #[must_use]
    pub fn pools(mut self, extra: &str) -> Self {
        self.pools
            .iter_mut()
            .for_each(|pool| extra.clone_into(&mut pool.extra));
        self
    }

    /// Adds a policy with these limits (a TOML array), and puts every VIP under it.
    #[must_use]
    pub fn policy(mut self, mode: &str, limits: &str) -> Self {
        self.extra +=
            &format!("\n[[policy]]\nname = \"lab\"\nmode = \"{mode}\"\nlimits = {limits}\n");
        self.vips
            .iter_mut()
            .for_each(|vip| vip.extra += "policy = \"lab\"\n");
        self
    }

    /// The VIP of this name, to change it.
    pub fn vip(&mut self, name: &str) -> &mut Vip {
        self.vips
            .iter_mut()
            .find(|vip| vip.name == name)
            .unwrap_or_else(|| panic!("no VIP {name}"))
    }

    /// The tables for pools, VIPs and policies.
    pub(crate) fn toml(&self) -> String {
        let mut toml = String::new();
        for pool in &self.pools {
            let _ = write!(
                toml,
                "\n[[pool]]\nname = \"{}\"\nhealth = {}\n{}\n",
                pool.name, pool.health, pool.extra
            );
            for backend in &pool.backends {
                let _ = write!(
                    toml,
                    "[[pool.backend]]\naddress = \"{}\"\n{}",
                    backend.address, backend.extra
                );
            }
        }
        for vip in &self.vips {
            let _ = write!(
                toml,
                "\n[[vip]]\nname = \"{}\"\naddress = \"{}\"\nprotocol = \"{}\"\npool = \"{}\"\nforward = \"{}\"\n",
                vip.name, vip.address, vip.protocol, vip.pool, vip.forward
            );
            if let Some(port) = vip.port {
                let _ = writeln!(toml, "port = {port}");
            }
            toml += &vip.extra;
        }
        toml + &self.extra
    }
}
