//! For build servers: JUnit XML. A suite is a scenario, a case is an expectation over all seeds; the invariants
//! that always hold are a case of their own.

use crate::scenario::Scenario;

use super::{RunReport, terminal::replay};

/// A whole document; each scenario with the file that it came from and its runs.
#[must_use]
pub fn document(scenarios: &[(String, Scenario, Vec<RunReport>)]) -> String {
    let mut suites = String::new();
    let (mut tests, mut failures) = (0, 0);
    for (file, scenario, runs) in scenarios {
        let cases = cases(file, scenario, runs);
        let failed = cases.iter().filter(|case| case.failed).count();
        tests += cases.len();
        failures += failed;
        suites.push_str(&format!(
            "  <testsuite name=\"{}\" tests=\"{}\" failures=\"{failed}\" errors=\"0\">\n",
            escaped(&scenario.name),
            cases.len()
        ));
        for case in cases {
            suites.push_str(&case.xml);
        }
        suites.push_str("  </testsuite>\n");
    }
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
         <testsuites name=\"mesh-sim\" tests=\"{tests}\" failures=\"{failures}\" errors=\"0\">\n{suites}</testsuites>\n"
    )
}

struct Case {
    failed: bool,
    xml: String,
}

fn cases(file: &str, scenario: &Scenario, runs: &[RunReport]) -> Vec<Case> {
    let names = scenario.names();
    let mut cases = Vec::new();
    // What failed in a run and is no complaint of an expectation is an invariant or the simulator's own.
    let own = |run: &RunReport| {
        let expected = run.complaints.iter().zip(&scenario.expects);
        let expected = expected.filter(|(complaint, spec)| complaint.is_some() && spec.is_for_every_seed()).count();
        let own = run.failed.len() - expected;
        (own > 0).then(|| run.failed[..own].join("; "))
    };
    let wrong: Vec<_> = runs.iter().filter_map(|run| Some((run, own(run)?))).collect();
    cases.push(case(file, scenario, "invariants that always hold", None, &wrong, !wrong.is_empty(), runs));
    for (index, spec) in scenario.expects.iter().enumerate() {
        let wrong: Vec<_> = runs.iter().filter_map(|run| Some((run, run.complaints[index].clone()?))).collect();
        let held = (runs.len() - wrong.len()) as u64;
        let failed = !spec.min_rate.reached_by(held, runs.len() as u64);
        cases.push(case(file, scenario, &spec.expectation.text(&names), spec.line, &wrong, failed, runs));
    }
    cases
}

fn case(
    file: &str,
    scenario: &Scenario,
    name: &str,
    line: Option<usize>,
    wrong: &[(&RunReport, String)],
    failed: bool,
    runs: &[RunReport],
) -> Case {
    let place = line.map_or(String::new(), |line| format!(" line=\"{line}\""));
    let mut xml = format!(
        "    <testcase name=\"{}\" classname=\"{}\" file=\"{}\"{place}>\n",
        escaped(name),
        escaped(&scenario.name),
        escaped(file)
    );
    if let Some(run) = wrong.first().map(|(run, _)| *run).or(runs.first()) {
        let properties = [
            ("seed", run.seed.to_string()),
            ("digest", format!("{:032x}", run.digest)),
            ("replay", replay(file, run.seed)),
        ];
        xml.push_str("      <properties>\n");
        for (name, value) in properties {
            xml.push_str(&format!("        <property name=\"{name}\" value=\"{}\"/>\n", escaped(&value)));
        }
        xml.push_str("      </properties>\n");
    }
    if let Some((run, complaint)) = wrong.first().filter(|_| failed) {
        let message = format!("{} of {} seeds, first seed {}: {complaint}", wrong.len(), runs.len(), run.seed);
        let text = format!("{}\n{}", run.failed.join("\n"), run.last.join("\n"));
        xml.push_str(&format!("      <failure message=\"{}\">{}</failure>\n", escaped(&message), escaped(&text)));
    }
    xml.push_str("    </testcase>\n");
    Case { failed, xml }
}

fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            // XML 1.0 has no way to write other control characters.
            c if c.is_control() && !matches!(c, '\n' | '\t' | '\r') => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_can_end_it() {
        assert_eq!(escaped("a<b & \"c\"\u{1}"), "a&lt;b &amp; &quot;c&quot;\u{fffd}");
    }

    #[test]
    fn a_document_without_scenarios_is_empty_and_valid() {
        let document = document(&[]);
        assert!(document.starts_with("<?xml") && document.contains("tests=\"0\""));
    }
}
