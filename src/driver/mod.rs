//! How sandboxes are attached: what the command line, and every runtime's plugin, share.

pub mod attach;
pub mod docker;
pub mod offline;
pub mod presence;
