//! Simulated attacks: a small site with innocent clients, and what somebody does to it. The detector is the real one.

mod attacks;
mod bursts;
mod harsh;
mod innocent;
mod lives;
mod refused;
mod times;
mod world;
