//! Binding responses: tells whoever asks which address the question came from.

use core::net::SocketAddr;

use mesh_core::stun;

use crate::stats::Stats;

/// The response to a request; nothing for any other datagram.
#[must_use]
pub fn answer(datagram: &[u8], from: SocketAddr, stats: &Stats) -> Option<Vec<u8>> {
    let Ok((tx, _)) = stun::parse_request(datagram) else {
        stats.stun_ignored.add_one();
        return None;
    };
    stats.stun_answered.add_one();
    Some(stun::response(tx, from))
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
