//! The list of a pair: alice, who watches, and bob, who joins, signs out, expires and reboots, at a control server.
//!
//! Both are behind routers of their own, and the relay, ours, asks the server who may connect. The items are the same
//! for every pair; those that a pair cannot have (our agent leaves the host's DNS alone, headscale has no `explain`)
//! say for whom they are.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::{
    super::{
        Test,
        homes::{Homes, Nat},
        lab::text,
    },
    stock_list::{Found, List},
    stock_list_nodes::{Client, Kind},
    stock_list_servers::{Key, Server},
    stock_list_sign_in as sign_in, stock_list_talk as talk,
};

/// Those that want the stock client.
pub(crate) const ON_OURS: &[Test] = &[
    ("stock_list_of_stock_and_stock_on_our_control", || run("stock-stock", Host::Ours, Kind::Stock, Kind::Stock)),
    ("stock_list_of_stock_and_ours_on_our_control", || run("stock-ours", Host::Ours, Kind::Stock, Kind::Ours)),
    ("stock_list_of_ours_and_stock_on_our_control", || run("ours-stock", Host::Ours, Kind::Ours, Kind::Stock)),
];

/// Those that want headscale too.
pub(crate) const ON_HEADSCALE: &[Test] = &[
    ("stock_list_of_stock_and_ours_on_headscale", || run("headscale", Host::Headscale, Kind::Stock, Kind::Ours)),
    ("stock_list_of_ours_and_ours_on_headscale", || run("headscale-ours", Host::Headscale, Kind::Ours, Kind::Ours)),
];

/// Whose control server it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Host {
    Ours,
    Headscale,
}

/// For whom an item is.
type For = fn(&Pair) -> bool;

/// How it is tried.
type Item = fn(&mut Pair) -> Result<Found>;

/// What is tried, in this order; the item, for whom, and how.
const ITEMS: &[(&str, For, Item)] = &[
    ("up with a key", all, talk::up_with_a_key),
    ("first answer through the tunnel", all, talk::first_answer),
    ("pings until one is direct", all, talk::ping_until_direct),
    ("pings over the relay while UDP is blocked, then directly", all, talk::relay_only),
    ("TSMP ping, both ways", all, |pair| talk::inner_ping(pair, "--tsmp")),
    ("ICMP ping, both ways", all, |pair| talk::inner_ping(pair, "--icmp")),
    ("IPv6 in the tunnel", all, talk::over_ipv6),
    ("TCP, both ways", all, talk::tcp),
    ("status, both ways", all, talk::status),
    ("whois, both ways", all, talk::whois),
    ("netcheck, both", all, talk::netcheck),
    ("the server lists both", all, talk::listed),
    ("MagicDNS: A, AAAA, a name that is none", alice_is_stock, talk::magic_dns),
    ("MagicDNS: getent", alice_is_stock, talk::getent),
    ("policy denies", all, talk::deny),
    ("policy explains", on_ours, talk::explain),
    ("policy allows again", all, talk::allow),
    ("a policy with an error changes nothing", on_ours, talk::bad_policy),
    ("another host name by set", on_ours, sign_in::set_hostname),
    ("renamed by the server", all, sign_in::rename),
    ("down and up", all, sign_in::down_and_up),
    ("force-reauth while it runs", all, sign_in::force_reauth),
    ("expired by the server", all, sign_in::expire),
    ("signed in again after it expired", all, sign_in::reauth),
    ("logout", all, sign_in::logout),
    ("wrong key", all, sign_in::wrong_key),
    ("expired key", all, sign_in::expired_key),
    ("revoked key", all, sign_in::revoked_key),
    ("single-use key, used", all, sign_in::used_key),
    ("tags that nobody may give", on_ours, sign_in::foreign_tags),
    ("interactive sign-in by the page", all, sign_in::interactive),
    ("ephemeral node is forgotten at logout", all, sign_in::ephemeral),
    ("tagged by its key", all, sign_in::tags),
    ("tagged by the server", all, sign_in::tag),
    ("relay killed and back", all, talk::relay_restarts),
    ("control killed: traffic goes on", all, talk::control_dies),
    ("control is back: both online, and a change is heard", all, talk::control_returns),
    ("rebooted", all, talk::reboot),
    ("rebooted while control is away", all, talk::reboot_alone),
    ("force-reauth right after", all, sign_in::force_reauth),
    ("no secret of a key in the database", on_ours, sign_in::secrets),
    ("ephemeral node that was killed is forgotten", carol_is_there, sign_in::ephemeral_killed),
];

