//! What the node says of its host to the control server.

use std::{collections::BTreeMap, fs};

use mesh_core::control::types::Hostinfo;
use nix::sys::utsname::uname;

/// What is known of this host. Name, routes and tags that the user chose come on top of it.
#[must_use]
pub(super) fn hostinfo() -> Hostinfo {
    let text = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let release = os_release(&text);
    let of = |name: &str| release.get(name).cloned().unwrap_or_default();
    let names = uname().ok();
    let named = |of: fn(&nix::sys::utsname::UtsName) -> &std::ffi::OsStr| {
        names.as_ref().map(|names| of(names).to_string_lossy().into_owned()).unwrap_or_default()
    };
    Hostinfo {
        ipn_version: crate::VERSION.to_owned(),
        no_logs_no_support: true,
        os: std::env::consts::OS.to_owned(),
        os_version: named(|names| names.release()),
        distro: of("ID"),
        distro_version: of("VERSION_ID"),
        distro_code_name: of("VERSION_CODENAME"),
        hostname: named(|names| names.nodename()),
        machine: named(|names| names.machine()),
        go_arch: match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
        .to_owned(),
        userspace: Some(false),
        userspace_router: Some(false),
        ..Hostinfo::default()
    }
}

/// The assignments of os-release(5).
fn os_release(text: &str) -> BTreeMap<&str, String> {
    let assignments = text.lines().filter_map(|line| line.trim().split_once('='));
    assignments.map(|(name, value)| (name, value.trim_matches(['"', '\'']).to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_system_is_read_with_and_without_quotes() {
        let release = os_release("# a comment\nID=debian\nVERSION_ID=\"13\"\nNAME='Debian GNU/Linux'\n");
        assert_eq!((release["ID"].as_str(), release["VERSION_ID"].as_str()), ("debian", "13"));
        assert_eq!(release["NAME"], "Debian GNU/Linux");
    }

    #[test]
    fn a_host_is_described() {
        let said = hostinfo();
        assert_eq!(said.os, "linux");
        assert!(!said.hostname.is_empty() && !said.os_version.is_empty());
    }
}
