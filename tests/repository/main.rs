//! The repository itself: the crate in another project, the order of its rooms, and who may know what.

mod families;
mod floors;
mod standalone;
