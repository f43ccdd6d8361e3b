//! What nodes and the server say to each other, over the streams of the host.

use core::{net::IpAddr, time::Duration};

use control::coordinator::{Command, ConnId, Input, Output, Request, RequestId, Response};
use mesh_core::{
    control::{
        codec::frame,
        noise::{EarlyNoise, Initiation},
        types::{MapRequest, RegisterRequest},
    },
    key::MachinePublic,
    time::Instant,
};

use super::{
    super::{
        Effects, NodeEvent,
        http::{Head, Read},
        stack::StackOutput,
    },
    Conn, ConnState, ControlHost,
    link::KeyAnswer,
    wire::{Channel, Greeting, SWITCHING, ToControl, ToNode},
};

impl ControlHost {
    pub(super) fn handle_stack(&mut self, output: StackOutput, now: Instant, effects: &mut Effects) {
        match output {
            StackOutput::Accepted { stream, from } => {
                let id = ConnId(self.next_conn);
                self.next_conn += 1;
                let state = ConnState::Greeting(Head::default());
                self.conns.insert(id, Conn { stream, from: from.ip(), state, unsent: Vec::new(), owed: Vec::new() });
                self.by_stream.insert(stream, id);
            }
            StackOutput::Received { stream, bytes } => {
                if let Some(id) = self.by_stream.get(&stream).copied() {
                    self.receive(id, &bytes, now, effects);
                }
            }
            StackOutput::Writable(stream) => {
                if let Some(id) = self.by_stream.get(&stream).copied() {
                    self.flush(id, now);
                }
            }
            StackOutput::Ended { stream, .. } => {
                if let Some(id) = self.by_stream.get(&stream).copied() {
                    self.forget(id, now);
                }
            }
            // It connects to nobody, and what is sent was sent.
            StackOutput::Connected(_) | StackOutput::Send { .. } => {}
        }
    }

