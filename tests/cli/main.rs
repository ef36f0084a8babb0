//! The command: bad input, `bdhs doctor`, models by their names on a hub.
#![cfg(feature = "toolkit")]

mod bad_input;
#[path = "../common/mod.rs"]
mod common;
mod doctor;
mod hub;
mod places;
