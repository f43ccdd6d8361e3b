//! Which mapped endpoint a flow gets: reuse, allocation, blocks, pools and collisions.

use core::net::{Ipv4Addr, SocketAddrV4};
use std::collections::{BTreeMap, BTreeSet};

use mesh_core::rng::Rng;

use super::{
    nat_params::{Alloc, Assignment, Collision, Mapping, NatParams, Pairing, PortBlock, PortRange},
    nat_table::{Flow, NatTable, Owner, SessionId},
};

/// What a NAT remembers about ports, beside its sessions.
#[derive(Debug)]
pub(super) struct Ports {
    outers: Vec<Ipv4Addr>,
    /// The internal addresses in order of their first flow: which address of the pool each has.
    paired: BTreeMap<Ipv4Addr, usize>,
    /// The port that a sequential allocator gave last.
    last: Option<u16>,
    /// The blocks that hosts have, by their number.
    blocks: BTreeMap<Ipv4Addr, Vec<u32>>,
    /// Internal endpoints that had a port, where that is to be known.
    had: BTreeSet<SocketAddrV4>,
}

/// What a port is chosen for, and from.
struct Choice<'c> {
    flow: Flow,
    params: &'c NatParams,
    table: &'c NatTable,
    outer: Ipv4Addr,
}

impl Ports {
    /// The ports of `outers`, all free.
    pub(super) fn new(outers: &[Ipv4Addr]) -> Self {
        Self {
            outers: outers.to_vec(),
            paired: BTreeMap::new(),
            last: None,
            blocks: BTreeMap::new(),
            had: BTreeSet::new(),
        }
    }

    /// The addresses that there are.
    pub(super) fn outers(&self) -> &[Ipv4Addr] {
        &self.outers
    }

    /// A mapped endpoint for a flow that has no session; `None` when there is none.
    pub(super) fn choose(
        &mut self,
        flow: Flow,
        params: &NatParams,
        table: &NatTable,
        rng: &mut Rng,
    ) -> Option<SocketAddrV4> {
        let held = if params.reuse_newest { held(flow, params, table) } else { None };
        if let Some(mapped) = held {
            let outer = *mapped.ip();
            if (Choice { flow, params, table, outer }).is_free(mapped.port()) {
                return Some(mapped);
            }
            if params.collision == Collision::Drop {
                return None;
            }
        }
        let outer = self.outer(*flow.internal.ip(), params, rng);
        let choice = Choice { flow, params, table, outer };
        let port = self.allocate(&choice, rng)?;
        if !params.expiry_keeps_port {
            self.had.insert(flow.internal);
        }
        Some(SocketAddrV4::new(outer, port))
    }

    fn allocate(&mut self, choice: &Choice<'_>, rng: &mut Rng) -> Option<u16> {
        let Choice { flow, params, .. } = *choice;
        let Some(block) = params.port_block else {
            let range = choice.range();
            return self.allocate_from(choice, &[range], rng);
        };
        let host = *flow.internal.ip();
        if choice.table.of_host(host) == 0 {
            self.blocks.remove(&host);
        }
        loop {
            let blocks = self.blocks.get(&host).map_or(0, Vec::len);
            if blocks > 0 {
                let ranges: Vec<_> =
                    self.blocks[&host].iter().map(|number| block_range(*number, block, params)).collect();
                if let Some(port) = self.allocate_from(choice, &ranges, rng) {
                    return Some(port);
                }
            }
            if blocks >= usize::from(block.max_blocks) {
                return None;
            }
            let number = self.next_block(host, blocks as u32, block, choice, rng)?;
            self.blocks.entry(host).or_default().push(number);
        }
    }

    /// Another block for `host`, which has `blocks`.
    fn next_block(
        &mut self,
        host: Ipv4Addr,
        blocks: u32,
        block: PortBlock,
        choice: &Choice<'_>,
        rng: &mut Rng,
    ) -> Option<u32> {
        let (low, high) = whole_range(choice.params);
        let there_are = (u32::from(high - low) + 1) / u32::from(block.size);
        match block.assignment {
            Assignment::Static => {
                let shares = there_are / u32::from(block.max_blocks);
                let share = host.to_bits().checked_rem(shares)?;
                Some(share * u32::from(block.max_blocks) + blocks)
            }
            Assignment::Dynamic => {
                self.blocks.retain(|other, _| *other == host || choice.table.of_host(*other) > 0);
                let taken: BTreeSet<_> = self.blocks.values().flatten().copied().collect();
                let start = rng.below(u64::from(there_are)) as u32;
                (0..there_are).map(|step| (start + step) % there_are).find(|number| !taken.contains(number))
            }
        }
    }

