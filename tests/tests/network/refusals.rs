//! Bad input gets one clear sentence and exit status 1 or 2, and nothing changes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use lb_tests::balancer;
use lb_tests::topology::Topology;

use crate::support::{Family, json, pass_object, service, start, xdp_program};

/// Runs `lb` to its end.
fn output(mut command: Command) -> Result<Output> {
    command.stdin(Stdio::null()).output().context("cannot start lb")
}

/// That an ended `lb` refused with that status and one line, which has these words.
fn assert_refused(what: &str, output: &Output, status: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{what}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{what}: {stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{what}");
    for word in words {
        assert!(stderr.contains(word), "{what}: no '{word}' in: {stderr}");
    }
}

fn words(text: &str) -> Vec<&str> {
    text.split_whitespace().collect()
}

#[test]
fn commands_that_make_no_sense_are_refused_and_change_nothing() -> Result<()> {
    let topology = Topology::two_arm(2)?;
    let family = Family::V4;
    let backends = topology.servers.iter().map(|server| family.at(server, 80));
    let _balancer = start(&topology, &service(family.service(80), "tcp", backends))?;
    let program = xdp_program(&topology.balancer, "eth0")?;
    let before = json(&topology, &["status"])?;
    for (command, status, says) in [
        // (command, exit status, words in the sentence)
        ("frobnicate", 2, &["frobnicate"][..]),
        ("", 2, &["command"]),
        ("status --colour", 2, &["--colour"]),
        ("service", 2, &["lb"]),
        ("service add 10.10.10.300:80", 2, &["10.10.10.300"]),
        ("service add example.com:80", 2, &["example.com"]),
        ("service add 10.10.10.1", 2, &["10.10.10.1", "port"]),
        ("service add 10.10.10.1:0", 2, &["port 0"]),
        ("service add 10.10.10.1:65536", 2, &["65536"]),
        ("service add 10.10.10.1:81/sctp", 2, &["sctp"]),
        ("service add 10.10.10.1:81 --scheduler fastest", 2, &["fastest"]),
        ("service add 10.10.10.1:80", 1, &["10.10.10.1:80/tcp"]),
        ("service add 10.10.10.1:80/tcp", 1, &["10.10.10.1:80/tcp"]),
        ("service rm 10.10.10.1:81", 1, &["10.10.10.1:81/tcp", "no service"]),
        ("service rm 10.10.10.1:80/udp", 1, &["10.10.10.1:80/udp", "no service"]),
        ("backend add 10.10.10.1:80 192.168.1.1:80", 1, &["192.168.1.1:80"]),
        ("backend add 10.10.10.1:80 [2001:db8:1::1]:80", 1, &["2001:db8:1::1"]),
        ("backend add 10.10.10.1:80 192.168.1.2:0", 2, &["port 0"]),
        ("backend add 10.10.10.1:80 192.168.1.2", 2, &["192.168.1.2", "port"]),
        ("backend add 10.10.10.1:80 224.0.0.1:80", 2, &["224.0.0.1"]),
        ("backend add 10.10.10.1:81 192.168.1.1:80", 1, &["10.10.10.1:81/tcp", "no service"]),
        ("backend add 10.10.10.1:80 192.168.1.9:80 --weight 0", 2, &["weight"]),
        ("backend add 10.10.10.1:80 192.168.1.9:80 --weight -1", 2, &["-1"]),
        ("backend add 10.10.10.1:80 192.168.1.9:80 --weight heavy", 2, &["heavy"]),
        ("backend set 10.10.10.1:80 192.168.1.1:80 --weight 0", 2, &["weight"]),
        ("backend set 10.10.10.1:80 192.168.1.1:80 --weight -1", 2, &["-1"]),
        ("backend set 10.10.10.1:80 192.168.1.1:80 --weight 99999999999", 2, &["99999999999"]),
        ("backend set 10.10.10.1:80 192.168.1.9:80 --weight 1", 1, &["192.168.1.9:80"]),
        ("backend rm 10.10.10.1:80 192.168.1.9:80", 1, &["192.168.1.9:80"]),
        ("backend rm 10.10.10.1:80 192.168.1.1:81", 1, &["192.168.1.1:81"]),
        ("backend drain 10.10.10.1:80 192.168.1.9:80", 1, &["192.168.1.9:80"]),
        ("backend list 10.10.10.1:81", 1, &["10.10.10.1:81/tcp"]),
        ("run --iface eth0", 1, &["already running"]),
        ("run", 2, &["--iface"]),
    ] {
        let refused = output(topology.lb_command(&words(command)))?;
        assert_refused(command, &refused, status, says);
        assert_eq!(json(&topology, &["status"])?, before, "`lb {command}` changed something");
    }
    assert_eq!(xdp_program(&topology.balancer, "eth0")?, program);
    Ok(())
}

#[test]
fn a_start_that_makes_no_sense_is_refused_and_leaves_nothing() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    for (command, status, says) in [
        ("--iface eth7", 1, &["eth7"][..]),
        ("--iface eth0 --iface eth7", 1, &["eth7"]),
        ("--iface eth0 --iface eth0", 1, &["eth0", "twice"]),
        ("--iface lo", 1, &["lo"]),
        ("--iface eth0 --service 10.10.10.300:80", 2, &["10.10.10.300"]),
        ("--iface eth0 --service 10.10.10.1:0", 2, &["port 0"]),
        ("--iface eth0 --service 0.0.0.0:80", 2, &["0.0.0.0"]),
        ("--iface eth0 --backend 192.168.1.1:80", 1, &["--service"]),
        ("--iface eth0 --service 10.10.10.1:80 --backend [2001:db8:1::1]:80", 1, &["2001:db8:1::1"]),
        ("--iface eth0 --service [2001:db8:10::1]:80 --backend 192.168.1.1:80", 1, &["192.168.1.1"]),
        (
            "--iface eth0 --service 10.10.10.1:80 --service 10.10.10.1:80/tcp",
            1,
            &["10.10.10.1:80/tcp", "twice"],
        ),
        (
            "--iface eth0 --service 10.10.10.1:80 --backend 192.168.1.1:80 --backend 192.168.1.1:80",
            1,
            &["192.168.1.1:80", "twice"],
        ),
        ("--iface eth0 --service 10.10.10.1:80 --backend 10.10.10.1:80", 1, &["10.10.10.1"]),
        ("--iface eth0 --mode fastest", 2, &["fastest"]),
        ("--iface eth0 --snat 10.10.10.300", 2, &["10.10.10.300"]),
        ("--iface eth0 --snat-ports 5-1", 2, &["5-1"]),
        ("--iface eth0 --snat-ports 0-10", 2, &["0-10"]),
        ("--iface eth0 --max-flows 0", 2, &["number of connections"]),
    ] {
        let refused = output(topology.lb_command(&[&["run"], &*words(command)].concat()))?;
        assert_refused(command, &refused, status, says);
        assert!(!topology.tag().pin_dir().exists(), "`lb run {command}` left pins");
        assert_eq!(xdp_program(&topology.balancer, "eth0")?, None, "`lb run {command}` left a program");
    }
    Ok(())
}

