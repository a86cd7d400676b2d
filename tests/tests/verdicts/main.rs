//! The verdict table: frames through the loaded XDP program by the kernel's test run.
//!
//! A row is a frame and what must become of it: the verdict, the counters, and every byte of the frame that leaves. Each
//! row is also run cut at every byte. The program is the one that forwards, not its explaining twin; nothing is attached,
//! so no interface is touched.

mod amplification;
mod challenge;
mod cookie;
mod decode;
mod errors;
mod flows;
mod forwarding;
mod fragments;
mod headers;
mod host;
mod limits;
mod out_of_state;
mod packet;
mod pool;
mod random;
mod reasons;
mod reset;
mod rig;
mod rules;
mod sanity;
mod services;
mod sources;
mod table;
mod too_big;
mod vip_index;
mod world;
