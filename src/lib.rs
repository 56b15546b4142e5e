//! Skybridge.