#[test]
fn another_program_on_the_interface_is_named_and_left_alone() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    lb_tests::link::attach_xdp((&topology.balancer, "eth1"), &pass_object(&topology)?)?;
    let other = xdp_program(&topology.balancer, "eth1")?.context("the other program is there")?;
    for mode in ["auto", "native", "generic"] {
        let command = ["run", "--iface", "eth0", "--iface", "eth1", "--mode", mode];
        let refused = output(topology.lb_command(&command))?;
        assert_refused(mode, &refused, 1, &["'pass'", &other.to_string(), "eth1"]);
        assert_eq!(xdp_program(&topology.balancer, "eth1")?, Some(other));
        assert_eq!(xdp_program(&topology.balancer, "eth0")?, None, "half of the balancer is attached");
        assert!(!topology.tag().pin_dir().exists());
    }
    Ok(())
}

#[test]
fn pins_need_a_bpf_file_system() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    let elsewhere = topology.tag().directory().join("pins");
    let mut command = topology.balancer.command(balancer::binary());
    command.args(["run", "--iface", "eth0", "--pin-dir"]).arg(&elsewhere);
    assert_refused("no bpf file system", &output(command)?, 1, &["bpf file system"]);
    assert!(!elsewhere.exists());
    assert_eq!(xdp_program(&topology.balancer, "eth0")?, None);
    Ok(())
}

#[test]
fn nobody_but_root_gets_through() -> Result<()> {
    let topology = Topology::two_arm(1)?;
    // For nobody to find the program.
    let directory = topology.tag().directory();
    fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
    let lb = directory.join("lb");
    fs::copy(balancer::binary(), &lb)?;
    for args in [
        &["run", "--iface", "eth0"][..],
        &["status"],
        &["stats"],
        &["flows"],
        &["detach"],
        &["service", "add", "10.10.10.1:80"],
        &["backend", "list"],
    ] {
        let mut command = topology.balancer.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&lb);
        command.args(args).arg("--pin-dir").arg(topology.tag().pin_dir());
        assert_refused(&args.join(" "), &output(command)?, 1, &["root"]);
    }
    assert!(!topology.tag().pin_dir().exists());
    assert_eq!(xdp_program(&topology.balancer, "eth0")?, None);
    Ok(())
}

#[test]
fn without_a_balancer_commands_say_so() -> Result<()> {
    let topology = Topology::two_arm(0)?;
    for command in ["status", "stats", "flows", "service list", "backend list", "service add 10.10.10.1:80"] {
        let refused = output(topology.lb_command(&words(command)))?;
        assert_refused(command, &refused, 1, &["lb run"]);
    }
    Ok(())
}
