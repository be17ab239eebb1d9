//! The command line.

use std::{
    collections::HashSet,
    ffi::OsString,
    hash::{BuildHasher as _, RandomState},
    net::IpAddr,
    path::{Path, PathBuf},
    process,
};

use clap::{
    ArgMatches, Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand,
    error::{Error, ErrorKind},
};
use log::LevelFilter;
use serde::Serialize;

use crate::{
    edit::Edit,
    flows::Filter,
    model::{
        Endpoint, Invalid, MaxFlows, NewService, PortRange, Scheduler, ServiceAddress, SnatPool, Weight,
        snat_address,
    },
    pins,
    program::ModeChoice,
    serve::Order,
    view,
};

const EXAMPLES: &str = "\
Examples:
  lb run --iface eth0 --service 10.10.10.1:80/tcp --backend 192.168.1.1:80 --backend 192.168.1.2:80
  lb backend add 10.10.10.1:80 192.168.1.3:80
  lb status
A service is written ADDRESS:PORT/PROTOCOL, and /tcp may be left out; IPv6 addresses are in brackets: \
[2001:db8::1]:53/udp.";

const RUN_EXAMPLES: &str = "\
A --backend belongs to the --service before it.
Examples:
  One-arm, clients and servers behind one interface:
    lb run --iface eth0 --service 10.10.10.1:80 --backend 192.168.1.1:80 --backend 192.168.1.2:80
  Two-arm, with a service for each family:
    lb run --iface eth0 --iface eth1 \\
      --service 10.10.10.1:80 --backend 192.168.1.1:80 \\
      --service '[2001:db8::1]:53/udp' --backend '[2001:db8:1::1]:53'";

/// A layer-4 load balancer in XDP
#[derive(Debug, Parser)]
#[command(name = "lb", version, after_help = EXAMPLES, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// Where the balancer's maps are pinned; one directory for each balancer on this host
    #[arg(long, global = true, value_name = "DIR", default_value = pins::DEFAULT)]
    pin_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Load, attach, and serve in the foreground until SIGINT or SIGTERM
    Run(RunArgs),
    /// Add, remove and list services
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Add, remove, drain and list backends
    #[command(subcommand)]
    Backend(BackendCommand),
    /// What is attached where, services and backends with their counters
    Status(Output),
    /// Packets, bytes and connections, and what became of every packet
    Stats(Output),
    /// Connections
    Flows {
        #[command(flatten)]
        filter: FilterArgs,
        #[command(flatten)]
        output: Output,
    },
    /// Remove idle connections once, as lb run does all the time: for a data path that goes on without it
    Sweep(Output),
    /// Stop lb run, and remove program, links and pins
    Detach,
}

/// `lb run`
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// Interface to attach to: all that clients' and backends' packets come in through
    #[arg(long, required = true, value_name = "IFACE")]
    iface: Vec<String>,
    /// A service: ADDRESS:PORT/PROTOCOL
    #[arg(long, value_name = "SVC")]
    service: Vec<ServiceAddress>,
    /// A backend of the service before it: ADDRESS:PORT
    #[arg(long, value_name = "B")]
    backend: Vec<Endpoint>,
    /// Where in the path of packets the program runs
    #[arg(long, value_enum, default_value_t = ModeChoice::Auto)]
    mode: ModeChoice,
    /// Source addresses towards backends [default: the service's own address]
    #[arg(long, value_name = "ADDR", num_args = 1.., value_parser = snat_address)]
    snat: Vec<IpAddr>,
    /// Source ports towards backends [default: 1024-32767]
    #[arg(long, value_name = "FIRST-LAST")]
    snat_ports: Option<PortRange>,
    /// Connections that fit at the same time, for each address family [default: 262144]
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    max_flows: Option<MaxFlows>,
    /// Leave the data path running when lb stops, for the next `lb run` to adopt; `lb detach` ends it
    #[arg(long)]
    persist: bool,
    /// What to log on stderr: off, error, warn, info, debug or trace. With off the data path carries no logging at all
    #[arg(long, value_name = "LEVEL", default_value = "off")]
    log_level: LevelFilter,
    /// Places of `service` and `backend` on the command line.
    #[arg(skip)]
    places: Places,
}

/// Where on the command line arguments of two names stood.
#[derive(Debug, Default)]
struct Places {
    services: Vec<usize>,
    backends: Vec<usize>,
}

