//! Where the conversation with control meets the rest of the node, and what the user may want of it.
//!
//! | the session says | heard by |
//! |---|---|
//! | `Request` | outbox |
//! | `Save` | outbox, with all that is to be kept |
//! | `KeyChanged` | tunnels, paths, relays: we are somebody else, and sessions go on |
//! | `Forgotten` | the network map |
//! | `Map` | the network map, and what it means (`wire_control`) |
//! | `Registered`, `LoginUrl`, `Refused`, `LoggedOut`, `Problem` | whoever waits for it, and outbox, as events |

use core::time::Duration;
use std::{collections::VecDeque, sync::Arc};

use crate::{
    control::{
        ControlEvent, NetMap, Session, c2n,
        netmap::{Change, Orders},
        session::{Goal, Output as SessionOutput, SessionConfig, SignIn},
        types::{Hostinfo, MapResponse, NetInfo},
    },
    crypto::hash::blake2s,
    derp::{DerpMap, RegionId, relays::Network},
    key::NodePrivate,
    limits,
    machine::Deadline,
    netcheck::{Family, NetInfo as Measured},
    time::{Instant, earliest},
    wireguard::{Identity, handshake::Remote},
};

use super::{
    BackendState, CommandError, CommandId, ControlConfig, ControlStatus, Event, Node, Output, Prefs, RelayCommand,
    Reply, SavedState, Up, expiry::instant_of,
};

/// How soon a map that changed is kept: who is there, and where they are. What is allowed is kept at once, so that no restart
/// allows again what was forbidden, unless it was kept so shortly before.
const SAVE_SOON: Duration = Duration::from_secs(5);
const SAVE_LATER: Duration = Duration::from_secs(60);
/// A sign-in that ends so soon is told to the user.
const EXPIRES_SOON: u64 = 24 * 3_600_000_000_000;

/// For who waits for a node to run that is not to run any more.
const DISCONNECTED: CommandError = CommandError::Superseded("the node is to be disconnected");

/// What a node with a control server keeps about it.
#[derive(Debug)]
pub(super) struct Control {
    pub(super) session: Session,
    machine_key: crate::key::MachinePrivate,
    pub(super) prefs: Prefs,
    /// What is known of the host.
    hostinfo: Hostinfo,
    pub(super) state: BackendState,
    /// Who waits for the node to run, the longest first.
    ups: VecDeque<CommandId>,
    /// Who waits for the node to be signed out.
    logouts: Vec<CommandId>,
    net_info: NetInfo,
    /// What the server's clock is ahead of ours, in nanoseconds; `None` while it has not said its time.
    pub(super) skew: Option<i64>,
    /// When the next key of the map expires.
    pub(super) expiry_at: Option<Instant>,
    save_at: Option<Instant>,
    /// When what is allowed was last kept at once.
    rules_kept: Option<Instant>,
    /// What control asked last: it may repeat itself.
    last_ping: String,
}

impl Control {
    pub(super) fn new(config: &mut ControlConfig, disco_key: crate::key::DiscoPublic, seed: crate::rng::Seed) -> Self {
        let saved = &mut config.saved;
        let mut hostinfo = core::mem::take(&mut config.hostinfo);
        if hostinfo.backend_log_id.is_empty() {
            // Stock servers want one. It is to be the same in every run, and says nothing.
            let id = blake2s(&[b"log id", saved.machine_key.public().as_bytes()]);
            hostinfo.backend_log_id = data_encoding::HEXLOWER.encode(&id);
        }
        let session = Session::new(SessionConfig {
            machine_key: saved.machine_key.clone(),
            node_key: saved.node_key.clone(),
            next_node_key: saved.next_node_key.take(),
            registration: saved.registration.take(),
            disco_key,
            seed,
        });
        Self {
            session,
            machine_key: saved.machine_key.clone(),
            prefs: core::mem::take(&mut saved.prefs),
            hostinfo,
            state: BackendState::Stopped,
            ups: VecDeque::new(),
            logouts: Vec::new(),
            net_info: NetInfo::default(),
            skew: None,
            expiry_at: None,
            save_at: None,
            rules_kept: None,
            last_ping: String::new(),
        }
    }

    fn goal(&self) -> Goal {
        let prefs = &self.prefs;
        let mut hostinfo = self.hostinfo.clone();
        if !prefs.hostname.is_empty() {
            hostinfo.hostname.clone_from(&prefs.hostname);
        }
        hostinfo.routable_ips.clone_from(&prefs.advertise_routes);
        hostinfo.request_tags.clone_from(&prefs.advertise_tags);
        Goal {
            server: prefs.control_url.clone(),
            want_running: prefs.want_running,
            ephemeral: prefs.ephemeral,
            hostinfo,
        }
    }

