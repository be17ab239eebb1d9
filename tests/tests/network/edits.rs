//! Edits are atomic to the data path: under load no packet comes to a wrong or a removed place, and what an edit that is
//! killed leaves, the next command repairs.

use std::collections::BTreeSet;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use std::{fs, hint};

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::Meta;
use lb_tests::process::Process;
use lb_tests::topology::Topology;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::persistence::{Dice, restarts};
use crate::support::{Family, Greeter, Manners, PATIENCE, Visit, at_once, is_reset, json, service, start};

/// Two services with the first two and the last two of four servers. The first of each stays, the other one comes and goes.
const SERVICES: [(u16, [usize; 2]); 2] = [(80, [1, 2]), (81, [3, 4])];

/// Threads that make one short connection after another.
const WORKERS: usize = 2;

/// The servers' ports are those of the services, so that a connection in a wrong place would be answered, too.
fn servers(topology: &Topology) -> Result<Vec<Greeter>> {
    let mut greeters = Vec::new();
    for (port, _) in SERVICES {
        greeters.extend(Greeter::on_all(topology, port, Manners::Brief)?);
    }
    Ok(greeters)
}

fn arguments(topology: &Topology, family: Family) -> Vec<String> {
    let mut args = ["--persist", "--max-flows", "50000"].map(str::to_owned).to_vec();
    for (port, servers) in SERVICES {
        let backends = servers.map(|number| family.at(&topology.servers[number - 1], port));
        args.extend(service(family.service(port), "tcp", backends));
    }
    args
}

/// `lb backend VERB` for the server that comes and goes.
fn backend(topology: &Topology, family: Family, place: usize, verb: &str) -> Command {
    let (port, servers) = SERVICES[place];
    let (service, backend) =
        (family.service(port).to_string(), family.at(&topology.servers[servers[1] - 1], port).to_string());
    let mut args = vec!["backend", verb, &service, &backend];
    if verb == "set" {
        args.extend(["--weight", "1"]);
    }
    topology.lb_command(&args)
}

/// Which server a new connection comes to.
fn served_by(topology: &Topology, family: Family, port: u16) -> Result<usize> {
    let visit = Visit::begin(&topology.client, family.service(port))?;
    let server = visit.greeting.server;
    visit.end(Manners::Brief)?;
    Ok(server)
}

#[test]
fn random_edits_under_load_lead_no_connection_to_a_wrong_or_a_removed_server() -> Result<()> {
    let family = Family::V4;
    let topology = Topology::two_arm(4)?;
    let _greeters = servers(&topology)?;
    let _balancer = start(&topology, &arguments(&topology, family))?;
    let over = AtomicBool::new(false);
    let mut removals = 0;
    let outcomes = thread::scope(|scope| {
        let (over, topology) = (&over, &topology);
        let load = scope.spawn(move || {
            at_once(WORKERS * SERVICES.len(), |worker| {
                let (port, servers) = SERVICES[worker % SERVICES.len()];
                let mut outcomes = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let outcome = served_by(topology, family, port);
                    if let Ok(server) = &outcome {
                        ensure!(servers.contains(server), "port {port} was answered by server {server}");
                    }
                    outcomes.push(outcome.map(drop));
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(outcomes)
            })
        });
        let mut edits = || -> Result<()> {
            let mut dice = Dice::new(2);
            // What the other server of each service is: there, draining, or removed.
            let mut present = ["set"; SERVICES.len()];
            for _ in 0..2 * restarts() {
                let place = dice.below(SERVICES.len());
                let verbs: &[&str] = match present[place] {
                    "rm" => &["add"],
                    "drain" => &["set", "rm"],
                    _ => &["drain", "rm", "set"],
                };
                let verb = verbs[dice.below(verbs.len())];
                lb_tests::process::output(&mut backend(topology, family, place, verb))?;
                present[place] = verb;
                removals += usize::from(verb == "rm");
                // From when the command has ended on.
                let (port, servers) = SERVICES[place];
                let is_off = matches!(verb, "rm" | "drain");
                for _ in 0..2 {
                    let server = served_by(topology, family, port)?;
                    ensure!(
                        !is_off || server == servers[0],
                        "after {verb}, server {server} was dealt port {port}"
                    );
                }
            }
            Ok(())
        };
        let edited = edits();
        over.store(true, Ordering::Relaxed);
        let outcomes = load.join().map_err(|_| anyhow::anyhow!("a thread panicked"))??;
        edited?;
        anyhow::Ok(outcomes.into_iter().flatten().collect::<Vec<_>>())
    })?;
    // Each worker may have had a connection to the server that was just removed.
    let failed: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect();
    ensure!(outcomes.len() > 100, "no load: {} connections", outcomes.len());
    ensure!(
        failed.len() <= removals * WORKERS,
        "{} of {} failed: {:?}",
        failed.len(),
        outcomes.len(),
        failed
    );
    for error in failed {
        let ended = is_reset(error) || format!("{error:#}").contains("no greeting");
        ensure!(ended, "a connection was not ended but failed: {error:#}");
    }
    Ok(())
}

