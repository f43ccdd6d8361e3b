//! `mesh whois`.

use transports::program::{Exit, Failure};

use super::{print, print_object};
use crate::local_api::{
    client::Client,
    joining::{Whois, overlay_address},
};

pub(super) async fn run(client: &Client, json: bool, address: &str) -> Result<(), Failure> {
    let whois: Whois = client.get(&format!("whois?addr={}", overlay_address(address)?)).await?;
    if json {
        let text = serde_json::to_string_pretty(&whois);
        print_object(text.map_err(|error| Failure::new(Exit::Bug, "json", error))?);
    } else {
        lines(&whois).iter().for_each(print);
    }
    Ok(())
}

/// The lines of the stock client.
fn lines(whois: &Whois) -> Vec<String> {
    let (node, user) = (&whois.node, &whois.user_profile);
    let addresses: Vec<_> = node.addresses.iter().map(ToString::to_string).collect();
    let mut lines = vec![
        "Machine:".to_owned(),
        format!("  Name:          {}", node.name.trim_end_matches('.')),
        format!("  ID:            {}", node.stable_id),
        format!("  Addresses:     [{}]", addresses.join(" ")),
    ];
    if node.tags.is_empty() {
        let (name, id) = (&user.login_name, user.id.0);
        lines.extend(["User:".to_owned(), format!("  Name:     {name}"), format!("  ID:       {id}")]);
    } else {
        lines.push(format!("  Tags:          {}", node.tags.join(", ")));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_and_tags_own_nodes() {
        let mut whois: Whois = serde_json::from_str(
            r#"{"Node":{"ID":1,"StableID":"n1","Name":"b.tail.lab.","User":7,"Addresses":["100.64.0.1/32"]},
                "UserProfile":{"ID":7,"LoginName":"lab","DisplayName":"lab"}}"#,
        )
        .unwrap();
        let expected = [
            "Machine:",
            "  Name:          b.tail.lab",
            "  ID:            n1",
            "  Addresses:     [100.64.0.1/32]",
            "User:",
            "  Name:     lab",
            "  ID:       7",
        ];
        assert_eq!(lines(&whois), expected);
        whois.node.tags = vec!["tag:a".to_owned(), "tag:b".to_owned()];
        assert_eq!(lines(&whois).last().map(String::as_str), Some("  Tags:          tag:a, tag:b"));
    }
}
