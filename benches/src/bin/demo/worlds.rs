//! The three worlds, what was measured in each, and the table of it.

use serde_json::{Map, Value};

/// A world: what the two homes' routers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum World {
    /// Both homes are behind plain masquerade.
    EasyEasy,
    /// Bob's router shows every remote another port.
    EasyHard,
    /// Nothing but TCP leaves alice's home.
    UdpBlocked,
}

impl World {
    pub(crate) const ALL: [Self; 3] = [Self::EasyEasy, Self::EasyHard, Self::UdpBlocked];

    /// The name of the agent's test and of the scenario that tell the same.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::EasyEasy => "easy-easy",
            Self::EasyHard => "easy-hard",
            Self::UdpBlocked => "udp-blocked",
        }
    }

    /// The way that packets go in the end.
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Self::EasyEasy => "direct",
            Self::EasyHard | Self::UdpBlocked => "relay",
        }
    }
}

/// What was measured in a world. What could not be is `None`.
#[derive(Clone, Debug)]
pub(crate) struct Figures {
    pub(crate) world: World,
    /// Which way the answer to the first ping came.
    pub(crate) first_ping_via: &'static str,
    /// Round trip of the first ping: on the kernel one that the agents answer, in the simulator a message through the
    /// tunnel, for which they have to shake hands first.
    pub(crate) first_ping_ms: f64,
    /// From the moment that the relay has taken in both agents until both send directly.
    pub(crate) direct_ms: Option<f64>,
    /// What made the direct path possible.
    pub(crate) technique: Option<&'static str>,
    /// The way that packets go in the end.
    pub(crate) path: &'static str,
    pub(crate) tcp_mbit: Option<f64>,
}

impl Figures {
    /// The fields that were measured.
    pub(crate) fn json(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("first_ping_via".into(), self.first_ping_via.into());
        fields.insert("first_ping_ms".into(), rounded(self.first_ping_ms));
        let measured = [
            ("direct_ms", self.direct_ms.map(rounded)),
            ("technique", self.technique.map(Value::from)),
            ("tcp_mbit", self.tcp_mbit.map(rounded)),
        ];
        fields.extend(measured.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
        fields
    }

    /// The same with the world's name and the way in the end, for a list.
    pub(crate) fn entry(&self) -> Value {
        let mut fields = self.json();
        fields.insert("name".into(), self.world.name().into());
        fields.insert("path".into(), self.path.into());
        Value::Object(fields)
    }

    fn cells(&self) -> [String; 5] {
        let absent = || "-".to_owned();
        [
            format!("{} {}", self.first_ping_via, millis(self.first_ping_ms)),
            self.direct_ms.map_or_else(absent, millis),
            self.technique.map_or_else(absent, str::to_owned),
            self.path.to_owned(),
            self.tcp_mbit.map_or_else(absent, |mbit| format!("{mbit:.0} Mbit/s")),
        ]
    }
}

/// The last line: the first world's figures, and those of all. Where the kernel has none, the simulator's.
pub(crate) fn summary(kernel: &[Figures], simulated: &[Figures]) -> Value {
    let (mode, worlds) = if kernel.is_empty() { ("simulator", simulated) } else { ("kernel", kernel) };
    let mut fields = worlds.first().map(Figures::json).unwrap_or_default();
    fields.insert("mode".into(), mode.into());
    fields.insert("worlds".into(), worlds.iter().map(Figures::entry).collect());
    if mode == "kernel" {
        fields.insert("simulated".into(), simulated.iter().map(Figures::entry).collect());
    }
    Value::Object(fields)
}

/// The worlds side by side, a line each; `kernel` may be empty.
pub(crate) fn table(kernel: &[Figures], simulated: &[Figures]) -> Vec<String> {
    const COLUMNS: [(&str, usize); 5] =
        [("first ping", 15), ("direct", 9), ("technique", 10), ("path", 7), ("tcp", 11)];
    // The simulator moves no TCP.
    let columns = |is_kernel: bool| if is_kernel { &COLUMNS[..] } else { &COLUMNS[..4] };
    let row = |cells: &[String], is_kernel: bool| {
        let pairs = cells.iter().zip(columns(is_kernel));
        pairs.map(|(cell, (_, width))| format!("{cell:<width$} ")).collect::<String>()
    };
    let width = |is_kernel: bool| columns(is_kernel).iter().map(|(_, width)| width + 1).sum::<usize>();
    let titles: Vec<_> = COLUMNS.iter().map(|(title, _)| (*title).to_owned()).collect();
    let sides = [("kernel", kernel, true), ("simulator", simulated, false)];
    let sides: Vec<_> = sides.into_iter().filter(|(_, figures, _)| !figures.is_empty()).collect();
    let mut lines = vec![String::new(), String::new()];
    for (title, _, is_kernel) in &sides {
        lines[0] += &format!("{title:<width$}| ", width = width(*is_kernel));
        lines[1] += &format!("{}| ", row(&titles, *is_kernel));
    }
    for world in World::ALL {
        let mut line = String::new();
        for (_, figures, is_kernel) in &sides {
            let cells = figures.iter().find(|figures| figures.world == world).map(Figures::cells);
            line += &format!("{}| ", row(&cells.unwrap_or_default(), *is_kernel));
        }
        lines.push(line);
    }
    let names = ["", "world"].into_iter().chain(World::ALL.map(World::name));
    let named = names.zip(lines).map(|(name, line)| format!("{name:<12}| {line}"));
    named.map(|line| line.trim_end_matches([' ', '|']).to_owned()).collect()
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

    fn figures(world: World, direct_ms: Option<f64>) -> Figures {
        Figures {
            world,
            first_ping_via: "relay",
            first_ping_ms: 0.912_345_6,
            direct_ms,
            technique: direct_ms.map(|_| "punch"),
            path: world.path(),
            tcp_mbit: None,
        }
    }

    #[test]
    fn what_was_not_measured_is_left_out() {
        let worlds = [figures(World::EasyEasy, Some(14.0)), figures(World::EasyHard, None)];
        let mut expected = json!({
            "first_ping_via": "relay", "first_ping_ms": 0.912, "direct_ms": 14.0, "technique": "punch",
            "mode": "simulator",
            "worlds": [
                {"name": "easy-easy", "first_ping_via": "relay", "first_ping_ms": 0.912, "direct_ms": 14.0,
                    "technique": "punch", "path": "direct"},
                {"name": "easy-hard", "first_ping_via": "relay", "first_ping_ms": 0.912, "path": "relay"},
            ],
        });
        assert_eq!(summary(&[], &worlds), expected);
        expected["mode"] = "kernel".into();
        expected["simulated"] = json!([expected["worlds"][1]]);
        assert_eq!(summary(&worlds, &worlds[1..]), expected);
    }

    #[test]
    fn the_table_has_a_line_for_every_world_and_sides_in_line() {
        let all = World::ALL.map(|world| figures(world, Some(3.0)));
        let lines = table(&all, &all);
        assert_eq!(lines.len(), 5);
        let bars = |line: &String| line.match_indices('|').map(|(at, _)| at).collect::<Vec<_>>();
        assert_eq!(lines.iter().map(bars).collect::<Vec<_>>(), vec![bars(&lines[0]); 5]);
        assert_eq!(bars(&table(&[], &all)[0]).len(), 1);
    }
}
