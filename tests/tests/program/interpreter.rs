//! The program outside of the kernel, instruction by instruction (RFC 9669), to count them: how many a packet takes is the
//! same on every machine, however busy it is. What the kernel rewrites at load (look-ups in arrays that it puts in line,
//! branches on constants that it leaves out) is counted as the compiler wrote it.

use std::collections::{BTreeMap, HashMap, HashSet};

use anyhow::{Context as _, Result, bail, ensure};
use aya_obj::generated::bpf_insn;
use aya_obj::{EbpfSectionKind, Object};

/// More than any packet takes.
const ENDLESS: u64 = 1_000_000;
/// The stack of one function (MAX_BPF_STACK in the kernel's linux/filter.h), and how deep calls go.
const FRAME: u64 = 512;
const FRAMES: u64 = 8;
/// Where a context, the stack and a frame lie. Addresses of packets have 32 bits in a context.
const CONTEXT: u64 = 0x1000;
const STACK: u64 = 0x2000;
const PACKET: u64 = 0x10_000;
/// Where maps begin, and what stands for one of them as a whole.
const MAPS: u64 = 1 << 33;
const MAP_HANDLE: u64 = 1 << 48;

/// Kinds of maps (`enum bpf_map_type` in the kernel's linux/bpf.h).
const HASH: u32 = 1;
const ARRAY: u32 = 2;
const PERCPU_ARRAY: u32 = 6;
const LRU_HASH: u32 = 9;

/// What became of a packet, and what that took.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) action: u32,
    pub(crate) frame: Vec<u8>,
    pub(crate) instructions: u64,
    /// Calls of the kernel's functions, which the instructions are without.
    pub(crate) calls: u64,
    /// Whether the first program has handed it over to another.
    pub(crate) is_handed_over: bool,
}

/// A program with maps of its own.
pub(crate) struct Interpreter {
    /// The programs that hand packets over to each other, in their order, and the one that runs.
    programs: Vec<Vec<bpf_insn>>,
    code: Vec<bpf_insn>,
    memory: Memory,
    maps: Vec<Map>,
    by_name: HashMap<String, usize>,
    jiffies: u64,
}

struct Map {
    kind: u32,
    value_size: u64,
    key_size: u64,
    max_entries: usize,
    /// Where an array's values begin.
    start: u64,
    /// Where a hash's values are.
    values: HashMap<Vec<u8>, u64>,
}

/// Memory of some regions, by the address that each begins at.
#[derive(Default)]
struct Memory {
    regions: BTreeMap<u64, Vec<u8>>,
    next: u64,
}

impl Memory {
    /// Adds a region behind all others, with room between them.
    fn add(&mut self, bytes: Vec<u8>) -> u64 {
        let start = self.next.max(MAPS);
        self.next = (start + u64::try_from(bytes.len()).unwrap_or(u64::MAX)).next_multiple_of(4096) + 4096;
        self.regions.insert(start, bytes);
        start
    }

    fn bytes(&mut self, address: u64, length: u64) -> Result<&mut [u8]> {
        let (start, region) = self.regions.range_mut(..=address).next_back().context("no memory")?;
        let offset = usize::try_from(address - start)?;
        let end = offset + usize::try_from(length)?;
        region.get_mut(offset..end).with_context(|| format!("{length} bytes at {address:#x} are outside"))
    }

    fn read(&mut self, address: u64, length: u64) -> Result<u64> {
        let mut number = [0; 8];
        let bytes = self.bytes(address, length)?;
        number[..bytes.len()].copy_from_slice(bytes);
        Ok(u64::from_le_bytes(number))
    }

    fn write(&mut self, address: u64, length: u64, number: u64) -> Result<()> {
        let bytes = self.bytes(address, length)?;
        let number = number.to_le_bytes();
        bytes.copy_from_slice(number.get(..bytes.len()).context("no number is that long")?);
        Ok(())
    }
}

