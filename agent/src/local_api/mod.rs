//! What the command line may ask the daemon: HTTP/1 over a unix socket, paths and objects as stock clients have them.
//!
//! The socket can be opened by everyone; rights come from the credentials of the process at the other end. As with
//! stock clients, everyone on the host may look (status, metrics) and ping, for that changes nothing and is bounded;
//! changing anything is for root and for the user that the daemon runs as.
//!
//! | request | answer | for |
//! |---|---|---|
//! | `GET /localapi/v0/status` | [`status::Status`] | everyone; the sign-in page: root, daemon's user |
//! | `POST /localapi/v0/ping?ip=ADDRESS` or `?peer=NODEKEY`, `&type=disco`, `TSMP` or `ICMP`, `&timeout=MILLISECONDS` | [`types::PingResult`] | everyone |
//! | `GET /localapi/v0/metrics` | Prometheus text | everyone |
//! | `GET /localapi/v0/debug-paths?peer=NODEKEY` | [`types::PeerPaths`] | everyone |
//! | `GET /localapi/v0/debug-self` | our node as control would show it to peers | everyone |
//! | `POST /localapi/v0/netcheck` | [`types::NetcheckReport`] | everyone |
//! | `GET /localapi/v0/debug-map` | the network map | everyone |
//! | `GET /localapi/v0/whois?addr=ADDRESS` | [`joining::Whois`] | everyone |
//! | `GET /localapi/v0/prefs` | [`Prefs`](mesh_core::node::Prefs) | everyone |
//! | `PATCH /localapi/v0/prefs` with some of them | nothing | root, daemon's user |
//! | `POST /localapi/v0/up` with [`joining::UpRequest`] | [`joining::UpResult`], once it is up | root, daemon's user |
//! | `POST /localapi/v0/down`, `logout` | nothing | root, daemon's user |
//! | `POST /localapi/v0/reload-config` | nothing | root, daemon's user |
//!
//! A request that fails is answered `{"error":{"code","message","hint"}}`.

pub mod client;
pub mod joining;
mod metrics;
pub mod server;
pub mod status;
pub mod types;

/// Where the socket is when nobody says otherwise.
pub const SOCKET: &str = "/run/mesh/meshd.sock";

/// What paths begin with.
pub(crate) const PREFIX: &str = "/localapi/v0/";
