//! Sluice's daemon, as a library: config, control loop, data plane handles, API, command line.
pub mod api;
pub mod cli;
pub mod config;
pub mod control;
pub mod dataplane;
pub mod decap;
pub mod desired;
pub mod drains;
pub mod health;
pub mod limits;
pub mod log;
pub mod metrics;
pub mod net;
pub mod objects;
pub mod service;
pub mod store;
pub mod sys;
