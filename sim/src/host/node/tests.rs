//! What tests of relays do in the node's stead.

use mesh_core::{derp::RegionId, node::RelayCommand, path::SendPath};

use super::*;

/// How packets begin that tests send over relays.
pub(crate) const MARK: &[u8] = b"test packet ";

impl NodeHost {
    pub(crate) fn relay_command(&mut self, command: RelayCommand, world: Instant, effects: &mut Effects) {
        let now = self.clock.at(world);
        self.command(command, now);
        self.settle(now, effects);
    }

    pub(crate) fn relay_send(&mut self, path: SendPath, number: u32, world: Instant, effects: &mut Effects) {
        let now = self.clock.at(world);
        let mut payload = [MARK, &number.to_be_bytes()].concat();
        payload.resize(200, 0);
        if let Some(also) = path.also {
            self.transmit(also, None, payload.clone(), true, now, effects);
        }
        self.transmit(path.to, None, payload, false, now, effects);
        self.settle(now, effects);
    }

    /// When packets of tests came, in the world's time, and their numbers.
    pub(crate) fn heard(&self) -> Vec<(Instant, u32)> {
        let number = |packet: &[u8]| u32::from_be_bytes(*packet[MARK.len()..].first_chunk().unwrap());
        self.heard.iter().map(|(at, _, packet)| (self.clock.world(*at), number(packet))).collect()
    }

    pub(crate) fn connect(&self, region: RegionId) -> RelayCommand {
        let regions = self.setup.derp_map.regions.as_ref().unwrap();
        let nodes = regions[&i64::from(region.number())].as_ref().unwrap().nodes.clone().unwrap();
        RelayCommand::Connect { region, nodes }
    }
}