fn all(_: &Pair) -> bool {
    true
}

fn on_ours(pair: &Pair) -> bool {
    pair.server.own().is_ok()
}

fn alice_is_stock(pair: &Pair) -> bool {
    pair.alice.kind == Kind::Stock
}

fn carol_is_there(pair: &Pair) -> bool {
    pair.carol.is_some()
}

/// Two nodes and what they need.
pub(crate) struct Pair {
    pub(crate) alice: Client,
    pub(crate) bob: Client,
    /// An ephemeral one that joins and is killed, its address, and when.
    pub(crate) carol: Option<(String, Instant)>,
    pub(crate) server: Server,
    /// Good again and again.
    pub(crate) key: String,
    /// Ends last.
    pub(crate) homes: Homes,
}

fn run(name: &str, host: Host, alice: Kind, bob: Kind) -> Result<()> {
    let mut list = List::new(name)?;
    // Waiting until the server forgets it takes minutes: in one list.
    let with_carol = (host, alice, bob) == (Host::Ours, Kind::Stock, Kind::Stock);
    let mut pair = Pair::new(host, alice, bob, with_carol)?;
    for (what, applies, item) in ITEMS {
        if applies(&pair) {
            list.item(what, || item(&mut pair));
        }
    }
    drop(pair);
    list.end()
}

impl Pair {
    fn new(host: Host, alice: Kind, bob: Kind, with_carol: bool) -> Result<Self> {
        let nats = [Nat::Easy; 3];
        let mut homes = Homes::new(if with_carol { &nats } else { &nats[..2] })?;
        let server = match host {
            Host::Ours => Server::ours(&mut homes)?,
            Host::Headscale => Server::headscale(&mut homes)?,
        };
        server.open_to(&mut homes)?;
        let key = server.key(Key { reusable: true, ..Key::default() })?;
        let carol = match homes.members.get(2) {
            Some(member) => {
                let client = Client::new(&member.node, Kind::Stock)?;
                let key = server.key(Key { ephemeral: true, ..Key::default() })?;
                client.up(server.url(), &["--auth-key", &key])?;
                let address = client.address("-4")?;
                server.wait_for_online(&address)?;
                Some((address, Instant::now()))
            }
            None => None,
        };
        let alice = Client::new(&homes.members[0].node, alice)?;
        let bob = Client::new(&homes.members[1].node, bob)?;
        Ok(Self { alice, bob, carol, server, key, homes })
    }

    /// Bob is up, and alice reaches him: where most items begin, whatever came before. Returns his address.
    pub(crate) fn ready(&self) -> Result<String> {
        for client in [&self.alice, &self.bob] {
            if client.state()? != "Running" {
                client.up(self.server.url(), &["--auth-key", &self.key])?;
            }
        }
        // Whoever comes back from an absence of control hears late of what happens; no item is about that twice.
        for client in [&self.alice, &self.bob] {
            self.server.wait_for_online(&client.address("-4")?)?;
        }
        let address = self.bob.address("-4")?;
        self.alice.reach(&address)?;
        Ok(address)
    }

    /// Bob is signed out: where a key is judged.
    pub(crate) fn signed_out(&self) -> Result<()> {
        if self.bob.state()? != "NeedsLogin" {
            self.bob.run(&["logout"])?;
        }
        self.bob.wait_for_state("NeedsLogin").map(drop)
    }

    /// Bob tries a key, and is refused in these words.
    pub(crate) fn refused(&self, more: &[&str], words: &str) -> Result<Found> {
        let (took, output) = self.bob.try_up(self.server.url(), more)?;
        let said = text(&output);
        let wanted = match self.bob.kind {
            Kind::Stock => 1,
            Kind::Ours => 5,
        };
        ensure!(output.status.code() == Some(wanted) && said.contains(words), "{}: {said}", output.status);
        Ok(Found::new(took, format!("exit {wanted}: {said}")))
    }

    /// Signs bob in again with a key of its own, and has alice reach him.
    pub(crate) fn back_with(&self, key: Key) -> Result<(Duration, String)> {
        let took = self.bob.up(self.server.url(), &["--auth-key", &self.server.key(key)?])?;
        let address = self.bob.address("-4")?;
        self.alice.reach(&address)?;
        Ok((took, address))
    }

    pub(crate) fn both(&self) -> [(&Client, &Client); 2] {
        [(&self.alice, &self.bob), (&self.bob, &self.alice)]
    }
}
