//! Two nodes over a pipe that does its worst. What must hold is in [`support::world`].

mod support;

use std::time::Duration;

use proptest::{prelude::*, test_runner::FileFailurePersistence};

use support::world::{HEALED_WITHIN, Side, Step, World};

proptest! {
    #![proptest_config(ProptestConfig {
        max_shrink_iters: 20_000,
        failure_persistence: Some(Box::new(FileFailurePersistence::Direct("tests/regressions/tunnel_model.txt"))),
        ..ProptestConfig::default()
    })]

    #[test]
    fn whatever_the_pipe_does_the_tunnel_keeps_its_promises(steps in prop::collection::vec(step(), 1..150)) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
        world.finish();
    }

    /// Most scripts lose handshakes and then test little else; these begin with a session.
    #[test]
    fn with_a_session_it_keeps_them_too(
        before in 0u64..200_000,
        steps in prop::collection::vec(prop_oneof![step(), quiet_step()], 1..150),
    ) {
        let mut world = World::new();
        world.apply(&send(Side::A));
        for side in [Side::B, Side::A, Side::B] {
            world.apply(&Step::DeliverAll { to: side });
        }
        prop_assert_eq!(world.delivered(), 1);
        world.apply(&Step::Jump { by: Duration::from_millis(before) });
        for step in &steps {
            world.apply(step);
        }
        world.finish();
    }

    /// Both ends begin, answer and restart within milliseconds of each other.
    #[test]
    fn handshakes_that_cross_end_well(steps in prop::collection::vec(crossing_step(), 1..60)) {
        let mut world = World::new();
        for step in &steps {
            world.apply(step);
        }
        world.finish();
    }
}

#[test]
fn without_faults_everything_gets_through() {
    let mut world = World::new();
    for number in 0..100 {
        world.apply(&Step::Send { from: Side::A, bytes: number * 13, lag: Duration::ZERO });
        world.apply(&Step::Send { from: Side::B, bytes: number * 13, lag: Duration::ZERO });
        world.apply(&Step::DeliverAll { to: Side::B });
        world.apply(&Step::DeliverAll { to: Side::A });
        world.apply(&Step::DeliverAll { to: Side::B });
    }
    assert_eq!(world.delivered(), 200);
    world.finish();
    assert!(HEALED_WITHIN < Duration::from_secs(31));
}

fn side() -> impl Strategy<Value = Side> {
    prop_oneof![Just(Side::A), Just(Side::B)]
}

fn send(from: Side) -> Step {
    Step::Send { from, bytes: 100, lag: Duration::ZERO }
}

/// Mostly none, sometimes a worker's batch, rarely absurd.
fn lag() -> impl Strategy<Value = Duration> {
    prop_oneof![
        8 => Just(Duration::ZERO),
        2 => (0u64..50).prop_map(Duration::from_millis),
        1 => (0u64..300).prop_map(Duration::from_secs),
    ]
}

/// From a millisecond to hours.
fn while_() -> impl Strategy<Value = Duration> {
    prop_oneof![
        4 => (0u64..100).prop_map(Duration::from_millis),
        4 => (0u64..6_000).prop_map(Duration::from_millis),
        2 => (0u64..20).prop_map(Duration::from_secs),
        2 => (100u64..200).prop_map(Duration::from_secs),
        1 => (500u64..20_000).prop_map(Duration::from_secs),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let pick = || any::<usize>();
    prop_oneof![
        8 => (side(), any::<u16>(), lag()).prop_map(|(from, bytes, lag)| Step::Send { from, bytes, lag }),
        12 => (side(), pick(), lag()).prop_map(|(to, pick, lag)| Step::Deliver { to, pick, lag }),
        8 => side().prop_map(|to| Step::DeliverAll { to }),
        2 => (side(), pick()).prop_map(|(to, pick)| Step::Duplicate { to, pick }),
        2 => (side(), pick()).prop_map(|(to, pick)| Step::Drop { to, pick }),
        2 => (side(), pick(), pick(), 1u8..).prop_map(|(to, pick, at, xor)| Step::Corrupt { to, pick, at, xor }),
        1 => (side(), pick(), pick()).prop_map(|(to, pick, length)| Step::Truncate { to, pick, length }),
        1 => (side(), pick()).prop_map(|(to, pick)| Step::Replay { to, pick }),
        1 => (side(), garbage()).prop_map(|(to, bytes)| Step::Garbage { to, bytes }),
        1 => (side(), 100u16..300).prop_map(|(to, count)| Step::Flood { to, count }),
        4 => while_().prop_map(|by| Step::Jump { by }),
        6 => Just(Step::Wait),
        1 => (side(), while_()).prop_map(|(side, by)| Step::OldTimeout { side, by }),
        1 => side().prop_map(|side| Step::Host { side }),
        1 => side().prop_map(|side| Step::Restart { side }),
        1 => side().prop_map(|side| Step::Reconfigure { side }),
    ]
}

/// What a link does most of the time.
fn quiet_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        side().prop_map(send),
        side().prop_map(|to| Step::DeliverAll { to }),
        Just(Step::Wait),
        (0u64..30_000).prop_map(|millis| Step::Jump { by: Duration::from_millis(millis) }),
    ]
}

fn crossing_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => side().prop_map(send),
        6 => (side(), 0usize..4).prop_map(|(to, pick)| Step::Deliver { to, pick, lag: Duration::ZERO }),
        1 => (side(), 0usize..4).prop_map(|(to, pick)| Step::Drop { to, pick }),
        2 => (0u64..40).prop_map(|millis| Step::Jump { by: Duration::from_millis(millis) }),
        2 => Just(Step::Wait),
        1 => side().prop_map(|side| Step::Restart { side }),
    ]
}

/// Bytes that begin like a message of some kind, of a length near that of the kind.
fn garbage() -> impl Strategy<Value = Vec<u8>> {
    let length = prop_oneof![0usize..40, 60usize..70, 90usize..94, 146usize..150];
    (0u8..6, length).prop_flat_map(|(kind, length)| {
        prop::collection::vec(any::<u8>(), length).prop_map(move |mut bytes| {
            let head = [kind, 0, 0, 0];
            let length = bytes.len().min(4);
            bytes[..length].copy_from_slice(&head[..length]);
            bytes
        })
    })
}
