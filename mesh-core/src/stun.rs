//! STUN binding requests and responses (RFC 8489), as stock clients and relays speak them.
//!
//! A stock relay answers only requests that carry SOFTWARE `tailnode` and end with a right FINGERPRINT; ours answers
//! ordinary ones that are long enough, too. Stock clients match answers by transaction id alone; ours compare the source too (`netcheck`).

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::rng::Rng;

const COOKIE: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
const BINDING_REQUEST: [u8; 2] = [0x00, 0x01];
const BINDING_RESPONSE: [u8; 2] = [0x01, 0x01];
const ATTR_MAPPED_ADDRESS: u16 = 0x0001;
const ATTR_XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// Some old servers answer with this (observed from stock clients, which accept it).
const ATTR_XOR_MAPPED_ADDRESS_OLD: u16 = 0x8020;
const ATTR_SOFTWARE: u16 = 0x8022;
const ATTR_FINGERPRINT: u16 = 0x8028;
const SOFTWARE: &[u8; 8] = b"tailnode";
/// RFC 8489 §14.7.
const FINGERPRINT_XOR: u32 = 0x5354_554e;
const HEADER: usize = 20;

/// Names a request until its response.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxId(pub [u8; 12]);

impl TxId {
    /// A fresh one.
    #[must_use]
    pub fn random(rng: &mut Rng) -> Self {
        Self(rng.bytes())
    }
}

/// Whether our NAT gives us another address for each destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// Not known.
    Unknown,
    /// The same for all.
    Same,
    /// Another for each.
    Varies,
}

/// Who asks, as far as a request shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// Sent the attributes that stock clients send.
    Stock,
    /// Any other STUN client.
    Other,
}

/// Why a datagram is not the message that was looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// No STUN header.
    #[error("not a STUN message")]
    NotStun,
    /// Another kind of STUN message.
    #[error("another kind of STUN message")]
    Kind,
    /// An attribute runs past the end.
    #[error("an attribute is cut off")]
    Truncated,
    /// No address in it.
    #[error("no mapped address")]
    NoAddress,
    /// The FINGERPRINT is not that of the bytes before it.
    #[error("the fingerprint is wrong")]
    Fingerprint,
}

/// Whether a datagram has the shape of a STUN binding message, for telling it from others on the same socket.
#[must_use]
pub fn is_binding(datagram: &[u8]) -> bool {
    matches!(datagram, [first, 0x01, _, _, c0, c1, c2, c3, ..]
        if first & 0xc0 == 0 && [*c0, *c1, *c2, *c3] == COOKIE && datagram.len() >= HEADER)
}

/// The 40 bytes that ask for our address.
#[must_use]
pub fn request(tx: TxId) -> Vec<u8> {
    let mut message = Vec::with_capacity(40);
    message.extend(BINDING_REQUEST);
    message.extend(20u16.to_be_bytes());
    message.extend(COOKIE);
    message.extend(tx.0);
    message.extend(ATTR_SOFTWARE.to_be_bytes());
    message.extend(8u16.to_be_bytes());
    message.extend(SOFTWARE);
    let fingerprint = crc32(&message) ^ FINGERPRINT_XOR;
    message.extend(ATTR_FINGERPRINT.to_be_bytes());
    message.extend(4u16.to_be_bytes());
    message.extend(fingerprint.to_be_bytes());
    message
}

/// Reads a request.
///
/// # Errors
/// When it is none, or its FINGERPRINT is wrong.
pub fn parse_request(datagram: &[u8]) -> Result<(TxId, Asker), ParseError> {
    let (kind, tx, attributes) = header(datagram)?;
    if kind != BINDING_REQUEST {
        return Err(ParseError::Kind);
    }
    let (mut has_software, mut has_fingerprint) = (false, false);
    for attribute in attributes {
        let Attribute { kind, value, before } = attribute?;
        // A FINGERPRINT covers what is before it and so is the last (RFC 8489 §14.7); stock relays insist on it.
        has_fingerprint = false;
        match kind {
            ATTR_SOFTWARE => has_software |= value == SOFTWARE,
            ATTR_FINGERPRINT => {
                let covered = datagram.get(..before).ok_or(ParseError::Truncated)?;
                let expected = crc32(covered) ^ FINGERPRINT_XOR;
                if value != expected.to_be_bytes() {
                    return Err(ParseError::Fingerprint);
                }
                has_fingerprint = true;
            }
            _ => {}
        }
    }
    Ok((tx, if has_software && has_fingerprint { Asker::Stock } else { Asker::Other }))
}

