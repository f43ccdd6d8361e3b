mod names;
mod world;

use core::{net::SocketAddr, time::Duration};

use super::*;
use crate::{
    rng::Seed,
    stun::{Mapping, TxId},
};
use world::{Lie, Nat, World, id, literal_map, named_map};

#[test]
fn the_first_answer_says_home_and_address() {
    let mut world = World::new(&[(1, 80), (2, 30), (3, 60), (4, 500)]);
    world.run(5000);
    assert_eq!(world.homes, [(at(1030), 2)]);
    assert_eq!(world.observed[..2], [(at(1030), addr("198.51.100.1:1000")), (at(1030), addr("[2001:db8:1::9]:41641"))]);
    let (ended_at, report) = &world.reports[0];
    // The third answer took 80 ms, and the others have twice that.
    assert_eq!((*ended_at, world.reports.len()), (at(1240), 1));
    assert_eq!(report.preferred, id(2));
    assert_eq!(report.regions.len(), 3);
    assert_eq!((report.udp, report.ipv4, report.ipv6, report.os_has_ipv6), (true, true, true, true));
    assert_eq!((report.global_v4, report.mapping), (Some(addr("198.51.100.1:1000")), Mapping::Same));
    assert_eq!((report.kind, report.took), (Kind::Full, Duration::from_millis(240)));
}

#[test]
fn without_a_choice_home_is_said_with_the_map() {
    let mut world = World::without_map(&[(7, 50)], 1);
    world.set_map();
    world.run(0);
    assert_eq!(world.homes, [(at(1000), 7)]);
    world.run(5000);
    assert_eq!((world.homes.len(), world.probes.len()), (1, 2));
    assert_eq!(world.reports[0].0, at(1050));
}

#[test]
fn the_report_corrects_a_first_answer_that_came_first_for_a_loss() {
    let mut world = World::without_map(&[(1, 20), (2, 90)], 1);
    world.lost = [0, 1].into();
    world.set_map();
    world.run(5000);
    assert_eq!(world.homes, [(at(1090), 2), (world.reports[0].0, 1)]);
    assert_eq!(world.report().latency(id(1).unwrap()), Some(Duration::from_millis(20)));
}

#[test]
fn without_udp_home_is_known_by_tls_soon() {
    let mut world = World::without_map(&[(1, 80), (2, 30)], 1);
    world.udp_works = false;
    world.set_map();
    world.run(10_000);
    assert_eq!(world.fetches, [(at(1300), 1), (at(1300), 2)]);
    assert_eq!(world.homes, [(at(1390), 2)]);
    let (ended_at, report) = &world.reports[0];
    // A second after the last request.
    assert_eq!(*ended_at, at(2200));
    assert_eq!((report.udp, report.ipv4, report.preferred), (false, true, id(2)));
    assert_eq!(report.latency(id(2).unwrap()), Some(Duration::from_millis(30)));
    assert_eq!(world.netcheck.stats().fetches, 2);
}

#[test]
fn slow_udp_is_still_udp() {
    let mut world = World::new(&[(1, 700), (2, 900)]);
    world.run(10_000);
    assert!(world.report().udp);
    assert_eq!(world.homes, [(at(1700), 1)]);
    assert_eq!(world.netcheck.stats().fetches_unasked, 2, "what came over TLS came too late");
}

#[test]
fn a_relay_that_fails_over_tls_is_not_home_and_its_region_has_another() {
    let mut world = World::without_map(&[(1, 10), (2, 50)], 1);
    world.udp_works = false;
    world.tls_fails = [1].into();
    let mut map = literal_map([1, 2].iter());
    let nodes = map.regions.as_mut().unwrap().get_mut(&1).unwrap().as_mut().unwrap().nodes.as_mut().unwrap();
    nodes.push(nodes[0].clone());
    world.act(|netcheck, now| netcheck.set_map(&map, now));
    world.run(10_000);
    assert_eq!(world.fetches.iter().map(|(_, region)| *region).collect::<Vec<_>>(), [1, 2, 1]);
    assert_eq!((world.report().preferred, world.homes.len()), (id(2), 1));
    assert_eq!(world.netcheck.stats().fetches_failed, 2);
}

