//! placeholder
pub mod pair;
