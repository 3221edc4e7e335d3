//! The default system call filter, equal in effect to Docker's.
//!
//! Owns: compiling the table into classic BPF for this machine's architecture and those it can
//! also run (i386 and x32 beside x86_64, arm beside aarch64).
//! Does not know: how a filter is loaded; the shim does that inside the container.
//! Invariant: every path through a filter ends in a return, jumps only go forward, and a number
//! that is not in the table is refused: EPERM below the newest known call, ENOSYS above it, so
//! that a C library falls back where the table is older than the kernel.

mod table;

use crate::capability;

/// One system call and who may make it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Row {
    #[cfg_attr(not(test), expect(dead_code, reason = "for people and for the comparison"))]
    pub(crate) name: &'static str,
    pub(crate) rule: Rule,
    /// In the order of [`Abi`].
    pub(crate) numbers: [u32; 5],
}

/// When a call is allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    Always,
    /// With any capability of this set.
    Any(u64),
    X86Host,
    ArmHost,
    /// Without new namespaces, unless the container has SYS_ADMIN.
    Clone,
    /// Its flags are in memory, where a filter cannot look: ENOSYS makes libraries use clone.
    Clone3,
    /// All families but AF_VSOCK, which reaches the hypervisor.
    Socket,
    /// The harmless ones and the question which it is.
    Personality,
}

/// Marks a call that an architecture does not have.
pub(crate) const NO_NUMBER: u32 = u32::MAX;

/// Machine of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Machine {
    X86_64,
    Aarch64,
}

impl Machine {
    /// The one this program was built for; `None` where no filter can be made.
    #[must_use]
    pub fn current() -> Option<Self> {
        match std::env::consts::ARCH {
            "x86_64" => Some(Self::X86_64),
            "aarch64" => Some(Self::Aarch64),
            _ => None,
        }
    }
}

/// One instruction of classic BPF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jump_true: u8,
    pub jump_false: u8,
    pub value: u32,
}

/// The filter for a container with these capabilities.
#[must_use]
pub fn compile(machine: Machine, capabilities: u64) -> Vec<Instruction> {
    let mut program = vec![load(OFFSET_ARCH)];
    let compiled = |abi| section(machine, abi, capabilities);
    match machine {
        Machine::X86_64 => {
            let (native, x32) = (compiled(Abi::X86_64), compiled(Abi::X32));
            let mut both = vec![load(OFFSET_NUMBER)];
            both.extend(branch_at_least(X32_BIT, native, x32));
            program.extend(branch_equal(AUDIT_ARCH_X86_64, both));
            let mut compat = vec![load(OFFSET_NUMBER)];
            compat.extend(compiled(Abi::X86));
            program.extend(branch_equal(AUDIT_ARCH_I386, compat));
        }
        Machine::Aarch64 => {
            for (abi, arch) in [(Abi::Aarch64, AUDIT_ARCH_AARCH64), (Abi::Arm, AUDIT_ARCH_ARM)] {
                let mut all = vec![load(OFFSET_NUMBER)];
                all.extend(compiled(abi));
                program.extend(branch_equal(arch, all));
            }
        }
    }
    program.push(answer(RETURN_KILL));
    program
}

/// The bytes that the shim loads: eight an instruction, in this machine's order.
#[must_use]
pub fn to_bytes(program: &[Instruction]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(program.len() * 8);
    for instruction in program {
        bytes.extend(instruction.code.to_ne_bytes());
        bytes.extend([instruction.jump_true, instruction.jump_false]);
        bytes.extend(instruction.value.to_ne_bytes());
    }
    bytes
}

/// Numbering and argument width of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Abi {
    X86_64,
    X86,
    X32,
    Aarch64,
    Arm,
}

impl Abi {
    fn has_32_bit_arguments(self) -> bool {
        matches!(self, Self::X86 | Self::Arm)
    }
}

/// What happens to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Allow,
    NotPermitted,
    NotImplemented,
    Clone,
    Socket,
    Personality,
}

fn verdict(row: &Row, machine: Machine, capabilities: u64) -> Verdict {
    let allow_if = |allowed| if allowed { Verdict::Allow } else { Verdict::NotPermitted };
    let is_admin = capabilities & capability::bit("SYS_ADMIN") != 0;
    match row.rule {
        Rule::Always => Verdict::Allow,
        Rule::Any(set) => allow_if(capabilities & set != 0),
        Rule::X86Host => allow_if(machine == Machine::X86_64),
        Rule::ArmHost => allow_if(machine == Machine::Aarch64),
        Rule::Clone | Rule::Clone3 if is_admin => Verdict::Allow,
        Rule::Clone => Verdict::Clone,
        Rule::Clone3 => Verdict::NotImplemented,
        Rule::Socket => Verdict::Socket,
        Rule::Personality => Verdict::Personality,
    }
}

