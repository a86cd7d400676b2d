//! The config file: what it may say, and how it is read and checked.
mod model;

pub use model::{
    Api, Backend, Check, Class, Config, Dataplane, Forward, HashInput, Health, Mode, Policy, Pool, Pop, PrefixLengths,
    Protocol, Scope, SourceLimit, Vip, XdpMode,
};
