//! The relays that nodes are told of: those of `--derp-map`, and the one in this process, which asks here who may connect.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    pin::Pin,
    sync::{Arc, OnceLock},
};

use mesh_core::{
    derp::{DerpMap, DerpRegion},
    key::NodePublic,
};
use relay::{admission, serve::Ask};
use transports::program::{Exit, Failure};

use super::desk::{Desk, No};
use crate::{
    coordinator::{Command, Reply},
    store::Principal,
};

/// Bytes of a DERP map that are read; the largest published one has some 20 KiB. At the bound it is refused.
const MAP_BYTES: u64 = 4 << 20;

/// Who may connect to the embedded relay, which is there before anybody can say.
#[derive(Default)]
pub(super) struct Admission {
    desk: OnceLock<Desk>,
}

impl Admission {
    /// From now on the coordinator says it.
    pub(super) fn open(&self, desk: Desk) {
        // Opened once.
        let _ = self.desk.set(desk);
    }
}

impl Ask for Admission {
    fn ask(&self, node: NodePublic) -> Pin<Box<dyn Future<Output = admission::Admission> + Send + '_>> {
        Box::pin(async move {
            let Some(desk) = self.desk.get() else { return admission::Admission::Unreachable };
            match desk.command(Principal::Server, Command::Verify { node }).await {
                Ok(Reply::Verdict(true)) => admission::Admission::Allowed,
                Ok(Reply::Verdict(false)) => admission::Admission::Refused,
                Ok(_) | Err(No::Refused(_)) => admission::Admission::Unclear,
                Err(_) => admission::Admission::Unreachable,
            }
        })
    }
}

/// The map of a file, and the embedded relay's region in it.
pub(super) fn derp_map(file: Option<&Path>, embedded: Option<&DerpRegion>) -> Result<Arc<DerpMap>, Failure> {
    let mut map = match file {
        Some(file) => read(file)?,
        None => DerpMap::default(),
    };
    if let Some(region) = embedded {
        let regions = map.regions.get_or_insert_with(BTreeMap::new);
        if regions.insert(region.region_id, Some(region.clone())).is_some() {
            let message = format!("region {} of the DERP map is that of the embedded relay", region.region_id);
            return Err(Failure::new(Exit::Usage, "same-region", message)
                .hint("number the other one differently, or give --relay none"));
        }
    }
    Ok(Arc::new(map))
}

fn read(file: &Path) -> Result<DerpMap, Failure> {
    let refuse = |problem: &dyn core::fmt::Display| {
        Failure::new(Exit::Usage, "bad-derp-map", format!("{}: {problem}", file.display())).hint(
            "give a DERP map in JSON: {\"Regions\":{\"900\":REGION}}, with REGION as mesh-relay derp-map prints it",
        )
    };
    let length = fs::metadata(file).map_err(|error| refuse(&error))?.len();
    if length > MAP_BYTES {
        return Err(refuse(&format_args!("{length} bytes are too many for a DERP map")));
    }
    let text = fs::read_to_string(file).map_err(|error| refuse(&error))?;
    serde_json::from_str(&text).map_err(|error| refuse(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_has_one_owner() {
        let file = std::env::temp_dir().join(format!("mesh-derp-map-{}", std::process::id()));
        let region = DerpRegion { region_id: 900, ..DerpRegion::default() };
        fs::write(&file, "{\"Regions\":{\"901\":{\"RegionID\":901,\"RegionCode\":\"x\",\"RegionName\":\"x\"}}}")
            .unwrap();
        let map = derp_map(Some(&file), Some(&region)).unwrap();
        assert_eq!(map.regions.as_ref().unwrap().keys().copied().collect::<Vec<_>>(), [900, 901]);
        fs::write(&file, "{\"Regions\":{\"900\":{\"RegionID\":900}}}").unwrap();
        assert!(derp_map(Some(&file), Some(&region)).unwrap_err().message().contains("embedded"));
        fs::write(&file, "{").unwrap();
        assert!(derp_map(Some(&file), None).is_err());
        fs::remove_file(file).unwrap();
    }
}