    fn receive(&mut self, id: ConnId, bytes: &[u8], now: Instant, effects: &mut Effects) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match &mut conn.state {
            ConnState::Greeting(head) => match head.read(bytes) {
                Read::Part => {}
                Read::Whole(head, rest) => match Greeting::parse(&head) {
                    Some(Greeting::Key) => {
                        let body = serde_json::to_vec(&KeyAnswer { public_key: self.key.public() });
                        let body = body.unwrap_or_default();
                        let length = body.len();
                        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
                        conn.unsent = [head.as_bytes(), &body].concat();
                        self.flush(id, now);
                        self.close(id, now);
                    }
                    Some(Greeting::Channel(initiation)) => self.open(id, &initiation, &rest, now, effects),
                    None => self.close(id, now),
                },
                Read::Nonsense => self.close(id, now),
            },
            ConnState::Open { channel, .. } => match channel.receive(bytes) {
                Ok(()) => self.hear(id, now, effects),
                Err(_) => self.close(id, now),
            },
        }
    }

    /// Answers a handshake.
    fn open(&mut self, id: ConnId, initiation: &[u8], rest: &[u8], now: Instant, effects: &mut Effects) {
        let opened = Initiation::open(initiation, &self.key);
        let mut rng = self.setup.seed.stream("handshake", id.0);
        let answered = opened.and_then(|opened| Ok((opened.machine(), opened.respond(&mut rng)?)));
        let (Ok((machine, (response, sealer, opener))), Some(conn)) = (answered, self.conns.get_mut(&id)) else {
            return self.close(id, now);
        };
        let mut channel = Box::new(Channel::new(sealer, opener));
        conn.unsent = [SWITCHING, &response].concat();
        let sealed = channel.seal(&EarlyNoise::default().to_bytes(), &mut conn.unsent);
        let received = channel.receive(rest);
        conn.state = ConnState::Open { channel, machine };
        if sealed.is_err() || received.is_err() {
            return self.close(id, now);
        }
        self.flush(id, now);
        self.hear(id, now, effects);
    }

    /// What a node said.
    fn hear(&mut self, id: ConnId, now: Instant, effects: &mut Effects) {
        loop {
            let Some(Conn { from, state: ConnState::Open { channel, machine }, .. }) = self.conns.get_mut(&id) else {
                return;
            };
            let (machine, from) = (*machine, *from);
            match channel.next_from_node() {
                Ok(None) => return,
                Ok(Some(said)) => {
                    effects.control_messages += 1;
                    self.take(id, (machine, from), said, now, effects);
                }
                Err(_) => return self.close(id, now),
            }
        }
    }

    fn take(
        &mut self,
        conn: ConnId,
        (machine, from): (MachinePublic, IpAddr),
        said: ToControl,
        now: Instant,
        effects: &mut Effects,
    ) {
        match said {
            ToControl::Ping => self.say(conn, &ToNode::Pong, now, effects),
            ToControl::Cancel { id } => {
                self.registering.remove(&(conn, RequestId(id)));
                self.maps.retain(|_, of| *of != (conn, RequestId(id)));
                self.tell(Input::Aborted { conn, id: RequestId(id) }, now);
            }
            ToControl::Request { id, path, json } => {
                let request = match path.as_str() {
                    "/machine/register" => {
                        serde_json::from_slice::<RegisterRequest>(&json).map(|r| Request::Register(Box::new(r)))
                    }
                    "/machine/map" => serde_json::from_slice::<MapRequest>(&json).map(|r| Request::Map(Box::new(r))),
                    _ => return self.answer(conn, RequestId(id), 404, Vec::new(), now, effects),
                };
                let id = RequestId(id);
                match request {
                    Ok(request) => {
                        if let Request::Register(request) = &request {
                            self.registering.insert((conn, id), request.node_key);
                        }
                        self.tell(Input::Request { conn, machine, from, id, request }, now);
                    }
                    Err(error) => self.answer(conn, id, 400, error.to_string().into_bytes(), now, effects),
                }
            }
        }
    }

    pub(super) fn carry_out(&mut self, output: Output, now: Instant, effects: &mut Effects) {
        match output {
            // The server itself stores.
            Output::Persist(_) => {}
            Output::Respond { conn, id, response } => self.respond(conn, id, response, now, effects),
            Output::Push(update) => {
                let Some(stream) = update.stream() else { return };
                let Some((conn, id)) = self.maps.get(&stream).copied() else { return };
                let bytes = map_message(&update.render().to_json());
                if let Some(conn) = self.conns.get_mut(&conn)
                    && !update.is_last()
                {
                    conn.owed.push(stream);
                }
                self.say(conn, &ToNode::Data { id: id.0, bytes }, now, effects);
            }
            Output::KeepAlive { stream } => {
                if let Some((conn, id)) = self.maps.get(&stream).copied() {
                    let bytes = map_message(br#"{"KeepAlive":true}"#);
                    self.say(conn, &ToNode::Data { id: id.0, bytes }, now, effects);
                }
            }
            Output::Close { stream } => {
                if let Some((conn, id)) = self.maps.remove(&stream) {
                    self.say(conn, &ToNode::End { id: id.0 }, now, effects);
                }
            }
            Output::Admin { id, result } => {
                let Some(command) = self.commands.remove(&id) else { return };
                if let Err(error) = result {
                    // The checks count on policies; everything else may be about something that is gone by then.
                    assert!(!matches!(command, Command::SetPolicy { .. }), "control refuses {command:?}: {error}");
                    effects.events.push(NodeEvent::OrderRefused);
                    return;
                }
                if let Command::SetPolicy { text } = &command {
                    self.policies += 1;
                    // One that came right after it may have been stored with it.
                    let is_newer = |stored: &str| {
                        let mut unanswered = self.commands.values();
                        unanswered.any(|command| matches!(command, Command::SetPolicy { text } if text == stored))
                    };
                    let stored = self.rows.policy.as_ref().map(|policy| policy.text.as_str());
                    let is_stored = stored.is_some_and(|stored| stored == text || is_newer(stored));
                    effects.stored.push((!is_stored).then(|| "a policy is in force and not stored".to_owned()));
                }
            }
        }
    }

    fn respond(&mut self, conn: ConnId, id: RequestId, response: Response, now: Instant, effects: &mut Effects) {
        let registering = self.registering.remove(&(conn, id));
        match response {
            Response::Register(response) => {
                if let (Some(key), true) = (registering, response.machine_authorized && !response.node_key_expired) {
                    let is_stored = self.rows.nodes.values().any(|node| node.key == key);
                    effects.stored.push((!is_stored).then(|| format!("{key} was admitted and is not stored")));
                }
                let body = serde_json::to_vec(&*response).unwrap_or_default();
                self.answer(conn, id, 200, body, now, effects);
            }
            Response::Stream(stream) => {
                self.maps.insert(stream, (conn, id));
                self.say(conn, &ToNode::Opened { id: id.0 }, now, effects);
            }
            Response::Once(update) => {
                let bytes = map_message(&update.render().to_json());
                self.say(conn, &ToNode::Opened { id: id.0 }, now, effects);
                self.say(conn, &ToNode::Data { id: id.0, bytes }, now, effects);
                self.say(conn, &ToNode::End { id: id.0 }, now, effects);
            }
            Response::Updated => self.answer(conn, id, 200, Vec::new(), now, effects),
            Response::Done => self.answer(conn, id, 200, b"{}".to_vec(), now, effects),
            Response::Refused(refusal) => {
                let retry_after = refusal.retry_after.unwrap_or_default();
                let (status, body) = (refusal.status, refusal.text.into_bytes());
                self.say(conn, &ToNode::Answer { id: id.0, status, retry_after, body }, now, effects);
            }
        }
    }

    fn answer(&mut self, conn: ConnId, id: RequestId, status: u16, body: Vec<u8>, now: Instant, effects: &mut Effects) {
        self.say(conn, &ToNode::Answer { id: id.0, status, retry_after: Duration::ZERO, body }, now, effects);
    }

    fn say(&mut self, id: ConnId, said: &ToNode, now: Instant, effects: &mut Effects) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let ConnState::Open { channel, .. } = &mut conn.state else { return };
        effects.control_messages += 1;
        // No channel of a simulation carries 2^64 records.
        let _ = channel.say_to_node(said, &mut conn.unsent);
        self.flush(id, now);
    }

    /// Writes what is left, and says so when all of it had room.
    fn flush(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let taken = self.stack.write(conn.stream, &conn.unsent, now);
        conn.unsent.drain(..taken);
        if !conn.unsent.is_empty() {
            return;
        }
        for stream in core::mem::take(&mut conn.owed) {
            if self.maps.contains_key(&stream) {
                self.tell(Input::Writable { stream }, now);
            }
        }
    }

    fn close(&mut self, id: ConnId, now: Instant) {
        if let Some(conn) = self.conns.get(&id) {
            self.stack.close(conn.stream, now);
            self.forget(id, now);
        }
    }

    /// A connection is no more.
    fn forget(&mut self, id: ConnId, now: Instant) {
        let Some(conn) = self.conns.remove(&id) else { return };
        self.by_stream.remove(&conn.stream);
        self.registering.retain(|(of, _), _| *of != id);
        self.maps.retain(|_, (of, _)| *of != id);
        if matches!(conn.state, ConnState::Open { .. }) {
            self.tell(Input::Closed { conn: id }, now);
        }
    }

    fn tell(&mut self, input: Input, now: Instant) {
        if let Some(server) = &mut self.server {
            server.handle_input(input, now);
        }
    }
}

/// A map message as it goes into its stream.
fn map_message(json: &[u8]) -> Vec<u8> {
    frame(json).expect("the server makes no map that nodes refuse")
}
