//! The command: bad input, `bdhs doctor`, models by their names on a hub.
#![cfg(feature = "toolkit")]

mod bad_input;
mod candidates;
#[path = "../common/mod.rs"]
mod common;
mod data;
mod doctor;
mod hub;
mod places;
