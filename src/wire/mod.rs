//! The formats of what is sent to, and received from, the peers. Pure: bytes in, values out, and back.

pub mod expose;
pub mod port_mapping;
pub mod port_mapping_decode;
pub mod session;
pub mod vtunnel;
