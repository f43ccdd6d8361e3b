//! Commands: users and auth keys, and how things are found by what people call them.

use core::time::Duration;
use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{
    control::types::{UserId, is_tag},
    crypto::hash::blake2s,
};
use serde_json::{Value, json};

use super::{
    Coordinator,
    command::{AdminError, Command, KeyView, Reply, Secret},
    later,
    register::KEY_PREFIX,
};
use crate::{
    limits,
    policy::Role,
    store::{KeyRow, Principal, Sequence, UserRow, role_name},
};

/// 28 letters of base58 carry 164 bits.
const SECRET_LETTERS: usize = 28;
/// The longest login: what e-mail addresses may have (RFC 5321 §4.5.3.1).
const LOGIN: usize = 254;

impl Coordinator {
    /// Carries out a command, or says why not and changes nothing.
    pub(super) fn command(&mut self, by: &Principal, command: Command) -> Result<Reply, AdminError> {
        match command {
            Command::CreateUser { login } => self.create_user(by, &login),
            Command::ListUsers => Ok(Reply::Users(self.state.users().values().map(|row| (**row).clone()).collect())),
            Command::ShowUser { user } => Ok(Reply::User((*self.find_user(&user)?).clone())),
            Command::DeleteUser { user } => self.delete_user(by, &user),
            Command::CreateKey { user, reusable, ephemeral, tags, expiry } => {
                self.create_key(by, &user, reusable, ephemeral, tags, expiry)
            }
            Command::ListKeys => {
                let mut keys: Vec<_> = self.state.keys().values().map(|row| self.key_view(row)).collect();
                keys.sort_by(|a, b| (a.key.created, &a.key.id).cmp(&(b.key.created, &b.key.id)));
                Ok(Reply::Keys(keys))
            }
            Command::ExpireKey { id } => self.expire_key(by, &id),
            Command::ListNodes => Ok(self.list_nodes()),
            Command::ShowNode { node } => {
                let member = self.find_node(&node)?;
                Ok(Reply::Node(Box::new(self.node_view(&member))))
            }
            Command::ShowSignIn { code } => self.show_sign_in(&code),
            Command::RegisterNode { code, user } => self.register_node(by, &code, &user),
            Command::ExpireNode { node } => self.expire_node(by, &node),
            Command::DeleteNode { node } => self.delete_node(by, &node),
            Command::TagNode { node, tags } => self.tag_node(by, &node, tags),
            Command::RenameNode { node, name } => self.rename_node(by, &node, &name),
            Command::ApproveRoutes { node, routes } => self.approve_routes(by, &node, &routes),
            Command::GetPolicy => Ok(Reply::Policy(self.state.policy().map(|row| row.text.clone()))),
            Command::SetPolicy { text } => self.set_policy(by, text),
            Command::CheckPolicy { text } => self.judge(&text).map(|_| Reply::PolicyGood),
            Command::DiffPolicy { text } => self.diff_policy(&text),
            Command::Explain { src, dst, port, protocol } => self.explain(&src, &dst, port, protocol),
            Command::Verify { node } => Ok(Reply::Verdict(self.verify(&node))),
        }
    }

    fn create_user(&mut self, by: &Principal, login: &str) -> Result<Reply, AdminError> {
        let refused = |text: String| Err(AdminError::Refused(text));
        let is_odd =
            |letter: char| letter.is_whitespace() || letter.is_control() || matches!(letter, ':' | '/' | '"' | '\\');
        // Users are also called by their login and an `@`.
        let is_cut = login.starts_with('@') || login.ends_with('@') || login.matches('@').count() > 1;
        if login.is_empty() || login.len() > LOGIN || login.chars().any(is_odd) || is_cut {
            return refused(format!(
                "{login:?} is no name to sign in with: give one such as alice or alice@example.com"
            ));
        }
        if login.parse::<i64>().is_ok() {
            return refused(format!("{login:?} is a number, and would be taken for that of a user"));
        }
        if self.state.users().values().any(|row| row.login.eq_ignore_ascii_case(login)) {
            return refused(format!("there is a user {login:?} already"));
        }
        if self.state.users().len() >= limits::USERS {
            return Err(AdminError::TooMany(format!("there are {} users, and no room for more", limits::USERS)));
        }
        let role = if self.state.users().is_empty() { Role::Owner } else { Role::Member };
        let row = UserRow {
            id: UserId(self.state.number(Sequence::Users)),
            stable_id: self.stable_id('u'),
            login: login.to_owned(),
            display_name: login.split('@').next().unwrap_or(login).to_owned(),
            role,
            created: self.wall(),
        };
        self.state.put_user(row.clone());
        self.audit(by.clone(), "user.create", &row.stable_id, Value::Null, seen_user(&row));
        Ok(Reply::User(row))
    }

