//! The relay as one machine: connections, mailboxes and STUN in one thread, for the simulator and for tests.
//!
//! All decisions are those of [`Conn`] and what it uses; this is only their driver in one place. A stream is written one
//! [`Output::Write`] at a time: the next one comes after [`Input::Writable`], and what waits for that is bounded in the
//! client's mailbox and grows old there.

use core::{net::SocketAddr, time::Duration};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use bytes::BytesMut;

use mesh_core::{
    key::NodePublic,
    machine::{Deadline, Machine},
    time::Instant,
};

use crate::{
    admission::Admission,
    conn::{Conn, ConnOutput},
    directory::ConnId,
    gate::Pass,
    hub::{Config, Hub},
    limits,
    stats::{CloseReason, Stats},
    stun,
};

/// One thing that happened.
#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    /// A client connected; TLS and HTTP, where there are any, are done.
    Accepted {
        /// A new name for it.
        conn: ConnId,
        /// From where.
        from: SocketAddr,
    },
    /// Bytes came from it.
    Received {
        /// From which.
        conn: ConnId,
        /// The bytes, cut anywhere.
        bytes: &'a [u8],
    },
    /// The last [`Output::Write`] has gone into the stream and there is room for another.
    Writable {
        /// Of which.
        conn: ConnId,
    },
    /// Some of the last [`Output::Write`] has gone into the stream, not all of it.
    Progress {
        /// Of which.
        conn: ConnId,
    },
    /// The stream ended.
    Closed {
        /// Which.
        conn: ConnId,
    },
    /// A datagram came to the STUN port.
    Datagram {
        /// From where.
        from: SocketAddr,
        /// What.
        payload: &'a [u8],
    },
    /// The relay will be away: clients are told.
    Restarting {
        /// They should wait this long before they connect again.
        reconnect_in: Duration,
        /// And try for this long.
        try_for: Duration,
    },
    /// The answer to [`Output::Admit`].
    Admitted {
        /// About which.
        conn: ConnId,
        /// The answer.
        verdict: Admission,
    },
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Write to a stream. [`Input::Writable`] is owed when that is done.
    Write {
        /// To which.
        conn: ConnId,
        /// What.
        bytes: Vec<u8>,
    },
    /// Read no more from it until [`Output::Resume`]: back-pressure. Bytes that come all the same are kept, up to a bound.
    Pause {
        /// Which.
        conn: ConnId,
    },
    /// Read from it again.
    Resume {
        /// Which.
        conn: ConnId,
    },
    /// Close the stream. Nothing about it comes after.
    Close {
        /// Which.
        conn: ConnId,
        /// Why.
        reason: CloseReason,
    },
    /// Send from the STUN port.
    Transmit {
        /// Where to.
        to: SocketAddr,
        /// What.
        payload: Vec<u8>,
    },
    /// Ask the control server whether this node may connect.
    Admit {
        /// For which connection.
        conn: ConnId,
        /// Who.
        node: NodePublic,
    },
}

/// The relay as one machine.
#[derive(Debug)]
pub struct Relay {
    hub: Arc<Hub>,
    conns: BTreeMap<ConnId, Client>,
    outputs: VecDeque<Output>,
    now: Instant,
}

#[derive(Debug)]
struct Client {
    conn: Conn,
    unread: BytesMut,
    /// The driver has been told to pause.
    paused: bool,
    /// A write is under way.
    writing: bool,
}

