//! The four messages (WireGuard paper §5.4). Integers are little-endian. Types 1 to 3 have one size each.

#![deny(clippy::indexing_slicing, clippy::cast_possible_truncation)]

/// Handshake initiation.
pub const TYPE_INITIATION: u8 = 1;
/// Handshake response.
pub const TYPE_RESPONSE: u8 = 2;
/// Cookie reply.
pub const TYPE_COOKIE: u8 = 3;
/// Transport data.
pub const TYPE_TRANSPORT: u8 = 4;

/// Bytes of a handshake initiation.
pub const INITIATION_BYTES: usize = 148;
/// Bytes of a handshake response.
pub const RESPONSE_BYTES: usize = 92;
/// Bytes of a cookie reply.
pub const COOKIE_BYTES: usize = 64;
/// Bytes of the smallest transport message, a keepalive.
pub const TRANSPORT_BYTES_MIN: usize = 32;

/// What a datagram's first bytes say that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Type 1 with its size.
    Initiation,
    /// Type 2 with its size.
    Response {
        /// The receiver's index.
        receiver: u32,
    },
    /// Type 3 with its size.
    CookieReply {
        /// The receiver's index.
        receiver: u32,
    },
    /// Type 4 for the session of this receiver index.
    Transport {
        /// The receiver's index.
        receiver: u32,
    },
}

impl Kind {
    /// The kind of a datagram; `None` when it is no WireGuard message.
    #[inline]
    #[must_use]
    pub fn of(datagram: &[u8]) -> Option<Self> {
        let (head, rest) = datagram.split_first_chunk::<4>()?;
        match (*head, datagram.len()) {
            ([TYPE_TRANSPORT, 0, 0, 0], TRANSPORT_BYTES_MIN..) => {
                Some(Self::Transport { receiver: u32::from_le_bytes(*rest.first_chunk()?) })
            }
            ([TYPE_INITIATION, 0, 0, 0], INITIATION_BYTES) => Some(Self::Initiation),
            ([TYPE_RESPONSE, 0, 0, 0], RESPONSE_BYTES) => {
                // Behind the sender's own index.
                Some(Self::Response { receiver: u32::from_le_bytes(*rest.get(4..)?.first_chunk()?) })
            }
            ([TYPE_COOKIE, 0, 0, 0], COOKIE_BYTES) => {
                Some(Self::CookieReply { receiver: u32::from_le_bytes(*rest.first_chunk()?) })
            }
            _ => None,
        }
    }
}

/// The two MACs at the end of types 1 and 2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Macs {
    /// Keyed by the receiver's public key.
    pub mac1: [u8; 16],
    /// Keyed by a cookie, or zero.
    pub mac2: [u8; 16],
}

/// Splits a handshake message into what its first MAC covers, what its second MAC covers, and the MACs.
#[must_use]
pub(super) fn split_macs(message: &[u8]) -> Option<(&[u8], &[u8], Macs)> {
    let (before_mac2, mac2) = message.split_last_chunk::<16>()?;
    let (before_mac1, mac1) = before_mac2.split_last_chunk::<16>()?;
    Some((before_mac1, before_mac2, Macs { mac1: *mac1, mac2: *mac2 }))
}

/// Type 1, without its MACs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initiation {
    /// The index by which the initiator will know the session.
    pub sender: u32,
    /// The initiator's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// The initiator's static public key, sealed.
    pub encrypted_static: [u8; 48],
    /// A TAI64N stamp, sealed.
    pub encrypted_timestamp: [u8; 28],
}

impl Initiation {
    /// Reads a message of [`INITIATION_BYTES`] bytes.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(message, TYPE_INITIATION, INITIATION_BYTES)?;
        Some(Self {
            sender: u32::from_le_bytes(reader.take()?),
            ephemeral: reader.take()?,
            encrypted_static: reader.take()?,
            encrypted_timestamp: reader.take()?,
        })
    }

    /// The message up to its MACs.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(INITIATION_BYTES);
        message.extend([TYPE_INITIATION, 0, 0, 0]);
        message.extend(self.sender.to_le_bytes());
        message.extend(self.ephemeral);
        message.extend(self.encrypted_static);
        message.extend(self.encrypted_timestamp);
        message
    }
}

/// Type 2, without its MACs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The index by which the responder will know the session.
    pub sender: u32,
    /// The initiator's index.
    pub receiver: u32,
    /// The responder's ephemeral public key.
    pub ephemeral: [u8; 32],
    /// Nothing, sealed.
    pub encrypted_nothing: [u8; 16],
}