    pub(super) fn status(&self) -> ControlStatus {
        ControlStatus {
            server: self.prefs.control_url.clone(),
            auth_url: self.session.auth_url().unwrap_or_default().to_owned(),
            is_streaming: self.session.is_streaming(),
            problem: self.session.problem().map(str::to_owned),
            login_name: self.session.registration().map(|registration| registration.login.login_name.clone()),
        }
    }
}

impl Node {
    /// Begins as the last run ended: with its map, and with control as it was wanted.
    pub(super) fn start_control(&mut self, map: Option<Arc<MapResponse>>, now: Instant) {
        let Some(control) = &self.control else { return };
        let map = map.filter(|_| control.session.is_known());
        if let Some(Err(error)) = map.map(|map| self.take_map(Arc::unwrap_or_clone(map), now)) {
            self.outbox.push_back(Output::Event(Event::ControlProblem(format!("the map of the last run: {error}"))));
        }
        if let Some(control) = &mut self.control {
            // It is what is kept.
            control.save_at = None;
        }
        self.set_goal(None, now);
    }

    /// Runs `act` on the session, and hears what it has to say.
    pub(super) fn with_session(&mut self, now: Instant, act: impl FnOnce(&mut Session)) {
        let Some(control) = &mut self.control else { return };
        act(&mut control.session);
        self.drain_session(now);
    }

    pub(super) fn handle_control(&mut self, event: ControlEvent, now: Instant) {
        self.with_session(now, |session| session.handle_event(event, now));
    }

    /// Lets the session, expiries and what is to be kept have their time.
    pub(super) fn handle_control_due(&mut self, now: Instant) {
        let wall = self.control_wall(now);
        let Some(control) = &mut self.control else { return };
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let session_at = control.session.poll_timeout().map(|deadline| deadline.at);
        if is_due(session_at) || control.session.poll_wall_timeout().is_some_and(|at| at <= wall) {
            control.session.handle_timeout(wall, now);
            self.drain_session(now);
        }
        if self.control.as_ref().is_some_and(|control| is_due(control.expiry_at)) {
            self.look_at_expiries(now);
            self.drain_session(now);
        }
        if self.control.as_ref().is_some_and(|control| is_due(control.save_at)) {
            self.save();
        }
    }

    pub(super) fn control_deadline(&self, now: Instant) -> Option<Deadline> {
        let control = self.control.as_ref()?;
        let wall = self.control_wall(now);
        let rotation = control.session.poll_wall_timeout().map(|at| (instant_of(at, wall, now), "rotate the node key"));
        let expiry = control.expiry_at.map(|at| (at, "a key expires"));
        let save = control.save_at.map(|at| (at, "keep the map"));
        let own = [rotation, expiry, save].into_iter().flatten().map(|(at, why)| Deadline::new(at, why));
        own.fold(control.session.poll_timeout(), |first, other| earliest(first, Some(other)))
    }

    pub(super) fn up(&mut self, id: CommandId, up: Up, now: Instant) -> Result<(), CommandError> {
        let is_expired = self.is_expired(now);
        let control = self.control.as_mut().ok_or(CommandError::NoControl)?;
        if up.prefs.control_url.is_none() {
            return Err(CommandError::NoServer);
        }
        if control.ups.len() >= limits::UPS_WAITING
            && let Some(oldest) = control.ups.pop_front()
        {
            // Most likely nobody hears it: who waited has given up.
            let error = CommandError::Superseded("too many wait for the node to run");
            self.outbox.push_back(Output::Reply(oldest, Err(error)));
        }
        control.ups.push_back(id);
        control.prefs = Prefs { want_running: true, ..up.prefs };
        let page = control.session.auth_url().map(str::to_owned);
        self.save();
        let sign_in = SignIn { auth_key: up.auth_key, force: up.force_reauth || is_expired };
        self.set_goal(Some(sign_in), now);
        let after = self.control.as_ref().and_then(|control| control.session.auth_url());
        if let Some(page) = page.filter(|page| Some(page.as_str()) == after) {
            // Said before; whoever asks now has not heard it.
            self.outbox.push_back(Output::Event(Event::LoginUrl(page)));
        }
        Ok(())
    }

    pub(super) fn down(&mut self, now: Instant) -> Result<Reply, CommandError> {
        let control = self.control.as_mut().ok_or(CommandError::NoControl)?;
        control.prefs.want_running = false;
        self.fail_ups(&DISCONNECTED);
        self.save();
        self.set_goal(None, now);
        Ok(Reply::Down)
    }

