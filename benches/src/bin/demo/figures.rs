//! What was measured, and the table of it.

use serde_json::{Map, Value};

/// What was measured in one telling of the story. What could not be is `None`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Figures {
    /// Agents that joined.
    pub(crate) joined: usize,
    /// How long `mesh up` took, the longest.
    pub(crate) up_ms: Option<f64>,
    /// Which way the answer to the first ping came.
    pub(crate) first_ping_via: &'static str,
    /// Round trip of the first ping: on the kernel one that the agents answer, in the simulator a message through the
    /// tunnel, for which they have to shake hands first.
    pub(crate) first_ping_ms: f64,
    /// From the moment that the relay has taken in both agents until both send directly.
    pub(crate) direct_ms: Option<f64>,
    /// What made the direct path possible.
    pub(crate) technique: Option<&'static str>,
    pub(crate) tcp_mbit: Option<f64>,
    /// From the start of `mesh-control policy set` until the last answer.
    pub(crate) deny_ms: Option<f64>,
    /// The same until the first answer.
    pub(crate) allow_ms: Option<f64>,
}

impl Figures {
    fn measured(&self) -> [(&'static str, Option<f64>); 6] {
        [
            ("up_ms", self.up_ms),
            ("first_ping_ms", Some(self.first_ping_ms)),
            ("direct_ms", self.direct_ms),
            ("tcp_mbit", self.tcp_mbit),
            ("deny_ms", self.deny_ms),
            ("allow_ms", self.allow_ms),
        ]
    }

    /// The fields that were measured.
    pub(crate) fn json(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("joined".into(), self.joined.into());
        fields.insert("first_ping_via".into(), self.first_ping_via.into());
        if let Some(technique) = self.technique {
            fields.insert("technique".into(), technique.into());
        }
        let measured = self.measured().into_iter();
        fields.extend(measured.filter_map(|(name, figure)| Some((name.to_owned(), rounded(figure?)))));
        fields
    }

    fn cells(&self) -> [String; ROWS.len()] {
        let millis = |figure: Option<f64>| figure.map_or_else(|| "-".to_owned(), millis);
        [
            self.joined.to_string(),
            millis(self.up_ms),
            format!("{}, {}", self.first_ping_via, millis(Some(self.first_ping_ms))),
            millis(self.direct_ms),
            self.technique.unwrap_or("-").to_owned(),
            self.tcp_mbit.map_or_else(|| "-".to_owned(), |mbit| format!("{mbit:.0} Mbit/s")),
            millis(self.deny_ms),
            millis(self.allow_ms),
        ]
    }
}

const ROWS: [&str; 8] = [
    "agents that joined",
    "mesh up took",
    "first ping",
    "direct, after the relay's links",
    "made possible by",
    "TCP through both agents",
    "policy denies: last answer after",
    "policy allows: first answer after",
];

/// The last line: the kernel's figures, or where there are none the simulator's.
pub(crate) fn summary(kernel: Option<&Figures>, simulated: &Figures) -> Value {
    let mut fields = kernel.unwrap_or(simulated).json();
    fields.insert("mode".into(), if kernel.is_some() { "kernel" } else { "simulator" }.into());
    if kernel.is_some() {
        fields.insert("simulated".into(), simulated.json().into());
    }
    Value::Object(fields)
}

/// Both tellings side by side, a line for each figure.
pub(crate) fn table(kernel: Option<&Figures>, simulated: &Figures) -> Vec<String> {
    let sides: Vec<_> =
        kernel.map(|figures| ("kernel", figures)).into_iter().chain([("simulator", simulated)]).collect();
    let line = |title: &str, cells: Vec<&str>| {
        let cells: String = cells.into_iter().map(|cell| format!("| {cell:<16}")).collect();
        format!("{title:<34}{cells}").trim_end().to_owned()
    };
    let columns: Vec<_> = sides.iter().map(|(_, figures)| figures.cells()).collect();
    let title = line("", sides.iter().map(|(title, _)| *title).collect());
    let rows = ROWS.iter().enumerate();
    let rows = rows.map(|(row, title)| line(title, columns.iter().map(|cells| cells[row].as_str()).collect()));
    [title].into_iter().chain(rows).collect()
}

fn millis(millis: f64) -> String {
    if millis < 10.0 { format!("{millis:.1} ms") } else { format!("{millis:.0} ms") }
}

/// To microseconds, which is what was measured.
fn rounded(figure: f64) -> Value {
    ((figure * 1e3).round() / 1e3).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn figures(direct_ms: Option<f64>) -> Figures {
        Figures {
            joined: 2,
            first_ping_via: "relay",
            first_ping_ms: 0.912_345_6,
            direct_ms,
            technique: direct_ms.map(|_| "punch"),
            ..Figures::default()
        }
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let expected = json!({"joined": 2, "first_ping_via": "relay", "first_ping_ms": 0.912, "mode": "simulator"});
        assert_eq!(summary(None, &figures(None)), expected);
        let both = summary(Some(&figures(Some(14.0))), &figures(None));
        assert_eq!(
            (&both["mode"], &both["direct_ms"], &both["technique"]),
            (&json!("kernel"), &json!(14.0), &json!("punch"))
        );
        assert!(both["simulated"].get("direct_ms").is_none());
    }

    #[test]
    fn the_table_has_a_line_for_every_figure_and_sides_in_line() {
        let lines = table(Some(&figures(Some(3.0))), &figures(None));
        assert_eq!(lines.len(), ROWS.len() + 1);
        let bars = |line: &String| line.match_indices('|').map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(lines.iter().map(bars).collect::<Vec<_>>(), vec![bars(&lines[0]); lines.len()]);
        assert_eq!(bars(&table(None, &figures(None))[0]).len(), 1);
    }
}