impl Interpreter {
    /// Programs of an object, of which the first meets every packet, with these constants, and with maps as large as the object says, but for those that are
    /// named.
    pub(crate) fn new(
        object: &[u8],
        programs: &[&str],
        sizes: &[(&str, u32)],
        constants: &[(&str, &[u8])],
    ) -> Result<Self> {
        let mut object = Object::parse(object)?;
        object.patch_map_data(constants.iter().map(|(name, value)| (*name, (*value, true))).collect())?;
        let sections: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let mut names: Vec<_> = object.maps.keys().cloned().collect();
        names.sort();
        let maps = object.maps.clone();
        let numbered =
            names.iter().zip(0..).filter_map(|(name, fd)| Some((name.as_str(), fd, maps.get(name)?)));
        object.relocate_maps(numbered, &sections)?;
        object.relocate_calls(&sections)?;
        let mut memory = Memory::default();
        let mut made = Vec::new();
        for name in &names {
            let map = maps.get(name).context("a map is gone")?;
            let size =
                sizes.iter().find(|(sized, _)| sized == name).map_or(map.max_entries(), |(_, size)| *size);
            let value_size = u64::from(map.value_size()).next_multiple_of(8);
            let mut bytes = Vec::new();
            if map.section_kind() != EbpfSectionKind::Maps {
                // Constants and variables.
                bytes = map.data().to_vec();
            } else if matches!(map.map_type(), ARRAY | PERCPU_ARRAY) {
                bytes = vec![0; usize::try_from(value_size * u64::from(size))?];
            }
            made.push(Map {
                kind: map.map_type(),
                value_size,
                key_size: map.key_size().into(),
                max_entries: usize::try_from(size)?,
                start: memory.add(bytes),
                values: HashMap::new(),
            });
        }
        let code = |program: &str| -> Result<Vec<bpf_insn>> {
            let key =
                object.programs.get(program).context("the object holds no such program")?.function_key();
            Ok(object.functions.get(&key).context("the program has no code")?.instructions.clone())
        };
        let programs = programs.iter().map(|name| code(name)).collect::<Result<Vec<_>>>()?;
        let code = programs.first().context("no program")?.clone();
        let by_name = names.into_iter().zip(0..).collect();
        Ok(Self { programs, code, memory, maps: made, by_name, jiffies: 1 << 32 })
    }

    /// Sets an entry of a map, as userspace does.
    pub(crate) fn set(&mut self, map: &str, key: &[u8], value: &[u8]) -> Result<()> {
        let map = *self.by_name.get(map).with_context(|| format!("the object holds no map {map}"))?;
        let place = self.insert(map, key)?.context("the map is full")?;
        self.memory.bytes(place, u64::try_from(value.len())?)?.copy_from_slice(value);
        Ok(())
    }

    /// Where a key's value is, in a map that has such keys.
    fn look_up(&self, map: usize, key: &[u8]) -> Result<Option<u64>> {
        let map = self.maps.get(map).context("no such map")?;
        Ok(match map.kind {
            ARRAY | PERCPU_ARRAY => {
                let index = u32::from_le_bytes(key.try_into()?);
                let within = usize::try_from(index)? < map.max_entries;
                within.then_some(map.start + u64::from(index) * map.value_size)
            }
            HASH | LRU_HASH => map.values.get(key).copied(),
            kind => bail!("maps of kind {kind} are not known here"),
        })
    }

    /// Where a key's value is to be, which is made if it is not there; `None` if the map is full.
    fn insert(&mut self, map: usize, key: &[u8]) -> Result<Option<u64>> {
        if let Some(place) = self.look_up(map, key)? {
            return Ok(Some(place));
        }
        let map = self.maps.get_mut(map).context("no such map")?;
        if !matches!(map.kind, HASH | LRU_HASH) || map.values.len() >= map.max_entries {
            return Ok(None);
        }
        let place = self.memory.add(vec![0; usize::try_from(map.value_size)?]);
        map.values.insert(key.to_vec(), place);
        Ok(Some(place))
    }

    /// Runs the program on a frame that came in through an interface.
    pub(crate) fn run(&mut self, ingress: u32, frame: &[u8]) -> Result<Run> {
        let end = PACKET + u64::try_from(frame.len())?;
        // `struct xdp_md` of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let context = [u32::try_from(PACKET)?, u32::try_from(end)?, u32::try_from(PACKET)?, ingress, 0, 0];
        self.memory.regions.insert(CONTEXT, context.map(u32::to_le_bytes).concat());
        self.memory.regions.insert(STACK, vec![0; usize::try_from(FRAME * FRAMES)?]);
        self.memory.regions.insert(PACKET, frame.to_vec());
        self.code = self.programs.first().context("no program")?.clone();
        let mut machine = Machine::new();
        while !machine.step(self).with_context(|| format!("at instruction {}", machine.at))? {
            ensure!(machine.instructions < ENDLESS, "no end after {ENDLESS} instructions");
        }
        Ok(Run {
            action: u32::try_from(machine.registers[0] & 0xffff_ffff)?,
            frame: self.memory.regions.remove(&PACKET).unwrap_or_default(),
            instructions: machine.instructions,
            calls: machine.calls,
            is_handed_over: machine.is_handed_over,
        })
    }