impl Places {
    fn of(matches: &ArgMatches) -> Self {
        let places = |name| matches.indices_of(name).map(Iterator::collect).unwrap_or_default();
        Self { services: places("service"), backends: places("backend") }
    }
}

impl RunArgs {
    /// What is asked for, if it can be.
    pub(crate) fn order(&self, dir: &Path) -> Result<Order, Invalid> {
        Ok(Order {
            dir: dir.to_owned(),
            interfaces: self.iface.clone(),
            services: self.services()?,
            mode: self.mode,
            snat: SnatPool::new(&self.snat)?,
            ports: self.snat_ports,
            max_flows: self.max_flows,
            secret: RandomState::new().hash_one(process::id()),
            persist: self.persist,
            log_level: self.log_level,
        })
    }

    fn services(&self) -> Result<Vec<NewService>, Invalid> {
        let mut services: Vec<NewService> = Vec::new();
        let mut seen = HashSet::new();
        for service in &self.service {
            if !seen.insert(service) {
                return Err(Invalid::new(format!("service {service} is given twice: name it once")));
            }
            services.push(NewService::new(*service, None)?);
        }
        for (backend, place) in self.backend.iter().zip(&self.places.backends) {
            let before = self.places.services.iter().filter(|service| *service < place).count();
            let service = before.checked_sub(1).and_then(|last| services.get_mut(last)).ok_or_else(|| {
                Invalid::new(format!(
                    "--backend {backend} stands before any --service: name its service first"
                ))
            })?;
            service.add_backend(*backend)?;
        }
        Ok(services)
    }
}

/// `lb service`
#[derive(Debug, Subcommand)]
pub(crate) enum ServiceCommand {
    /// Add a service, as yet without backends
    Add {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SVC")]
        service: ServiceAddress,
        /// How connections are dealt to the backends: rr, to each in turn
        #[arg(long, default_value = "rr")]
        scheduler: Scheduler,
        /// Source addresses towards backends [default: those of lb run --snat]
        #[arg(long, value_name = "ADDR", num_args = 1.., value_parser = snat_address)]
        snat: Vec<IpAddr>,
    },
    /// Remove a service, its backends and their connections
    Rm {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SVC")]
        service: ServiceAddress,
    },
    /// List the services
    List(Output),
}

impl ServiceCommand {
    /// What is asked for, if it can be.
    pub(crate) fn edit(&self) -> Result<Edit, Invalid> {
        match self {
            // There is one scheduler, so that nothing depends on it yet.
            Self::Add { service, scheduler: Scheduler::RoundRobin, snat } => {
                Ok(Edit::AddService(NewService::new(*service, Some(SnatPool::new(snat)?))?))
            }
            Self::Rm { service } => Ok(Edit::RemoveService(*service)),
            Self::List(_) => Err(Invalid::new("a list changes nothing")),
        }
    }
}

/// `lb backend`
#[derive(Debug, Subcommand)]
pub(crate) enum BackendCommand {
    /// Add a backend: it gets its share from the next connection on
    Add {
        #[command(flatten)]
        place: Place,
        /// Share of new connections, relative to the service's other backends
        #[arg(long, value_name = "N", default_value = "1", allow_hyphen_values = true)]
        weight: Weight,
    },
    /// Change a backend's weight, and take it back if it is draining
    Set {
        #[command(flatten)]
        place: Place,
        /// Share of new connections, relative to the service's other backends
        #[arg(long, value_name = "N", allow_hyphen_values = true)]
        weight: Weight,
    },
    /// No new connections; the old ones finish
    Drain(Place),
    /// Remove a backend and end its connections
    Rm(Place),
    /// List the backends of a service, or of all
    List {
        /// ADDRESS:PORT/PROTOCOL
        #[arg(value_name = "SVC")]
        service: Option<ServiceAddress>,
        #[command(flatten)]
        output: Output,
    },
}

/// Which backend of which service.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Place {
    /// ADDRESS:PORT/PROTOCOL
    #[arg(value_name = "SVC")]
    service: ServiceAddress,
    /// ADDRESS:PORT
    #[arg(value_name = "B")]
    backend: Endpoint,
}