/// The response that tells `address` to whoever asked. Shorter than a stock request unless it is over IPv6.
#[must_use]
pub fn response(tx: TxId, address: SocketAddr) -> Vec<u8> {
    let ip = address.ip().to_canonical();
    let mut value = vec![0, if ip.is_ipv4() { 1 } else { 2 }];
    let mask: Vec<u8> = COOKIE.into_iter().chain(tx.0).collect();
    let xored = |bytes: &[u8]| bytes.iter().zip(&mask).map(|(a, b)| a ^ b).collect::<Vec<_>>();
    value.extend(xored(&address.port().to_be_bytes()));
    value.extend(match ip {
        IpAddr::V4(v4) => xored(&v4.octets()),
        IpAddr::V6(v6) => xored(&v6.octets()),
    });
    let value_len: u16 = if ip.is_ipv4() { 8 } else { 20 };

    let mut message = Vec::with_capacity(HEADER + 4 + value.len());
    message.extend(BINDING_RESPONSE);
    message.extend((value_len + 4).to_be_bytes());
    message.extend(COOKIE);
    message.extend(tx.0);
    message.extend(ATTR_XOR_MAPPED_ADDRESS.to_be_bytes());
    message.extend(value_len.to_be_bytes());
    message.extend(value);
    message
}

/// Reads a response: which request it answers, and our address as the server saw it, IPv4-mapped ones as IPv4.
///
/// # Errors
/// When it is none or holds no address.
pub fn parse_response(datagram: &[u8]) -> Result<(TxId, SocketAddr), ParseError> {
    let (kind, tx, attributes) = header(datagram)?;
    if kind != BINDING_RESPONSE {
        return Err(ParseError::Kind);
    }
    let mask: Vec<u8> = COOKIE.into_iter().chain(tx.0).collect();
    let mut plain = None;
    for attribute in attributes {
        let Attribute { kind, value, .. } = attribute?;
        match kind {
            ATTR_XOR_MAPPED_ADDRESS | ATTR_XOR_MAPPED_ADDRESS_OLD => {
                if let Some(address) = mapped_address(value, &mask) {
                    return Ok((tx, address));
                }
            }
            ATTR_MAPPED_ADDRESS => plain = mapped_address(value, &[0; 16]).or(plain),
            _ => {}
        }
    }
    plain.map(|address| (tx, address)).ok_or(ParseError::NoAddress)
}

fn mapped_address(value: &[u8], mask: &[u8]) -> Option<SocketAddr> {
    let [_, family, port @ ..] = value else { return None };
    let (port, address) = port.split_first_chunk::<2>()?;
    let unmask = |bytes: &[u8], index: usize| bytes.get(index).zip(mask.get(index)).map_or(0, |(a, b)| a ^ b);
    // Longer values than the address are read, as stock clients do.
    let ip = match (family, address.len()) {
        (1, 4..) => IpAddr::V4(Ipv4Addr::from(core::array::from_fn::<u8, 4, _>(|i| unmask(address, i)))),
        (2, 16..) => IpAddr::V6(Ipv6Addr::from(core::array::from_fn::<u8, 16, _>(|i| unmask(address, i)))),
        _ => return None,
    };
    let port = u16::from_be_bytes([unmask(port, 0), unmask(port, 1)]);
    Some(SocketAddr::new(ip.to_canonical(), port))
}

fn header(datagram: &[u8]) -> Result<([u8; 2], TxId, Attributes<'_>), ParseError> {
    let head: &[u8; HEADER] = datagram.first_chunk().ok_or(ParseError::NotStun)?;
    let [k0, k1, l0, l1, c0, c1, c2, c3, tx @ ..] = *head;
    if k0 & 0xc0 != 0 || [c0, c1, c2, c3] != COOKIE {
        return Err(ParseError::NotStun);
    }
    let length = usize::from(u16::from_be_bytes([l0, l1]));
    // What lies beyond the length in the header is ignored, as stock clients do.
    let rest = datagram.get(HEADER..HEADER + length).ok_or(ParseError::Truncated)?;
    Ok(([k0, k1], TxId(tx), Attributes { rest, position: HEADER }))
}

