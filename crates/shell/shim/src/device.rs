//! The device filter of cgroup v2.
//!
//! Owns: the program that decides which devices a container may make and open.
//! Does not know: cgroup v1, where libcontainer writes the same rules into files.
//! Invariant: what is not listed is refused. Making any node is allowed, as with docker, because
//! a node alone gives no access.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

/// Attaches the default rules to the group's directory. They stay until the group is removed.
pub(crate) fn attach_default(cgroup_dir: &Path) -> io::Result<()> {
    let dir = std::fs::File::open(cgroup_dir)?;
    let program = load(&default_program())?;
    let mut attr = AttachAttr {
        target_fd: dir.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    bpf(BPF_PROG_ATTACH, &mut attr).map(|_| ())
}

/// One instruction, as the kernel lays it out.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Insn {
    code: u8,
    /// Destination in the low, source in the high half.
    registers: u8,
    offset: i16,
    immediate: i32,
}

#[repr(C)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

#[repr(C)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

fn load(program: &[Insn]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel answered with a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: `attr` is a live structure of the size given, in the layout of union bpf_attr; the
    // pointers inside refer to memory that outlives the call, and the kernel only reads it.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), std::mem::size_of::<T>())
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// Registers on entry: r1 points at (access << 16 | type, major, minor), each 32 bits.
fn default_program() -> Vec<Insn> {
    let mut program = vec![
        load_word(R2, 0),
        alu(MOV_REGISTER, R3, R2, 0),
        alu(SHIFT_RIGHT, R3, 0, 16),
        alu(AND, R2, 0, 0xffff),
        load_word(R4, 4),
        load_word(R5, 8),
        // Making a node without opening it: always.
        alu(AND, R3, 0, ACCESS_READ | ACCESS_WRITE),
        jump(JUMP_NOT_EQUAL, R3, 0, 2),
        alu(MOV, R0, 0, 1),
        EXIT,
        // Block devices: never.
        jump(JUMP_EQUAL, R2, TYPE_CHAR, 2),
        alu(MOV, R0, 0, 0),
        EXIT,
    ];
    for (major, minor) in CHARACTER_DEVICES {
        match minor {
            Some(minor) => program
                .extend([jump(JUMP_NOT_EQUAL, R4, *major, 3), jump(JUMP_NOT_EQUAL, R5, *minor, 2)]),
            None => program.push(jump(JUMP_NOT_EQUAL, R4, *major, 2)),
        }
        program.extend([alu(MOV, R0, 0, 1), EXIT]);
    }
    program.extend([alu(MOV, R0, 0, 0), EXIT]);
    program
}

/// Major and minor (`None`: all) of what a container may read and write: null, zero, full,
/// random, urandom; tty, console, ptmx; pseudo terminals.
const CHARACTER_DEVICES: &[(i32, Option<i32>)] = &[
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

const fn alu(code: u8, destination: u8, source: u8, immediate: i32) -> Insn {
    Insn { code, registers: destination | source << 4, offset: 0, immediate }
}

const fn load_word(destination: u8, offset: i16) -> Insn {
    Insn { code: 0x61, registers: destination | R1 << 4, offset, immediate: 0 }
}

const fn jump(code: u8, register: u8, immediate: i32, offset: i16) -> Insn {
    Insn { code, registers: register, offset, immediate }
}

const R0: u8 = 0;
const R1: u8 = 1;
const R2: u8 = 2;
const R3: u8 = 3;
const R4: u8 = 4;
const R5: u8 = 5;

// 64-bit operations on registers, so that the upper halves are defined.
const MOV: u8 = 0xb7;
const MOV_REGISTER: u8 = 0xbf;
const AND: u8 = 0x57;
const SHIFT_RIGHT: u8 = 0x77;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const EXIT: Insn = Insn { code: 0x95, registers: 0, offset: 0, immediate: 0 };

const ACCESS_READ: i32 = 2;
const ACCESS_WRITE: i32 = 4;
const TYPE_CHAR: i32 = 2;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the program as the kernel would; only the instructions used above.
    fn allowed(access: i32, kind: i32, major: i32, minor: i32) -> bool {
        let words = [access << 16 | kind, major, minor];
        let (mut r, program, mut at) = ([0i64; 11], default_program(), 0usize);
        loop {
            let insn = program[at];
            let (d, s) = (usize::from(insn.registers & 15), usize::from(insn.registers >> 4));
            let immediate = i64::from(insn.immediate);
            at += 1;
            match insn.code {
                0x61 => r[d] = i64::from(words[insn.offset as usize / 4] as u32),
                MOV => r[d] = immediate,
                MOV_REGISTER => r[d] = r[s],
                AND => r[d] &= immediate,
                SHIFT_RIGHT => r[d] >>= immediate,
                JUMP_EQUAL if r[d] == immediate => at += insn.offset as usize,
                JUMP_NOT_EQUAL if r[d] != immediate => at += insn.offset as usize,
                JUMP_EQUAL | JUMP_NOT_EQUAL => {}
                0x95 => return r[0] == 1,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn only_the_listed_devices_can_be_opened() {
        let (mknod, read, write, block, char) = (1, 2, 4, 1, 2);
        for (access, kind, major, minor, expected) in [
            (read | write, char, 1, 3, true),
            (mknod | read | write, char, 1, 9, true),
            (read, char, 1, 4, false),
            (read, char, 1, 1, false),
            (write, char, 136, 77, true),
            (read, char, 5, 2, true),
            (read, char, 5, 3, false),
            (read, char, 4, 64, false),
            (read, char, 10, 200, false),
            (mknod, char, 4, 64, true),
            (mknod, block, 8, 0, true),
            (read, block, 8, 0, false),
            (read, block, 1, 3, false),
            (mknod | write, block, 8, 0, false),
        ] {
            assert_eq!(
                allowed(access, kind, major, minor),
                expected,
                "access {access} type {kind} {major}:{minor}"
            );
        }
    }

    #[test]
    fn the_kernel_accepts_the_program() {
        load(&default_program()).expect("the verifier accepts the device filter");
    }
}
