//! Commands about nodes.

use core::net::IpAddr;
use std::{collections::BTreeSet, sync::Arc};

use mesh_core::ip::prefix::Prefix;
use serde_json::Value;

use super::{
    Coordinator,
    admin::check_tags,
    command::{AdminError, NodeView, Reply},
};
use crate::{
    names,
    policy::Rulebook,
    render::{TAGGED_LOGIN, full_name},
    store::{NodeRow, Principal, node::Member},
};

impl Coordinator {
    pub(super) fn list_nodes(&self) -> Reply {
        let nodes = self.state.members().values().map(|member| self.node_view(member)).collect();
        Reply::Nodes { nodes, has_policy: self.state.policy().is_some() }
    }

    pub(super) fn register_node(&mut self, by: &Principal, code: &str, user: &str) -> Result<Reply, AdminError> {
        let user = self.find_user(user)?;
        let id = self.signed_in(code, user.id)?;
        let member = self.found(id)?;
        let after = self.seen(&member.row);
        self.audit(by.clone(), "node.register", &member.row.stable_id, Value::Null, after);
        Ok(Reply::Node(Box::new(self.node_view(&member))))
    }

    pub(super) fn expire_node(&mut self, by: &Principal, node: &str) -> Result<Reply, AdminError> {
        let now = self.wall();
        self.change(by, node, "node.expire", |row| {
            row.key_expiry = Some(row.key_expiry.map_or(now, |expiry| expiry.min(now)));
        })
    }

    pub(super) fn delete_node(&mut self, by: &Principal, node: &str) -> Result<Reply, AdminError> {
        let member = self.find_node(node)?;
        let view = self.node_view(&member);
        let before = self.seen(&member.row);
        self.audit(by.clone(), "node.delete", &member.row.stable_id, before, Value::Null);
        self.forget(member.id());
        Ok(Reply::Node(Box::new(view)))
    }

    pub(super) fn tag_node(&mut self, by: &Principal, node: &str, tags: BTreeSet<String>) -> Result<Reply, AdminError> {
        check_tags(&tags)?;
        if tags.is_empty() {
            let text = "a node without tags needs a user: let it sign in again (expire it, then nodes register)";
            return Err(AdminError::Refused(text.to_owned()));
        }
        self.change(by, node, "node.tag", |row| {
            if row.user.take().is_some() {
                row.key_expiry = None;
            }
            row.tags = tags;
        })
    }

    pub(super) fn rename_node(&mut self, by: &Principal, node: &str, name: &str) -> Result<Reply, AdminError> {
        let member = self.find_node(node)?;
        if !name.is_empty() && !names::is_label(name) {
            let text = format!("{name:?} is no name: use up to 63 small letters, digits and dashes, no dash at an end");
            return Err(AdminError::Refused(text));
        }
        if !name.is_empty() && names::is_number(name) {
            return Err(AdminError::Refused(format!("{name:?} is a number, and would be taken for that of a node")));
        }
        if let Some(other) = self.state.names.holder(name).filter(|holder| *holder != member.id()) {
            let id = self.state.member(other).map(|member| member.row.stable_id.clone()).unwrap_or_default();
            return Err(AdminError::Refused(format!("the node {id} is called {name} already")));
        }
        let after_host = names::label(&member.row.hostinfo.hostname);
        let new = if name.is_empty() {
            self.state.names.like(&after_host, member.id(), Some(&member.row.name))
        } else {
            name.to_owned()
        };
        let is_fixed = !name.is_empty();
        self.change(by, node, "node.rename", |row| (row.name, row.name_is_fixed) = (new, is_fixed))
    }

    pub(super) fn approve_routes(
        &mut self,
        by: &Principal,
        node: &str,
        routes: &BTreeSet<Prefix>,
    ) -> Result<Reply, AdminError> {
        let mut approved = routes.clone();
        if routes.iter().any(|route| route.length() == 0) {
            let both = [IpAddr::from([0; 4]), IpAddr::from([0; 16])];
            approved.extend(both.into_iter().filter_map(|address| Prefix::new(address, 0)));
        }
        self.change(by, node, "node.routes", |row| row.approved_routes = approved)
    }

    fn change(
        &mut self,
        by: &Principal,
        node: &str,
        action: &str,
        change: impl FnOnce(&mut NodeRow),
    ) -> Result<Reply, AdminError> {
        let member = self.find_node(node)?;
        let mut row = (*member.row).clone();
        change(&mut row);
        let (before, after) = (self.seen(&member.row), self.seen(&row));
        self.audit(by.clone(), action, &row.stable_id, before, after);
        self.put(row, member.live.clone());
        let member = self.found(member.id())?;
        Ok(Reply::Node(Box::new(self.node_view(&member))))
    }

    fn found(&self, id: mesh_core::control::types::NodeId) -> Result<Arc<Member>, AdminError> {
        self.state.member(id).cloned().ok_or_else(|| not_found(&id.to_string()))
    }

    /// A node by name (full or not), stable id, number or overlay address, or else by what its host is called.
    pub(super) fn find_node(&self, name: &str) -> Result<Arc<Member>, AdminError> {
        let members = self.state.members().values();
        let dotted = format!("{}.", name.trim_end_matches('.'));
        let is_meant = |member: &&Arc<Member>| {
            let row = &member.row;
            let is_address = || row.addresses().iter().any(|address| address.to_string() == name);
            row.name == name
                || row.stable_id == name
                || row.id.to_string() == name
                || full_name(&row.name, self.state.base_domain()) == dotted
                || is_address()
        };
        if let Some(member) = members.clone().find(is_meant) {
            return Ok(Arc::clone(member));
        }
        let by_host: Vec<_> =
            members.filter(|member| member.row.hostinfo.hostname.eq_ignore_ascii_case(name)).collect();
        match by_host.as_slice() {
            [] => Err(not_found(name)),
            [one] => Ok(Arc::clone(one)),
            several => {
                let candidates = several.iter().map(|member| format!("{} ({})", member.row.name, member.row.stable_id));
                Err(AdminError::Ambiguous { name: name.to_owned(), candidates: candidates.collect() })
            }
        }
    }

    pub(super) fn node_view(&self, member: &Member) -> NodeView {
        let row = &member.row;
        let login = row.user.and_then(|user| self.state.users().get(&user)).map(|user| user.login.clone());
        let enabled: Vec<_> = row.served_routes().collect();
        let rulebook: &Rulebook = self.state.rulebook();
        let primary = enabled.iter().filter(|route| route.length() > 0 && rulebook.primary(**route) == Some(row.id));
        let mut full_name = full_name(&row.name, self.state.base_domain());
        full_name.pop();
        NodeView {
            full_name,
            login: login.unwrap_or_else(|| TAGGED_LOGIN.to_owned()),
            addresses: row.addresses(),
            online: member.live.online,
            expired: row.is_expired(self.wall()),
            last_seen: if member.live.online { Some(self.wall()) } else { row.last_seen },
            endpoints: member.live.endpoints.clone(),
            advertised_routes: row.hostinfo.routable_ips.clone(),
            primary_routes: primary.copied().collect(),
            enabled_routes: enabled,
            node: Arc::clone(row),
        }
    }
}

fn not_found(name: &str) -> AdminError {
    AdminError::NotFound { what: "node", name: name.to_owned(), hint: "nodes list shows all by name, id and address" }
}
