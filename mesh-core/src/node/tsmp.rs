//! What nodes say to each other inside the tunnel.

use crate::{
    dataplane::PeerId,
    ip::{packet::IpPacket, tsmp::Tsmp},
    time::Instant,
};

use super::{Node, PingKind};

impl Node {
    /// A ping is answered, whatever the packet filter says, as stock nodes do: the peer is one of ours. An answer ends the
    /// ping that it is for. Other messages are not for this node.
    pub(super) fn handle_tsmp(&mut self, id: PeerId, packet: &[u8], now: Instant) {
        let Ok(packet) = IpPacket::parse(packet) else { return };
        match Tsmp::parse(&packet) {
            Some(Tsmp::Ping { data }) => {
                let own = packet.destination();
                let answer = Tsmp::Pong { data, peer_api_port: 0 }.packet(own, packet.source());
                if let Some(answer) = answer.filter(|_| self.addresses.iter().any(|(address, _)| *address == own)) {
                    self.send_packet(id, answer, now);
                }
            }
            Some(Tsmp::Pong { data, .. }) => {
                if let Some(ended) = self.pings.finish_tsmp(data, packet.source(), now) {
                    self.reply_pong(id, ended, PingKind::Tsmp, None);
                }
            }
            Some(Tsmp::Other) | None => {}
        }
    }
}