impl BackendCommand {
    /// What is asked for, if it can be.
    pub(crate) fn edit(&self) -> Result<Edit, Invalid> {
        match *self {
            Self::Add { place, weight: Weight::ONE } => Ok(Edit::AddBackend(place.service, place.backend)),
            Self::Add { weight, .. } => {
                Err(Invalid::new(format!("weight {} needs scheduler wrr", weight.get())))
            }
            Self::Set { place, weight } => Ok(Edit::SetWeight(place.service, place.backend, weight)),
            Self::Drain(place) => Ok(Edit::DrainBackend(place.service, place.backend)),
            Self::Rm(place) => Ok(Edit::RemoveBackend(place.service, place.backend)),
            Self::List { .. } => Err(Invalid::new("a list changes nothing")),
        }
    }
}

/// `lb flows`
#[derive(Debug, Args)]
pub(crate) struct FilterArgs {
    /// Only connections to this service
    #[arg(long, value_name = "SVC")]
    service: Option<ServiceAddress>,
    /// Only connections to this backend
    #[arg(long, value_name = "B")]
    backend: Option<Endpoint>,
    /// Only connections of this client
    #[arg(long, value_name = "ADDR")]
    client: Option<IpAddr>,
}

impl FilterArgs {
    pub(crate) const fn filter(&self) -> Filter {
        Filter { service: self.service, backend: self.backend, client: self.client }
    }
}

/// How to print.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Output {
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Output {
    /// Prints a value as JSON, or its text for people.
    pub(crate) fn print(self, value: &impl Serialize, text: impl FnOnce() -> String) -> anyhow::Result<()> {
        if self.json { view::print_json(value) } else { view::print(&text()) }
    }
}

impl Command {
    /// What to log.
    pub(crate) const fn log_level(&self) -> LevelFilter {
        match self {
            Self::Run(run) => run.log_level,
            _ => LevelFilter::Off,
        }
    }
}

/// What a command line comes to.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// Something to do.
    Command { dir: PathBuf, command: Command },
    /// Something to read.
    Help(String),
    /// It is not understood; one sentence.
    Wrong(String),
}

/// Reads a command line, the program's name included.
pub(crate) fn parse(args: impl IntoIterator<Item = OsString>) -> Parsed {
    match try_parse(args) {
        Ok(Cli { pin_dir, command }) => Parsed::Command { dir: pin_dir, command },
        Err(error) => match error.kind() {
            ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Parsed::Help(error.to_string()),
            _ => Parsed::Wrong(sentence(&error)),
        },
    }
}

fn try_parse(args: impl IntoIterator<Item = OsString>) -> Result<Cli, Error> {
    let matches = Cli::command().try_get_matches_from(args)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    if let (Command::Run(run), Some((_, matches))) = (&mut cli.command, matches.subcommand()) {
        run.places = Places::of(matches);
    }
    Ok(cli)
}

