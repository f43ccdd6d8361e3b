//! What became of the applications' messages.

use mesh_core::time::Instant;

use crate::{
    host::{
        HostId, Over,
        message::{Message, Role},
    },
    scenario::TrafficSpec,
};

/// What became of all traffic.
#[derive(Debug)]
pub struct Flows(Vec<Flow>);

/// What became of one traffic.
#[derive(Debug)]
pub struct Flow {
    /// Who asks.
    pub from: HostId,
    /// Who answers.
    pub to: HostId,
    /// Bytes of a question.
    pub bytes: usize,
    /// Bytes of an answer.
    pub answer_bytes: usize,
    /// All messages, by number.
    pub samples: Vec<Sample>,
}

/// What became of one message. `Instant::FAR_FUTURE` is never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// When it was asked.
    pub sent: Instant,
    /// When it came out of the tunnel.
    pub delivered: Instant,
    /// When the answer did.
    pub answered: Instant,
    /// How the message and the answer came, as far as they did.
    pub over: [Over; 2],
}

/// What is wrong with a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// It was delivered before.
    Twice,
    /// Nobody sent it, or not to this host.
    Stray,
}

impl Flows {
    /// Nothing was sent.
    #[must_use]
    pub fn new(traffic: &[TrafficSpec]) -> Self {
        let flow = |spec: &TrafficSpec| Flow {
            from: spec.from,
            to: spec.to,
            bytes: spec.bytes,
            answer_bytes: spec.answer_bytes,
            samples: Vec::new(),
        };
        Self(traffic.iter().map(flow).collect())
    }

    /// A message is sent; its number.
    pub fn note_sent(&mut self, flow: u32, now: Instant) -> u32 {
        let samples = &mut self.0[flow as usize].samples;
        samples.push(Sample {
            sent: now,
            delivered: Instant::FAR_FUTURE,
            answered: Instant::FAR_FUTURE,
            over: [Over::Udp; 2],
        });
        (samples.len() - 1) as u32
    }

    /// Whether a host asked this.
    #[must_use]
    pub fn was_asked(&self, flow: u32, sequence: u32, by: HostId) -> bool {
        let flow = self.0.get(flow as usize).filter(|flow| flow.from == by);
        flow.is_some_and(|flow| (sequence as usize) < flow.samples.len())
    }

    /// A message came out of the tunnel at a host.
    ///
    /// # Errors
    /// When that should not have happened.
    pub fn note_delivered(&mut self, message: &Message, host: HostId, over: Over, now: Instant) -> Result<(), Wrong> {
        let flow = self.0.get_mut(message.flow as usize).ok_or(Wrong::Stray)?;
        let at = match message.role {
            Role::Question => flow.to,
            Role::Answer => flow.from,
        };
        let sample = flow.samples.get_mut(message.sequence as usize).filter(|_| at == host).ok_or(Wrong::Stray)?;
        let [question, answer] = &mut sample.over;
        let (stamp, came) = match message.role {
            Role::Question => (&mut sample.delivered, question),
            Role::Answer => (&mut sample.answered, answer),
        };
        if *stamp != Instant::FAR_FUTURE {
            return Err(Wrong::Twice);
        }
        *stamp = now;
        *came = over;
        Ok(())
    }

    /// All traffic.
    pub fn iter(&self) -> impl Iterator<Item = &Flow> {
        self.0.iter()
    }

    /// Messages from one host to another that came this way, or any, as (sent, delivered), in no useful order.
    pub fn deliveries(
        &self,
        from: HostId,
        to: HostId,
        via: Option<Over>,
    ) -> impl Iterator<Item = (Instant, Instant)> + '_ {
        self.0.iter().flat_map(move |flow| {
            let (asks, answers) = ((flow.from, flow.to) == (from, to), (flow.to, flow.from) == (from, to));
            flow.samples.iter().filter_map(move |sample| {
                let (sent, delivered, over) = match (asks, answers) {
                    (true, _) => (sample.sent, sample.delivered, sample.over[0]),
                    (_, true) => (sample.delivered, sample.answered, sample.over[1]),
                    (false, false) => return None,
                };
                (delivered != Instant::FAR_FUTURE && via.is_none_or(|via| via == over)).then_some((sent, delivered))
            })
        })
    }

    /// Messages from one host to another, questions and answers alike, as (sent, delivered). An answer counts as
    /// sent when its question was delivered; one to a question that was not, does not exist.
    pub fn between(&self, from: HostId, to: HostId) -> Vec<(Instant, Instant)> {
        self.between_of(from, to, 0)
    }

    /// The same of messages of so many bytes at least.
    pub fn between_of(&self, from: HostId, to: HostId, bytes: usize) -> Vec<(Instant, Instant)> {
        let mut messages = Vec::new();
        for flow in self.0.iter() {
            if (flow.from, flow.to) == (from, to) && flow.bytes >= bytes {
                messages.extend(flow.samples.iter().map(|sample| (sample.sent, sample.delivered)));
            } else if (flow.to, flow.from) == (from, to) && flow.answer_bytes >= bytes {
                let asked = flow.samples.iter().filter(|sample| sample.delivered != Instant::FAR_FUTURE);
                messages.extend(asked.map(|sample| (sample.delivered, sample.answered)));
            }
        }
        messages.sort_unstable();
        messages
    }
}

