//! Counters for Prometheus, over plain HTTP.
#![allow(clippy::disallowed_types, clippy::disallowed_methods, reason = "shell")]

use std::{
    convert::Infallible,
    fmt::Write,
    net::TcpListener as StdTcpListener,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::Incoming,
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh_core::invariant::broken_total;
use tokio::{net::TcpListener, time::timeout};
use tracing::error;

use super::{
    desk::Look,
    limits,
    listen::{ACCEPT_PAUSE, Shop},
};

/// One connection at a time: whoever asks here is the operator.
pub(super) async fn serve(listener: StdTcpListener, shop: Arc<Shop>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return error!(%error, "cannot listen for metrics"),
    };
    loop {
        let Ok((socket, _)) = listener.accept().await else {
            tokio::time::sleep(ACCEPT_PAUSE).await;
            continue;
        };
        let shop = Arc::clone(&shop);
        let service = service_fn(move |request| {
            let shop = Arc::clone(&shop);
            async move { Ok::<_, Infallible>(answer(&request, &shop).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HEAD)
            .keep_alive(false)
            .serve_connection(TokioIo::new(socket), service);
        // Whoever asked has gone, or will ask again.
        let _ = timeout(limits::HEAD, connection).await;
    }
}

async fn answer(request: &Request<Incoming>, shop: &Shop) -> Response<Full<Bytes>> {
    let (status, body) = match (request.uri().path(), timeout(limits::HEALTH, shop.desk.look()).await) {
        ("/metrics", Ok(Ok(look))) => (StatusCode::OK, text(&look, shop)),
        ("/metrics", _) => (StatusCode::SERVICE_UNAVAILABLE, "the server does not answer\n".to_owned()),
        _ => (StatusCode::NOT_FOUND, "metrics are at /metrics\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

fn text(look: &Look, shop: &Shop) -> String {
    let (connections, ungreeted) = shop.door.counts();
    let connections = [
        ("connections", connections as u64),
        ("ungreeted", ungreeted as u64),
        ("connections_accepted_total", shop.accepted.load(Relaxed)),
        ("connections_refused_total", shop.refused.load(Relaxed) + shop.door.displaced()),
    ];
    let mut text = String::new();
    for (name, value) in figures(look).into_iter().chain(connections) {
        let kind = if name.ends_with("_total") { "counter" } else { "gauge" };
        // Writing to a string does not fail.
        let _ = write!(text, "# TYPE mesh_control_{name} {kind}\nmesh_control_{name} {value}\n");
    }
    let _ =
        write!(text, "# TYPE mesh_broken_invariants_total counter\nmesh_broken_invariants_total {}\n", broken_total());
    if let Some(relay) = &shop.relay {
        text += &relay.metrics();
    }
    text
}

fn figures(Look { counters, status, commits, failed_commits, mutations, stuck }: &Look) -> Vec<(&'static str, u64)> {
    let crate::coordinator::Counters {
        selector_evaluations_total,
        peer_serializations_total,
        full_map_serializations_total,
        sessions_woken_total,
        full_maps_total,
        changes_total,
        snapshots_total,
        keep_alives_total,
        joins_total,
        registrations_refused_total,
        requests_refused_total,
        streams_replaced_total,
        clones_total,
        requests_delayed_total,
        sign_ins_evicted_total,
    } = *counters;
    vec![
        ("selector_evaluations_total", selector_evaluations_total),
        ("peer_serializations_total", peer_serializations_total),
        ("full_map_serializations_total", full_map_serializations_total),
        ("sessions_woken_total", sessions_woken_total),
        ("full_maps_total", full_maps_total),
        ("changes_total", changes_total),
        ("snapshots_total", snapshots_total),
        ("keep_alives_total", keep_alives_total),
        ("joins_total", joins_total),
        ("registrations_refused_total", registrations_refused_total),
        ("requests_refused_total", requests_refused_total),
        ("streams_replaced_total", streams_replaced_total),
        ("clones_total", clones_total),
        ("requests_delayed_total", requests_delayed_total),
        ("sign_ins_evicted_total", sign_ins_evicted_total),
        ("nodes", status.nodes as u64),
        ("online", status.online as u64),
        ("streams", status.streams as u64),
        ("users", status.users as u64),
        ("sign_ins", status.sign_ins as u64),
        ("version", status.version),
        ("commits_total", *commits),
        ("failed_commits_total", *failed_commits),
        ("mutations_total", *mutations),
        ("stuck", u64::from(*stuck)),
    ]
}
