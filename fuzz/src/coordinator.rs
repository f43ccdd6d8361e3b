//! The control server: what a node asks of it, and everything that may happen to it.

use control::{
    coordinator::{Endpoint, Request, Response},
    limits, names,
};
use mesh_core::{
    control::{
        netmap,
        types::{MapRequest, RegisterRequest},
    },
    key::NodePublic,
    machine::Machine,
};

use crate::{
    script::Script,
    server::{
        World,
        model::{CALENDARS, CLIENTS, Event, Model, POLICIES, USERS},
    },
};

/// A body that reads, if it does.
macro_rules! read {
    ($kind:ty, $body:expr) => {
        serde_json::from_slice::<$kind>($body).ok().inspect(|read| {
            let written = serde_json::to_vec(read).expect("what was read can be written");
            assert_eq!(&serde_json::from_slice::<$kind>(&written).expect("and read again"), read);
        })
    };
}

/// The body of a request: as JSON it is the same when it is written and read again, and whatever it says, the server takes
/// it or refuses it with a text, stays within its bounds, and tells its nodes what they understand. The first byte says
/// which request, and whether it comes from a node or from a stranger.
///
/// # Panics
/// When that is not so.
pub fn node_requests(data: &[u8]) {
    let Some((what, body)) = data.split_first() else { return };
    let request = match what & 3 {
        0 | 1 => read!(RegisterRequest, body).map(|request| Request::Register(Box::new(request))),
        2 => read!(MapRequest, body).map(|request| Request::Map(Box::new(request))),
        _ => {
            let endpoints = [Endpoint::SetDns, Endpoint::FeatureQuery, Endpoint::AuditLog, Endpoint::UpdateHealth];
            let endpoint = endpoints[usize::from(what >> 3) % endpoints.len()];
            read!(NodePublic, body).map(|node_key| Request::Other { endpoint, node_key })
        }
    };
    let Some(request) = request else { return };
    let mut world = World::open();
    let key = world.key(true, false, &[]);
    world.join(1, &key);
    world.client(2);
    let client = if what & 4 == 0 { 1 } else { 2 };
    let id = world.begin(client, request);
    match world.answer(client, id) {
        Some(Response::Refused(refusal)) => {
            assert!((400..600).contains(&refusal.status) && !refusal.text.is_empty(), "{refusal:?}");
        }
        Some(Response::Once(update)) => drop(netmap::decode(&update.render().to_json(), None).expect("a map")),
        Some(Response::Register(_) | Response::Stream(_) | Response::Updated | Response::Done) | None => {}
    }
    world.settle();
    for row in world.rows.nodes.values() {
        assert!(names::is_label(&row.name), "{}", row.name);
        assert!(row.tags.len() <= limits::TAGS && row.user.is_some() == row.tags.is_empty());
        assert!(row.hostinfo.routable_ips.len() <= limits::ADVERTISED_ROUTES);
        assert!(row.hostinfo.services.len() <= limits::HOSTINFO_LIST);
        assert!(row.hostinfo.hostname.len() <= limits::HOSTINFO_TEXT);
        let json = serde_json::to_string(row).expect("a row can be stored");
        assert_eq!(&serde_json::from_str::<control::store::NodeRow>(&json).expect("and loaded"), row);
    }
    // It comes back with what it stored, and it goes on.
    world.crash();
    world.advance(limits::WRITE_STALL);
}

/// A script of nodes that join, sign in, move, ask for routes and names, hang up or stop to read, of policies and
/// operators, crashes and clocks. What nodes have merged is what they would be told were they told everything; see
/// `control/tests/support/model.rs` for what else must hold.
///
/// # Panics
/// When something does not hold.
pub fn coordinator(data: &[u8]) {
    let mut script = Script::new(data);
    let mut model = Model::new();
    let every = 1 + usize::from(script.byte() % 20);
    for number in 0..60 {
        if script.is_done() {
            break;
        }
        model.happen(event(&mut script));
        let deadline = model.world.coordinator.poll_timeout();
        assert!(deadline.is_none_or(|deadline| deadline.at > model.world.now), "{deadline:?}");
        if number % every == 0 {
            model.check();
        }
    }
    model.check();
}

fn event(script: &mut Script<'_>) -> Event {
    let what = script.byte();
    let (client, byte) = (1 + u32::from(what >> 5) % CLIENTS, script.byte());
    let pick = |of: usize| usize::from(byte) % of;
    match what & 31 {
        0..=2 => Event::Join(client, pick(5)),
        3 => Event::SignIn(client),
        4 => Event::Admit(client, pick(USERS.len())),
        5 => Event::Copy(client, 1 + u32::from(byte) % CLIENTS),
        6 => Event::Abort(client),
        7 => Event::Calendar(pick(CALENDARS.len())),
        8 | 9 => Event::Update(client),
        10 => Event::Restarted(client),
        11 => Event::Rename(client, byte % 3),
        12 => Event::Serve(client, u16::from(byte)),
        13 | 14 => Event::Routes(client, byte),
        15 | 16 => Event::Policy(pick(POLICIES.len())),
        17 => Event::Tag(client, byte),
        18 => Event::Name(client, byte % 3),
        19 => Event::Expire(client),
        20 => Event::Delete(client),
        21 => Event::HangUp(client),
        22 | 23 => Event::Open(client),
        24 => Event::Stall(client),
        25 => Event::Rotate(client, byte % 40),
        26 => Event::LogOut(client),
        27 => Event::Relays(byte % 3),
        28..=30 => Event::Wait([1, 60, 300, 12_000, 400_000][pick(5)]),
        _ => Event::Crash,
    }
}
