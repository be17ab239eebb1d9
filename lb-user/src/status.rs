//! `lb status`, `lb service list` and `lb backend list`: what is attached where, and who serves what.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context as _, bail};
use lb_common::{Backend, BackendCounters, BackendState, Interface, Service};
use nix::net::if_::if_indextoname;
use serde::Serialize;

use crate::{
    balancer::{Balancer, Keeper},
    flows, links, lock,
    model::{Endpoint, Scheduler, ServiceAddress},
    neighbour::mac_text,
    plan::State,
    program::Mode,
    view::{self, Column},
};

/// What `lb status --json` writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Status {
    /// Process of `lb run`; null while there is none.
    pub(crate) pid: Option<u32>,
    /// Whether the data path goes on without `lb run`.
    pub(crate) persists: bool,
    pub(crate) interfaces: Vec<InterfaceView>,
    pub(crate) services: Vec<ServiceView>,
}

/// An interface that the program is attached to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct InterfaceView {
    pub(crate) name: String,
    pub(crate) ifindex: u32,
    pub(crate) mode: &'static str,
    /// RFC 3339, UTC.
    pub(crate) since: String,
}

/// A service with its backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ServiceView {
    pub(crate) address: String,
    pub(crate) scheduler: &'static str,
    pub(crate) snat: Vec<String>,
    pub(crate) snat_ports: String,
    pub(crate) backends: Vec<BackendView>,
}

/// A backend with its counters.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct BackendView {
    pub(crate) address: String,
    pub(crate) weight: u32,
    pub(crate) state: &'static str,
    /// Not over yet.
    pub(crate) connections: u64,
    /// Made since it was added.
    pub(crate) connections_total: u64,
    /// Both directions.
    pub(crate) packets: u64,
    /// Both directions, whole frames.
    pub(crate) bytes: u64,
    /// The MAC address that packets to it are sent to; null while unknown.
    pub(crate) next_hop: Option<String>,
}

impl Status {
    pub(crate) fn read(balancer: &Balancer) -> anyhow::Result<Self> {
        let maps = &balancer.maps;
        let state = maps.state()?;
        let kept = |(index, _): &&(u32, Interface)| balancer.keeper.keeps(*index);
        let pid = match balancer.keeper {
            Keeper::Daemon => lock::daemon_process(&balancer.dir),
            Keeper::Links(_) | Keeper::Nothing => None,
        };
        Ok(Self {
            pid,
            persists: links::directory(&balancer.dir).exists(),
            interfaces: maps
                .interfaces()?
                .iter()
                .filter(kept)
                .map(|(index, interface)| interface_view(*index, interface))
                .collect(),
            services: services(balancer, &state)?,
        })
    }

    /// That service alone, or all.
    ///
    /// # Errors
    ///
    /// There is no such service.
    pub(crate) fn services_of(self, service: Option<&ServiceAddress>) -> anyhow::Result<Vec<ServiceView>> {
        let Some(address) = service.map(ToString::to_string) else { return Ok(self.services) };
        let services: Vec<_> =
            self.services.into_iter().filter(|service| service.address == address).collect();
        if services.is_empty() {
            bail!("there is no service {address}: `lb service list` lists those that there are");
        }
        Ok(services)
    }

    /// For people.
    pub(crate) fn text(&self, now: SystemTime) -> String {
        let mut text = match (self.pid, self.persists) {
            (Some(pid), false) => format!("lb run is process {pid}, attached to\n"),
            (Some(pid), true) => format!("lb run is process {pid}, attached for good to\n"),
            (None, true) if self.interfaces.is_empty() => {
                "lb run has ended, and its program is attached nowhere: the interfaces have gone\n".to_owned()
            }
            (None, true) => {
                "lb run has ended, and its program goes on: until `lb run --persist` adopts it, nobody \
                             follows changes of next hops, and `lb sweep` removes idle connections\n"
                    .to_owned()
            }
            (None, false) => "lb run was killed; its program is attached nowhere\n".to_owned(),
        };
        if !self.interfaces.is_empty() {
            let columns =
                [Column::Text("INTERFACE"), Column::Text("MODE"), Column::Text("SINCE"), Column::Text("")];
            let rows = self.interfaces.iter().map(|interface| {
                let ago = humantime::parse_rfc3339(&interface.since)
                    .ok()
                    .and_then(|since| now.duration_since(since).ok());
                let ago = ago.map_or_else(String::new, |ago| format!("{} ago", rounded(ago)));
                vec![interface.name.clone(), interface.mode.to_owned(), interface.since.clone(), ago]
            });
            text += &view::indent(&view::table(&columns, rows));
        }
        if self.services.is_empty() {
            text += "\nno services: add one with `lb service add ADDRESS:PORT/PROTOCOL`\n";
        }
        self.services.iter().for_each(|service| text += &format!("\n{}", service.text()));
        text
    }
}