/// What host 0 asked host 1 every second, for so many seconds; what arrives is answered at once.
#[cfg(test)]
pub(super) fn asked_every_second(bytes: usize, seconds: u64, arrives: impl Fn(u64) -> bool) -> Flows {
    asked_and_answered(bytes, bytes, seconds, arrives)
}

/// The same with answers of another size.
#[cfg(test)]
pub(super) fn asked_and_answered(
    bytes: usize,
    answer_bytes: usize,
    seconds: u64,
    arrives: impl Fn(u64) -> bool,
) -> Flows {
    use core::time::Duration;

    use crate::{host::message::Carrier, scenario::TrafficKind};

    let mut flows = Flows::new(&[TrafficSpec {
        kind: TrafficKind::Request,
        from: HostId(0),
        to: HostId(1),
        every: Duration::from_secs(1),
        start: Instant::ZERO,
        stop: None,
        bytes,
        answer_bytes,
    }]);
    for second in 0..seconds {
        let at = Instant::from_secs(second);
        let sequence = flows.note_sent(0, at);
        if arrives(second) {
            let (role, carrier) = (Role::Question, Carrier::Udp);
            let question = Message { flow: 0, sequence, role, carrier, bytes, answer_bytes };
            flows.note_delivered(&question, HostId(1), Over::Udp, at).unwrap();
            flows.note_delivered(&Message { role: Role::Answer, ..question }, HostId(0), Over::Udp, at).unwrap();
        }
    }
    flows
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;
    use crate::{host::message::Carrier, scenario::TrafficKind};

    #[test]
    fn a_message_is_delivered_once_and_where_it_was_sent_to() {
        let mut flows = flows();
        let sequence = flows.note_sent(0, Instant::ZERO);
        let question = message(sequence, Role::Question);
        assert_eq!(flows.note_delivered(&question, HostId(0), Over::Udp, Instant::from_secs(1)), Err(Wrong::Stray));
        assert_eq!(flows.note_delivered(&question, HostId(1), Over::Udp, Instant::from_secs(1)), Ok(()));
        assert_eq!(flows.note_delivered(&question, HostId(1), Over::Udp, Instant::from_secs(2)), Err(Wrong::Twice));
        assert_eq!(
            flows.note_delivered(&message(7, Role::Question), HostId(1), Over::Udp, Instant::ZERO),
            Err(Wrong::Stray)
        );
    }

    #[test]
    fn answers_count_the_other_way() {
        let mut flows = flows();
        for second in 0..2 {
            flows.note_sent(0, Instant::from_secs(second));
        }
        flows.note_delivered(&message(1, Role::Question), HostId(1), Over::Udp, Instant::from_secs(2)).unwrap();
        flows.note_delivered(&message(1, Role::Answer), HostId(0), Over::Udp, Instant::from_secs(3)).unwrap();
        let secs = Instant::from_secs;
        let there = [(secs(0), Instant::FAR_FUTURE), (secs(1), secs(2))];
        assert_eq!(flows.between(HostId(0), HostId(1)), there);
        assert_eq!(flows.between(HostId(1), HostId(0)), [(secs(2), secs(3))]);
    }

    fn flows() -> Flows {
        Flows::new(&[TrafficSpec {
            kind: TrafficKind::Ping,
            from: HostId(0),
            to: HostId(1),
            every: Duration::from_secs(1),
            start: Instant::ZERO,
            stop: None,
            bytes: 56,
            answer_bytes: 56,
        }])
    }

    fn message(sequence: u32, role: Role) -> Message {
        Message { flow: 0, sequence, role, carrier: Carrier::Udp, bytes: 56, answer_bytes: 56 }
    }
}
