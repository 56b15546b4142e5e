//! What operators see: counters, metrics, logs.

pub mod counters;
pub mod logs;
pub mod metrics;