impl ServiceView {
    /// For people: a heading and the backends.
    fn text(&self) -> String {
        let heading = format!(
            "{}  scheduler {}, source {} ports {}\n",
            self.address,
            self.scheduler,
            self.snat.join(" "),
            self.snat_ports
        );
        if self.backends.is_empty() {
            return format!(
                "{heading}  no backends: add one with `lb backend add {} ADDRESS:PORT`\n",
                self.address
            );
        }
        heading + &view::indent(&backend_table(&self.backends))
    }
}

fn backend_table(backends: &[BackendView]) -> String {
    let columns = [
        Column::Text("BACKEND"),
        Column::Number("WEIGHT"),
        Column::Text("STATE"),
        Column::Number("CONNECTIONS"),
        Column::Number("TOTAL"),
        Column::Number("PACKETS"),
        Column::Number("BYTES"),
        Column::Text("NEXT HOP"),
    ];
    view::table(
        &columns,
        backends.iter().map(|backend| {
            vec![
                backend.address.clone(),
                backend.weight.to_string(),
                backend.state.to_owned(),
                backend.connections.to_string(),
                backend.connections_total.to_string(),
                backend.packets.to_string(),
                view::bytes(backend.bytes),
                backend.next_hop.clone().unwrap_or_else(|| "unknown".to_owned()),
            ]
        }),
    )
}

fn rounded(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let unit = match seconds {
        0..120 => 1,
        120..7_200 => 60,
        7_200..172_800 => 3_600,
        _ => 86_400,
    };
    humantime::format_duration(Duration::from_secs(seconds / unit * unit)).to_string()
}

fn interface_view(index: u32, interface: &Interface) -> InterfaceView {
    let name = if_indextoname(index).map(|name| name.to_string_lossy().into_owned());
    InterfaceView {
        name: name.unwrap_or_else(|_| format!("#{index}")),
        ifindex: index,
        mode: Mode::from_number(interface.mode).map_or("unknown", Mode::name),
        since: humantime::format_rfc3339_seconds(UNIX_EPOCH + Duration::from_secs(interface.since))
            .to_string(),
    }
}

fn services(balancer: &Balancer, state: &State) -> anyhow::Result<Vec<ServiceView>> {
    let live = live_connections(balancer)?;
    let mut backends: HashMap<u32, Vec<(u32, &Backend)>> = HashMap::new();
    for (index, backend) in &state.backends {
        backends.entry(backend.service).or_default().push((*index, backend));
    }
    let mut views = Vec::new();
    for (index, service) in state.services_in_order() {
        let mut own = backends.remove(&index).unwrap_or_default();
        own.sort_by_key(|(_, backend)| backend.sequence);
        let own = own.into_iter().map(|(index, backend)| {
            backend_view(balancer, index, backend, live.get(&index).copied().unwrap_or_default())
        });
        views.push(service_view(service, own.collect::<Result<_, _>>()?)?);
    }
    Ok(views)
}

/// Connections that are not over, by backend.
fn live_connections(balancer: &Balancer) -> anyhow::Result<HashMap<u32, u64>> {
    let mut live = HashMap::new();
    flows::for_each(&balancer.maps, |connection| {
        if !connection.state.is_over() {
            *live.entry(connection.backend_index).or_default() += 1;
        }
    })?;
    Ok(live)
}

fn service_view(service: &Service, backends: Vec<BackendView>) -> anyhow::Result<ServiceView> {
    let address = ServiceAddress::of(&service.key).context("a service's record makes no sense")?;
    let snat = service.snat.iter().take(usize::try_from(service.snat_len)?);
    let last = u32::from(service.first_port) + u32::from(service.ports).saturating_sub(1);
    Ok(ServiceView {
        address: address.to_string(),
        scheduler: Scheduler::RoundRobin.name(),
        snat: snat.map(|addr| addr.ip(service.key.family).to_string()).collect(),
        snat_ports: format!("{}-{last}", service.first_port),
        backends,
    })
}