    pub(super) fn log_out(&mut self, id: CommandId, now: Instant) -> Result<(), CommandError> {
        let control = self.control.as_mut().ok_or(CommandError::NoControl)?;
        if control.logouts.len() >= limits::LOGOUTS_WAITING {
            return Err(CommandError::TooManyLogouts);
        }
        control.logouts.push(id);
        control.prefs.want_running = false;
        self.fail_ups(&CommandError::Superseded("the node is to be signed out"));
        self.with_session(now, |session| session.log_out(now));
        Ok(())
    }

    pub(super) fn set_prefs(&mut self, prefs: Prefs, now: Instant) -> Result<Reply, CommandError> {
        let control = self.control.as_mut().ok_or(CommandError::NoControl)?;
        let is_down = !prefs.want_running;
        control.prefs = prefs;
        if is_down {
            self.fail_ups(&DISCONNECTED);
        }
        self.save();
        self.set_goal(None, now);
        // What is accepted of peers may be other than before.
        self.apply_peers_of_map(now);
        Ok(Reply::PrefsSet)
    }

    /// Our own candidate addresses are these.
    pub(super) fn tell_endpoints(&mut self, now: Instant) {
        let endpoints: Vec<_> = self.endpoints.list().iter().map(|e| (e.address, i64::from(e.kind.wire()))).collect();
        self.with_session(now, |session| session.set_endpoints(endpoints, now));
    }

    /// What was measured of the network; only the home, while nothing else is known.
    pub(super) fn tell_network(&mut self, measured: Option<&Measured>, home: Option<RegionId>, now: Instant) {
        let Some(control) = &mut self.control else { return };
        if let Some(measured) = measured {
            control.net_info = net_info(measured);
        }
        control.net_info.preferred_derp = home.map_or(0, |region| region.number().into());
        let info = control.net_info.clone();
        self.with_session(now, |session| session.set_net_info(info, now));
    }

    /// Whether packets are to be carried for the peers of the map.
    pub(super) fn carries(&self) -> bool {
        self.control.as_ref().is_none_or(|control| control.state == BackendState::Running)
    }

    /// What is wrong, for people.
    pub(super) fn health(&self, now: Instant) -> Vec<String> {
        let Some(control) = &self.control else { return Vec::new() };
        let mut lines: Vec<String> = control.session.problem().map(str::to_owned).into_iter().collect();
        if let Some(expiry) = self.netmap.self_node().and_then(|node| node.key_expiry) {
            let left = expiry.as_unix_nanos().saturating_sub(self.control_wall(now).as_unix_nanos());
            match left {
                0 => lines.push("the sign-in has expired: sign in again".to_owned()),
                1..EXPIRES_SOON => lines.push(format!("the sign-in expires in {} h", left / 3_600_000_000_000)),
                EXPIRES_SOON.. => {}
            }
        }
        let home = self.relays.home().filter(|home| !self.relays.is_connected(*home));
        lines.extend(
            home.and_then(|home| self.relay_problems.get(&home)).map(|problem| format!("home relay: {problem}")),
        );
        lines.extend(self.netmap.health().iter().cloned());
        lines.extend(self.netmap.display_messages().values().map(|message| match message.text.as_str() {
            "" => message.title.clone(),
            text => format!("{}: {text}", message.title),
        }));
        lines
    }

    /// What control sees of the user's wishes.
    fn set_goal(&mut self, sign_in: Option<SignIn>, now: Instant) {
        let Some(goal) = self.control.as_ref().map(Control::goal) else { return };
        self.with_session(now, |session| session.set_goal(goal, sign_in, now));
    }

    pub(super) fn drain_session(&mut self, now: Instant) {
        while let Some(output) = self.control.as_mut().and_then(|control| control.session.poll_output()) {
            match output {
                SessionOutput::Request(request) => self.outbox.push_back(Output::Control(request)),
                SessionOutput::Save => self.save(),
                SessionOutput::KeyChanged(key) => self.set_key(key, now),
                SessionOutput::Forgotten => self.forget_map(now),
                SessionOutput::Map { is_first, response } => self.handle_map(is_first, *response, now),
                SessionOutput::Registered => {}
                SessionOutput::LoginUrl(url) => self.outbox.push_back(Output::Event(Event::LoginUrl(url))),
                SessionOutput::Problem(text) => self.outbox.push_back(Output::Event(Event::ControlProblem(text))),
                SessionOutput::Refused(words) => {
                    self.fail_ups(&CommandError::Refused(words.clone()));
                    self.outbox.push_back(Output::Event(Event::ControlProblem(words)));
                }
                SessionOutput::LoggedOut(untold) => self.handle_logged_out(untold),
            }
        }
        if self.refresh_state(now) {
            self.apply_peers_of_map(now);
        }
        self.answer_ups();
    }

