//! Whole packets of our own.

use core::net::IpAddr;

use super::checksum;

/// Routers that a packet may pass. Inside a tunnel there are none.
const HOPS: u8 = 64;

/// A packet from `source` to `destination`; `None` when they are of two families, or the payload is too long for one.
#[must_use]
pub fn packet(protocol: u8, source: IpAddr, destination: IpAddr, payload: &[u8]) -> Option<Vec<u8>> {
    let length = u16::try_from(payload.len()).ok()?;
    let mut bytes;
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            bytes = vec![0; 20];
            bytes[0] = 0x45;
            bytes[2..4].copy_from_slice(&length.checked_add(20)?.to_be_bytes());
            bytes[8] = HOPS;
            bytes[9] = protocol;
            bytes[12..16].copy_from_slice(&source.octets());
            bytes[16..20].copy_from_slice(&destination.octets());
            let sum = checksum::checksum(&bytes);
            bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            bytes = vec![0; 40];
            bytes[0] = 0x60;
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            bytes[6] = protocol;
            bytes[7] = HOPS;
            bytes[8..24].copy_from_slice(&source.octets());
            bytes[24..40].copy_from_slice(&destination.octets());
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => return None,
    }
    bytes.extend_from_slice(payload);
    Some(bytes)
}
