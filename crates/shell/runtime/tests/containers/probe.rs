//! What runs inside a container: asks the kernel for one thing and prints the answer.

use std::process::ExitCode;

pub(crate) const SUBCOMMAND: &str = "probe-inside";

pub(crate) fn run(args: &[String]) -> ExitCode {
    match args.first().map(String::as_str) {
        Some("clone") => clone(args[1].parse().unwrap()),
        Some("syscall") => syscall(args[1].parse().unwrap()),
        Some("device") => device(args[1].parse().unwrap(), args[2].parse().unwrap()),
        Some("allocate") => allocate(args[1].parse().unwrap()),
        Some("forks") => forks(args[1].parse().unwrap()),
        other => panic!("no probe {other:?}"),
    }
    ExitCode::SUCCESS
}

/// clone with flags; prints `ok` or the error's number.
fn clone(flags: u64) {
    // SAFETY: without CLONE_VM the child has its own memory; it ends at once.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags | libc::SIGCHLD as u64, 0, 0, 0, 0) };
    if pid == 0 {
        // SAFETY: ends the child without running anything of the parent.
        unsafe { libc::_exit(0) }
    }
    answer(pid);
}

/// Any call with zeros as arguments.
fn syscall(number: i64) {
    // SAFETY: only numbers whose effect with zeros is an error or nothing are asked for.
    answer(unsafe { libc::syscall(number, 0, 0, 0, 0, 0, 0) });
}

/// Makes a character device and opens it.
fn device(major: u32, minor: u32) {
    let path = c"/tmp/node";
    // SAFETY: the path is a string that ends with zero.
    unsafe {
        libc::unlink(path.as_ptr());
        let made = libc::mknod(path.as_ptr(), libc::S_IFCHR | 0o600, libc::makedev(major, minor));
        print!("mknod ");
        answer(made.into());
        print!("open ");
        answer(libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_NONBLOCK).into());
    }
}

/// Touches so many megabytes.
fn allocate(megabytes: usize) {
    let memory = vec![1u8; megabytes * 1024 * 1024];
    println!("{}", std::hint::black_box(&memory).len());
}

/// Forks children that stay; prints how many it got.
fn forks(wanted: u32) {
    let mut made = 0;
    for _ in 0..wanted {
        // SAFETY: this process has one thread; the child only sleeps.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            // SAFETY: as above.
            unsafe {
                libc::sleep(30);
                libc::_exit(0)
            }
        }
        made += i32::from(pid > 0);
    }
    println!("{made}");
}

fn answer(result: i64) {
    match result {
        result if result >= 0 => println!("ok"),
        _ => println!("{}", std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
    }
}