    /// Calls a function of the kernel (`enum bpf_func_id` in its linux/bpf.h).
    fn call(&mut self, function: i32, arguments: [u64; 5]) -> Result<u64> {
        const LOOKUP: i32 = 1;
        const UPDATE: i32 = 2;
        const DELETE: i32 = 3;
        const KTIME: i32 = 5;
        const PROCESSOR: i32 = 8;
        const REDIRECT: i32 = 23;
        const JIFFIES: i32 = 118;
        const WHOLE_LENGTH: i32 = 188;
        const XDP_REDIRECT: u64 = 4;
        Ok(match function {
            LOOKUP => {
                let (map, key) = self.map_and_key(arguments)?;
                self.look_up(map, &key)?.unwrap_or(0)
            }
            UPDATE => self.update(arguments)?,
            DELETE => {
                let (map, key) = self.map_and_key(arguments)?;
                let removed = self.maps.get_mut(map).and_then(|map| map.values.remove(&key));
                removed.map_or(error(2), |_| 0)
            }
            KTIME => self.jiffies * 4_000_000,
            JIFFIES => self.jiffies,
            PROCESSOR => 0,
            REDIRECT => XDP_REDIRECT,
            WHOLE_LENGTH => u64::try_from(self.memory.regions.get(&PACKET).context("no packet")?.len())?,
            number => bail!("function {number} of the kernel is not known here"),
        })
    }

    fn map_and_key(&mut self, arguments: [u64; 5]) -> Result<(usize, Vec<u8>)> {
        let map = usize::try_from(arguments[0].checked_sub(MAP_HANDLE).context("that is no map")?)?;
        let size = self.maps.get(map).context("no such map")?.key_size;
        Ok((map, self.memory.bytes(arguments[1], size)?.to_vec()))
    }

    fn update(&mut self, arguments: [u64; 5]) -> Result<u64> {
        const NOEXIST: u64 = 1;
        let (map, key) = self.map_and_key(arguments)?;
        if arguments[3] == NOEXIST && self.look_up(map, &key)?.is_some() {
            return Ok(error(17));
        }
        let size = self.maps.get(map).context("no such map")?.value_size;
        let Some(place) = self.insert(map, &key)? else { return Ok(error(7)) };
        let value = self.memory.bytes(arguments[2], size)?.to_vec();
        self.memory.bytes(place, size)?.copy_from_slice(&value);
        Ok(0)
    }
}

/// As a function returns it.
fn error(number: i64) -> u64 {
    (-number).cast_unsigned()
}

/// A processor for BPF.
struct Machine {
    registers: [u64; 11],
    at: usize,
    /// Where to go on after a function of the program, and with which of the registers that it must leave alone.
    callers: Vec<(usize, [u64; 5])>,
    instructions: u64,
    calls: u64,
    is_handed_over: bool,
}

/// Classes, and their last bits.
const LD: u8 = 0;
const LDX: u8 = 1;
const ST: u8 = 2;
const STX: u8 = 3;
const ALU: u8 = 4;
const JMP: u8 = 5;
const JMP32: u8 = 6;
const ALU64: u8 = 7;
/// What tells a register from an immediate.
const REGISTER: u8 = 0x08;
const MODE: u8 = 0xe0;
const MEM: u8 = 0x60;
const ATOMIC: u8 = 0xc0;

impl Machine {
    fn new() -> Self {
        let mut registers = [0; 11];
        (registers[1], registers[10]) = (CONTEXT, STACK + FRAME * FRAMES);
        Self { registers, at: 0, callers: Vec::new(), instructions: 0, calls: 0, is_handed_over: false }
    }

    fn register(&mut self, number: u8) -> Result<&mut u64> {
        self.registers.get_mut(usize::from(number)).context("no such register")
    }