fn backend_view(
    balancer: &Balancer,
    index: u32,
    backend: &Backend,
    connections: u64,
) -> anyhow::Result<BackendView> {
    let endpoint = Endpoint::of(backend).context("a backend's record makes no sense")?;
    let BackendCounters { requests, replies, connections: total } = balancer.maps.backend_counters(index)?;
    let hop = balancer.maps.hop(index)?;
    Ok(BackendView {
        address: endpoint.to_string(),
        weight: backend.weight,
        state: state_name(backend),
        connections,
        connections_total: total,
        packets: requests.packets + replies.packets,
        bytes: requests.bytes + replies.bytes,
        next_hop: hop.is_known().then(|| mac_text(hop.dst())),
    })
}

/// A backend whose removal was interrupted takes no new connections either.
fn state_name(backend: &Backend) -> &'static str {
    match BackendState::from_number(backend.state) {
        Some(BackendState::Leaving) | None => BackendState::Draining.name(),
        Some(state) => state.name(),
    }
}

/// `lb service list` for people.
pub(crate) fn service_list(services: &[ServiceView]) -> String {
    let columns = [
        Column::Text("SERVICE"),
        Column::Text("SCHEDULER"),
        Column::Number("BACKENDS"),
        Column::Number("CONNECTIONS"),
        Column::Text("SOURCE ADDRESSES"),
    ];
    view::table(
        &columns,
        services.iter().map(|service| {
            let connections: u64 = service.backends.iter().map(|backend| backend.connections).sum();
            vec![
                service.address.clone(),
                service.scheduler.to_owned(),
                service.backends.len().to_string(),
                connections.to_string(),
                service.snat.join(" "),
            ]
        }),
    )
}

/// `lb backend list` for people: one service's backends, or those of each under its heading.
pub(crate) fn backend_list(services: &[ServiceView]) -> String {
    services.iter().map(ServiceView::text).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(state: BackendState) -> Backend {
        Backend { state: state as u8, ..Backend::default() }
    }

    fn view() -> Status {
        let backend = BackendView {
            address: "192.168.1.1:80".to_owned(),
            weight: 1,
            state: "up",
            connections: 2,
            connections_total: 5,
            packets: 30,
            bytes: 4_000,
            next_hop: None,
        };
        let service = ServiceView {
            address: "10.10.10.1:80/tcp".to_owned(),
            scheduler: "rr",
            snat: vec!["10.10.10.1".to_owned()],
            snat_ports: "1024-32767".to_owned(),
            backends: vec![backend],
        };
        let interface = Interface { since: 1_700_000_000, mode: 1, mtu: 1500 };
        Status {
            pid: Some(42),
            persists: false,
            interfaces: vec![interface_view(u32::MAX, &interface)],
            services: vec![service],
        }
    }

    #[test]
    fn json_has_the_names_that_the_command_line_promises() {
        let json = serde_json::to_value(view()).unwrap();
        assert_eq!(json["interfaces"][0]["mode"], "native");
        assert_eq!(json["interfaces"][0]["since"], "2023-11-14T22:13:20Z");
        let service = &json["services"][0];
        assert_eq!((&service["address"], &service["scheduler"]), (&"10.10.10.1:80/tcp".into(), &"rr".into()));
        let backend = service["backends"][0].as_object().unwrap();
        for name in ["address", "weight", "state", "connections", "packets", "bytes"] {
            assert!(backend.contains_key(name), "{name}");
        }
        assert!(backend["next_hop"].is_null());
    }

    #[test]
    fn people_read_since_when_and_how_much() {
        let text = view().text(UNIX_EPOCH + Duration::from_secs(1_700_000_000 + 3_700));
        for says in
            ["process 42", "native", "1h 1m ago", "10.10.10.1:80/tcp  scheduler rr", "4.0 kB", "unknown"]
        {
            assert!(text.contains(says), "{says} in\n{text}");
        }
    }

    #[test]
    fn people_read_who_keeps_the_program_attached() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        for (pid, persists, says) in [
            (Some(42), false, "process 42, attached to"),
            (Some(42), true, "process 42, attached for good to"),
            (None, true, "its program goes on"),
            (None, false, "was killed"),
        ] {
            let text = Status { pid, persists, ..view() }.text(now);
            assert!(text.contains(says), "{says} in\n{text}");
        }
        let text = Status { pid: None, persists: true, interfaces: Vec::new(), ..view() }.text(now);
        assert!(text.contains("attached nowhere"), "{text}");
    }

    #[test]
    fn states_are_up_or_draining() {
        for (state, name) in [
            (BackendState::Up, "up"),
            (BackendState::Draining, "draining"),
            (BackendState::Leaving, "draining"),
        ] {
            assert_eq!(state_name(&backend(state)), name);
        }
    }
}
