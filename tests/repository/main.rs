//! The repository itself: the crate in another project.

mod standalone;
