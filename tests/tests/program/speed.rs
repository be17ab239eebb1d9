//! How many instructions packets take, as `tests/budget.toml` allows: counted, not timed.

use anyhow::{Context as _, Result, ensure};
use aya_obj::Object;
use lb_common::table::slots_for;
use lb_common::{Backend, Hop, Interface, Program, Service, ServiceKey};
use lb_ebpf::host::cases::{self, Case, Event};
use lb_tests::guest::NOTE;

use crate::budget::{self, Budget};
use crate::interpreter::{Interpreter, Run};
use crate::kernel::{self, Constants, Kernel, SECRET};

/// The first packets of connections, which are slow, and the most that one takes that is not handed over to another program.
struct Counts {
    first: u64,
    most: u64,
    /// Calls of the kernel's functions of the latter.
    calls: u64,
}

#[test]
fn a_packet_of_a_known_connection_takes_no_more_instructions_than_its_budget() -> Result<()> {
    crate::check_root();
    let _inside = kernel::enter_network()?;
    let budget = Budget::read()?;
    let mut exceeded = Vec::new();
    for case in cases::a_connection_is_translated_in_both_directions() {
        let counts = count(&case)?;
        let what = format!("instructions of a packet ({})", case.name());
        println!("{NOTE}{what}: {} and {} calls, the first {}", counts.most, counts.calls, counts.first);
        let is = u32::try_from(counts.most)?;
        exceeded.extend(budget::excess(&what, is, budget.instructions_per_packet, "any"));
        exceeded.extend(budget::excess(
            "calls",
            u32::try_from(counts.calls)?,
            budget.calls_per_packet,
            "any",
        ));
    }
    ensure!(exceeded.is_empty(), "{}", exceeded.join("\n"));
    Ok(())
}

/// Runs a case in an interpreter, which has to do what the library does.
fn count(case: &Case) -> Result<Counts> {
    let entries = u32::try_from(case.flow_entries())?;
    let slots = slots_for(entries);
    let mut interpreter = Interpreter::new(
        lb_user::program::LB,
        &Program::ALL.map(Program::name),
        &[("FLOWS_V4", slots), ("FLOWS_V6", slots)],
        &[("FLOW_MASK", &(slots - 1).to_le_bytes()), ("FLOW_SECRET", &SECRET.to_le_bytes())],
    )?;
    for family in 0..2_u32 {
        interpreter.set("ROOM", &family.to_le_bytes(), &i64::from(entries).to_le_bytes())?;
    }
    let mut counts = Vec::new();
    case.run(|tables, event| {
        match event {
            Event::Configured => {
                let mut kernel = Kernel::borrow(case.flow_entries(), Constants::default())?;
                kernel.configure(tables)?;
                copy_configuration(&mut kernel, &mut interpreter)?;
                kernel.give_back();
            }
            Event::Frame { ingress, frame, outcome } => {
                let run = interpreter.run(ingress, frame)?;
                let action = kernel::action(outcome, ingress, Constants::default());
                ensure!(run.action == action, "action {} in place of {action}", run.action);
                ensure!(run.frame == outcome.frame, "made {:02x?}", run.frame);
                counts.push(run);
            }
        }
        Ok(())
    })?;
    let plain: Vec<_> = counts.iter().filter(|run| !run.is_handed_over).collect();
    ensure!(plain.len() > 1, "hardly a packet is plain");
    let most = |what: fn(&Run) -> u64| plain.iter().map(|run| what(run)).max().unwrap_or_default();
    Ok(Counts {
        first: counts.first().map_or(0, |run| run.instructions),
        most: most(|run| run.instructions),
        calls: most(|run| run.calls),
    })
}

/// What userspace writes, out of the kernel's maps.
fn copy_configuration(kernel: &mut Kernel, to: &mut Interpreter) -> Result<()> {
    const KEY: usize = size_of::<ServiceKey>();
    const INTERFACE: usize = size_of::<Interface>();
    kernel.copy_array::<{ size_of::<Service>() }>("SERVICE", to)?;
    kernel.copy_array::<4>("SLOTS", to)?;
    kernel.copy_array::<{ size_of::<Backend>() }>("BACKENDS", to)?;
    kernel.copy_array::<{ size_of::<Hop>() }>("NEXT_HOPS", to)?;
    kernel.copy_array::<4>("PATH_MTUS", to)?;
    kernel.copy_array::<4>("SMALLEST_MTU", to)?;
    kernel.copy_hash::<KEY, 4>("SERVICES", to)?;
    kernel.copy_hash::<4, INTERFACE>("INTERFACES", to)
}

#[test]
fn an_entry_of_the_flow_tables_is_no_larger_than_its_budget() -> Result<()> {
    let budget = Budget::read()?;
    let object = Object::parse(lb_user::program::LB)?;
    let mut exceeded = Vec::new();
    for (name, allowed) in [("FLOWS_V4", budget.flow_v4), ("FLOWS_V6", budget.flow_v6)] {
        let map = object.maps.get(name).with_context(|| format!("the object holds no map {name}"))?;
        let bytes = map.value_size();
        println!("{NOTE}bytes of an entry of {name}: {bytes} of {allowed}");
        exceeded.extend(budget::excess(name, bytes, allowed, "any"));
    }
    ensure!(exceeded.is_empty(), "{}", exceeded.join("\n"));
    Ok(())
}
