//! Tells systemd how the daemon is, when systemd wants to know.

use std::{
    env,
    ffi::OsStr,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
};

use tracing::debug;

/// The daemon does its work now.
pub fn ready() {
    notify("READY=1");
}

/// The daemon is about to end.
pub fn stopping() {
    notify("STOPPING=1");
}

/// sd_notify(3): one datagram to the socket that the variable names; `@` begins an abstract name.
fn notify(state: &str) {
    let Some(name) = env::var_os("NOTIFY_SOCKET") else { return };
    let sent = address(&name).and_then(|to| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &to));
    if let Err(error) = sent {
        debug!(%error, "systemd was not told");
    }
}

fn address(name: &OsStr) -> std::io::Result<SocketAddr> {
    match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abstract_and_path_names_are_told_apart() {
        assert_eq!(address(OsStr::new("@a")).unwrap().as_abstract_name(), Some(b"a".as_slice()));
        assert_eq!(address(OsStr::new("/run/n")).unwrap().as_pathname(), Some("/run/n".as_ref()));
    }
}
