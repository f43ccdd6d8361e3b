//! Bad input: one sentence, the right exit code, nothing left behind.

use std::{fs, time::Duration};

use anyhow::{Result, ensure};

use super::{
    agents::{Agent, StaticFile, mesh, two_files, two_hosts},
    lab::{Keys, Lab, Node, built, text},
};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("a_bad_static_file_is_refused_with_its_line", a_bad_static_file_is_refused_with_its_line),
    ("a_port_in_use_is_refused", a_port_in_use_is_refused),
    ("an_interface_name_that_is_taken_is_refused", an_interface_name_that_is_taken_is_refused),
    ("without_permission_for_a_tun_it_says_so", without_permission_for_a_tun_it_says_so),
    ("a_second_meshd_on_one_socket_is_refused", a_second_meshd_on_one_socket_is_refused),
    ("a_word_that_is_no_verb_is_refused", a_word_that_is_no_verb_is_refused),
    ("a_mesh_without_meshd_says_so", a_mesh_without_meshd_says_so),
    ("a_ping_without_answer_is_a_no", a_ping_without_answer_is_a_no),
];

/// Waits for a start to fail: with this code, one line on stderr that has `sentence` in it, and nothing left.
fn refused(mut agent: Agent, before: &str, code: i32, sentence: &str) -> Result<()> {
    let status = agent.process.wait(Duration::from_secs(5))?;
    let output = agent.process.output();
    ensure!(status.code() == Some(code), "{status}, not {code}: {output}");
    let last = output.lines().last().unwrap_or_default();
    ensure!(last.starts_with("meshd: ") && last.contains(sentence), "{output}");
    ensure!(!output.lines().any(|line| line.starts_with("ready ")), "{output}");
    ensure!(host_state(&agent.node)? == before);
    Ok(())
}

fn host_state(node: &Node) -> Result<String> {
    Ok(node.run(&["ls", "/sys/class/net"])? + &node.run(&["ip", "rule"])? + &node.run(&["ip", "-6", "rule"])?)
}

fn a_bad_static_file_is_refused_with_its_line() -> Result<()> {
    let mut lab = Lab::new()?;
    let a = lab.node("a")?;
    let before = host_state(&a)?;
    let keys = Keys::new()?;
    for (lines, sentence) in [
        (vec!["DNS = 1.1.1.1"], "line 3: DNS is not supported"),
        (vec!["PostUp = reboot"], "line 3: PostUp is not supported"),
        (vec!["Adress = 10.0.0.1/32"], "line 3: unknown key Adress in [Interface]; did you mean Address?"),
        (vec!["Address = 10.0.0.1/32", "[Peer]", "PublicKey = abc"], "line 5: PublicKey is not a key"),
    ] {
        let agent = Agent::launch(&a, &StaticFile::new(&keys, &lines), &[])?;
        refused(agent, &before, 2, sentence)?;
    }
    let agent = Agent::launch(&a, &StaticFile::new(&keys, &[]), &["--prot", "5"])?;
    refused(agent, &before, 2, "--prot")?;
    let peer = ["Endpoint = no-such-host.invalid:1"];
    let agent = Agent::launch(&a, &StaticFile::new(&keys, &[]).peer(&Keys::new()?, &peer), &[])?;
    refused(agent, &before, 1, "line 5: cannot find the address of no-such-host.invalid")
}

fn a_port_in_use_is_refused() -> Result<()> {
    let (_lab, a, _b) = two_hosts()?;
    let (file, _) = two_files("192.0.2.2:51820", &[])?;
    let before = host_state(&a)?;
    let program = "import socket,time; s=socket.socket(socket.AF_INET,socket.SOCK_DGRAM); s.bind(('0.0.0.0',51820)); \
                   print('bound',flush=True); time.sleep(60)";
    let other = match super::lab::find("python3") {
        Some(_) => a.spawn(&["python3", "-c", program])?,
        None => a.spawn(&["sh", "-c", "echo bound; exec nc -u -l -p 51820"])?,
    };
    other.wait_for("bound", Duration::from_secs(10))?;
    refused(Agent::launch(&a, &file, &[])?, &before, 1, "UDP port 51820 is in use by another program")
}

