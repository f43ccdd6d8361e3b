//! Policy rules: who looks at the table of the mesh, and who does not.
//!
//! Priorities and marks are those of stock clients. The node's own datagrams carry the bypass mark; they use the
//! tables that everything used before, and when nothing there leads on they are refused rather than sent into their
//! own tunnel. Everything else looks into the table of the mesh first.

use std::io;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};

use crate::udp::BYPASS_MARK;

use super::{
    HostError, is_family_missing,
    netlink::{IfPresent, Netlink},
    routes,
};

/// The bits of a mark that are ours.
const MARK_MASK: u32 = 0xff0000;

const TABLE_MAIN: u8 = 254;
const TABLE_DEFAULT: u8 = 253;

/// A rule as it should be, for either family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rule {
    priority: u32,
    is_for_own: bool,
    /// `None` is unreachable.
    table: Option<u8>,
}

const RULES: [Rule; 4] = [
    Rule { priority: 5210, is_for_own: true, table: Some(TABLE_MAIN) },
    Rule { priority: 5230, is_for_own: true, table: Some(TABLE_DEFAULT) },
    Rule { priority: 5250, is_for_own: true, table: None },
    Rule { priority: 5270, is_for_own: false, table: Some(routes::TABLE) },
];

const FAMILIES: [AddressFamily; 2] = [AddressFamily::Inet, AddressFamily::Inet6];

/// Adds the rules that are missing.
pub(super) fn add(netlink: &mut Netlink) -> Result<(), HostError> {
    for family in FAMILIES {
        let Some(present) = list(netlink, family)? else { continue };
        for rule in RULES.iter().filter(|rule| !present.iter().any(|message| rule.is(message))) {
            let what = format!("add the routing rule {}", rule.priority);
            match netlink.add(RouteNetlinkMessage::NewRule(rule.message(family)), IfPresent::Refuse) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
                result => result.map_err(HostError::new(what))?,
            }
        }
    }
    Ok(())
}

/// Removes the rules, each as often as it is there.
pub(super) fn remove(netlink: &mut Netlink) -> Result<(), HostError> {
    for family in FAMILIES {
        let Some(present) = list(netlink, family)? else { continue };
        for message in present.into_iter().filter(|message| RULES.iter().any(|rule| rule.is(message))) {
            match netlink.act(RouteNetlinkMessage::DelRule(message)) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                result => result.map_err(HostError::new("remove a routing rule"))?,
            }
        }
    }
    Ok(())
}

/// All rules of a family; `None` when the host lacks the family.
fn list(netlink: &mut Netlink, family: AddressFamily) -> Result<Option<Vec<RuleMessage>>, HostError> {
    let mut request = RuleMessage::default();
    request.header.family = family;
    let answers: io::Result<_> = netlink.dump(RouteNetlinkMessage::GetRule(request));
    match answers {
        Ok(answers) => Ok(Some(
            answers
                .into_iter()
                .filter_map(|answer| match answer {
                    RouteNetlinkMessage::NewRule(rule) if rule.header.family == family => Some(rule),
                    _ => None,
                })
                .collect(),
        )),
        Err(error) if is_family_missing(&error) => Ok(None),
        Err(error) => Err(HostError::new("list the routing rules")(error)),
    }
}

impl Rule {
    fn is(&self, message: &RuleMessage) -> bool {
        let (mut priority, mut mark, mut mask, mut table) = (0, None, None, u32::from(message.header.table));
        for attribute in &message.attributes {
            match attribute {
                RuleAttribute::Priority(value) => priority = *value,
                RuleAttribute::FwMark(value) => mark = Some(*value),
                RuleAttribute::FwMask(value) => mask = Some(*value),
                RuleAttribute::Table(value) => table = *value,
                _ => {}
            }
        }
        let wanted_mark = self.is_for_own.then_some(BYPASS_MARK);
        let action = match self.table {
            Some(wanted) => message.header.action == RuleAction::ToTable && table == u32::from(wanted),
            None => message.header.action == RuleAction::Unreachable,
        };
        priority == self.priority && mark == wanted_mark && (mark.is_none() || mask == Some(MARK_MASK)) && action
    }

    fn message(&self, family: AddressFamily) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family;
        message.attributes.push(RuleAttribute::Priority(self.priority));
        if self.is_for_own {
            message.attributes.push(RuleAttribute::FwMark(BYPASS_MARK));
            message.attributes.push(RuleAttribute::FwMask(MARK_MASK));
        }
        match self.table {
            Some(table) => {
                message.header.action = RuleAction::ToTable;
                message.header.table = table;
            }
            None => message.header.action = RuleAction::Unreachable,
        }
        message
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_knows_itself_and_no_other() {
        for (index, rule) in RULES.iter().enumerate() {
            for (other, message) in RULES.iter().map(|rule| rule.message(AddressFamily::Inet)).enumerate() {
                assert_eq!(rule.is(&message), index == other);
            }
        }
    }

    #[test]
    fn a_rule_of_somebody_else_at_our_priority_is_not_ours() {
        let mut message = RULES[3].message(AddressFamily::Inet);
        message.header.table = 100;
        assert!(!RULES.iter().any(|rule| rule.is(&message)));
    }
}
