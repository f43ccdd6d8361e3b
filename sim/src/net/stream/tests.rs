//! Two ends of a stream and a wire between them that loses what a test says.

use super::*;
use crate::kernel::dice::Dice;

const DELAY: Duration = Duration::from_millis(20);

struct Pair {
    now: Instant,
    ends: [Stream; 2],
    wire: BTreeMap<(Instant, u64), (usize, Segment)>,
    sent: u64,
    /// Segments with these numbers are lost.
    lost: Vec<u64>,
    received: [Vec<u8>; 2],
    said: [Vec<StreamOutput>; 2],
    /// When the other end had received so many bytes.
    arrivals: Vec<(Instant, usize)>,
}

#[test]
fn bytes_arrive_in_order_after_a_round_trip() {
    let mut pair = Pair::open();
    assert_eq!(pair.now, at(40));
    assert_eq!(pair.ends[0].write(b"hello", pair.now), 5);
    pair.run(at(1000));
    assert_eq!(pair.received[1], b"hello");
    assert_eq!(pair.arrivals, [(at(60), 5)]);
    assert_eq!(pair.ends[0].unacknowledged(), 0);
}

#[test]
fn a_lost_segment_holds_up_what_is_behind_it_for_a_retransmission_time() {
    let mut pair = Pair::open();
    pair.lost = vec![pair.sent];
    let _ = pair.ends[0].write(&[1; 100], pair.now);
    pair.run(at(50));
    let _ = pair.ends[0].write(&[2; 100], pair.now);
    pair.run(at(2000));
    // Sent at 40 ms, sent again after 200 ms at least; the second waited for it.
    let [(first, 200)] = pair.arrivals[..] else { panic!("{:?}", pair.arrivals) };
    assert!(first >= at(260) && first < at(360), "{first}");
    assert_eq!(pair.received[1], [[1; 100], [2; 100]].concat());
}

#[test]
fn a_hole_in_a_busy_stream_is_filled_after_three_acknowledgements() {
    let mut pair = Pair::open();
    pair.lost = vec![pair.sent + 1];
    let _ = pair.ends[0].write(&[7; 8 * SEGMENT_DATA], pair.now);
    pair.run(at(2000));
    let (last, total) = *pair.arrivals.last().unwrap();
    assert_eq!(total, 8 * SEGMENT_DATA);
    assert!(last <= at(101), "{last}");
}

#[test]
fn everything_comes_through_a_wire_that_loses_a_tenth() {
    let mut rng = Dice::new(3).stream("test", 0);
    let bytes: Vec<u8> = (0..300_000).map(|n: u32| (n % 251) as u8).collect();
    let mut pair = Pair::open();
    pair.lost = (pair.sent..pair.sent + 5_000).filter(|_| rng.below(10) == 0).collect();
    let mut written = 0;
    while pair.received[1].len() < bytes.len() {
        written += pair.ends[0].write(&bytes[written..], pair.now);
        pair.run(pair.now + Duration::from_millis(100));
        assert!(pair.now < Instant::from_secs(600), "{} of {}", pair.received[1].len(), bytes.len());
    }
    assert_eq!(pair.received[1], bytes);
}

#[test]
fn a_reader_that_stops_stops_the_writer_and_goes_on_where_it_stopped() {
    let mut pair = Pair::open();
    pair.ends[1].set_reading(false);
    let bytes: Vec<u8> = (0..1_000_000).map(|n: u32| (n % 251) as u8).collect();
    let mut written = 0;
    for _ in 0..100 {
        written += pair.ends[0].write(&bytes[written..], pair.now);
        pair.run(pair.now + Duration::from_millis(100));
    }
    assert_eq!(written, SEND_BUFFER + RECEIVE_BUFFER);
    assert!(pair.received[1].is_empty());
    pair.ends[1].set_reading(true);
    pair.run(pair.now + Duration::from_secs(120));
    assert!(pair.said[0].contains(&StreamOutput::Writable));
    assert_eq!(pair.received[1], bytes[..written]);
}

