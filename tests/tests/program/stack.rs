//! How much of the stack a program takes, read from its instructions as the verifier does.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Context as _, Result};
use aya_obj::Object;
use aya_obj::generated::bpf_insn;

/// What the kernel allows along a chain of calls (MAX_BPF_STACK in its linux/filter.h).
pub(crate) const LIMIT: u32 = 512;

/// Frames are rounded up to this with a compiler in the kernel (`round_up_stack_depth` in its verifier.c).
const ROUNDED_TO: u32 = 16;

/// The frame pointer, and the register for calls of functions in the same program.
const R10: u8 = 10;
const BPF_PSEUDO_CALL: u8 = 1;

/// Instruction codes and classes (RFC 9669 sections 3 and 4).
const MOV64_REGISTER: u8 = 0xbf;
const ADD64_IMMEDIATE: u8 = 0x07;
const CALL: u8 = 0x85;
const CLASS: u8 = 0x07;
const LDX: u8 = 0x01;
const ST: u8 = 0x02;
const STX: u8 = 0x03;

/// The frames of the chain of calls that needs the most stack, outermost first, in bytes.
pub(crate) fn deepest(object: &[u8], program: &str) -> Result<Vec<u32>> {
    let mut object = Object::parse(object)?;
    let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
    object.relocate_calls(&sections)?;
    let program = object.programs.get(program).context("the object holds no such program")?;
    let function = object.functions.get(&program.function_key()).context("the program has no code")?;
    let functions = functions(&function.instructions);
    Ok(deepest_from(0, &functions))
}

struct Function {
    frame: u32,
    calls: Vec<usize>,
}

/// The functions of a linked program, by the index of their first instruction.
fn functions(instructions: &[bpf_insn]) -> BTreeMap<usize, Function> {
    let target = |at: usize| at.checked_add_signed(isize::try_from(instructions[at].imm).ok()? + 1);
    let calls = |at: &usize| instructions[*at].code == CALL && instructions[*at].src_reg() == BPF_PSEUDO_CALL;
    let starts: Vec<usize> = (0..instructions.len()).filter(calls).filter_map(target).chain([0]).collect();
    starts
        .iter()
        .map(|&start| {
            let end = starts.iter().copied().filter(|other| *other > start).min();
            let body = start..end.unwrap_or(instructions.len());
            let calls = body.clone().filter(calls).filter_map(target).collect();
            (start, Function { frame: frame(&instructions[body]), calls })
        })
        .collect()
}

fn frame(body: &[bpf_insn]) -> u32 {
    let mut copies = HashSet::from([R10]);
    let mut lowest = 0;
    for instruction in body {
        let (dst, src) = (instruction.dst_reg(), instruction.src_reg());
        match instruction.code {
            MOV64_REGISTER if src == R10 => {
                copies.insert(dst);
            }
            ADD64_IMMEDIATE if copies.remove(&dst) => lowest = lowest.min(instruction.imm),
            code if code & CLASS == LDX && src == R10 => lowest = lowest.min(instruction.off.into()),
            code if matches!(code & CLASS, ST | STX) && dst == R10 => {
                lowest = lowest.min(instruction.off.into());
            }
            _ => {}
        }
    }
    lowest.unsigned_abs().max(1).next_multiple_of(ROUNDED_TO)
}

fn deepest_from(start: usize, functions: &BTreeMap<usize, Function>) -> Vec<u32> {
    let Some(function) = functions.get(&start) else { return Vec::new() };
    let callees = function.calls.iter().map(|callee| deepest_from(*callee, functions));
    let below = callees.max_by_key(|frames| frames.iter().sum::<u32>()).unwrap_or_default();
    [vec![function.frame], below].concat()
}