    /// Does one instruction; says whether it was the last.
    fn step(&mut self, program: &mut Interpreter) -> Result<bool> {
        let instruction = *program.code.get(self.at).context("the code has no such instruction")?;
        let (code, offset, immediate) = (instruction.code, instruction.off, instruction.imm);
        let (dst, src) = (instruction.dst_reg(), instruction.src_reg());
        self.instructions += 1;
        self.at += 1;
        let (left, right) = (*self.register(dst)?, *self.register(src).unwrap_or(&mut 0));
        let size = [4, 2, 1, 8][usize::from(code >> 3 & 3)];
        let at = |base: u64| base.wrapping_add_signed(offset.into());
        let operand = if code & REGISTER == 0 { i64::from(immediate).cast_unsigned() } else { right };
        match code & 7 {
            LD => {
                let high = program.code.get(self.at).context("half an instruction")?.imm;
                self.at += 1;
                *self.register(dst)? = wide(program, src, immediate, high)?;
            }
            LDX => {
                ensure!(code & MODE == MEM, "loads of mode {code:#x} are not known here");
                *self.register(dst)? = program.memory.read(at(right), size)?;
            }
            ST => program.memory.write(at(left), size, i64::from(immediate).cast_unsigned())?,
            STX if code & MODE == MEM => program.memory.write(at(left), size, right)?,
            STX => {
                ensure!(code & MODE == ATOMIC, "stores of mode {code:#x} are not known here");
                self.atomic(&mut program.memory, (at(left), size), src, immediate)?;
            }
            ALU64 => *self.register(dst)? = arithmetic(code, left, operand, immediate)?,
            ALU if code & 0xf0 == 0xd0 => *self.register(dst)? = byte_order(code, left, immediate)?,
            ALU => {
                let (left, operand) = (left & 0xffff_ffff, operand & 0xffff_ffff);
                *self.register(dst)? = arithmetic_32(code, left, operand, immediate)?;
            }
            JMP if code == 0x95 => return Ok(self.leave()),
            JMP if code == 0x85 => self.call(program, src, immediate)?,
            class @ (JMP | JMP32) => {
                let far = class == JMP32 && code & 0xf0 == 0;
                let (left, operand) = if class == JMP32 {
                    // As wide, for comparisons with and without a sign alike.
                    (sign_extended(left), sign_extended(operand))
                } else {
                    (left, operand)
                };
                if jumps(code, left, operand)? {
                    let distance = if far { immediate } else { offset.into() };
                    self.at = self.at.checked_add_signed(isize::try_from(distance)?).context("a jump out")?;
                }
            }
            _ => unreachable!("three bits"),
        }
        Ok(false)
    }

    fn call(&mut self, program: &mut Interpreter, kind: u8, immediate: i32) -> Result<()> {
        const OWN: u8 = 1;
        /// `bpf_tail_call` in the kernel's linux/bpf.h.
        const TAIL_CALL: i32 = 12;
        let [_, r1, r2, r3, r4, r5, r6, r7, r8, r9, r10] = self.registers;
        if kind == OWN {
            self.callers.push((self.at, [r6, r7, r8, r9, r10]));
            self.registers[10] -= FRAME;
            self.at = self.at.checked_add_signed(isize::try_from(immediate)?).context("a call out")?;
        } else if immediate == TAIL_CALL {
            // To another program, which begins anew.
            self.calls += 1;
            let other = program.programs.get(usize::try_from(r3)?).context("no such program")?;
            program.code.clone_from(other);
            let (instructions, calls) = (self.instructions, self.calls);
            *self = Self { instructions, calls, is_handed_over: true, ..Self::new() };
        } else {
            self.calls += 1;
            self.registers[0] = program.call(immediate, [r1, r2, r3, r4, r5])?;
        }
        Ok(())
    }

    /// Returns from a function; says whether it was the outermost.
    fn leave(&mut self) -> bool {
        let Some((at, kept)) = self.callers.pop() else { return true };
        self.at = at;
        self.registers[6..].copy_from_slice(&kept);
        false
    }

