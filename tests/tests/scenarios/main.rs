//! What Sluice does for its users, each shown in a lab of its own. They are one program, which is linked once, and where a
//! scenario that waits leaves the machine to others.

mod api;
mod attacks;
mod balance;
mod challenge;
mod cli;
mod config;
mod cookie;
mod decap;
mod demo;
mod detect;
mod endurance;
mod flapping;
mod fleet;
mod floods;
mod floods_scapy;
mod forwarding;
mod fragments;
mod heal;
mod health;
mod health_load;
mod icmp;
mod idle;
mod lab;
mod limits;
mod observability;
mod quick_start;
mod reload;
mod remote;
mod rules;
mod scale;
mod service;
mod several_interfaces;
mod sources;
mod store;
mod upgrade;
