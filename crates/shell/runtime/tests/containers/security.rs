//! Probes inside real containers, one for each defect that the libraries are known to have.

use std::os::unix::fs::MetadataExt;

use ports::runtime::ContainerConfig;

use crate::support::{Host, block_on, probe, shell};

pub(crate) const TESTS: &[crate::Test] = &[
    ("a_default_container_has_dockers_privileges", || block_on(default_privileges())),
    ("a_user_namespace_cannot_be_cloned", || block_on(clone_is_filtered())),
    ("unlisted_calls_are_refused", || block_on(unlisted_calls_are_refused())),
    ("devices_cannot_be_opened", || block_on(devices_cannot_be_opened())),
    ("our_binary_is_out_of_reach", || block_on(our_binary_is_out_of_reach())),
    ("kernel_files_are_masked", || block_on(kernel_files_are_masked())),
];

/// Prints the process's own status, without a shell that would change it.
fn status(id: &str) -> ContainerConfig {
    ContainerConfig {
        command: vec!["/bin/cat".into(), "/proc/self/status".into()],
        args: Vec::new(),
        ..shell(id, "")
    }
}

fn field<'a>(output: &'a str, name: &str) -> &'a str {
    let line = output.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_whitespace().nth(1).unwrap_or_default()
}

async fn default_privileges() {
    let host = Host::new().await;
    let (_, output) = host.run(&status("root")).await;
    for (name, value) in [
        ("CapInh", "0000000000000000"),
        ("CapPrm", "00000000a80425fb"),
        ("CapEff", "00000000a80425fb"),
        ("CapBnd", "00000000a80425fb"),
        ("CapAmb", "0000000000000000"),
        ("Seccomp", "2"),
        ("NoNewPrivs", "0"),
        ("SigIgn", "0000000000000000"),
        ("SigBlk", "0000000000000000"),
    ] {
        assert_eq!(field(&output, name), value, "{name} in {output}");
    }
    let user = ContainerConfig { user: Some("app".into()), ..status("user") };
    let (_, output) = host.run(&user).await;
    assert_eq!(field(&output, "CapEff"), "0000000000000000", "{output}");
    assert_eq!(field(&output, "CapPrm"), "0000000000000000", "{output}");
    assert_eq!(field(&output, "CapBnd"), "00000000a80425fb", "{output}");
    assert_eq!(field(&output, "Seccomp"), "2", "{output}");
    let bare = ContainerConfig {
        cap_drop: vec!["ALL".into()],
        cap_add: vec!["NET_BIND_SERVICE".into()],
        ..status("bare")
    };
    let (_, output) = host.run(&bare).await;
    assert_eq!(field(&output, "CapBnd"), "0000000000000400", "{output}");
    assert_eq!(field(&output, "CapEff"), "0000000000000400", "{output}");
}

async fn clone_is_filtered() {
    let host = Host::new().await;
    let (eperm, enosys) = (libc::EPERM, libc::ENOSYS);
    let cases = [
        ("plain", 0, "ok".to_owned()),
        ("user", libc::CLONE_NEWUSER, eperm.to_string()),
        ("net", libc::CLONE_NEWNET, eperm.to_string()),
        ("mount", libc::CLONE_NEWNS, eperm.to_string()),
    ];
    for (id, flags, expected) in cases {
        let (_, output) = host.run(&probe(id, &["clone", &flags.to_string()])).await;
        assert_eq!(output.trim(), expected, "{id}");
    }
    let clone3 = libc::SYS_clone3.to_string();
    let (_, output) = host.run(&probe("clone3", &["syscall", &clone3])).await;
    assert_eq!(output.trim(), enosys.to_string());
    let admin = ContainerConfig {
        cap_add: vec!["SYS_ADMIN".into()],
        ..probe("admin", &["clone", &libc::CLONE_NEWUSER.to_string()])
    };
    let (_, output) = host.run(&admin).await;
    assert_eq!(output.trim(), "ok");
}

async fn unlisted_calls_are_refused() {
    let host = Host::new().await;
    for (id, number, expected) in [
        ("reboot", libc::SYS_reboot, libc::EPERM),
        ("mount", libc::SYS_mount, libc::EPERM),
        ("bpf", libc::SYS_bpf, libc::EPERM),
        ("uring", libc::SYS_io_uring_setup, libc::EPERM),
        ("future", 1_500, libc::ENOSYS),
    ] {
        let (_, output) = host.run(&probe(id, &["syscall", &number.to_string()])).await;
        assert_eq!(output.trim(), expected.to_string(), "{id}");
    }
    let getpid = libc::SYS_getpid.to_string();
    let (_, output) = host.run(&probe("getpid", &["syscall", &getpid])).await;
    assert_eq!(output.trim(), "ok");
}

async fn devices_cannot_be_opened() {
    let host = Host::new().await;
    // /dev/mem, the first terminal, the first serial line and loop control.
    for (id, major, minor) in
        [("mem", "1", "1"), ("tty1", "4", "1"), ("serial", "4", "64"), ("loop", "10", "237")]
    {
        let (_, output) = host.run(&probe(id, &["device", major, minor])).await;
        assert_eq!(output, format!("mknod ok\nopen {}\n", libc::EPERM), "{id}");
    }
    // One that is allowed works wherever it is made, as chroots inside containers need it.
    let (_, output) = host.run(&probe("null", &["device", "1", "3"])).await;
    assert_eq!(output, "mknod ok\nopen ok\n");
    let (_, output) = host.run(&shell("zero", "head -c 3 /dev/zero | wc -c; : > /dev/null")).await;
    assert_eq!(output.trim(), "3");
}

async fn our_binary_is_out_of_reach() {
    let host = Host::new().await;
    let binary = std::env::current_exe().unwrap();
    let before = std::fs::metadata(&binary).unwrap();
    let config = ContainerConfig {
        command: vec!["/proc/self/exe".into()],
        args: vec!["--list".into()],
        ..shell("self", "")
    };
    // It runs the sealed copy or nothing; neither can be written.
    let _ = host.start(&config).await;
    let _ = host.wait("self").await;
    let script = "for p in /proc/[0-9]*/exe; do echo x >> $p && echo WROTE $p; done; echo done";
    let (_, output) = host.run(&shell("write", script)).await;
    assert!(!output.contains("WROTE") && output.contains("done"), "{output}");
    let after = std::fs::metadata(&binary).unwrap();
    assert_eq!((before.len(), before.mtime()), (after.len(), after.mtime()));
    // Descriptors of the daemon or the shim do not leak into the container.
    let (_, output) = host.run(&shell("fds", "ls /proc/self/fd")).await;
    let open: Vec<&str> = output.split_whitespace().collect();
    assert_eq!(open, ["0", "1", "2", "3"], "the fourth is ls's own");
}

async fn kernel_files_are_masked() {
    let host = Host::new().await;
    let script = "cat /proc/kcore | head -c 1 | wc -c; cat /proc/timer_list | wc -c; \
                  echo 1 > /proc/sys/kernel/panic || echo refused; \
                  echo b > /proc/sysrq-trigger || echo refused; \
                  touch /sys/x || echo refused; mount -t tmpfs none /tmp || echo refused";
    let (_, output) = host.run(&shell("a", script)).await;
    let words: Vec<&str> = output.lines().filter(|l| matches!(*l, "0" | "refused")).collect();
    assert_eq!(words, ["0", "0", "refused", "refused", "refused", "refused"], "{output}");
}
