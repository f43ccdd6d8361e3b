//! Regions, relays and the DNS server of scenario files.

use ::toml::de::DeValue;
use mesh_core::derp::RegionId;

use crate::net::{Ipv6, NetId, NetSetup};

use super::{
    NetSpec, RelaySpec, RelayStart, ResolverSpec, ScenarioError,
    read::{Reader, Value},
    toml::{DURATION, File, found},
    value,
};

type Result<T> = core::result::Result<T, ScenarioError>;

impl<'t> File<'t> {
    /// `[region.eu]`, numbered from 1 in the order of the file.
    pub(super) fn regions(&mut self, value: &Value<'t>) -> Result<()> {
        let DeValue::Table(table) = value.get_ref() else {
            return Err(self.source.error(value.span(), "write `[region.NAME]`, once for each"));
        };
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(name, _)| name.span().start);
        self.regions = entries.iter().map(|(name, _)| name.get_ref().to_string()).collect();
        for (number, (_, value)) in entries.into_iter().enumerate() {
            let reader = Reader::of_value(self.source, value, "a region", &["latency"])?;
            let Some(latency) = reader.get("latency") else { continue };
            let names: Vec<_> = self.regions.iter().map(String::as_str).collect();
            let latencies = Reader::of_value(self.source, latency, "latencies to regions", &names)?;
            for (other, name) in names.iter().enumerate() {
                if let Some(time) = latencies.parsed(name, value::duration, DURATION)? {
                    self.scenario.latencies.push((number as u16 + 1, other as u16 + 1, time));
                }
            }
        }
        Ok(())
    }

    /// The number of the region that `region` names; 0 is none.
    pub(super) fn region(&self, reader: &Reader<'_, '_>) -> Result<u16> {
        let Some(name) = reader.text("region")? else { return Ok(0) };
        let names: Vec<_> = self.regions.iter().map(String::as_str).collect();
        let index = found(reader, reader.require("region")?.span(), "region", name, &names)?;
        Ok(index as u16 + 1)
    }

    pub(super) fn relay(&mut self, table: &Value<'t>) -> Result<()> {
        let keys = ["name", "region", "net", "transports", "start"];
        let reader = Reader::of_value(self.source, table, "a relay", &keys)?;
        let name = reader.require_text("name")?.to_owned();
        self.unused(&reader, &name, self.scenario.host_names())?;
        reader.require("region")?;
        let number = self.region(&reader)?;
        let region = RegionId::new(number).ok_or_else(|| reader.error("a relay needs a region"))?;
        let (mut stun, mut derp) = (reader.get("transports").is_none(), reader.get("transports").is_none());
        for (span, transport) in reader.texts("transports")? {
            match transport {
                "udp" => stun = true,
                "tcp443" => derp = true,
                _ => return Err(self.source.error(span, "a transport is \"udp\" (STUN) or \"tcp443\" (DERP)")),
            }
        }
        let starts = [("fast", RelayStart::Fast), ("slow", RelayStart::Slow)];
        let start = reader.choice("start", &starts)?.unwrap_or(RelayStart::Fast);
        let net = match reader.get("net") {
            Some(_) => self.net_named(&reader, "net")?,
            None => {
                let setup = NetSetup { ipv6: Ipv6::Open, region: number, ..NetSetup::PUBLIC };
                self.scenario.nets.push(NetSpec { name: name.clone(), setup });
                NetId(self.scenario.nets.len() as u32 - 1)
            }
        };
        self.scenario.relays.push(RelaySpec { name, region, net, stun, derp, start });
        Ok(())
    }

    pub(super) fn resolver(&mut self, value: &Value<'t>) -> Result<()> {
        let reader = Reader::of_value(self.source, value, "the resolver", &["net", "delay"])?;
        let net = self.net_named(&reader, "net")?;
        let delay = reader.parsed("delay", value::duration, DURATION)?.unwrap_or_default();
        self.scenario.resolver = Some(ResolverSpec { net, delay });
        Ok(())
    }
}

/// Whether a net has IPv6.
pub(super) fn ipv6(reader: &Reader<'_, '_>) -> Result<Ipv6> {
    let kinds = [("none", Ipv6::None), ("guarded", Ipv6::Guarded), ("open", Ipv6::Open), ("broken", Ipv6::Broken)];
    Ok(reader.choice("ipv6", &kinds)?.unwrap_or_default())
}
