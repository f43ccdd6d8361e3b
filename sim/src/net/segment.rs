//! A segment of a stream on the wire.
//!
//! Segments travel as packets of the underlay do, through the same NATs, firewalls and links. What TCP's header says
//! is said here in as many bytes, with sequence numbers that do not wrap.

use xxhash_rust::xxh3::xxh3_64;

/// Bytes in front of the data. With the addresses and ports that a packet has anyway, that makes the 52 of IPv4 and TCP
/// with time stamps.
pub const SEGMENT_HEADER: usize = 24;

/// Bytes of data in one segment at most: what fits the smallest MTU of IPv6.
pub const SEGMENT_DATA: usize = 1200;

/// Windows are told in so many bytes.
const WINDOW_UNIT: usize = 64;

const SYN: u8 = 1;
const ACK: u8 = 2;
const FIN: u8 = 4;
const RST: u8 = 8;

/// A segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Opens the stream.
    pub syn: bool,
    /// Says what was received.
    pub ack: bool,
    /// Nothing comes after this data.
    pub fin: bool,
    /// The stream is no more.
    pub rst: bool,
    /// The number of the first byte of data; SYN and FIN count as one each.
    pub sequence: u64,
    /// All bytes before this one were received.
    pub received: u64,
    /// Bytes that there is room for after those.
    pub window: usize,
    /// The data.
    pub data: Vec<u8>,
}

impl Segment {
    /// Nothing but what was received.
    pub const EMPTY: Self =
        Self { syn: false, ack: false, fin: false, rst: false, sequence: 0, received: 0, window: 0, data: Vec::new() };

    /// The bytes of the segment.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(SEGMENT_HEADER + self.data.len());
        bytes.extend(self.sequence.to_be_bytes());
        bytes.extend(self.received.to_be_bytes());
        bytes.extend(u16::try_from(self.window / WINDOW_UNIT).unwrap_or(u16::MAX).to_be_bytes());
        let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
        bytes.push(flag(self.syn, SYN) | flag(self.ack, ACK) | flag(self.fin, FIN) | flag(self.rst, RST));
        bytes.push(0);
        bytes.extend([0; 4]);
        bytes.extend(&self.data);
        let sum = sum_of(&bytes);
        bytes[20..24].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    /// The segment in `bytes`; `None` when it is damaged.
    #[must_use]
    pub fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, data) = bytes.split_first_chunk::<SEGMENT_HEADER>()?;
        let (sequence, rest) = head.split_first_chunk::<8>()?;
        let (received, rest) = rest.split_first_chunk::<8>()?;
        let [w0, w1, flags, _, sum @ ..] = rest else { return None };
        let mut zeroed = bytes.to_vec();
        zeroed[20..24].fill(0);
        (sum == sum_of(&zeroed).to_be_bytes()).then(|| Self {
            syn: flags & SYN != 0,
            ack: flags & ACK != 0,
            fin: flags & FIN != 0,
            rst: flags & RST != 0,
            sequence: u64::from_be_bytes(*sequence),
            received: u64::from_be_bytes(*received),
            window: usize::from(u16::from_be_bytes([*w0, *w1])) * WINDOW_UNIT,
            data: data.to_vec(),
        })
    }

    /// Whether these bytes are a segment that says that the stream is no more.
    #[must_use]
    pub fn is_reset(bytes: &[u8]) -> bool {
        bytes.len() >= SEGMENT_HEADER && bytes[18] & RST != 0
    }

    /// Numbers that it takes: its data, and one each for the beginning and the end.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.data.len() as u64 + u64::from(self.syn) + u64::from(self.fin)
    }
}

fn sum_of(bytes: &[u8]) -> u32 {
    xxh3_64(bytes) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_parsed_and_damage_is_seen() {
        let segment = Segment {
            ack: true,
            fin: true,
            sequence: 1 << 40,
            received: 77,
            window: 65_536,
            data: b"hello".to_vec(),
            ..Segment::EMPTY
        };
        let bytes = segment.emit();
        assert_eq!(Segment::parse(&bytes), Some(segment));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Segment::parse(&damaged), None, "bit {bit}");
        }
        assert_eq!(Segment::parse(&bytes[..SEGMENT_HEADER - 1]), None);
    }
}
