//! Commands about the policy.

use core::net::IpAddr;
use std::sync::Arc;

use data_encoding::HEXLOWER;
use mesh_core::crypto::hash::blake2s;
use serde_json::{Value, json};

use super::{
    Coordinator,
    command::{AdminError, Reply},
};
use crate::{
    limits,
    policy::{
        Policy, Rulebook,
        explain::Flow,
        ipset::Span,
        problem::{Position, Problem},
    },
    store::{PolicyRow, Principal},
};

impl Coordinator {
    /// A policy applied to the users and nodes of now, when it is good: it can be read, this build has all of it, and its
    /// own tests pass.
    pub(super) fn judge(&self, text: &str) -> Result<Rulebook, AdminError> {
        let rulebook = self.state.applied(understood(text)?);
        let failures = rulebook.run_tests();
        if failures.is_empty() { Ok(rulebook) } else { Err(AdminError::Policy(told(failures.list()))) }
    }

    pub(super) fn set_policy(&mut self, by: &Principal, text: String) -> Result<Reply, AdminError> {
        let rulebook = self.judge(&text)?;
        // The text before is in the row of when it was set: here it is only told from others.
        let before = self.state.policy().map_or(
            Value::Null,
            |row| json!({ "bytes": row.text.len(), "blake2s": HEXLOWER.encode(&blake2s(&[row.text.as_bytes()])) }),
        );
        self.audit(by.clone(), "policy.set", "policy", before, json!(text));
        self.state.put_policy(PolicyRow { text, stored: self.wall() }, rulebook);
        // Routes that the policy approves without asking are approved from now on.
        let routers = self.state.members().values().filter(|member| !member.row.hostinfo.routable_ips.is_empty());
        for member in routers.cloned().collect::<Vec<_>>() {
            let approved = self.state.approved_by_policy(&member.row);
            let mut row = (*member.row).clone();
            row.approved_routes.extend(approved);
            self.put(row, member.live.clone());
        }
        Ok(Reply::PolicyGood)
    }

    pub(super) fn diff_policy(&self, text: &str) -> Result<Reply, AdminError> {
        let later = self.judge(text)?;
        let difference = self.state.rulebook().difference(&later, limits::DIFFERENCE_PAIRS);
        let rule = |sign: char, origin: &crate::policy::Origin| {
            format!("{sign} {} entry {} ({})", origin.section.name(), origin.index + 1, origin.at)
        };
        let name = |id| self.state.member(id).map_or_else(|| id.to_string(), |member| member.row.name.clone());
        let removed = difference.removed.iter().map(|origin| rule('-', origin));
        let added = difference.added.iter().map(|origin| rule('+', origin));
        let pairs = difference.pairs.iter().map(|pair| {
            let text = pair.to_string();
            let ports = text.split_once(": ").map_or(text.as_str(), |(_, ports)| ports);
            format!("{} -> {}: {ports}", name(pair.from), name(pair.to))
        });
        Ok(Reply::Difference { lines: removed.chain(added).chain(pairs).collect(), more: difference.more })
    }

    pub(super) fn explain(&self, src: &str, dst: &str, port: u16, protocol: u8) -> Result<Reply, AdminError> {
        let (src, dst) = (self.addresses(src)?, self.addresses(dst)?);
        let pair = dst.iter().find_map(|dst| Some((src.iter().find(|src| src.is_ipv4() == dst.is_ipv4())?, dst)));
        let Some((src, dst)) = pair else {
            let text = "source and destination have no family of addresses in common".to_owned();
            return Err(AdminError::Refused(text));
        };
        let flow = Flow { src: Span::from(*src), dst: *dst, protocol, port };
        let (allowed, text) = match self.state.rulebook().explain(flow) {
            Ok(allowed) => (true, allowed.to_string()),
            Err(_) if self.state.policy().is_none() => (false, "denied: no policy is stored".to_owned()),
            Err(denied) => (false, denied.to_string()),
        };
        Ok(Reply::Explained { allowed, text })
    }

    /// An address as it is, or those of a node.
    fn addresses(&self, text: &str) -> Result<Vec<IpAddr>, AdminError> {
        if let Ok(address) = text.parse() {
            return Ok(vec![address]);
        }
        let member: Arc<_> = self.find_node(text)?;
        Ok(member.row.addresses().to_vec())
    }
}

/// Judges a policy apart from any network: it can be read, this build has all of it, and none of its own tests fails
/// whatever users and nodes there are. Returns how many things that its tests want could not be judged.
///
/// # Errors
/// [`AdminError::Policy`] with all that is wrong.
pub fn check_policy_alone(text: &str) -> Result<usize, AdminError> {
    let (failures, open) = understood(text)?.run_tests_alone();
    if failures.is_empty() { Ok(open) } else { Err(AdminError::Policy(told(failures.list()))) }
}

/// A policy that can be read and that this build has all of.
fn understood(text: &str) -> Result<Policy, AdminError> {
    let policy = Policy::parse(text).map_err(|problems| AdminError::Policy(told(problems.list())))?;
    if policy.unbuilt().is_empty() {
        return Ok(policy);
    }
    let unbuilt = policy.unbuilt().iter();
    let problems =
        unbuilt.map(|part| (part.at, format!("{:?} is something that this server does not have", part.name)));
    Err(AdminError::Policy(problems.collect()))
}

fn told(problems: &[Problem]) -> Vec<(Position, String)> {
    problems.iter().map(|problem| (problem.at, problem.message.clone())).collect()
}
