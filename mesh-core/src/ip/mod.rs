//! IP packets and addresses, as far as a data plane looks into them.

pub mod build;
pub mod checksum;
pub mod icmp;
pub mod packet;
pub mod prefix;
pub mod set;
pub mod tsmp;