/// clap's several paragraphs as one sentence.
fn sentence(error: &Error) -> String {
    use std::error::Error as _;
    match error.kind() {
        // Ours are sentences already.
        ErrorKind::ValueValidation if error.source().is_some_and(|source| source.is::<Invalid>()) => {
            error.source().map(ToString::to_string).unwrap_or_default()
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
            "a command is missing: `lb --help` lists them".to_owned()
        }
        _ => {
            let text = error.to_string();
            let paragraphs = text.split("\n\n").filter(|text| !text.trim_start().starts_with("Usage:"));
            let words = paragraphs.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ");
            words
                .trim_start_matches("error: ")
                .replace(" For more information, try '--help'.", "; see `lb --help`")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Parsed {
        parse(line.split_whitespace().map(OsString::from))
    }

    fn order(line: &str) -> Result<Order, Invalid> {
        match read(line) {
            Parsed::Command { dir, command: Command::Run(run) } => run.order(&dir),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_backend_belongs_to_the_service_before_it() {
        let order = order(
            "lb run --iface eth0 --service 10.10.10.1:80 --backend 192.168.1.1:80 --backend 192.168.1.2:80 \
             --service 10.10.10.2:80 --service [2001:db8::1]:53/udp --backend [2001:db8:1::1]:53 --iface eth1",
        )
        .unwrap();
        let services: Vec<_> = order
            .services
            .iter()
            .map(|service| {
                let backends: Vec<_> = service.backends().iter().map(ToString::to_string).collect();
                (service.address().to_string(), backends.join(" "))
            })
            .collect();
        let expected = [
            ("10.10.10.1:80/tcp", "192.168.1.1:80 192.168.1.2:80"),
            ("10.10.10.2:80/tcp", ""),
            ("[2001:db8::1]:53/udp", "[2001:db8:1::1]:53"),
        ];
        assert_eq!(services, expected.map(|(service, backends)| (service.to_owned(), backends.to_owned())));
        assert_eq!(order.interfaces, ["eth0", "eth1"]);
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let order = order("lb run --iface eth0").unwrap();
        assert_eq!(order.dir, Path::new("/sys/fs/bpf/lb"));
        assert_eq!((order.ports().first(), order.ports().len()), (1024, 31_744));
        assert_eq!(order.max_flows().connections(), 262_144);
        assert!(!order.persist);
        assert_eq!(order.mode, ModeChoice::Auto);
        assert_eq!(order.log_level, LevelFilter::Off);
        assert!(order.snat.addresses().is_empty());
    }

    #[test]
    fn snat_addresses_may_follow_one_option_or_each_its_own() {
        for line in
            ["lb run --iface e --snat 10.0.0.1 10.0.0.2", "lb run --iface e --snat 10.0.0.1 --snat 10.0.0.2"]
        {
            assert_eq!(order(line).unwrap().snat.addresses().len(), 2, "{line}");
        }
    }

    #[test]
    fn the_pin_directory_may_stand_anywhere() {
        for line in ["lb --pin-dir /sys/fs/bpf/x status", "lb status --pin-dir /sys/fs/bpf/x --json"] {
            match read(line) {
                Parsed::Command { dir, .. } => assert_eq!(dir, Path::new("/sys/fs/bpf/x")),
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_not_understood_is_one_sentence() {
        for (line, says) in [
            ("lb", "a command is missing"),
            ("lb service", "a command is missing"),
            ("lb dance", "unrecognized subcommand 'dance'"),
            ("lb run", "--iface <IFACE>"),
            ("lb run --iface eth0 --fast", "unexpected argument '--fast'"),
            ("lb run --iface eth0 --service 10.10.10.1", "write 10.10.10.1:80 if port 80 is meant"),
            ("lb run --iface eth0 --service 10.10.10.1:0", "port 0"),
            ("lb run --iface eth0 --mode fast", "invalid value 'fast'"),
            ("lb run --iface eth0 --snat-ports 9-1", "upside down"),
            ("lb run --iface eth0 --max-flows 0", "not a number of connections"),
            ("lb run --iface eth0 --max-flows -1", "not a number of connections"),
            ("lb run --iface eth0 --log-level loud", "invalid value 'loud'"),
            ("lb service add 10.10.10.1:80 --scheduler maglev", "later version"),
            ("lb service add", "<SVC>"),
            ("lb backend add 10.10.10.1:80", "<B>"),
            ("lb backend add 10.10.10.1:80 192.168.1.1:80 --weight 0", "lb backend drain"),
            ("lb backend add 10.10.10.1:80 192.168.1.1:80 --weight -1", "negative"),
            ("lb backend set 10.10.10.1:80 192.168.1.1:80 --weight=-1", "negative"),
            ("lb backend set 10.10.10.1:80 192.168.1.1:80 --weight 2", "needs scheduler wrr"),
            ("lb backend set 10.10.10.1:80 192.168.1.1:80", "--weight <N>"),
            ("lb flows --client example.org", "example.org"),
        ] {
            match read(line) {
                Parsed::Wrong(sentence) => {
                    assert!(sentence.contains(says), "{line}: {sentence}");
                    assert!(!sentence.contains('\n'), "{line}: {sentence}");
                    assert!(!sentence.starts_with("error"), "{line}: {sentence}");
                }
                other => panic!("{line}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_is_understood_but_cannot_be_is_refused_before_anything_is_touched() {
        for (arguments, says) in [
            ("--backend 192.168.1.1:80 --service 10.10.10.1:80", "before any --service"),
            ("--service 10.10.10.1:80 --backend [2001:db8::2]:80", "one family"),
            ("--service 10.10.10.1:80 --backend 192.168.1.1:80 --backend 192.168.1.1:80", "twice"),
            (
                "--service 10.10.10.1:80 --service 10.10.10.1:80/tcp",
                "service 10.10.10.1:80/tcp is given twice",
            ),
            ("--snat 10.0.0.1 --snat 10.0.0.1", "twice"),
        ] {
            let error = order(&format!("lb run --iface eth0 {arguments}")).unwrap_err().to_string();
            assert!(error.contains(says), "{arguments}: {error}");
        }
    }

    #[test]
    fn help_and_version_are_for_reading() {
        for line in ["lb --help", "lb run --help", "lb backend add --help", "lb --version"] {
            assert!(matches!(read(line), Parsed::Help(_)), "{line}");
        }
    }
}
