//! The control path of lb, a layer-4 load balancer in XDP.
//!
//! ```text
//! command line -> model (only valid states can exist) -> plan (pure, ordered: make before break) -> apply -> maps
//! ```
//!
//! The pinned maps are the truth: commands read and edit them under a lock, and `lb run`, which holds the program on its
//! interfaces, notices. It also keeps next hops fresh and removes idle connections.
//!
//! Invariants: [`model`] and [`plan`] do no I/O; `maps` makes no decisions, and only it knows map names; `unsafe` stands
//! in `batch` and `table` alone.

mod adopt;
mod apply;
mod balancer;
mod batch;
mod cli;
mod clock;
mod data_path;
mod detach;
mod edit;
mod error;
mod events;
mod flows;
mod fragments;
mod host;
mod links;
mod lock;
mod maps;
pub mod model;
mod mtu;
mod neighbour;
mod netlink;
mod pins;
pub mod plan;
pub mod program;
mod reset;
mod serve;
mod stats;
mod status;
mod sweep;
pub mod table;
mod view;
mod vlan;
mod xdp_features;

use std::{env, io::Write as _, path::Path, process::ExitCode, time::SystemTime};

use anyhow::Context as _;
use log::LevelFilter;

use crate::{
    balancer::Balancer,
    cli::{BackendCommand, Command, Parsed, ServiceCommand},
    stats::Stats,
    status::Status,
};

/// Does what the command line says.
pub fn main() -> ExitCode {
    let (dir, command) = match cli::parse(env::args_os()) {
        Parsed::Command { dir, command } => (dir, command),
        Parsed::Help(text) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Parsed::Wrong(sentence) => {
            eprintln!("lb: {sentence}");
            return ExitCode::from(error::USAGE);
        }
    };
    log_to_stderr(command.log_level());
    match execute(&dir, &command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => error::report(&error),
    }
}

fn execute(dir: &Path, command: &Command) -> anyhow::Result<()> {
    let read = |name: &str| Balancer::read(dir, name);
    match command {
        Command::Run(run) => serve::run(&run.order(dir)?),
        Command::Service(ServiceCommand::List(output)) => {
            let services = Status::read(&read("lb service list")?)?.services;
            output.print(&services, || status::service_list(&services))
        }
        Command::Service(command) => edit::edit(dir, "lb service", &command.edit()?),
        Command::Backend(BackendCommand::List { service, output }) => {
            let services = Status::read(&read("lb backend list")?)?.services_of(service.as_ref())?;
            output.print(&services, || status::backend_list(&services))
        }
        Command::Backend(command) => edit::edit(dir, "lb backend", &command.edit()?),
        Command::Status(output) => {
            let status = Status::read(&read("lb status")?)?;
            output.print(&status, || status.text(SystemTime::now()))
        }
        Command::Stats(output) => {
            let stats = Stats::read(&read("lb stats")?.maps)?;
            output.print(&stats, || stats.text())
        }
        Command::Flows { filter, output } => {
            let flows = flows::list(&read("lb flows")?.maps, &filter.filter())?;
            output.print(&flows, || flows::text(&flows))
        }
        Command::Sweep(output) => {
            let removed = sweep::once(&read("lb sweep")?.maps)?;
            output.print(&removed, || removed.text())
        }
        Command::Detach => detach::detach(dir),
    }
}

/// One thread does it all: waiting is most of the work.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Warnings are always shown; what libraries have to say, only when it is one.
fn log_to_stderr(level: LevelFilter) {
    env_logger::Builder::new()
        .filter_level(LevelFilter::Warn)
        .filter_module("lb", level.max(LevelFilter::Warn))
        .format(|out, record| {
            let level = match record.level() {
                log::Level::Warn => "warning".to_owned(),
                level => level.as_str().to_ascii_lowercase(),
            };
            writeln!(out, "lb: {level}: {}", record.args())
        })
        .init();
}
