#![forbid(unsafe_code)]
//! records