#[test]
fn when_nothing_answers_home_is_drawn_and_reports_grow_rare() {
    let mut world = World::without_map(&[], 1);
    world.act(|netcheck, now| netcheck.set_map(&literal_map([1, 2, 3].iter()), now));
    world.run(6_000);
    assert_eq!(world.homes.len(), 1);
    assert_eq!((world.report().preferred, world.report().heard_anything()), (None, false));
    assert!(world.netcheck.home().is_some());
    let before = world.probes.len();
    world.run(3_600_000);
    let reports = world.reports.len();
    assert!((15..=25).contains(&reports), "{reports}");
    assert!(world.probes.len() - before <= reports * 18);

    // A relay is heard: the network is well again.
    world.round_trips = [(1, 10), (2, 20), (3, 30)].into();
    world.act(|netcheck, now| netcheck.note_relay_heard(id(3).unwrap(), now));
    world.run(1000);
    assert_eq!(world.netcheck.home(), id(1));
    assert_eq!(world.netcheck.poll_timeout(), None);
}

#[test]
fn a_home_that_is_lost_is_replaced_without_waiting_for_the_next_refresh() {
    let mut world = World::new(&[(1, 20), (2, 50)]);
    world.run(5000);
    assert_eq!(world.netcheck.home(), id(1));
    world.act(|netcheck, now| netcheck.note_relay_heard(id(1).unwrap(), now));
    world.round_trips = [(2, 50)].into();
    world.act(|netcheck, now| netcheck.note_relay_failed(id(1).unwrap(), now));
    world.run(2000);
    assert_eq!(world.netcheck.home(), id(2));
    // What is lost and not home moves nothing, and neither does one lost again and again.
    let probes = world.probes.len();
    world.act(|netcheck, now| netcheck.note_relay_failed(id(1).unwrap(), now));
    world.act(|netcheck, now| netcheck.note_relay_failed(id(2).unwrap(), now));
    world.run(2000);
    assert_eq!(world.probes.len(), probes);
}

#[test]
fn a_home_that_swallows_everything_is_found_out_while_a_peer_is_silent() {
    let mut world = World::new(&[(1, 20), (2, 50)]);
    world.run(5000);
    let silent = |world: &mut World| world.act(|netcheck, now| netcheck.note_relay_silent(id(1).unwrap(), now));
    let probes = world.probes.len();
    silent(&mut world);
    world.run(1000);
    assert_eq!((world.netcheck.home(), world.probes.len() - probes), (id(1), 2), "one for each family: it is there");
    silent(&mut world);
    world.run(19_500);
    assert_eq!(world.probes.len() - probes, 2, "not again so soon");
    world.round_trips = [(2, 50)].into();
    silent(&mut world);
    world.run(4000);
    assert_eq!(world.netcheck.home(), id(2));
}

#[test]
fn a_family_that_cannot_send_is_given_up_at_once() {
    let mut world = World::without_map(&[(1, 20)], 1);
    world.refused = vec![Family::V6];
    world.set_map();
    world.run(5000);
    assert_eq!(world.reports[0].0, at(1020));
    let report = world.report();
    assert_eq!((report.ipv4_can_send, report.ipv6_can_send, report.ipv6), (true, false, false));
    assert_eq!(world.netcheck.stats().probes_refused, 1);

    let mut world = World::without_map(&[(1, 20)], 1);
    world.refused = Family::BOTH.to_vec();
    world.set_map();
    world.run(5000);
    assert_eq!(world.fetches, [(at(1000), 1)], "nothing is waited for");
    assert_eq!((world.report().udp, world.report().preferred), (false, id(1)));
}

#[test]
fn ipv6_alone_is_enough() {
    let mut world = World::without_map(&[(1, 50), (2, 20)], 1);
    world.act(|netcheck, now| netcheck.set_families(false, true, now));
    world.set_map();
    world.run(5000);
    assert!(world.probes.iter().all(|(_, to)| to.is_ipv6()));
    let report = world.report();
    assert_eq!((report.ipv4, report.ipv6, report.udp, report.preferred), (false, true, true, id(2)));
    assert_eq!((report.global_v6, report.mapping), (Some(addr("[2001:db8:1::9]:41641")), Mapping::Unknown));
}

