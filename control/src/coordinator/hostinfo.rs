//! What a node says of itself, brought into bounds and merged with what is known.

use mesh_core::control::types::{Hostinfo, NetInfo};

use crate::limits;

/// Brings what a node says of itself into bounds: all of it is stored, and some goes to every peer.
pub(super) fn bound(hostinfo: &mut Hostinfo) {
    let Hostinfo {
        ipn_version,
        frontend_log_id,
        backend_log_id,
        os,
        os_version,
        env,
        distro,
        distro_version,
        distro_code_name,
        app,
        package,
        device_model,
        push_device_token,
        hostname,
        machine,
        go_arch,
        go_arch_var,
        go_version,
        cloud,
        services_hash,
        exit_node_id,
        ..
    } = hostinfo;
    let texts = [
        ipn_version,
        frontend_log_id,
        backend_log_id,
        os,
        os_version,
        env,
        distro,
        distro_version,
        distro_code_name,
        app,
        package,
        device_model,
        push_device_token,
        hostname,
        machine,
        go_arch,
        go_arch_var,
        go_version,
        cloud,
        services_hash,
        exit_node_id,
    ];
    texts.into_iter().for_each(cut);
    hostinfo.routable_ips.truncate(limits::ADVERTISED_ROUTES);
    hostinfo.routable_ips.shrink_to_fit();
    hostinfo.services.truncate(limits::HOSTINFO_SHOWN);
    hostinfo.services.shrink_to_fit();
    for service in &mut hostinfo.services {
        cut(&mut service.proto);
        cut(&mut service.description);
    }
    hostinfo.ssh_host_keys.truncate(limits::HOSTINFO_SHOWN);
    for list in [&mut hostinfo.request_tags, &mut hostinfo.wol_macs, &mut hostinfo.ssh_host_keys] {
        list.truncate(limits::HOSTINFO_LIST);
        list.retain(|text| text.len() <= limits::HOSTINFO_TEXT);
        list.shrink_to_fit();
    }
    if let Some(location) = &mut hostinfo.location {
        let texts = [&mut location.country, &mut location.country_code, &mut location.city, &mut location.city_code];
        texts.into_iter().for_each(cut);
    }
    if let Some(tpm) = &mut hostinfo.tpm {
        [&mut tpm.manufacturer, &mut tpm.vendor, &mut tpm.family_indicator].into_iter().for_each(cut);
    }
    if let Some(net_info) = &mut hostinfo.net_info {
        cut(&mut net_info.link_type);
        cut(&mut net_info.firewall_mode);
        net_info.derp_latency.retain(|region, _| region.len() <= limits::HOSTINFO_REGION);
        while net_info.derp_latency.len() > 4 * limits::HOSTINFO_LIST {
            net_info.derp_latency.pop_last();
        }
    }
}

/// Cuts a text, and gives back the room that the rest of it had.
pub(super) fn cut(text: &mut String) {
    text.truncate(text.floor_char_boundary(limits::HOSTINFO_TEXT));
    text.shrink_to_fit();
}

/// What a node says of itself, completed with what it said before: its network is left out of a registration and of some
/// updates, and a home that it lost is its home until it has another.
pub(super) fn merged(mut new: Hostinfo, known: &Hostinfo) -> Hostinfo {
    new.net_info = match (new.net_info, &known.net_info) {
        (Some(new), Some(known)) if new.preferred_derp == 0 => {
            Some(NetInfo { preferred_derp: known.preferred_derp, ..new })
        }
        (None, known) => known.clone(),
        (new, _) => new,
    };
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_off_takes_no_room() {
        const LONG: usize = 1 << 20;
        let mut hostinfo = Hostinfo {
            hostname: "x".repeat(LONG),
            wol_macs: vec![String::new(); LONG],
            services: vec![Default::default(); LONG],
            routable_ips: vec!["10.0.0.0/8".parse().unwrap(); LONG],
            ..Hostinfo::default()
        };
        bound(&mut hostinfo);
        assert_eq!(hostinfo.hostname.capacity(), limits::HOSTINFO_TEXT);
        assert_eq!(
            (hostinfo.wol_macs.capacity(), hostinfo.services.capacity()),
            (limits::HOSTINFO_LIST, limits::HOSTINFO_SHOWN)
        );
        assert_eq!(hostinfo.routable_ips.capacity(), limits::ADVERTISED_ROUTES);
    }
}