impl Response {
    /// Reads a message of [`RESPONSE_BYTES`] bytes.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(message, TYPE_RESPONSE, RESPONSE_BYTES)?;
        Some(Self {
            sender: u32::from_le_bytes(reader.take()?),
            receiver: u32::from_le_bytes(reader.take()?),
            ephemeral: reader.take()?,
            encrypted_nothing: reader.take()?,
        })
    }

    /// The message up to its MACs.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(RESPONSE_BYTES);
        message.extend([TYPE_RESPONSE, 0, 0, 0]);
        message.extend(self.sender.to_le_bytes());
        message.extend(self.receiver.to_le_bytes());
        message.extend(self.ephemeral);
        message.extend(self.encrypted_nothing);
        message
    }
}

/// Type 3.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CookieReply {
    /// The index of the sender of the message that this answers.
    pub receiver: u32,
    /// XChaCha20's nonce.
    pub nonce: [u8; 24],
    /// A cookie, sealed.
    pub encrypted_cookie: [u8; 32],
}

impl CookieReply {
    /// Reads a message of [`COOKIE_BYTES`] bytes.
    #[must_use]
    pub fn parse(message: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(message, TYPE_COOKIE, COOKIE_BYTES)?;
        Some(Self {
            receiver: u32::from_le_bytes(reader.take()?),
            nonce: reader.take()?,
            encrypted_cookie: reader.take()?,
        })
    }

    /// The message.
    #[must_use]
    pub fn emit(&self) -> Vec<u8> {
        let mut message = Vec::with_capacity(COOKIE_BYTES);
        message.extend([TYPE_COOKIE, 0, 0, 0]);
        message.extend(self.receiver.to_le_bytes());
        message.extend(self.nonce);
        message.extend(self.encrypted_cookie);
        message
    }
}

/// Takes fields off the front of a message.
struct Reader<'m>(&'m [u8]);

impl<'m> Reader<'m> {
    /// Checks size and type.
    fn new(message: &'m [u8], kind: u8, size: usize) -> Option<Self> {
        let (head, rest) = message.split_first_chunk::<4>()?;
        (message.len() == size && *head == [kind, 0, 0, 0]).then_some(Self(rest))
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_and_have_their_sizes() {
        let initiation =
            Initiation { sender: 1, ephemeral: [2; 32], encrypted_static: [3; 48], encrypted_timestamp: [4; 28] };
        let mut bytes = initiation.emit();
        assert_eq!(bytes.len() + 32, INITIATION_BYTES);
        bytes.extend([0; 32]);
        assert_eq!(Initiation::parse(&bytes), Some(initiation));
        assert_eq!(Kind::of(&bytes), Some(Kind::Initiation));

        let response = Response { sender: 1, receiver: 2, ephemeral: [3; 32], encrypted_nothing: [4; 16] };
        let mut bytes = response.emit();
        assert_eq!(bytes.len() + 32, RESPONSE_BYTES);
        bytes.extend([0; 32]);
        assert_eq!(Response::parse(&bytes), Some(response));
        assert_eq!(Kind::of(&bytes), Some(Kind::Response { receiver: 2 }));

        let cookie = CookieReply { receiver: 1, nonce: [2; 24], encrypted_cookie: [3; 32] };
        assert_eq!(Kind::of(&cookie.emit()), Some(Kind::CookieReply { receiver: 1 }));
        assert_eq!(CookieReply::parse(&cookie.emit()), Some(cookie));
    }

    #[test]
    fn wrong_sizes_and_types_are_nothing() {
        assert_eq!(Kind::of(&[1, 0, 0]), None);
        assert_eq!(Kind::of(&[1; 148]), None);
        assert_eq!(Kind::of(&[5, 0, 0, 0]), None);
        let mut keepalive = [0; 32];
        keepalive[0] = 4;
        keepalive[4] = 7;
        assert_eq!(Kind::of(&keepalive), Some(Kind::Transport { receiver: 7 }));
        assert_eq!(Kind::of(&keepalive[..31]), None);
        let mut initiation = [0; 149];
        initiation[0] = 1;
        assert_eq!(Kind::of(&initiation), None);
        assert_eq!(Kind::of(&initiation[..148]), Some(Kind::Initiation));
    }
}