#[test]
fn of_fifty_regions_three_are_enough() {
    let regions: Vec<_> = (1..=50).map(|number| (number, 20 + 10 * u64::from(number))).collect();
    let mut world = World::new(&regions);
    world.run(5000);
    assert_eq!((world.probes.len(), world.reports[0].0), (184, at(1150)));
    assert_eq!((world.homes.as_slice(), world.report().regions.len()), (&[(at(1030), 1)][..], 13));
    world.act(|netcheck, now| netcheck.start(Kind::Incremental, now));
    world.run(5000);
    assert_eq!((world.report().kind, world.report().preferred), (Kind::Incremental, id(1)));
    assert_eq!(world.report().regions.len(), 3);
}

#[test]
fn requests_of_a_run_are_bounded() {
    let numbers: Vec<u16> = (1..=200).collect();
    let mut world = World::without_map(&[], 1);
    world.act(|netcheck, now| netcheck.set_map(&literal_map(numbers.iter()), now));
    world.run(3_500);
    assert_eq!((world.probes.len(), world.fetches.len()), (limits::NETCHECK_PROBES, limits::NETCHECK_FETCHES));
    let stats = world.netcheck.stats();
    assert_eq!((stats.probes_over_budget, stats.regions_refused), (128 * 6 - 512, 72));
}

#[test]
fn lies_are_counted_and_change_nothing() {
    let mut world = World::without_map(&[(1, 40), (2, 1), (3, 2), (4, 3), (5, 4)], 1);
    world.lies = [(2, Lie::Tx), (3, Lie::Source), (4, Lie::Address(addr("0.0.0.0:5"))), (5, Lie::Garbage)].into();
    world.set_map();
    world.run(5000);
    assert_eq!(world.homes, [(at(1040), 1)]);
    assert_eq!(world.observed.len(), 2);
    assert_eq!(world.report().regions.keys().copied().collect::<Vec<_>>(), [id(1).unwrap()]);
    let stats = world.netcheck.stats();
    assert_eq!(stats.answers, 2);
    let counted =
        [stats.answers_unasked, stats.answers_from_elsewhere, stats.answers_unusable, stats.answers_unreadable];
    assert_eq!(counted, [6; 4]);
    let unasked = stun::response(TxId([1; 12]), addr("198.51.100.9:9"));
    world.act(|netcheck, now| netcheck.handle_stun(addr("192.0.2.1:3478"), &unasked, now));
    assert_eq!((world.netcheck.stats().answers_unasked, world.observed.len()), (7, 2));
}

#[test]
fn behind_a_hard_nat_the_mapping_varies_and_one_address_is_told() {
    let mut world = World::without_map(&[(1, 20), (2, 30), (3, 40)], 1);
    world.nat = Nat::Hard;
    world.set_map();
    world.run(5000);
    let report = world.report();
    assert_eq!((report.mapping, report.mapped.len()), (Mapping::Varies, 4));
    assert_eq!(report.net_info(world.netcheck.home()).mapping_varies, Some(true));
    let told: Vec<_> = world.observed.iter().filter(|(_, address)| address.is_ipv4()).collect();
    assert_eq!(told, [&(at(1020), addr("198.51.100.1:1001"))]);
}

#[test]
fn idle_nothing_is_sent() {
    let mut world = World::new(&[(1, 20), (2, 30)]);
    world.run(5000);
    let before = world.probes.len();
    assert_eq!(world.netcheck.poll_timeout(), None);
    world.run(3_600_000);
    assert_eq!(world.probes.len(), before);
}

#[test]
fn active_endpoints_stay_fresh_by_single_requests() {
    let mut world = World::new(&[(1, 20), (2, 30), (3, 40), (4, 50)]);
    world.run(500);
    let (first, began_at) = (world.probes.len(), world.now);
    for _ in 0..100 {
        world.act(|netcheck, now| netcheck.note_active(now));
        world.run(10_000);
    }
    let fresh: Vec<_> = world.observed.iter().filter(|(_, address)| address.is_ipv4()).map(|(at, _)| *at).collect();
    let gaps = fresh.windows(2).map(|pair| pair[1].since(pair[0]));
    assert!(gaps.max().is_some_and(|gap| gap < Duration::from_millis(26_100)));
    let stats = world.netcheck.stats();
    assert_eq!((stats.full_reports, stats.incremental_reports), (4, 0), "every five minutes of a thousand seconds");
    assert!((38..=50).contains(&stats.refreshes), "{stats:?}");
    let per_refresh = (world.probes.len() - first) as u64 - 3 * 8;
    assert_eq!(per_refresh, stats.refreshes * 2);
    assert!(world.probes[first..].iter().all(|(at, _)| *at > began_at));

    world.run(45_000);
    let before = world.probes.len();
    world.run(3_600_000);
    assert_eq!(world.probes.len(), before);
    // What is overdue is made up for at once.
    world.act(|netcheck, now| netcheck.note_active(now));
    assert_eq!((world.probes.len() - before, world.netcheck.stats().full_reports), (8, 5));
}