    fn handle_map(&mut self, is_first: bool, response: MapResponse, now: Instant) {
        if is_first {
            self.netmap.begin_stream();
        }
        // First: what the message says of expiries goes by it.
        let is_news = response.control_time.is_some_and(|time| self.note_control_time(time, now));
        let is_without = self.netmap.self_node().is_none();
        match self.take_map(response, now) {
            Ok(change) => {
                if is_without {
                    // A node that has one comes up with it when control is away.
                    self.save();
                }
                self.handle_orders(change.orders);
                let is_expired = self.is_expired(now);
                if is_first && let Some(control) = &mut self.control {
                    // What it says is heard by who called.
                    control.session.note_first_map(is_expired, now);
                }
            }
            Err(error) => {
                let reason = error.to_string();
                // What it says is heard by who called.
                if let Some(control) = &mut self.control {
                    control.session.note_map_refused(&reason, now);
                }
            }
        }
        if is_news {
            self.look_at_expiries(now);
        }
    }

    /// Merges a message into the map and makes the node what that says.
    fn take_map(&mut self, response: MapResponse, now: Instant) -> Result<Change, CommandError> {
        let change = self.netmap.apply(response, self.local.clock.wall_at(now))?;
        let is_other = self.refresh_state(now);
        self.apply_map(&change, now)?;
        if is_other && !change.self_node && change.peers.is_empty() {
            self.apply_peers_of_map(now);
        }
        let expiry = self.netmap.self_node().and_then(|node| node.key_expiry);
        let wall = self.control_wall(now);
        let Some(control) = &mut self.control else { return Ok(change) };
        if change.self_node {
            control.session.set_key_expiry(expiry, wall, now);
        }
        let kept = if !change.is_empty() {
            let peers = &change.peers;
            let is_only_where = Change { peers: Default::default(), ..change.clone() }.is_empty();
            let is_late = is_only_where && peers.added.is_empty() && peers.removed.is_empty();
            Some(if change.filters {
                let at = control.rules_kept.map_or(now, |kept| now.max(kept + SAVE_SOON));
                if at == now {
                    control.rules_kept = Some(now);
                }
                at
            } else {
                now + if is_late { SAVE_LATER } else { SAVE_SOON }
            })
        } else {
            None
        };
        control.save_at = earliest(control.save_at, kept);
        Ok(change)
    }

    fn handle_orders(&mut self, orders: Orders) {
        let Some(control) = &mut self.control else { return };
        if let Some(ping) = orders.ping.filter(|ping| ping.url != control.last_ping) {
            control.last_ping.clone_from(&ping.url);
            let server = control.prefs.control_url.as_ref();
            match server.and_then(|server| c2n::answer(&ping, server)) {
                Some(answer) => {
                    self.outbox.push_back(Output::Control(crate::control::ControlRequest::Answer(answer)));
                }
                None => {
                    let problem = format!("control wants to be answered at {:?}, which is not its own", ping.url);
                    self.outbox.push_back(Output::Event(Event::ControlProblem(problem)));
                }
            }
        }
        let may_show = |url: &str| control.prefs.control_url.as_ref().is_some_and(|server| server.may_show(url));
        if !orders.browser_url.is_empty() && may_show(&orders.browser_url) {
            self.outbox.push_back(Output::Event(Event::Browse(orders.browser_url)));
        }
    }

    fn handle_logged_out(&mut self, untold: Option<String>) {
        let Some(control) = &mut self.control else { return };
        for id in control.logouts.drain(..) {
            let result = match &untold {
                None => Ok(Reply::LoggedOut),
                Some(reason) => Err(CommandError::LogoutUntold(reason.clone())),
            };
            self.outbox.push_back(Output::Reply(id, result));
        }
        self.save();
    }

    /// We are somebody else from now on.
    fn set_key(&mut self, key: NodePrivate, now: Instant) {
        let identity = Arc::new(Identity::new(key.clone()));
        self.local.identity = Arc::clone(&identity);
        self.fib.set_identity(Arc::clone(&identity));
        self.plane.publish(self.fib.clone());
        self.outbox.push_back(Output::Relay(RelayCommand::SetKey(key)));
        if self.links.as_ref().is_some_and(super::LinkState::has_network) {
            // Connections were made as who we were.
            self.relays.set_network(Network::Down, now);
            self.relays.set_network(Network::Up, now);
            self.drain_relays();
        }
        let node = identity.public();
        self.with_all_paths(now, |paths| paths.set_node(node));
        for id in self.peers.ids() {
            let Some(peer) = self.peers.get(id) else { continue };
            let preshared_key = peer.config.preshared_key.clone().unwrap_or_default();
            let Some(remote) = Remote::new(&identity, peer.config.key, preshared_key) else { continue };
            self.with_tunnel_if_any(id, now, |tunnel, local| tunnel.set_remote(remote, local, now));
            // Peers may hear of the new key from control only after this.
            if let Some(peer) = self.peers.get_mut(id) {
                peer.watch.is_rekeyed = true;
                peer.watch.retries = 0;
            }
            self.plan_retry(id, now);
        }
        self.outbox.push_back(Output::Event(Event::KeyChanged(node)));
    }