#[test]
fn what_waits_unsent_is_bounded_where_that_is_asked_for() {
    let mut pair = Pair::open();
    pair.ends[0].set_unsent_max(4_000);
    // As much as is sent at once, and what may wait behind it.
    assert_eq!(pair.ends[0].write(&[7; 3_000], pair.now), 3_000);
    let mut written = 3_000;
    while let taken @ 1.. = pair.ends[0].write(&[7; 3_000], pair.now) {
        written += taken;
    }
    assert_eq!(written, FIRST_WINDOW + 4_000);
    pair.run(pair.now + Duration::from_secs(10));
    assert!(pair.said[0].contains(&StreamOutput::Writable));
    assert_eq!(pair.received[1].len(), written);
}

#[test]
fn what_was_written_before_the_close_comes_through() {
    let mut pair = Pair::open();
    pair.lost = vec![pair.sent, pair.sent + 2];
    let _ = pair.ends[0].write(&[5; 3000], pair.now);
    pair.ends[0].close(pair.now);
    pair.run(at(5000));
    assert_eq!(pair.received[1].len(), 3000);
    for said in &pair.said {
        assert_eq!(said.last(), Some(&StreamOutput::Ended(StreamEnd::Closed)));
    }
}

#[test]
fn a_peer_that_is_gone_without_a_word_is_given_up_after_a_quarter_of_an_hour() {
    let mut pair = Pair::open();
    pair.lost = (pair.sent..pair.sent + 100).collect();
    let _ = pair.ends[0].write(b"anybody?", pair.now);
    pair.run(Instant::from_secs(850));
    assert!(!pair.ends[0].is_ended());
    pair.run(Instant::from_secs(1300));
    assert_eq!(pair.said[0].last(), Some(&StreamOutput::Ended(StreamEnd::TimedOut)));
    assert!(pair.ends[0].poll_timeout().is_none());
}

#[test]
fn a_reset_ends_the_other_end() {
    let mut pair = Pair::open();
    pair.ends[1].reset();
    pair.run(at(1000));
    for said in &pair.said {
        assert_eq!(said.last(), Some(&StreamOutput::Ended(StreamEnd::Reset)));
    }
}

impl Pair {
    fn open() -> Self {
        let mut client = Stream::connect(Instant::ZERO);
        let Some(StreamOutput::Send(syn)) = client.poll_output() else { panic!("a SYN is sent first") };
        let server = Stream::accept(&syn, at(20));
        let mut pair = Self {
            now: at(20),
            ends: [client, server],
            wire: BTreeMap::new(),
            sent: 0,
            lost: Vec::new(),
            received: Default::default(),
            said: Default::default(),
            arrivals: Vec::new(),
        };
        pair.run(at(40));
        assert_eq!(pair.said[0], [StreamOutput::Open]);
        pair
    }

    fn run(&mut self, until: Instant) {
        loop {
            for end in 0..2 {
                while let Some(output) = self.ends[end].poll_output() {
                    match output {
                        StreamOutput::Send(segment) => {
                            if !self.lost.contains(&self.sent) {
                                self.wire.insert((self.now + DELAY, self.sent), (1 - end, segment));
                            }
                            self.sent += 1;
                        }
                        StreamOutput::Received(bytes) => {
                            self.received[end].extend(bytes);
                            if end == 1 {
                                self.arrivals.push((self.now, self.received[1].len()));
                            }
                        }
                        other => self.said[end].push(other),
                    }
                }
            }
            let wire = self.wire.first_key_value().map(|((at, _), _)| *at);
            let timers = self.ends.iter().filter_map(Stream::poll_timeout);
            let Some(next) = wire.into_iter().chain(timers).min().filter(|at| *at <= until) else { break };
            self.now = self.now.max(next);
            if wire == Some(next)
                && let Some((_, (end, segment))) = self.wire.pop_first()
            {
                self.ends[end].handle_segment(segment, self.now);
                continue;
            }
            for end in &mut self.ends {
                end.handle_timeout(self.now);
            }
        }
        self.now = self.now.max(until);
    }
}

fn at(millis: u64) -> Instant {
    Instant::from_millis(millis)
}