    fn allocate_from(&mut self, choice: &Choice<'_>, ranges: &[(u16, u16)], rng: &mut Rng) -> Option<u16> {
        let Choice { flow, params, .. } = *choice;
        let own = flow.internal.port();
        // A range as the record says it may still leave the internal port as it is: Linux keeps any.
        let keeps_any = params.port_block.is_none() && params.port_range == PortRange::LinuxClasses;
        let own_fits = keeps_any || ranges.iter().any(|(low, high)| (*low..=*high).contains(&own));
        let is_kept = match params.alloc {
            Alloc::Preserve | Alloc::PreserveOrRandom | Alloc::Parity => own_fits && !self.had.contains(&flow.internal),
            Alloc::Sequential { .. } | Alloc::Random | Alloc::ContiguousBlock => false,
        };
        if is_kept && choice.is_free(own) {
            return Some(own);
        }
        if is_kept && params.collision == Collision::Drop {
            return None;
        }
        let ports: u32 = ranges.iter().map(|(low, high)| u32::from(high - low) + 1).sum();
        let start = match params.alloc {
            Alloc::Random | Alloc::PreserveOrRandom | Alloc::Parity => rng.below(u64::from(ports)) as u32,
            Alloc::Preserve => index_of(ranges, own).map_or(0, |index| index + 1),
            Alloc::ContiguousBlock => 0,
            Alloc::Sequential { delta, jitter } => {
                let more = if jitter == 0 { 0 } else { rng.below(u64::from(jitter) + 1) as u32 };
                match self.last.and_then(|last| index_of(ranges, last)) {
                    Some(last) => last + u32::from(delta) + more,
                    None => rng.below(u64::from(ports)) as u32,
                }
            }
        };
        let fits = |port: &u16| params.alloc != Alloc::Parity || port % 2 == own % 2;
        // Where a collision ends the flow, it ends with the first port.
        let tries = if params.collision == Collision::Drop { 1 } else { ports };
        let mut candidates = (0..tries).map(|step| port_at(ranges, (start + step) % ports)).filter(fits);
        let port = candidates.find(|port| choice.is_free(*port));
        self.last = port.or(self.last);
        port
    }

    fn outer(&mut self, host: Ipv4Addr, params: &NatParams, rng: &mut Rng) -> Ipv4Addr {
        let addresses = self.outers.len();
        if addresses == 1 {
            return self.outers[0];
        }
        let index = match params.pool.pairing {
            Pairing::Paired => {
                let next = self.paired.len();
                *self.paired.entry(host).or_insert(next) % addresses
            }
            Pairing::Arbitrary => rng.below(addresses as u64) as usize,
        };
        self.outers[index]
    }
}

impl Choice<'_> {
    fn is_free(&self, port: u16) -> bool {
        let mapped = SocketAddrV4::new(self.outer, port);
        if self.table.by_reply(mapped, self.flow.remote).is_some() {
            return false;
        }
        match self.params.collision {
            Collision::RemapFlow | Collision::Overload | Collision::Drop => true,
            Collision::RemapEndpoint => self.table.of_mapped(mapped).all(|id| self.is_shared_with(id)),
        }
    }

    /// Whether the flow and a session are of one mapping.
    fn is_shared_with(&self, id: SessionId) -> bool {
        self.table.owner(id) == Owner::Inside(self.flow.internal)
            && match self.params.mapping {
                Mapping::EndpointIndependent => true,
                Mapping::AddressDependent => self.table.remote(id).ip() == self.flow.remote.ip(),
                Mapping::AddressAndPortDependent => false,
            }
    }

    /// Where replacements come from.
    fn range(&self) -> (u16, u16) {
        match self.params.port_range {
            PortRange::LinuxClasses => port_class(self.flow.internal.port()),
            PortRange::Within(low, high) => (low, high),
        }
    }
}

/// What the internal endpoint of a flow has already and may use for it.
fn held(flow: Flow, params: &NatParams, table: &NatTable) -> Option<SocketAddrV4> {
    let mut sessions = table.of_internal(flow.internal);
    let id = match params.mapping {
        Mapping::EndpointIndependent if params.collision == Collision::Overload => sessions.next(),
        Mapping::EndpointIndependent => sessions.next_back(),
        Mapping::AddressDependent => sessions.rfind(|id| table.remote(*id).ip() == flow.remote.ip()),
        Mapping::AddressAndPortDependent => None,
    };
    id.map(|id| table.mapped(id))
}

/// The class of ports that a replacement for `port` is drawn from, both ends included (measured on Linux 6.18).
fn port_class(port: u16) -> (u16, u16) {
    match port {
        0..=511 => (1, 511),
        512..=1023 => (600, 1023),
        1024.. => (1024, 65_535),
    }
}

/// What blocks are cut from.
fn whole_range(params: &NatParams) -> (u16, u16) {
    match params.port_range {
        PortRange::LinuxClasses => (1024, 65_535),
        PortRange::Within(low, high) => (low, high),
    }
}

fn block_range(number: u32, block: PortBlock, params: &NatParams) -> (u16, u16) {
    let (low, high) = whole_range(params);
    let first = (u32::from(low) + number * u32::from(block.size)).min(u32::from(high));
    let last = (first + u32::from(block.size) - 1).min(u32::from(high));
    (first as u16, last as u16)
}

/// The position of `port` when the ranges are laid end to end.
fn index_of(ranges: &[(u16, u16)], port: u16) -> Option<u32> {
    let mut before = 0;
    for (low, high) in ranges {
        if (*low..=*high).contains(&port) {
            return Some(before + u32::from(port - low));
        }
        before += u32::from(high - low) + 1;
    }
    None
}

/// The port at a position when the ranges are laid end to end; the position is within them.
fn port_at(ranges: &[(u16, u16)], index: u32) -> u16 {
    let mut rest = index;
    for (low, high) in ranges {
        let ports = u32::from(high - low) + 1;
        if rest < ports {
            return low + rest as u16;
        }
        rest -= ports;
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_ports_of_ranges_are_each_others_inverse() {
        let ranges = [(10, 12), (100, 100), (65_534, 65_535)];
        let ports: Vec<_> = (0..6).map(|index| port_at(&ranges, index)).collect();
        assert_eq!(ports, [10, 11, 12, 100, 65_534, 65_535]);
        assert!(ports.iter().zip(0..).all(|(port, index)| index_of(&ranges, *port) == Some(index)));
        assert_eq!(index_of(&ranges, 13), None);
    }

    #[test]
    fn classes_are_those_of_linux() {
        let classes = [1, 511, 512, 1023, 1024, 65_535].map(port_class);
        assert_eq!(classes.map(|(low, _)| low), [1, 1, 600, 600, 1024, 1024]);
    }
}
