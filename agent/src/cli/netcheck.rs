//! `mesh netcheck`.

use transports::program::{Exit, Failure};

use super::{print, print_object};
use crate::local_api::{client::Client, types::NetcheckReport};

/// How to show the report.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Text, or an object on several lines or on one
    #[arg(long, value_enum, default_value_t = Format::Text, value_name = "FORMAT")]
    format: Format,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
    JsonLine,
}

pub(super) async fn run(client: &Client, json: bool, arguments: &Arguments) -> Result<(), Failure> {
    let report: NetcheckReport = client.post("netcheck").await?;
    let bug = |error| Failure::new(Exit::Bug, "json", error);
    match arguments.format {
        Format::Text if json => print_object(serde_json::to_string_pretty(&report).map_err(bug)?),
        Format::Json => print_object(serde_json::to_string_pretty(&report).map_err(bug)?),
        Format::JsonLine => print_object(serde_json::to_string(&report).map_err(bug)?),
        Format::Text => lines(&report).iter().for_each(print),
    }
    Ok(())
}

/// The lines of the stock client, as far as it is known what they say.
fn lines(report: &NetcheckReport) -> Vec<String> {
    let yes = |is: bool, address: &str| match (is, address) {
        (true, "") => "yes".to_owned(),
        (true, address) => format!("yes, {address}"),
        (false, _) => "no".to_owned(),
    };
    let name = |region: u16| report.region_codes.get(&region).cloned().unwrap_or_else(|| region.to_string());
    let mapping = report.mapping_varies_by_dest_ip.map_or("unknown".to_owned(), |varies| varies.to_string());
    let mut lines = vec![
        "Report:".to_owned(),
        format!("\t* UDP: {}", report.udp),
        format!("\t* IPv4: {}", yes(report.ipv4, &report.global_v4)),
        format!("\t* IPv6: {}", yes(report.ipv6, &report.global_v6)),
        format!("\t* MappingVariesByDestIP: {mapping}"),
    ];
    if report.region_latency.is_empty() {
        lines.push("\t* Nearest DERP: unknown (no response to latency probes)".to_owned());
        return lines;
    }
    lines.push(format!("\t* Nearest DERP: {}", name(report.preferred_derp)));
    lines.push("\t* DERP latency:".to_owned());
    let mut regions: Vec<_> = report.region_latency.iter().map(|(region, nanos)| (*nanos, *region)).collect();
    regions.sort_unstable();
    for (nanos, region) in regions {
        let micros = nanos / 1_000;
        lines.push(format!("\t\t- {}: {}.{}ms", name(region), micros / 1_000, micros % 1_000 / 100));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_comes_first_and_what_is_unknown_is_said() {
        let mut report = NetcheckReport {
            udp: true,
            ipv4: true,
            ipv6: false,
            ipv4_can_send: true,
            ipv6_can_send: false,
            os_has_ipv6: true,
            mapping_varies_by_dest_ip: None,
            global_v4: "192.0.2.1:5".into(),
            global_v6: String::new(),
            preferred_derp: 2,
            region_latency: [(1, 20_000_000), (2, 1_250_000)].into(),
            region_v4_latency: [(1, 20_000_000), (2, 1_250_000)].into(),
            region_v6_latency: [].into(),
            region_codes: [(2, "near".to_owned())].into(),
        };
        let text = lines(&report).join("\n").replace(['\t'], " ");
        assert_eq!(
            text,
            "Report:\n * UDP: true\n * IPv4: yes, 192.0.2.1:5\n * IPv6: no\n * MappingVariesByDestIP: unknown\n \
             * Nearest DERP: near\n * DERP latency:\n  - near: 1.2ms\n  - 1: 20.0ms"
        );
        report.region_latency.clear();
        assert!(lines(&report).last().is_some_and(|line| line.contains("no response")));
    }
}