/// The decision for one ABI, with the number in the accumulator.
fn section(machine: Machine, abi: Abi, capabilities: u64) -> Vec<Instruction> {
    let mut calls: Vec<(u32, Verdict)> = table::SYSCALLS
        .iter()
        .filter(|row| row.numbers[abi as usize] != NO_NUMBER)
        .map(|row| (row.numbers[abi as usize], verdict(row, machine, capabilities)))
        .collect();
    calls.sort_unstable_by_key(|(number, _)| *number);
    calls.dedup_by_key(|(number, _)| *number);
    let newest = calls.iter().map(|(n, _)| *n).filter(|n| !is_private(*n)).max().unwrap_or(0);

    // Ranges: from this number on, this verdict.
    let mut ranges: Vec<(u32, Verdict)> = Vec::new();
    let mut next = 0;
    for (number, verdict) in calls {
        if number > next && next <= newest {
            ranges.push((next, Verdict::NotPermitted));
        }
        if number > next && number > newest + 1 {
            ranges.push((next.max(newest + 1), Verdict::NotImplemented));
        }
        ranges.push((number, verdict));
        next = number + 1;
    }
    ranges.push((next, Verdict::NotImplemented));
    ranges.dedup_by(|later, earlier| later.1 == earlier.1);
    search(abi, &ranges)
}

/// Numbers that arm keeps for itself; they say nothing about the kernel's age.
fn is_private(number: u32) -> bool {
    number & !X32_BIT >= 0xf_0000
}

/// A balanced tree of comparisons down to the range.
fn search(abi: Abi, ranges: &[(u32, Verdict)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![answer(RETURN_EPERM)],
        [(_, verdict)] => leaf(abi, *verdict),
        _ => {
            let (below, from) = ranges.split_at(ranges.len() / 2);
            branch_at_least(from[0].0, search(abi, below), search(abi, from))
        }
    }
}

/// Ends with a return on every path.
fn leaf(abi: Abi, verdict: Verdict) -> Vec<Instruction> {
    match verdict {
        Verdict::Allow => vec![answer(RETURN_ALLOW)],
        Verdict::NotPermitted => vec![answer(RETURN_EPERM)],
        Verdict::NotImplemented => vec![answer(RETURN_ENOSYS)],
        Verdict::Clone => vec![
            load(argument_low(0)),
            jump(JUMP_ANY_BIT, CLONE_NAMESPACES, 0, 1),
            answer(RETURN_EPERM),
            answer(RETURN_ALLOW),
        ],
        Verdict::Socket => high_word(
            abi,
            RETURN_ALLOW,
            &[
                load(argument_low(0)),
                jump(JUMP_EQUAL, AF_VSOCK, 0, 1),
                answer(RETURN_EPERM),
                answer(RETURN_ALLOW),
            ],
        ),
        Verdict::Personality => {
            let mut rest = vec![load(argument_low(0))];
            for (at, value) in PERSONALITIES.iter().enumerate() {
                let to_allow = (PERSONALITIES.len() - at) as u8;
                rest.push(jump(JUMP_EQUAL, *value, to_allow, 0));
            }
            rest.extend([answer(RETURN_EPERM), answer(RETURN_ALLOW)]);
            high_word(abi, RETURN_EPERM, &rest)
        }
    }
}

/// Where arguments have 64 bits, a value whose upper half is not zero gets `otherwise`.
fn high_word(abi: Abi, otherwise: u32, rest: &[Instruction]) -> Vec<Instruction> {
    if abi.has_32_bit_arguments() {
        return rest.to_vec();
    }
    let mut all = vec![load(argument_low(0) + 4), jump(JUMP_EQUAL, 0, 1, 0), answer(otherwise)];
    all.extend_from_slice(rest);
    all
}

/// `from` when the accumulator is at least `value`, `below` otherwise.
fn branch_at_least(
    value: u32,
    below: Vec<Instruction>,
    from: Vec<Instruction>,
) -> Vec<Instruction> {
    let mut all = vec![jump(JUMP_AT_LEAST, value, 0, 1), skip(below.len())];
    all.extend(below);
    all.extend(from);
    all
}

/// `then` when the accumulator is `value`; otherwise goes on behind it.
fn branch_equal(value: u32, then: Vec<Instruction>) -> Vec<Instruction> {
    let mut all = vec![jump(JUMP_EQUAL, value, 1, 0), skip(then.len())];
    all.extend(then);
    all
}

const fn load(offset: u32) -> Instruction {
    Instruction { code: 0x20, jump_true: 0, jump_false: 0, value: offset }
}

const fn answer(value: u32) -> Instruction {
    Instruction { code: 0x06, jump_true: 0, jump_false: 0, value }
}

const fn jump(code: u16, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, value }
}

/// Over any number of instructions; conditional jumps reach 255 only.
fn skip(instructions: usize) -> Instruction {
    Instruction { code: 0x05, jump_true: 0, jump_false: 0, value: instructions as u32 }
}

/// Offset of the lower half of an argument in `struct seccomp_data`, little-endian.
const fn argument_low(index: u32) -> u32 {
    16 + 8 * index
}

const OFFSET_NUMBER: u32 = 0;
const OFFSET_ARCH: u32 = 4;

const JUMP_EQUAL: u16 = 0x15;
const JUMP_AT_LEAST: u16 = 0x35;
const JUMP_ANY_BIT: u16 = 0x45;

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_EPERM: u32 = 0x0005_0001;
const RETURN_ENOSYS: u32 = 0x0005_0026;
const RETURN_KILL: u32 = 0x8000_0000;

const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
const AUDIT_ARCH_I386: u32 = 0x4000_0003;
const AUDIT_ARCH_AARCH64: u32 = 0xc000_00b7;
const AUDIT_ARCH_ARM: u32 = 0x4000_0028;

const X32_BIT: u32 = 0x4000_0000;

/// NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;

const AF_VSOCK: u32 = 40;

/// Linux, Linux32 (8), with UNAME26 (0x20000), and the question.
const PERSONALITIES: [u32; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

#[cfg(test)]
mod tests;