    fn delete_user(&mut self, by: &Principal, user: &str) -> Result<Reply, AdminError> {
        let row = self.find_user(user)?;
        let nodes: Vec<_> = self.state.members().values().filter(|member| member.row.user == Some(row.id)).collect();
        if let Some(first) = nodes.first() {
            let others = if nodes.len() > 1 { format!(" and {} others", nodes.len() - 1) } else { String::new() };
            let text =
                format!("{} has the node {}{others}: delete the nodes of a user first", row.login, first.row.name);
            return Err(AdminError::Refused(text));
        }
        self.state.remove_user(row.id);
        self.audit(by.clone(), "user.delete", &row.stable_id, seen_user(&row), Value::Null);
        Ok(Reply::User((*row).clone()))
    }

    fn create_key(
        &mut self,
        by: &Principal,
        user: &str,
        reusable: bool,
        ephemeral: bool,
        tags: BTreeSet<String>,
        expiry: Option<Duration>,
    ) -> Result<Reply, AdminError> {
        let user = self.find_user(user)?;
        check_tags(&tags)?;
        let life = expiry.unwrap_or(limits::KEY_LIFE);
        if life > limits::KEY_LIFE || life.is_zero() {
            let days = limits::KEY_LIFE.as_secs() / 86_400;
            return Err(AdminError::Refused(format!(
                "an auth key is good for a second at least and {days} days at most"
            )));
        }
        self.make_room_for_key()?;
        let created = self.wall();
        let id = self.stable_id('k');
        let secret = self.base58(SECRET_LETTERS);
        let row = KeyRow {
            id: id.clone(),
            hash: blake2s(&[secret.as_bytes()]),
            user: user.id,
            reusable,
            ephemeral,
            tags,
            created,
            expires: later(created, life),
            revoked: None,
            uses: 0,
        };
        self.state.put_key(row.clone());
        self.audit(by.clone(), "key.create", &id, Value::Null, seen_key(&row, &user.login));
        Ok(Reply::NewKey { key: self.key_view(&row), text: Secret(format!("{KEY_PREFIX}{id}-{secret}")) })
    }

    /// Where there is no room for another key, the oldest of those goes that nothing can be done with.
    fn make_room_for_key(&mut self) -> Result<(), AdminError> {
        if self.state.keys().len() < limits::KEYS {
            return Ok(());
        }
        let useless = self.state.keys().values().filter(|key| self.key_view(key).invalid);
        let oldest = useless.min_by_key(|key| (key.created, key.id.clone())).map(|key| key.id.clone());
        let Some(oldest) = oldest else {
            let text = format!("there are {} auth keys that are good: expire some first", limits::KEYS);
            return Err(AdminError::TooMany(text));
        };
        self.state.remove_key(&oldest);
        Ok(())
    }

    fn expire_key(&mut self, by: &Principal, id: &str) -> Result<Reply, AdminError> {
        let found = self.state.keys().get(id).cloned();
        let mut row = found.ok_or_else(|| AdminError::NotFound {
            what: "auth key",
            name: id.to_owned(),
            hint: "keys list shows their ids",
        })?;
        let login = self.key_view(&row).login;
        let before = seen_key(&row, &login);
        row.expires = row.expires.min(self.wall());
        self.state.put_key(row.clone());
        self.audit(by.clone(), "key.expire", id, before, seen_key(&row, &login));
        Ok(Reply::Key(self.key_view(&row)))
    }

    fn key_view(&self, row: &KeyRow) -> KeyView {
        let is_spent = !row.reusable && row.uses > 0;
        KeyView {
            login: self.state.users().get(&row.user).map(|user| user.login.clone()).unwrap_or_default(),
            invalid: row.revoked.is_some() || row.expires <= self.wall() || is_spent,
            key: row.clone(),
        }
    }

    /// A user by login (with `@` behind it or not), stable id or number.
    pub(super) fn find_user(&self, name: &str) -> Result<Arc<UserRow>, AdminError> {
        let login = name.strip_suffix('@').unwrap_or(name);
        let is_meant = |row: &&Arc<UserRow>| {
            row.login.eq_ignore_ascii_case(login) || row.stable_id == name || row.id.0.to_string() == name
        };
        self.state.users().values().find(is_meant).cloned().ok_or_else(|| AdminError::NotFound {
            what: "user",
            name: name.to_owned(),
            hint: "users list shows all, users create makes one",
        })
    }
}

/// Refuses what is no tag.
pub(super) fn check_tags(tags: &BTreeSet<String>) -> Result<(), AdminError> {
    if let Some(wrong) = tags.iter().find(|tag| !is_tag(tag)) {
        let text = format!("{wrong:?} is no tag: write tag: and a name of letters, digits and dashes");
        return Err(AdminError::Refused(text));
    }
    if tags.len() > limits::TAGS {
        return Err(AdminError::TooMany(format!("{} tags are more than {}", tags.len(), limits::TAGS)));
    }
    Ok(())
}

fn seen_user(row: &UserRow) -> Value {
    json!({ "login": row.login, "role": role_name(row.role) })
}

/// A key as the audit record shows it: nothing of its secret.
fn seen_key(row: &KeyRow, login: &str) -> Value {
    json!({
        "user": row.user,
        "login": login,
        "reusable": row.reusable,
        "ephemeral": row.ephemeral,
        "tags": row.tags,
        "expires": row.expires.as_unix_nanos(),
        "revoked": row.revoked.is_some(),
    })
}
