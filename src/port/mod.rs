//! The overlay-facing end: the device through which a network's frames enter and leave the switch.

pub mod tap;
