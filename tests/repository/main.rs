//! The repository itself: the crate in another project, the order of its rooms.

mod floors;
mod standalone;
