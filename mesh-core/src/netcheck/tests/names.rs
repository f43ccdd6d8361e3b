//! Relays that only DNS knows.

use super::*;

#[test]
fn names_are_asked_for_once() {
    let mut world = World::without_map(&[(1, 20), (2, 30)], 1);
    world.act(|netcheck, now| netcheck.set_map(&named_map([1, 2].iter()), now));
    world.run(5000);
    assert_eq!(world.resolves, [(at(1000), "r1".into()), (at(1000), "r2".into())]);
    assert_eq!((world.homes.as_slice(), world.probes.len()), (&[(at(1025), 1)][..], 4));
    world.act(|netcheck, now| netcheck.start(Kind::Full, now));
    world.run(5000);
    assert_eq!(world.resolves.len(), 2);
    world.act(|netcheck, now| netcheck.handle_resolved("r9", Err(ResolveFailed), now));
    assert_eq!(world.netcheck.stats().resolves_unasked, 1);
}

#[test]
fn a_region_whose_name_failed_is_asked_soon_and_not_in_five_minutes() {
    let mut world = World::without_map(&[(1, 20), (2, 60)], 1);
    world.act(|netcheck, now| netcheck.set_map(&named_map([1, 2].iter()), now));
    world.act(|netcheck, now| netcheck.handle_resolved("r1", Err(ResolveFailed), now));
    world.run(5000);
    assert_eq!((world.netcheck.home(), world.resolves.len()), (id(2), 2));
    world.act(Netcheck::note_active);
    world.run(26_000);
    assert_eq!((world.netcheck.home(), world.resolves.len()), (id(1), 3));
    // It is looked for no more.
    world.act(Netcheck::note_active);
    let reports = world.reports.len();
    world.run(26_000);
    assert_eq!((world.reports.len(), world.resolves.len()), (reports, 3));
}

#[test]
fn a_region_without_a_name_is_looked_for_ever_more_rarely_and_takes_no_turn_of_another() {
    // Three others are nearer than what is not known.
    let mut world = World::without_map(&[(2, 60), (3, 20), (4, 70), (5, 80)], 1);
    world.act(|netcheck, now| netcheck.set_map(&named_map([1, 2, 3, 4, 5].iter()), now));
    for name in ["r1", "r3"] {
        world.act(|netcheck, now| netcheck.handle_resolved(name, Err(ResolveFailed), now));
    }
    world.run(5000);
    assert_eq!(world.netcheck.home(), id(2));
    for _ in 0..60_000 {
        world.act(Netcheck::note_active);
        world.run(2);
        // Nobody knows the first, and says so before the DNS of this world answers.
        world.act(|netcheck, now| netcheck.handle_resolved("r1", Err(ResolveFailed), now));
    }
    assert_eq!(world.netcheck.home(), id(3));
    assert!(world.reports.len() <= 5, "{}", world.reports.len());
}

#[test]
fn without_dns_relays_are_asked_over_tls() {
    let mut world = World::without_map(&[(1, 20), (2, 30)], 1);
    world.dns = None;
    world.act(|netcheck, now| netcheck.set_map(&named_map([1, 2].iter()), now));
    world.run(10_000);
    // The connection's own way of asking may know more.
    assert_eq!((world.homes.as_slice(), world.probes.len()), (&[(at(1360), 1)][..], 0));
    assert_eq!(world.reports[0].0, at(4000));
}
