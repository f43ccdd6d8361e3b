//! Whatever happens, what a node has merged from its messages is what it would be told were it told everything; no two nodes
//! have one key, name or address; and a subnet is served by a router that is there, when there is one.
#![allow(clippy::unwrap_used, reason = "helpers of tests too")]

mod support;

use proptest::prelude::*;
use support::model::{CALENDARS, CLIENTS, Event, Model, POLICIES, USERS};

fn event() -> impl Strategy<Value = Event> {
    let client = 1..=CLIENTS;
    prop_oneof![
        6 => (client.clone(), 0..5usize).prop_map(|(client, key)| Event::Join(client, key)),
        2 => client.clone().prop_map(Event::SignIn),
        3 => (client.clone(), 0..USERS.len()).prop_map(|(client, user)| Event::Admit(client, user)),
        1 => (client.clone(), client.clone()).prop_map(|(client, other)| Event::Copy(client, other)),
        2 => client.clone().prop_map(Event::Abort),
        1 => (0..CALENDARS.len()).prop_map(Event::Calendar),
        5 => client.clone().prop_map(Event::Update),
        2 => client.clone().prop_map(Event::Restarted),
        1 => (client.clone(), any::<u8>()).prop_map(|(client, name)| Event::Rename(client, name % 3)),
        1 => (client.clone(), any::<u16>()).prop_map(|(client, port)| Event::Serve(client, port)),
        3 => (client.clone(), any::<u8>()).prop_map(|(client, routes)| Event::Routes(client, routes)),
        4 => (0..POLICIES.len()).prop_map(Event::Policy),
        2 => (client.clone(), any::<u8>()).prop_map(|(client, tags)| Event::Tag(client, tags)),
        1 => (client.clone(), any::<u8>()).prop_map(|(client, name)| Event::Name(client, name % 3)),
        1 => client.clone().prop_map(Event::Expire),
        1 => client.clone().prop_map(Event::Delete),
        2 => client.clone().prop_map(Event::HangUp),
        4 => client.clone().prop_map(Event::Open),
        2 => client.clone().prop_map(Event::Stall),
        2 => (client.clone(), any::<u8>()).prop_map(|(client, key)| Event::Rotate(client, key % 40)),
        1 => client.prop_map(Event::LogOut),
        1 => any::<u8>().prop_map(|region| Event::Relays(region % 3)),
        6 => prop_oneof![Just(1), Just(60), Just(300), Just(12_000), Just(400_000)].prop_map(Event::Wait),
        1 => Just(Event::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn merged_maps_are_full_maps(events in prop::collection::vec(event(), 1..60), every in 1..20usize) {
        let mut model = Model::new();
        for (number, event) in events.into_iter().enumerate() {
            model.happen(event);
            if number % every == 0 {
                model.check();
            }
        }
        model.check();
    }
}