fn an_interface_name_that_is_taken_is_refused() -> Result<()> {
    let (_lab, a, _b) = two_hosts()?;
    let (file, _) = two_files("192.0.2.2:51820", &[])?;
    a.run(&["ip", "tuntap", "add", "mesh0", "mode", "tun"])?;
    let before = host_state(&a)?;
    refused(Agent::launch(&a, &file, &[])?, &before, 1, "an interface named mesh0 exists already")?;
    refused(Agent::launch(&a, &file, &["--tun", "eth0"])?, &before, 1, "an interface named eth0 exists already")?;
    refused(Agent::launch(&a, &file, &["--tun", "a/b"])?, &before, 2, "\"a/b\" is no interface name")
}

fn without_permission_for_a_tun_it_says_so() -> Result<()> {
    let (lab, a, _b) = two_hosts()?;
    let (file, _) = two_files("192.0.2.2:51820", &[])?;
    let before = host_state(&a)?;
    let program = lab.directory().join("meshd");
    fs::copy(built("meshd")?, &program)?;
    let path = a.path("static.conf");
    fs::write(&path, file.text())?;
    let socket = a.path("meshd.sock");
    let [program, path, socket_text] = [&program, &path, &socket].map(|path| path.to_string_lossy().into_owned());
    let nobody = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let line = [nobody.as_slice(), &[&program, "--static", &path, "--socket", &socket_text]].concat();
    let process = a.spawn(&line)?;
    let agent = Agent { node: a, process, file: path.into(), socket: socket.clone() };
    refused(agent, &before, 4, "not permitted to create the TUN device mesh0")?;
    ensure!(!socket.exists());
    Ok(())
}

fn a_second_meshd_on_one_socket_is_refused() -> Result<()> {
    let (_lab, a, _b) = two_hosts()?;
    let (file, _) = two_files("192.0.2.2:51820", &[])?;
    let first = Agent::start(&a, &file)?;
    let during = host_state(&a)?;
    let second = Agent::launch(&a, &file, &["--tun", "mesh1", "--port", "5"])?;
    refused(second, &during, 1, "another meshd listens on")?;
    ensure!(first.status()?["BackendState"] == "Running");
    Ok(())
}

fn a_word_that_is_no_verb_is_refused() -> Result<()> {
    let mut lab = Lab::new()?;
    let a = lab.node("a")?;
    let socket = a.path("meshd.sock");
    let output = mesh(&a, &socket, &["--json", "frobnicate"])?;
    ensure!(output.status.code() == Some(2) && text(&output).contains("\"code\":\"usage\""), "{output:?}");
    ensure!(mesh(&a, &socket, &["--version"])?.status.success());
    ensure!(mesh(&a, &socket, &["completion", "bash"])?.status.success());
    ensure!(mesh(&a, &socket, &["ping", "--help"])?.status.success());
    Ok(())
}

fn a_mesh_without_meshd_says_so() -> Result<()> {
    let mut lab = Lab::new()?;
    let a = lab.node("a")?;
    let output = mesh(&a, &a.path("meshd.sock"), &["--json", "status"])?;
    ensure!(output.status.code() == Some(3) && text(&output).contains("\"code\":\"not-running\""), "{output:?}");
    Ok(())
}

fn a_ping_without_answer_is_a_no() -> Result<()> {
    let (_lab, a, _b) = two_hosts()?;
    let (file, _) = two_files("192.0.2.2:51820", &[])?;
    let agent = Agent::start(&a, &file)?;
    let output = agent.try_mesh(&["ping", "-c", "1", "--timeout", "300ms", "10.7.0.2"])?;
    ensure!(output.status.code() == Some(1) && text(&output).contains("timed out"), "{output:?}");
    let output = agent.try_mesh(&["ping", "-c", "1", "10.8.0.1"])?;
    ensure!(output.status.code() == Some(1) && text(&output).contains("no peer has the address"), "{output:?}");
    Ok(())
}
