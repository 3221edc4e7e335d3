//! The filter against Docker's profile, system call by system call.

use super::*;

/// What the kernel shows a filter.
#[derive(Clone, Copy)]
struct Call {
    number: u32,
    arch: u32,
    argument0: u64,
}

/// Runs a filter as the kernel would.
fn evaluate(program: &[Instruction], call: Call) -> u32 {
    let word = |offset| match offset {
        0 => call.number,
        4 => call.arch,
        16 => call.argument0 as u32,
        20 => (call.argument0 >> 32) as u32,
        other => panic!("load of {other}"),
    };
    let (mut at, mut accumulator) = (0usize, 0u32);
    loop {
        let instruction = program[at];
        at += 1;
        let matched = match instruction.code {
            0x20 => {
                accumulator = word(instruction.value);
                continue;
            }
            0x05 => {
                at += instruction.value as usize;
                continue;
            }
            0x06 => return instruction.value,
            JUMP_EQUAL => accumulator == instruction.value,
            JUMP_AT_LEAST => accumulator >= instruction.value,
            JUMP_ANY_BIT => accumulator & instruction.value != 0,
            code => panic!("instruction {code:#x}"),
        };
        at += usize::from(if matched { instruction.jump_true } else { instruction.jump_false });
    }
}

/// One line of Docker's profile.
#[derive(Debug, Default)]
struct Line {
    arches: Vec<String>,
    cap: Option<u64>,
    nocap: Option<u64>,
    argument: Option<(String, u64)>,
    errno: Option<u32>,
    names: Vec<String>,
}

fn docker_profile() -> Vec<Line> {
    let text = include_str!("../../tests/data/docker-seccomp.txt");
    text.lines().filter(|line| !line.starts_with('#')).map(parse_line).collect()
}

