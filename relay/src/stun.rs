//! Binding responses: tells whoever asks which address the question came from.
//!
//! The sender of a datagram may be made up, and then the response goes to somebody who did not ask. So it is never longer
//! than the question, but for four bytes over IPv6 to those who ask as stock clients do: stock relays answer nobody else.

use core::net::SocketAddr;

use mesh_core::stun::{self, Asker};

use crate::stats::Stats;

/// The response to a request; nothing for any other datagram.
#[must_use]
pub fn answer(datagram: &[u8], from: SocketAddr, stats: &Stats) -> Option<Vec<u8>> {
    let response = stun::parse_request(datagram).ok().and_then(|(tx, asker)| {
        let response = stun::response(tx, from);
        (asker == Asker::Stock || response.len() <= datagram.len()).then_some(response)
    });
    let counter = if response.is_some() { &stats.stun_answered } else { &stats.stun_ignored };
    counter.add_one();
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_with_where_it_came_from() {
        let (tx, from) = (stun::TxId([5; 12]), "192.0.2.7:4000".parse().unwrap());
        let stats = Stats::default();
        let response = answer(&stun::request(tx), from, &stats).unwrap();
        assert_eq!(stun::parse_response(&response), Ok((tx, from)));
        assert_eq!(stats.stun_answered.get(), 1);
    }

    #[test]
    fn a_request_of_others_has_to_be_as_long_as_its_response() {
        // RFC 8489 §5, with an attribute that is padding and no more.
        let request = |padding: u16| {
            let mut request = vec![0, 1];
            request.extend((4 + padding).to_be_bytes());
            request.extend([0x21, 0x12, 0xa4, 0x42]);
            request.extend([7; 12]);
            request.extend([0x80, 0x30]);
            request.extend(padding.to_be_bytes());
            request.resize(request.len() + usize::from(padding), 0);
            request
        };
        let bare = [&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42][..], &[7; 12]].concat();
        let stats = Stats::default();
        let (v4, v6) = ("192.0.2.7:4000".parse().unwrap(), "[2001:db8::7]:4000".parse().unwrap());
        for (from, longest) in [(v4, 8), (v6, 20)] {
            assert_eq!(answer(&bare, from, &stats), None);
            assert_eq!(answer(&request(longest - 4), from, &stats), None);
            let response = answer(&request(longest), from, &stats).unwrap();
            assert_eq!(response.len(), request(longest).len());
            assert_eq!(stun::parse_response(&response), Ok((stun::TxId([7; 12]), from)));
            assert!(answer(&stun::request(stun::TxId([7; 12])), from, &stats).is_some());
        }
        assert_eq!((stats.stun_answered.get(), stats.stun_ignored.get()), (4, 4));
    }

    #[test]
    fn nothing_else_is_answered() {
        let stats = Stats::default();
        let from = "192.0.2.7:4000".parse().unwrap();
        let request = stun::request(stun::TxId([5; 12]));
        assert_eq!(answer(b"", from, &stats), None);
        assert_eq!(answer(&request[..30], from, &stats), None);
        // Two relays must not keep answering each other.
        assert_eq!(answer(&stun::response(stun::TxId([5; 12]), from), from, &stats), None);
        assert_eq!(stats.stun_ignored.get(), 3);
    }
}