/// The servers of a service, and those that `lb status` calls up.
fn backends(status: &Value, service: &str, port: u16) -> Result<(BTreeSet<usize>, BTreeSet<usize>)> {
    let services = status["services"].as_array().context("no services")?;
    let view = services.iter().find(|view| view["address"] == service).context("the service is not there")?;
    let (mut all, mut up) = (BTreeSet::new(), BTreeSet::new());
    for backend in view["backends"].as_array().context("no backends")? {
        let address = backend["address"].as_str().context("no address")?;
        let number =
            address.strip_prefix("192.168.1.").and_then(|rest| rest.strip_suffix(&format!(":{port}")));
        let number = number.with_context(|| format!("{address} is no server"))?.parse()?;
        all.insert(number);
        if backend["state"] == "up" {
            up.insert(number);
        }
    }
    Ok((all, up))
}

/// The balancer's own record.
struct Record(Array<MapData, Meta>);

impl Record {
    fn open(topology: &Topology) -> Result<Self> {
        let map = Map::from_map_data(MapData::from_pin(topology.tag().pin_dir().join("META"))?)?;
        Ok(Self(map.try_into()?))
    }

    /// Whether an edit has begun that is not through.
    fn is_edited(&self) -> Result<bool> {
        Ok(self.0.get(&0, 0)?.edited != 0)
    }

    /// Starts an edit and kills it so long after its first step; says whether it was still under way.
    fn kill(&self, command: &mut Command, after: Duration) -> Result<bool> {
        let deadline = Instant::now() + PATIENCE;
        let mut process = Process::spawn(command)?;
        let path = format!("/proc/{}/stat", process.id());
        // Without a pause: most edits are a few calls to the kernel.
        while !self.is_edited()? && !has_ended(&path) {
            ensure!(Instant::now() < deadline, "{command:?} does not end");
        }
        let begin = Instant::now();
        while begin.elapsed() < after {
            hint::spin_loop();
        }
        process.stop(Signal::SIGKILL)?;
        self.is_edited()
    }
}

/// Whether a process is one in name only: its state follows the name in parentheses (proc_pid_stat(5)).
fn has_ended(stat: &str) -> bool {
    fs::read_to_string(stat)
        .map_or(true, |text| text.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
}

#[test]
fn an_edit_that_is_killed_at_any_step_is_repaired_by_the_next_command() -> Result<()> {
    /// Shorter than a removal waits for packets that are under way, so that some are hit.
    const MOST: Duration = Duration::from_millis(5);
    let family = Family::V4;
    let topology = Topology::two_arm(4)?;
    let _greeters = servers(&topology)?;
    let mut balancer = start(&topology, &arguments(&topology, family))?;
    // Nobody repairs but the commands themselves.
    balancer.process().stop(Signal::SIGKILL)?;
    let record = Record::open(&topology)?;
    let mut dice = Dice::new(3);
    let mut interrupted = 0;
    let mut present = [true; SERVICES.len()];
    let mut round = 0;
    while round < restarts() || interrupted == 0 && round < 10 * restarts() {
        round += 1;
        let place = dice.below(SERVICES.len());
        let verb = if present[place] { ["rm", "rm", "drain", "set"][dice.below(4)] } else { "add" };
        interrupted +=
            usize::from(record.kill(&mut backend(&topology, family, place, verb), dice.up_to(MOST))?);
        let status = json(&topology, &["status"])?;
        ensure!(!record.is_edited()?, "nothing is left to repair");
        for (place, (port, servers)) in SERVICES.into_iter().enumerate() {
            let (all, up) = backends(&status, &format!("{}/tcp", family.service(port)), port)?;
            ensure!(
                up.contains(&servers[0]) && all.iter().all(|server| servers.contains(server)),
                "{status}"
            );
            let dealt = (0..up.len()).map(|_| served_by(&topology, family, port)).collect::<Result<_>>()?;
            assert_eq!(up, dealt, "round {round}, `backend {verb}`: {status}");
            present[place] = all.contains(&servers[1]);
        }
    }
    println!("{interrupted} edits of backends were interrupted");
    ensure!(interrupted > 0, "no edit was interrupted: this test tests nothing");
    // And whole services.
    let extra = format!("{}/tcp", family.service(82));
    let mut is_there = false;
    for _ in 0..restarts() / 2 {
        let verb = if is_there { "rm" } else { "add" };
        record.kill(&mut topology.lb_command(&["service", verb, &extra]), dice.up_to(MOST))?;
        let listed = json(&topology, &["service", "list"])?;
        is_there = listed.as_array().into_iter().flatten().any(|service| service["address"] == extra);
        let verb = if is_there { "rm" } else { "add" };
        topology.lb(&["service", verb, &extra])?;
        is_there = !is_there;
    }
    topology.lb(&["detach"])?;
    Ok(())
}