#[test]
fn a_refresh_is_had_on_request_once() {
    let mut world = World::new(&[(1, 20), (2, 30)]);
    world.run(1000);
    let before = world.probes.len();
    world.act(Netcheck::refresh);
    world.act(Netcheck::refresh);
    assert_eq!(world.probes.len(), before + 2);
    world.run(1000);
    assert_eq!((world.probes.len(), world.reports.len(), world.netcheck.is_running()), (before + 2, 1, false));
}

#[test]
fn another_address_is_looked_into() {
    let mut world = World::new(&[(1, 20), (2, 30)]);
    world.run(1000);
    world.outside_port = 2000;
    world.act(Netcheck::refresh);
    world.run(1000);
    assert_eq!(world.netcheck.stats().incremental_reports, 1);
    assert_eq!(world.report().global_v4, Some(addr("198.51.100.1:2000")));
    world.act(Netcheck::refresh);
    world.run(1000);
    assert_eq!(world.netcheck.stats().incremental_reports, 1);
}

#[test]
fn udp_that_goes_and_comes_is_seen() {
    let mut world = World::new(&[(1, 20), (2, 30)]);
    world.run(1000);
    world.udp_works = false;
    world.act(Netcheck::refresh);
    world.run(5000);
    assert_eq!((world.report().udp, world.reports.len(), world.netcheck.home()), (false, 2, id(1)));
    world.act(Netcheck::refresh);
    world.run(5000);
    assert_eq!((world.reports.len(), world.fetches.len()), (2, 2), "known to be blocked");
    world.udp_works = true;
    world.act(Netcheck::refresh);
    world.run(5000);
    assert_eq!((world.report().udp, world.report().kind), (true, Kind::Full));
}

#[test]
fn a_home_that_dies_is_left_unless_its_relay_is_heard() {
    let die = |heard: bool| {
        let mut world = World::new(&[(1, 20), (2, 30), (3, 90)]);
        world.run(1000);
        assert_eq!(world.netcheck.home(), id(1));
        world.round_trips.remove(&1);
        for _ in 0..40 {
            if heard {
                world.act(|netcheck, now| netcheck.note_relay_heard(id(1).unwrap(), now));
            }
            world.act(|netcheck, now| netcheck.note_active(now));
            world.run(1000);
        }
        world.netcheck.home()
    };
    assert_eq!((die(false), die(true)), (id(2), id(1)));
}

#[test]
fn a_home_that_answers_and_cannot_be_connected_to_is_left() {
    let fail = |world: &mut World, seconds| {
        for _ in 0..seconds {
            let home = world.netcheck.home().unwrap();
            if home == id(1).unwrap() {
                world.act(|netcheck, now| netcheck.note_relay_failed(home, now));
            } else {
                world.act(|netcheck, now| netcheck.note_relay_heard(home, now));
            }
            world.run(1000);
        }
    };
    let mut world = World::new(&[(1, 20), (2, 30), (3, 90)]);
    world.run(1000);
    fail(&mut world, 9);
    world.act(|netcheck, now| netcheck.note_relay_heard(id(1).unwrap(), now));
    fail(&mut world, 9);
    assert_eq!(world.netcheck.home(), id(1), "not for ten seconds on end");
    fail(&mut world, 4);
    assert_eq!(world.netcheck.home(), id(2));
    world.act(|netcheck, now| netcheck.start(Kind::Full, now));
    world.run(1000);
    assert_eq!(world.report().preferred, id(2), "and not returned to");
    world.run(1_800_000);
    world.act(|netcheck, now| netcheck.start(Kind::Full, now));
    world.run(1000);
    assert!(world.netcheck.dead().is_empty());

    let mut alone = World::new(&[(1, 20)]);
    fail(&mut alone, 60);
    assert_eq!((alone.netcheck.home(), alone.reports.len()), (id(1), 1), "there is no other");
}