impl Relay {
    /// A relay without connections.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { hub: Arc::new(Hub::new(config)), conns: BTreeMap::new(), outputs: VecDeque::new(), now: Instant::ZERO }
    }

    /// The key that clients see.
    #[must_use]
    pub fn public(&self) -> NodePublic {
        self.hub.public
    }

    /// What was counted.
    #[must_use]
    pub fn stats(&self) -> &Stats {
        &self.hub.stats
    }

    fn accept(&mut self, id: ConnId, from: SocketAddr) {
        if self.conns.contains_key(&id) {
            return;
        }
        let pass = match Pass::new(Arc::clone(&self.hub), from) {
            Ok(pass) => pass,
            Err(reason) => return self.outputs.push_back(Output::Close { conn: id, reason }),
        };
        let conn = Conn::new(id, pass, self.now);
        self.conns.insert(id, Client { conn, unread: BytesMut::new(), paused: false, writing: false });
        self.with(id, |_, _| {});
    }

    /// Does something to a connection and carries out what follows from it, there and at those it woke.
    fn with(&mut self, id: ConnId, act: impl FnOnce(&mut Client, Instant)) {
        let Some(client) = self.conns.get_mut(&id) else { return };
        act(client, self.now);
        let mut woken = VecDeque::from([id]);
        while let Some(id) = woken.pop_front() {
            self.settle(id, &mut woken);
        }
    }

    fn settle(&mut self, id: ConnId, woken: &mut VecDeque<ConnId>) {
        let Some(client) = self.conns.get_mut(&id) else { return };
        client.conn.handle_buffer(&mut client.unread, self.now);
        if client.unread.len() > limits::UNREAD_BYTES {
            client.conn.close(CloseReason::Flooded);
        }
        while let Some(output) = client.conn.poll_output() {
            match output {
                ConnOutput::Wake(other) => woken.push_back(other),
                ConnOutput::Admit(node) => self.outputs.push_back(Output::Admit { conn: id, node }),
                ConnOutput::Close(reason) => self.outputs.push_back(Output::Close { conn: id, reason }),
            }
        }
        if client.conn.is_closed() {
            self.conns.remove(&id);
            return;
        }
        let paused = !client.conn.is_reading();
        if paused != core::mem::replace(&mut client.paused, paused) {
            self.outputs.push_back(if paused { Output::Pause { conn: id } } else { Output::Resume { conn: id } });
        }
        if !client.writing {
            let mut bytes = Vec::new();
            client.conn.take_write(&mut bytes, self.now);
            if !bytes.is_empty() {
                client.writing = true;
                self.outputs.push_back(Output::Write { conn: id, bytes });
            }
        }
    }
}

impl Machine for Relay {
    type Input<'a> = Input<'a>;
    type Output = Output;

    fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        self.now = self.now.max(now);
        match input {
            Input::Accepted { conn, from } => self.accept(conn, from),
            Input::Received { conn, bytes } => self.with(conn, |client, _| client.unread.extend_from_slice(bytes)),
            Input::Writable { conn } => self.with(conn, |client, now| {
                client.writing = false;
                client.conn.handle_written(now);
            }),
            Input::Progress { conn } => self.with(conn, |client, now| client.conn.handle_progress(now)),
            Input::Closed { conn } => self.with(conn, |client, _| client.conn.handle_closed()),
            Input::Datagram { from, payload } => {
                if let Some(payload) = stun::answer(payload, from, &self.hub.stats) {
                    self.outputs.push_back(Output::Transmit { to: from, payload });
                }
            }
            Input::Restarting { reconnect_in, try_for } => {
                for conn in self.conns.keys().copied().collect::<Vec<_>>() {
                    self.with(conn, |client, _| client.conn.say_restarting(reconnect_in, try_for));
                }
            }
            Input::Admitted { conn, verdict } => {
                self.with(conn, |client, now| client.conn.handle_admission(verdict, now));
            }
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.now = self.now.max(now);
        let is_due = |client: &Client| client.conn.poll_timeout().is_some_and(|deadline| deadline.at <= self.now);
        let due: Vec<_> = self.conns.iter().filter(|(_, client)| is_due(client)).map(|(id, _)| *id).collect();
        for id in due {
            self.with(id, |client, now| client.conn.handle_timeout(now));
        }
    }

    fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    fn poll_timeout(&self) -> Option<Deadline> {
        self.conns.values().filter_map(|client| client.conn.poll_timeout()).min()
    }
}
