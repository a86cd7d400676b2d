//! Sluice's daemon, as a library: config, control loop, data plane handles, API.
pub mod config;
pub mod dataplane;
pub mod decap;
pub mod health;
pub mod limits;
pub mod net;
pub mod objects;
pub mod sys;