#[test]
fn what_fails_while_nothing_answers_is_not_held_against_a_relay() {
    let mut world = World::new(&[(1, 20), (2, 90)]);
    world.run(1000);
    let well = world.round_trips.split_off(&0);
    world.tls_fails = [1, 2].into();
    for _ in 0..30 {
        world.act(|netcheck, now| netcheck.note_relay_failed(id(1).unwrap(), now));
        world.run(1000);
    }
    world.round_trips = well;
    world.act(|netcheck, now| netcheck.start(Kind::Full, now));
    world.run(5000);
    assert!(world.report().udp);
    assert_eq!((world.netcheck.home(), world.homes.len()), (id(1), 1));
}

#[test]
fn a_home_that_was_lost_is_looked_for_until_it_answers() {
    let mut world = World::new(&[(1, 20), (2, 90)]);
    world.run(1000);
    let fail = |world: &mut World| world.act(|netcheck, now| netcheck.note_relay_failed(id(1).unwrap(), now));
    world.round_trips.remove(&1);
    for _ in 0..60 {
        fail(&mut world);
        world.run(1000);
    }
    assert_eq!(world.netcheck.home(), id(2));
    let pass = |world: &mut World, seconds| {
        for _ in 0..seconds {
            world.act(|netcheck, now| netcheck.note_active(now));
            world.act(Netcheck::refresh);
            world.run(1000);
        }
    };
    pass(&mut world, 60);
    world.round_trips.insert(1, 20);
    pass(&mut world, 30);
    assert_eq!(world.netcheck.home(), id(1), "not only in five minutes");
    let reports = world.reports.len();
    pass(&mut world, 60);
    assert_eq!(world.reports.len(), reports, "and that is that");
}

#[test]
fn another_network_is_looked_at_anew_and_flapping_is_paced() {
    let mut world = World::new(&[(1, 20), (2, 30)]);
    world.run(10);
    world.act(Netcheck::note_network_change);
    assert_eq!((world.netcheck.stats().aborted, world.probes.len()), (1, 8));
    world.run(5000);
    assert_eq!((world.reports.len(), world.netcheck.stats().answers_unasked), (1, 4));

    let before = world.netcheck.stats();
    for _ in 0..1000 {
        world.act(Netcheck::note_network_change);
        world.run(10);
    }
    let begun = world.netcheck.stats().full_reports - before.full_reports;
    assert!((9..=13).contains(&begun), "{begun}");
    world.run(5000);
    assert!(!world.netcheck.is_running() && world.report().heard_anything());
    assert_eq!(world.netcheck.home(), id(1));
}

#[test]
fn requests_for_reports_queue_one_more() {
    let mut world = World::new(&[(1, 20), (2, 30)]);
    for kind in [Kind::Incremental, Kind::Full, Kind::Incremental] {
        world.act(|netcheck, now| netcheck.start(kind, now));
    }
    world.run(5000);
    assert_eq!(world.reports.iter().map(|(_, report)| report.kind).collect::<Vec<_>>(), [Kind::Full; 2]);
}

#[test]
fn a_report_comes_without_a_map_or_a_network() {
    let mut netcheck = Netcheck::new(Seed::from_number(1).stream("netcheck", 0));
    netcheck.start(Kind::Full, at(1000));
    let Some(Output::Report(report)) = netcheck.poll_output() else { panic!("a report") };
    assert_eq!((report.heard_anything(), report.preferred, report.os_has_ipv6), (false, None, false));
    netcheck.set_map(&literal_map([1, 2].iter()), at(1000));
    netcheck.start(Kind::Full, at(1000));
    assert!(matches!(netcheck.poll_output(), Some(Output::Report(_))));
    assert_eq!((netcheck.poll_output(), netcheck.poll_timeout(), netcheck.home()), (None, None, None));
}

#[test]
fn a_map_without_the_home_has_another() {
    let mut world = World::new(&[(1, 20), (2, 30), (3, 50)]);
    world.run(5000);
    world.act(|netcheck, now| netcheck.set_map(&literal_map([2, 3].iter()), now));
    assert_eq!(world.homes[1..], [(at(6000), 2)]);
    world.run(5000);
    let before = world.probes.len();
    world.act(|netcheck, now| netcheck.set_map(&literal_map([2, 3].iter()), now));
    assert_eq!(world.probes.len(), before, "the same map is no news");
    world.act(|netcheck, now| netcheck.set_map(&DerpMap::default(), now));
    assert_eq!((world.netcheck.home(), world.netcheck.poll_timeout()), (None, None));
}