fn parse_line(text: &str) -> Line {
    let (rule, names) = text.split_once(": ").unwrap();
    let mut line = Line { names: words(names), ..Line::default() };
    let mut rest = words(rule).into_iter().peekable();
    while let Some(word) = rest.next() {
        match word.as_str() {
            "always" => {}
            "arch" => line.arches = rest.by_ref().collect(),
            "cap" => line.cap = Some(cap_bit(&rest.next().unwrap())),
            "nocap" => line.nocap = Some(cap_bit(&rest.next().unwrap())),
            "arg" => {
                assert_eq!(rest.next().unwrap(), "0");
                let op = rest.next().unwrap();
                line.argument = Some((op, rest.next().unwrap().parse().unwrap()));
            }
            "errno" => line.errno = Some(rest.next().unwrap().parse().unwrap()),
            other => panic!("{other} in {text}"),
        }
    }
    line
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn cap_bit(name: &str) -> u64 {
    capability::bit(name.strip_prefix("CAP_").unwrap())
}

/// What libseccomp makes of the profile for one call.
fn docker_says(
    lines: &[Line],
    name: &str,
    (machine, abi): (Machine, Abi),
    capabilities: u64,
    argument: u64,
) -> u32 {
    let host = if machine == Machine::X86_64 { "amd64" } else { "arm64" };
    let argument = if abi.has_32_bit_arguments() { argument & 0xffff_ffff } else { argument };
    let mut errno = None;
    for line in lines.iter().filter(|line| line.names.iter().any(|n| n == name)) {
        let applies = (line.arches.is_empty() || line.arches.iter().any(|a| a == host))
            && line.cap.is_none_or(|cap| capabilities & cap != 0)
            && line.nocap.is_none_or(|cap| capabilities & cap == 0)
            && line.argument.as_ref().is_none_or(|(op, value)| match op.as_str() {
                "ne" => argument != *value,
                "eq" => argument == *value,
                "masked-zero" => argument & value == 0,
                other => panic!("{other}"),
            });
        match (applies, line.errno) {
            (true, None) => return RETURN_ALLOW,
            (true, Some(number)) => errno = Some(0x0005_0000 | number),
            (false, _) => {}
        }
    }
    errno.unwrap_or(RETURN_EPERM)
}

const ARGUMENTS: &[u64] = &[
    0,
    1,
    8,
    9,
    17,
    40,
    41,
    0x2_0000,
    0x2_0008,
    0xffff_ffff,
    0x1000_0000,
    0x0200_0000,
    0x7e02_0000,
    0x0002_0000,
    0x11,
    0x0100_0011,
    0x1_0000_0000,
    0x1_0000_0028,
    0xffff_ffff_ffff_ffff,
];

const TARGETS: [(Machine, Abi, u32); 5] = [
    (Machine::X86_64, Abi::X86_64, AUDIT_ARCH_X86_64),
    (Machine::X86_64, Abi::X86, AUDIT_ARCH_I386),
    (Machine::X86_64, Abi::X32, AUDIT_ARCH_X86_64),
    (Machine::Aarch64, Abi::Aarch64, AUDIT_ARCH_AARCH64),
    (Machine::Aarch64, Abi::Arm, AUDIT_ARCH_ARM),
];

/// None, all, docker's default, and each that a rule asks for alone.
fn capability_sets() -> Vec<u64> {
    let mut sets = vec![0, u64::MAX, 0xa804_25fb];
    for line in docker_profile() {
        sets.extend(line.cap);
    }
    sets.sort_unstable();
    sets.dedup();
    sets
}

#[test]
fn every_call_gets_dockers_answer() {
    let lines = docker_profile();
    let mut compared = 0u32;
    for capabilities in capability_sets() {
        for (machine, abi, arch) in TARGETS {
            let program = compile(machine, capabilities);
            let rows = table::SYSCALLS.iter().filter(|r| r.numbers[abi as usize] != NO_NUMBER);
            for row in rows {
                let number = row.numbers[abi as usize];
                for argument0 in ARGUMENTS {
                    let call = Call { number, arch, argument0: *argument0 };
                    let expected =
                        docker_says(&lines, row.name, (machine, abi), capabilities, *argument0);
                    assert_eq!(
                        evaluate(&program, call),
                        expected,
                        "{} of {abi:?} with capabilities {capabilities:#x}, {argument0:#x}",
                        row.name
                    );
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 400 * 5 * 10, "{compared} comparisons");
}

#[test]
fn every_number_that_is_not_listed_is_refused() {
    for (machine, abi, arch) in TARGETS {
        let program = compile(machine, u64::MAX);
        let listed: Vec<u32> = table::SYSCALLS.iter().map(|r| r.numbers[abi as usize]).collect();
        let base = if abi == Abi::X32 { X32_BIT } else { 0 };
        let newest = listed.iter().copied().filter(|n| *n < base + 0xf_0000).max().unwrap();
        for number in (base..base + 2_000).filter(|number| !listed.contains(number)) {
            let expected = if number > newest { RETURN_ENOSYS } else { RETURN_EPERM };
            let call = Call { number, arch, argument0: 0 };
            assert_eq!(evaluate(&program, call), expected, "{number} of {abi:?}");
        }
        for number in [u32::MAX, 0x7fff_ffff, base + 0x2fff_ffff] {
            let call = Call { number, arch, argument0: 0 };
            assert_eq!(evaluate(&program, call), RETURN_ENOSYS, "{number:#x} of {abi:?}");
        }
    }
}

#[test]
fn another_machines_calls_end_the_process() {
    for (machine, foreign) in
        [(Machine::X86_64, AUDIT_ARCH_AARCH64), (Machine::Aarch64, AUDIT_ARCH_X86_64)]
    {
        let call = Call { number: 0, arch: foreign, argument0: 0 };
        assert_eq!(evaluate(&compile(machine, u64::MAX), call), RETURN_KILL);
    }
}

#[test]
fn programs_fit_the_kernels_limit_and_only_jump_inside() {
    for capabilities in capability_sets() {
        for machine in [Machine::X86_64, Machine::Aarch64] {
            let program = compile(machine, capabilities);
            assert!(program.len() <= 4096, "{} instructions", program.len());
            for (at, instruction) in program.iter().enumerate() {
                let farthest = match instruction.code {
                    0x05 => instruction.value as usize,
                    _ => usize::from(instruction.jump_true.max(instruction.jump_false)),
                };
                assert!(at + 1 + farthest <= program.len());
            }
        }
    }
}

#[test]
fn the_table_knows_every_call_of_the_profile() {
    for line in docker_profile() {
        for name in &line.names {
            let known = table::SYSCALLS.iter().any(|row| row.name == name);
            // The only call that neither x86 nor arm has.
            assert!(known || name == "riscv_hwprobe", "{name}");
        }
    }
}
