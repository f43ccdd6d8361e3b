//! Start, end, and what is left behind.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    agents::{A, Agent, B, reach, reach_all, two_files, two_hosts},
    faults::traces,
    lab::{Keys, until},
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("sigterm_ends_it_and_leaves_nothing", sigterm_ends_it_and_leaves_nothing),
    ("a_start_after_kill_9_repairs_what_was_left", a_start_after_kill_9_repairs_what_was_left),
    ("sighup_takes_in_another_peer_and_keeps_sessions", sighup_takes_in_another_peer_and_keeps_sessions),
    ("everyone_may_look_and_only_root_may_change", everyone_may_look_and_only_root_may_change),
    ("systemd_is_told_when_it_is_ready", systemd_is_told_when_it_is_ready),
];

fn sigterm_ends_it_and_leaves_nothing() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let before = traces(&a)?;
    let _agent_b = Agent::start(&b, &file_b)?;
    for word in ["TERM", "INT"] {
        let mut agent = Agent::start(&a, &file_a)?;
        reach(&a, B[0])?;
        ensure!(traces(&a)? != before);
        agent.process.signal(word)?;
        let status = agent.process.wait(Duration::from_secs(2))?;
        ensure!(status.success(), "{status}");
        ensure!(!agent.socket.exists());
        ensure!(traces(&a)? == before, "{}", traces(&a)?);
    }
    Ok(())
}

fn a_start_after_kill_9_repairs_what_was_left() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let before = traces(&a)?;
    let _agent_b = Agent::start(&b, &file_b)?;
    let mut agent = Agent::start(&a, &file_a)?;
    reach(&a, B[0])?;
    agent.process.signal("KILL")?;
    agent.process.wait(Duration::from_secs(2))?;
    ensure!(agent.socket.exists() && a.run(&["ip", "rule"])?.contains("lookup 52"));
    // More than any process of ours leaves, as an older one might have.
    a.run(&["ip", "rule", "add", "pref", "5270", "table", "52", "suppress_prefixlength", "0"])?;
    a.run(&["ip", "rule", "del", "pref", "5270", "table", "52", "suppress_prefixlength", "0"])?;
    a.run(&["ip", "route", "add", "unreachable", "10.99.0.0/16", "table", "52"])?;
    a.run(&["ip", "-6", "route", "add", "unreachable", "fd99::/16", "table", "52"])?;

    let agent = Agent::start(&a, &file_a)?;
    reach_all(&a, B[0], 5)?;
    reach_all(&b, A[1], 5)?;
    let rules = a.run(&["ip", "rule"])?;
    ensure!(rules.matches("lookup 52").count() == 1, "{rules}");
    for family in ["-4", "-6"] {
        let routes = a.run(&["ip", family, "route", "show", "table", "52"])?;
        ensure!(!routes.contains("unreachable") && routes.lines().count() == 1, "{routes}");
    }
    agent.stop()?;
    ensure!(traces(&a)? == before, "{}", traces(&a)?);
    Ok(())
}

fn sighup_takes_in_another_peer_and_keeps_sessions() -> Result<()> {
    let (_lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let (agent_a, _agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    reach(&a, B[0])?;
    let handshake = agent_a.only_peer()?["LastHandshake"].clone();
    let more = file_a.peer(&Keys::new()?, &["AllowedIPs = 10.7.0.3/32"]);
    fs::write(&agent_a.file, more.text())?;
    agent_a.process.signal("HUP")?;
    let two = || Ok((agent_a.status()?["Peer"].as_object().context("no Peer")?.len() == 2).then_some(()));
    until("a second peer", Duration::from_secs(5), two)?;
    ensure!(a.run(&["ip", "route", "show", "table", "52"])?.contains("10.7.0.3"));
    reach_all(&a, B[0], 5)?;
    let status = agent_a.status()?;
    let kept = status["Peer"].as_object().context("no Peer")?.values().any(|p| p["LastHandshake"] == handshake);
    ensure!(kept, "{status}");

    // A file that is wrong changes nothing.
    fs::write(&agent_a.file, "[Interface]\nPrivateKey = x\n")?;
    agent_a.process.signal("HUP")?;
    until("a warning", Duration::from_secs(5), || Ok(agent_a.process.output().contains("line 2").then_some(())))?;
    reach_all(&a, B[0], 5)
}

fn everyone_may_look_and_only_root_may_change() -> Result<()> {
    let (lab, a, b) = two_hosts()?;
    let (file_a, file_b) = two_files("192.0.2.2:51820", &[])?;
    let (agent, _agent_b) = (Agent::start(&a, &file_a)?, Agent::start(&b, &file_b)?);
    reach(&a, B[0])?;
    // The built program may lie where others cannot go.
    let program = lab.directory().join("mesh");
    fs::copy(super::lab::built("mesh")?, &program)?;
    let as_nobody = |words: &[&str]| {
        let (program, socket) = (program.to_string_lossy(), agent.socket.to_string_lossy());
        let mut line = vec!["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
        line.extend([&*program, "--socket", &*socket]);
        line.extend(words);
        a.try_run(&line)
    };
    for words in [["status"].as_slice(), &["ping", "-c", "1", B[0]], &["debug", "metrics"]] {
        let output = as_nobody(words)?;
        ensure!(output.status.success(), "{words:?}: {}", super::lab::text(&output));
    }
    let refused = as_nobody(&["--json", "debug", "reload"])?;
    ensure!(refused.status.code() == Some(4), "{refused:?}");
    ensure!(String::from_utf8_lossy(&refused.stdout).contains("\"code\":\"not-permitted\""), "{refused:?}");
    agent.mesh(&["debug", "reload"]).map(drop)
}

fn systemd_is_told_when_it_is_ready() -> Result<()> {
    let (lab, a, _) = two_hosts()?;
    let (file, _) = two_files("192.0.2.2:51820", &[])?;
    let path = lab.directory().join("notify.sock");
    let socket = std::os::unix::net::UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let static_file = a.path("static.conf");
    fs::write(&static_file, file.text())?;
    let program = super::lab::built("meshd")?;
    let variable = format!("NOTIFY_SOCKET={}", path.display());
    let api = a.path("meshd.sock");
    let words = [&program, &static_file, &api].map(|path| path.to_string_lossy().into_owned());
    let process = a.spawn(&["env", &variable, &words[0], "--static", &words[1], "--socket", &words[2]])?;
    let hear = |expected: &str| -> Result<()> {
        let mut buffer = [0; 100];
        let length = socket.recv(&mut buffer)?;
        ensure!(&buffer[..length] == expected.as_bytes());
        Ok(())
    };
    hear("READY=1")?;
    process.signal("TERM")?;
    hear("STOPPING=1")
}
