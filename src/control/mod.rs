//! The control API on the agent's unix socket: one set of types, the server, the client.
//!
//! # Theory of operation
//!
//! ```text
//!   cli ──► client ──HTTP/1.1 + JSON over a unix socket──► server ──► Api (the agent)
//! ```
//!
//! The wire types of [`types`] belong to this API alone: they do not change when a record or a table
//! does. Requests refuse unknown fields, so that a misspelt one is noticed; answers may gain fields,
//! which readers ignore. A request is checked in one place ([`check`]) by the command line before it
//! is sent and by the server before the agent sees it.
//!
//! Who may connect is decided by the socket's owner, group and mode (0660), nothing else.

pub mod api;
pub mod check;
pub mod client;
pub mod server;
pub mod types;

pub use api::Api;
pub use client::Client;