#[test]
fn a_region_without_a_relay_is_measured_and_no_home() {
    let mut map = literal_map([1, 2, 3].iter());
    for node in map.regions.iter_mut().flat_map(|regions| regions.get_mut(&1)).flatten().flat_map(|it| &mut it.nodes) {
        node[0].stun_only = true;
    }
    let mut world = World::without_map(&[(1, 10), (2, 50), (3, 90)], 1);
    world.act(|netcheck, now| netcheck.set_home(id(1), now));
    world.act(|netcheck, now| netcheck.set_map(&map, now));
    world.run(5000);
    assert_eq!((world.homes.as_slice(), world.report().preferred), (&[(at(1050), 2)][..], id(2)));
    assert_eq!(world.report().latency(id(1).unwrap()), Some(Duration::from_millis(10)));
    world.act(|netcheck, now| netcheck.set_home(id(1), now));
    assert_eq!(world.netcheck.home(), id(2));
}

#[test]
fn a_home_of_before_is_kept_when_it_is_good_enough() {
    let mut world = World::without_map(&[(1, 20), (2, 25)], 1);
    world.act(|netcheck, now| netcheck.set_home(id(2), now));
    world.set_map();
    world.run(5000);
    assert_eq!((world.homes.len(), world.netcheck.home()), (0, id(2)));
}

/// Whatever happens, a run ends, nothing spins, and the home is a region of the map.
#[test]
fn random_networks_are_survived() {
    for seed in 0..150 {
        let mut dice = Seed::from_number(seed).stream("dice", 0);
        let count = 1 + dice.below(12) as u16;
        let round_trips: Vec<_> = (1..=count).map(|number| (number, dice.below(1500))).collect();
        let mut world = World::without_map(&round_trips, seed);
        world.loss_percent = dice.below(60);
        let named = dice.below(2) == 0;
        for step in 0..60 {
            match dice.below(12) {
                0 => world.act(Netcheck::note_network_change),
                1 => world.udp_works = !world.udp_works,
                2 => world.nat = if dice.below(2) == 0 { Nat::Easy } else { Nat::Hard },
                3 => world.dns = (dice.below(2) == 0).then_some(Duration::from_millis(30)),
                4 => {
                    let (v4, v6) = (dice.below(4) > 0, dice.below(2) > 0);
                    world.act(|netcheck, now| netcheck.set_families(v4, v6, now));
                }
                5 => drop(world.lies.insert(1 + dice.below(12) as u16, Lie::Tx)),
                6 => {
                    let numbers: Vec<_> = (1..=count).filter(|_| dice.below(4) > 0).collect();
                    let map = if named { named_map(numbers.iter()) } else { literal_map(numbers.iter()) };
                    world.act(|netcheck, now| netcheck.set_map(&map, now));
                }
                7 => world.act(|netcheck, now| netcheck.start(Kind::Incremental, now)),
                8 => world.act(|netcheck, now| netcheck.note_relay_heard(id(1).unwrap(), now)),
                10 => world.act(|netcheck, now| netcheck.note_relay_failed(id(1).unwrap(), now)),
                9 => world.refused = if dice.below(3) == 0 { vec![Family::V6] } else { Vec::new() },
                _ => world.act(Netcheck::note_active),
            }
            world.run(dice.below(if step % 5 == 0 { 100_000 } else { 3_000 }));
            assert!(world.netcheck.home().is_none_or(|home| home.number() <= count), "seed {seed}");
        }
        assert!(world.reports.iter().all(|(_, report)| report.took <= FETCH_TIMEOUT), "seed {seed}");
        // Well again, it finds what is there.
        world.udp_works = true;
        (world.loss_percent, world.nat) = (0, Nat::Easy);
        world.lies.clear();
        world.refused.clear();
        world.act(|netcheck, now| netcheck.set_families(true, true, now));
        world.set_map();
        world.act(Netcheck::note_network_change);
        world.run(20_000);
        let shortest = world.round_trips.values().min().copied().unwrap_or_default();
        let home = world.netcheck.home().map(|home| world.round_trips[&home.number()]);
        let is_good = home.is_some_and(|home| home < shortest + 10 || home * 2 < shortest * 3 || home == shortest);
        assert!(is_good && world.report().udp, "seed {seed}: {home:?} of {:?}", world.round_trips);
    }
}

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}