struct Attribute<'m> {
    kind: u16,
    value: &'m [u8],
    /// Bytes of the message before this attribute.
    before: usize,
}

struct Attributes<'m> {
    rest: &'m [u8],
    position: usize,
}

impl<'m> Iterator for Attributes<'m> {
    type Item = Result<Attribute<'m>, ParseError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let parsed = (|| {
            let ([k0, k1, l0, l1], rest) = self.rest.split_first_chunk::<4>()?;
            let length = usize::from(u16::from_be_bytes([*l0, *l1]));
            let value = rest.get(..length)?;
            // Values are padded to four bytes; the last one's padding may be missing.
            let padded = length.next_multiple_of(4).min(rest.len());
            Some((u16::from_be_bytes([*k0, *k1]), value, rest.get(padded..)?, 4 + padded))
        })();
        let Some((kind, value, rest, consumed)) = parsed else {
            self.rest = &[];
            return Some(Err(ParseError::Truncated));
        };
        let before = self.position;
        self.rest = rest;
        self.position += consumed;
        Some(Ok(Attribute { kind, value, before }))
    }
}

/// CRC-32 of ISO 3309, bit by bit: requests are 40 bytes.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TX: TxId = TxId([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);

    #[test]
    fn crc_check_value() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn requests_come_back() {
        let request = request(TX);
        assert_eq!(request.len(), 40);
        assert!(is_binding(&request));
        assert_eq!(parse_request(&request), Ok((TX, Asker::Stock)));
        for bit in 20 * 8..request.len() * 8 {
            let mut changed = request.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(parse_request(&changed), Ok((TX, Asker::Stock)), "bit {bit}");
        }
        let plain = [&[0, 1, 0, 0][..], &COOKIE, &TX.0].concat();
        assert_eq!(parse_request(&plain), Ok((TX, Asker::Other)));
    }

    #[test]
    fn a_fingerprint_that_is_not_the_last_attribute_is_no_stock_request() {
        let mut request = request(TX);
        request.extend([0x80, 0x22, 0, 0]);
        request[3] += 4;
        // Over the length as it is now, so that its value is right.
        let fingerprint = crc32(&request[..32]) ^ FINGERPRINT_XOR;
        request[36..40].copy_from_slice(&fingerprint.to_be_bytes());
        assert_eq!(parse_request(&request), Ok((TX, Asker::Other)));
    }

    #[test]
    fn a_value_longer_than_its_address_is_read() {
        let mut long = response(TX, "192.0.2.1:5".parse().unwrap());
        long.extend([9; 4]);
        long[3] += 4;
        long[23] += 4;
        assert_eq!(parse_response(&long), Ok((TX, "192.0.2.1:5".parse().unwrap())));
    }

    #[test]
    fn responses_come_back_in_both_families() {
        for (text, length) in [("203.0.113.101:41641", 32), ("[2001:db8:1::100]:41641", 44)] {
            let address = text.parse().unwrap();
            let response = response(TX, address);
            assert_eq!(response.len(), length);
            assert_eq!(parse_response(&response), Ok((TX, address)));
            assert_eq!(parse_request(&response), Err(ParseError::Kind));
            for cut in 0..response.len() {
                assert!(parse_response(&response[..cut]).is_err());
            }
        }
    }

    #[test]
    fn a_mapped_address_is_unmapped_and_an_old_attribute_understood() {
        let mapped: SocketAddr = "[::ffff:192.0.2.1]:5".parse().unwrap();
        assert_eq!(parse_response(&response(TX, mapped)), Ok((TX, "192.0.2.1:5".parse().unwrap())));
        let mut old = response(TX, "192.0.2.1:5".parse().unwrap());
        old[20] = 0x80;
        assert_eq!(parse_response(&old), Ok((TX, "192.0.2.1:5".parse().unwrap())));
        let plain = [&[1, 1, 0, 12][..], &COOKIE, &TX.0, &[0, 1, 0, 8, 0, 1, 0, 5, 192, 0, 2, 1]].concat();
        assert_eq!(parse_response(&plain), Ok((TX, "192.0.2.1:5".parse().unwrap())));
    }
}