    fn forget_map(&mut self, now: Instant) {
        self.netmap = NetMap::new();
        if let Some(control) = &mut self.control {
            control.skew = None;
            control.save_at = None;
            control.last_ping.clear();
        }
        self.refresh_state(now);
        self.apply_peers_of_map(now);
        // Relays ask control who we are, and whom it does not know they turn away for a while: no connection before
        // there is a map again.
        self.set_derp_map(&DerpMap::default(), now);
    }

    /// Works out what the node is doing. Says whether packets are carried other than before.
    pub(super) fn refresh_state(&mut self, now: Instant) -> bool {
        let state = self.backend_state(now);
        let Some(control) = self.control.as_mut().filter(|control| control.state != state) else { return false };
        let before = core::mem::replace(&mut control.state, state);
        self.outbox.push_back(Output::Event(Event::State(state)));
        (before == BackendState::Running) != (state == BackendState::Running)
    }

    fn backend_state(&self, now: Instant) -> BackendState {
        let Some(control) = &self.control else { return BackendState::NoState };
        let session = &control.session;
        if !control.prefs.want_running {
            let is_new = session.registration().is_none();
            return if is_new { BackendState::NeedsLogin } else { BackendState::Stopped };
        }
        if !session.is_known() {
            let is_alone = control.prefs.control_url.is_some() && session.is_signing_in();
            return if is_alone { BackendState::Starting } else { BackendState::NeedsLogin };
        }
        match self.netmap.self_node() {
            None => BackendState::Starting,
            Some(_) if self.is_expired(now) => BackendState::NeedsLogin,
            // The map of an expired sign-in says so of the key before.
            Some(node) if !node.machine_authorized && node.key != self.local.identity.public() => {
                BackendState::Starting
            }
            Some(node) if !node.machine_authorized => BackendState::NeedsMachineAuth,
            Some(_) => BackendState::Running,
        }
    }

    pub(super) fn answer_ups(&mut self) {
        let Some(control) = &mut self.control else { return };
        let is_up = matches!(control.state, BackendState::Running | BackendState::NeedsMachineAuth);
        if is_up && !control.session.awaits_sign_in() {
            for id in control.ups.drain(..) {
                self.outbox.push_back(Output::Reply(id, Ok(Reply::Up(control.state))));
            }
        }
    }

    fn fail_ups(&mut self, error: &CommandError) {
        let Some(control) = &mut self.control else { return };
        for id in control.ups.drain(..) {
            self.outbox.push_back(Output::Reply(id, Err(error.clone())));
        }
    }

    /// Says what is to be kept.
    fn save(&mut self) {
        let Some(control) = &mut self.control else { return };
        control.save_at = None;
        let session = &control.session;
        let map = self.netmap.snapshot().filter(|_| session.registration().is_some());
        let saved = SavedState {
            machine_key: control.machine_key.clone(),
            node_key: session.node_key().clone(),
            next_node_key: session.next_node_key().cloned(),
            prefs: control.prefs.clone(),
            registration: session.registration().cloned(),
            map: map.map(Arc::new),
        };
        self.outbox.push_back(Output::Save(Box::new(saved)));
    }
}

/// What was measured, as control is told.
fn net_info(measured: &Measured) -> NetInfo {
    let name = |family| match family {
        Family::V4 => "v4",
        Family::V6 => "v6",
    };
    let latencies = measured.latencies.iter();
    NetInfo {
        mapping_varies_by_dest_ip: measured.mapping_varies,
        working_ipv6: Some(measured.working_ipv6),
        os_has_ipv6: Some(measured.os_has_ipv6),
        working_udp: Some(measured.working_udp),
        preferred_derp: measured.preferred.map_or(0, |region| region.number().into()),
        derp_latency: latencies
            .map(|((region, family), latency)| (format!("{region}-{}", name(*family)), latency.as_secs_f64()))
            .collect(),
        ..NetInfo::default()
    }
}
