//! The lab: clients, a router, load balancers and backends in network namespaces, and what the scenarios do with them.
//!
//! ```text
//!   c0 --+            +-- l0   load balancers: the daemon under test
//!   c1 --+-- router --+-- b1   backends: VIPs on lo, replies go straight to the router
//!   ...  |   (bridge) +-- b2
//! ```
//! A lab needs root, bpffs, and Debian's `iproute2`, `ethtool` and (to look at traffic) `tcpdump`.

mod addresses;
mod api;
mod backend;
mod binary;
mod capture;
mod client;
mod config;
mod downloads;
mod flood;
mod frames;
mod good;
mod http;
mod lab;
mod netns;
mod node;
mod process;
mod prometheus;
mod quic;
mod raw;
mod server;
mod topology;
mod traces;
mod turns;
mod udp;
mod wait;

pub use addresses::{
    BACK, DNS_V4, DNS_V6, FRONT, HTTP_PORT, Segment, UDP_PORT, VIPS_V4, VIPS_V6, WEB_V4, WEB_V6,
};
pub use api::{ApiAnswer, ApiConn, ApiFigures, ApiLoad};
pub use backend::Backend;
pub use binary::sluice as sluice_binary;
pub use capture::Capture;
pub use client::{Client, UdpFlow};
pub use config::{Config, Pool, PoolBackend, Vip};
pub use downloads::{Downloads, Outcome};
pub use flood::Flood;
pub use frames::{Frames, Mac};
pub use good::Good;
pub use http::{Conn, Response};
pub use lab::{Cables, Lab, LabBuilder};
pub use netns::Netns;
pub use node::{Daemon, Node, Output};
pub use prometheus::{Prometheus, grafana_dir};
pub use raw::RawSocket;
pub use traces::remove_stale_labs;
pub use turns::Turn;
pub use wait::{eventually, within};
