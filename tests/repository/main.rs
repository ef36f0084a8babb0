//! The repository itself: its documentation and scripts, the order of its rooms and who may know what, the crate in another
//! project, the switch of the tests.

#[cfg(feature = "toolkit")]
mod docs;
mod families;
#[cfg(feature = "toolkit")]
mod floors;
mod gpu_check;
#[path = "../common/skip.rs"]
mod skip;
mod skips;
mod standalone;