    /// Alone on its machine, an atomic operation is like any other.
    fn atomic(&mut self, memory: &mut Memory, (address, size): (u64, u64), src: u8, what: i32) -> Result<()> {
        const FETCH: i32 = 0x01;
        const EXCHANGE: i32 = 0xe1;
        const COMPARE: i32 = 0xf1;
        let (before, value) = (memory.read(address, size)?, *self.register(src)?);
        let after = match what {
            EXCHANGE => value,
            COMPARE => {
                let expected = self.registers[0] & (u64::MAX >> (64 - 8 * size));
                self.registers[0] = before;
                return if before == expected { memory.write(address, size, value) } else { Ok(()) };
            }
            _ => match what & !FETCH {
                0x00 => before.wrapping_add(value),
                0x40 => before | value,
                0x50 => before & value,
                0xa0 => before ^ value,
                _ => bail!("no such atomic operation: {what:#x}"),
            },
        };
        if what & FETCH != 0 {
            *self.register(src)? = before;
        }
        memory.write(address, size, after)
    }
}

/// What a wide load says: a number, a map, or a value in one.
fn wide(program: &Interpreter, kind: u8, low: i32, high: i32) -> Result<u64> {
    const MAP: u8 = 1;
    const MAP_VALUE: u8 = 2;
    let (low_bits, high_bits) = (u64::from(low.cast_unsigned()), u64::from(high.cast_unsigned()));
    Ok(match kind {
        0 => low_bits | high_bits << 32,
        MAP => MAP_HANDLE + low_bits,
        MAP_VALUE => program.maps.get(usize::try_from(low)?).context("no such map")?.start + high_bits,
        kind => bail!("wide loads of kind {kind} are not known here"),
    })
}

fn sign_extended(number: u64) -> u64 {
    let low = u32::try_from(number & 0xffff_ffff).unwrap_or_default();
    i64::from(low.cast_signed()).cast_unsigned()
}

fn arithmetic(code: u8, left: u64, right: u64, immediate: i32) -> Result<u64> {
    let by = u32::try_from(right & 63)?;
    Ok(match code & 0xf0 {
        0x00 => left.wrapping_add(right),
        0x10 => left.wrapping_sub(right),
        0x20 => left.wrapping_mul(right),
        0x30 => left.checked_div(right).unwrap_or(0),
        0x40 => left | right,
        0x50 => left & right,
        0x60 => left << by,
        0x70 => left >> by,
        0x80 => left.wrapping_neg(),
        0x90 => left.checked_rem(right).unwrap_or(left),
        0xa0 => left ^ right,
        0xb0 => right,
        0xc0 => (left.cast_signed() >> by).cast_unsigned(),
        _ => bail!("no such operation: {code:#x}, {immediate}"),
    })
}

/// Of two numbers of 32 bits.
fn arithmetic_32(code: u8, left: u64, right: u64, immediate: i32) -> Result<u64> {
    let by = right & 31;
    let result = match code & 0xf0 {
        0x60 => left << by,
        0x70 => left >> by,
        0xc0 => (sign_extended(left).cast_signed() >> by).cast_unsigned(),
        _ => arithmetic(code, left, right, immediate)?,
    };
    Ok(result & 0xffff_ffff)
}

/// To or from big-endian of 16, 32 or 64 bits; little-endian is what everything is here.
fn byte_order(code: u8, number: u64, bits: i32) -> Result<u64> {
    let to_big = code & REGISTER != 0;
    Ok(match (bits, to_big) {
        (16, true) => u64::from(u16::try_from(number & 0xffff)?.swap_bytes()),
        (32, true) => u64::from(u32::try_from(number & 0xffff_ffff)?.swap_bytes()),
        (64, true) => number.swap_bytes(),
        (16, false) => number & 0xffff,
        (32, false) => number & 0xffff_ffff,
        (64, false) => number,
        _ => bail!("no such number of bits: {bits}"),
    })
}

fn jumps(code: u8, left: u64, right: u64) -> Result<bool> {
    let (signed_left, signed_right) = (left.cast_signed(), right.cast_signed());
    Ok(match code & 0xf0 {
        0x00 => true,
        0x10 => left == right,
        0x20 => left > right,
        0x30 => left >= right,
        0x40 => left & right != 0,
        0x50 => left != right,
        0x60 => signed_left > signed_right,
        0x70 => signed_left >= signed_right,
        0xa0 => left < right,
        0xb0 => left <= right,
        0xc0 => signed_left < signed_right,
        0xd0 => signed_left <= signed_right,
        _ => bail!("no such jump: {code:#x}"),
    })
}
