//! Packet path.
#![no_std]
