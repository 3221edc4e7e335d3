//! Create, start, stop, adopt, lose, remove.

use std::path::Path;
use std::time::{Duration, Instant};

use base::Millis;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ports::runtime::{ContainerConfig, ContainerState, Runtime, RuntimeError};
use shim::cgroup::Cgroups;
use shim::files;

use crate::support::{Host, IMAGE, block_on, eventually, probe, shell, timeout};

pub(crate) const TESTS: &[crate::Test] = &[
    ("it_is_a_runtime", || block_on(it_is_a_runtime())),
    ("exit_codes_and_output_arrive", || block_on(exit_codes_and_output_arrive())),
    ("calls_are_idempotent", || block_on(calls_are_idempotent())),
    ("missing_programs_have_dockers_codes", || block_on(missing_programs_have_dockers_codes())),
    ("stop_sends_the_signal_then_kills", || block_on(stop_sends_the_signal_then_kills())),
    ("limits_hold_and_oom_is_told_apart", || block_on(limits_hold_and_oom_is_told_apart())),
    ("the_environment_is_dockers", || block_on(the_environment_is_dockers())),
    ("the_given_network_namespace_is_joined", || block_on(network_namespace_is_joined())),
    ("a_start_is_fast", || block_on(a_start_is_fast())),
    ("a_new_daemon_adopts", || block_on(a_new_daemon_adopts())),
    ("a_killed_shim_is_lost_and_nothing_runs", || block_on(a_killed_shim_is_lost())),
    ("a_reboot_loses_containers_once", || block_on(a_reboot_loses_containers_once())),
    ("removal_leaves_nothing", || block_on(removal_leaves_nothing())),
    ("groups_go_with_the_last_container", || block_on(groups_go_with_the_last_container())),
    ("what_has_no_record_is_ended", || block_on(what_has_no_record_is_ended())),
    ("two_daemons_do_not_touch_each_other", || block_on(two_daemons_do_not_touch_each_other())),
    ("a_burst_of_containers_starts", || block_on(a_burst_of_containers_starts())),
];

async fn it_is_a_runtime() {
    let host = Host::new().await;
    let suite = testkit::conformance::runtime::check(&host.runtime, IMAGE, shell);
    timeout(suite).await;
}

async fn exit_codes_and_output_arrive() {
    let host = Host::new().await;
    let (exit, output) = host.run(&shell("a", "echo out; echo err >&2; exit 42")).await;
    assert_eq!((exit.code, exit.oom), (42, false));
    assert!(output.contains("out\n") && output.contains("err\n"), "{output:?}");
    let (exit, _) = host.run(&shell("b", "kill -9 $$")).await;
    // The first process of a pid namespace is immune to its own signals.
    assert_eq!(exit.code, 0);
    let (exit, _) = host.run(&shell("c", "sh -c 'kill -SEGV $$'; exit $?")).await;
    assert_eq!(exit.code, 139);
}

async fn calls_are_idempotent() {
    let host = Host::new().await;
    let config = shell("a", "sleep 1000");
    host.start(&config).await.unwrap();
    let pid = host.pid("a").await;
    host.start(&config).await.unwrap();
    assert_eq!(host.pid("a").await, pid);
    assert_eq!(host.stop("a", 0).await.code, 137);
    host.runtime.stop("a", Millis(0)).await.unwrap();
    host.start(&config).await.unwrap();
    assert_eq!(host.wait("a").await.code, 137);
    host.runtime.remove("a").await.unwrap();
    host.runtime.remove("a").await.unwrap();
    let missing = host.runtime.start("a").await;
    assert_eq!(missing, Err(RuntimeError::NoContainer { id: "a".into() }));
    let absent = ContainerConfig { image: "nope:1".into(), ..config };
    let error = host.runtime.create(&absent).await.unwrap_err();
    assert!(matches!(error, RuntimeError::ImageMissing { .. }), "{error}");
}

async fn missing_programs_have_dockers_codes() {
    let host = Host::new().await;
    for (id, program, code, words) in [
        ("a", "nope", 127, "exec: \"nope\": executable file not found in $PATH"),
        ("b", "/bin/plain", 126, "exec: \"/bin/plain\": permission denied"),
        ("c", "/no/pe", 127, "exec: \"/no/pe\": stat /no/pe: no such file or directory"),
        ("d", "/etc", 126, "exec: \"/etc\": is a directory"),
    ] {
        let config =
            ContainerConfig { command: vec![program.into()], args: vec![], ..shell(id, "") };
        let error = host.start(&config).await.unwrap_err();
        let expected = RuntimeError::NotExecutable { message: words.into(), code };
        assert_eq!(error, expected);
        assert_eq!(host.wait(id).await.code, code);
    }
    let user = ContainerConfig { user: Some("nobody".into()), ..shell("u", "true") };
    let error = host.start(&user).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Invalid { field: "user", .. }), "{error}");
    let group = Cgroups::detect().unwrap().dirs(&host.group().join("a"));
    eventually("groups of failed containers go", async || group.iter().all(|g| !g.exists())).await;
}

async fn stop_sends_the_signal_then_kills() {
    let host = Host::new().await;
    let polite = "trap 'echo bye; exit 43' TERM; echo ready; while :; do sleep 0.1; done";
    host.start(&shell("polite", polite)).await.unwrap();
    eventually("ready", async || host.output("polite").await.contains("ready")).await;
    let begin = Instant::now();
    assert_eq!(host.stop("polite", 30_000).await.code, 43);
    assert!(begin.elapsed() < Duration::from_secs(25));
    assert!(host.output("polite").await.contains("bye"));

    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.1; done";
    host.start(&shell("stubborn", stubborn)).await.unwrap();
    eventually("ready", async || host.output("stubborn").await.contains("ready")).await;
    assert_eq!(host.stop("stubborn", 300).await.code, 137);

    let own = ContainerConfig {
        stop_signal: Some("USR1".into()),
        ..shell("own", "trap 'exit 7' USR1; echo ready; while :; do sleep 0.1; done")
    };
    host.start(&own).await.unwrap();
    eventually("ready", async || host.output("own").await.contains("ready")).await;
    assert_eq!(host.stop("own", 30_000).await.code, 7);
}

async fn limits_hold_and_oom_is_told_apart() {
    let host = Host::new().await;
    let limited = |config: ContainerConfig| ContainerConfig {
        memory_bytes: 48 * 1024 * 1024,
        pids: 12,
        cpu_nanos: 500_000_000,
        ..config
    };
    let (exit, _) = host.run(&limited(probe("oom", &["allocate", "200"]))).await;
    assert_eq!((exit.code, exit.oom), (137, true));
    let (exit, output) = host.run(&limited(probe("fits", &["allocate", "8"]))).await;
    assert_eq!((exit.code, exit.oom), (0, false), "{output}");
    let child = "/probe probe-inside allocate 200; exit 5";
    let (exit, _) = host.run(&limited(shell("child", child))).await;
    assert_eq!((exit.code, exit.oom), (5, true));
    let (_, output) = host.run(&limited(probe("pids", &["forks", "30"]))).await;
    let made: u32 = output.trim().parse().unwrap();
    assert!((5..12).contains(&made), "{made}");

    host.start(&limited(shell("files", "sleep 1000"))).await.unwrap();
    let cgroups = Cgroups::detect().unwrap();
    let dirs = cgroups.dirs(&host.group().join("files"));
    let read = |name: &str| {
        dirs.iter().find_map(|dir| std::fs::read_to_string(dir.join(name)).ok()).unwrap()
    };
    if cgroups.is_unified() {
        assert_eq!(read("cpu.max").trim(), "50000 100000");
        assert_eq!(read("memory.max").trim(), "50331648");
        assert_eq!(read("pids.max").trim(), "12");
    } else {
        assert_eq!(read("cpu.cfs_quota_us").trim(), "50000");
        assert_eq!(read("memory.limit_in_bytes").trim(), "50331648");
        assert_eq!(read("pids.max").trim(), "12");
    }
}

async fn the_environment_is_dockers() {
    let host = Host::new().await;
    let config = ContainerConfig {
        env: vec!["OWN=1".into(), "GONE".into()],
        workdir: Some("/made/for/me".into()),
        user: Some("app".into()),
        ..shell(
            "a",
            "env; pwd; id; hostname; stat -c %u /made/for/me; echo to-dev > /dev/stdout; \
                     cat /proc/self/cgroup /proc/self/oom_score_adj; echo pid=$$",
        )
    };
    let (exit, output) = host.run(&config).await;
    assert_eq!(exit.code, 0, "{output}");
    for line in [
        "OWN=1",
        "FROM_IMAGE=yes",
        "PATH=/bin",
        "HOSTNAME=probe-host",
        "HOME=/home/app",
        "/made/for/me",
        "probe-host",
        "1000",
        "to-dev",
        "pid=1",
        "0",
    ] {
        assert!(output.lines().any(|l| l == line), "{line} in {output}");
    }
    assert!(output.contains("uid=1000(app) gid=1001(app) groups=77(extra)"), "{output}");
    assert!(!output.contains("GONE"), "{output}");
    assert!(!output.contains("shoal-test"), "the group's path is hidden: {output}");

    let files = "cat /etc/hostname /etc/hosts /etc/resolv.conf; ls /dev; touch /x && echo wrote";
    let (_, output) = host.run(&shell("b", files)).await;
    assert!(output.starts_with("probe-host\n127.0.0.1\tlocalhost\n"), "{output}");
    for device in ["null", "zero", "full", "random", "urandom", "tty", "ptmx", "shm", "mqueue"] {
        assert!(output.lines().any(|line| line == device), "{device} in {output}");
    }
    assert!(output.contains("wrote"), "{output}");

    let frozen = ContainerConfig {
        read_only: true,
        ..shell("c", "touch /x || echo refused; touch /dev/shm/x && echo scratch; ls /proc/keys")
    };
    let (_, output) = host.run(&frozen).await;
    assert!(output.contains("refused") && output.contains("scratch"), "{output}");
}

/// A namespace with one address, kept by a mount.
struct Netns(std::path::PathBuf);

impl Netns {
    fn make(path: std::path::PathBuf, address: &'static str) -> Self {
        std::fs::write(&path, "").unwrap();
        let target = path.clone();
        std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            for words in ["link set lo up".to_owned(), format!("addr add {address}/32 dev lo")] {
                let mut command = std::process::Command::new("/bin/busybox");
                assert!(command.arg("ip").args(words.split(' ')).status().unwrap().success());
            }
            let (none, bind) = (None::<&str>, nix::mount::MsFlags::MS_BIND);
            nix::mount::mount(Some("/proc/thread-self/ns/net"), &target, none, bind, none)
        })
        .join()
        .unwrap()
        .unwrap();
        Self(path)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0);
    }
}

async fn network_namespace_is_joined() {
    let host = Host::new().await;
    let netns = Netns::make(host.dir.path().join("netns"), "10.98.76.54");
    let config = ContainerConfig {
        netns: netns.0.clone(),
        hosts: vec![("10.98.76.54".parse().unwrap(), "probe-host".to_owned())],
        ..shell("a", "ip -o addr; cat /etc/hosts; cat /proc/sys/net/ipv4/ip_forward")
    };
    let (exit, output) = host.run(&config).await;
    assert_eq!(exit.code, 0, "{output}");
    assert!(output.contains("inet 10.98.76.54/32"), "{output}");
    assert!(output.contains("10.98.76.54\tprobe-host\n"), "{output}");
    let missing = ContainerConfig { netns: "/nowhere/ns".into(), ..shell("b", "true") };
    let error = host.start(&missing).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/ns"), "{error}");
}

/// Prints what the benchmarks measure for real; only a gross regression fails here, because other
/// work shares the machine.
async fn a_start_is_fast() {
    let host = Host::new().await;
    let mut times = Vec::new();
    for n in 0..20 {
        let config = shell(&format!("c{n}"), "sleep 1000");
        let begin = Instant::now();
        host.start(&config).await.unwrap();
        times.push(begin.elapsed());
        host.runtime.remove(&config.id).await.unwrap();
    }
    times.sort_unstable();
    println!("create and start: p50 {:?}, min {:?}, max {:?}", times[10], times[0], times[19]);
    assert!(times[10] < Duration::from_secs(5), "{times:?}");
}

async fn a_new_daemon_adopts() {
    let mut host = Host::new().await;
    let script = "trap 'exit 9' TERM; echo before; while :; do sleep 0.1; echo on; done";
    host.start(&shell("runs", script)).await.unwrap();
    host.runtime.create(&shell("waits", "true")).await.unwrap();
    host.start(&shell("ends", "sleep 0.5; exit 3")).await.unwrap();
    let pid = host.pid("runs").await;
    host.reopen().await;
    assert_eq!(host.pid("runs").await, pid);
    assert_eq!(host.state("waits").await, Some(ContainerState::Created));
    assert_eq!(host.wait("ends").await.code, 3);
    host.runtime.start("waits").await.unwrap();
    assert_eq!(host.wait("waits").await.code, 0);
    assert_eq!(host.stop("runs", 30_000).await.code, 9);
    host.reopen().await;
    for (id, code) in [("runs", 9), ("waits", 0), ("ends", 3)] {
        assert_eq!(host.wait(id).await.code, code, "{id}");
        host.runtime.remove(id).await.unwrap();
    }
    assert!(host.runtime.observe().await.unwrap().is_empty());
}

async fn shim_pid(host: &Host, id: &str) -> i32 {
    let path = host.run_dir().join("containers").join(id).join(files::STATE);
    eventually("the state record", async || path.exists()).await;
    let state: files::StateRecord = files::read_record(&path).unwrap().unwrap();
    state.shim.pid as i32
}

async fn a_killed_shim_is_lost() {
    let mut host = Host::new().await;
    let script = "sleep 1000 & sleep 1000";
    host.start(&shell("watched", script)).await.unwrap();
    host.start(&shell("later", script)).await.unwrap();
    let cgroups = Cgroups::detect().unwrap();
    kill(Pid::from_raw(shim_pid(&host, "watched").await), Signal::SIGKILL).unwrap();
    let state = timeout(host.runtime.wait("watched")).await.unwrap();
    assert_eq!(state, ContainerState::Lost);
    assert!(cgroups.processes(&host.group().join("watched")).is_empty());

    // The other one while no daemon looks.
    let shim = shim_pid(&host, "later").await;
    kill(Pid::from_raw(shim), Signal::SIGKILL).unwrap();
    host.reopen().await;
    assert_eq!(timeout(host.runtime.wait("later")).await, Ok(ContainerState::Lost));
    assert!(cgroups.processes(&host.group().join("later")).is_empty());
    for id in ["watched", "later"] {
        assert_eq!(host.state(id).await, Some(ContainerState::Lost));
        host.runtime.remove(id).await.unwrap();
        assert!(cgroups.dirs(&host.group().join(id)).is_empty());
    }
}

async fn a_reboot_loses_containers_once() {
    let mut host = Host::new().await;
    host.start(&shell("ran", "sleep 1000")).await.unwrap();
    host.runtime.create(&shell("made", "true")).await.unwrap();
    host.run(&shell("done", "exit 4")).await;
    for id in ["ran", "made", "done"] {
        let path = host.data_dir().join("containers").join(id).join("container.json");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut record: serde_json::Value = serde_json::from_str(&text).unwrap();
        record["boot_id"] = "an-earlier-boot".into();
        std::fs::write(&path, record.to_string()).unwrap();
    }
    host.reopen().await;
    assert_eq!(host.state("ran").await, Some(ContainerState::Lost));
    assert_eq!(host.state("made").await, Some(ContainerState::Lost));
    assert_eq!(host.wait("done").await.code, 4);
    let group = host.group().join("ran");
    assert!(Cgroups::detect().unwrap().processes(&group).is_empty());
    host.runtime.remove("ran").await.unwrap();
    assert_eq!(host.state("ran").await, None);
}

/// Mounts of this host that can be seen from outside its shims.
fn mounts(host: &Host) -> usize {
    let dir = host.dir.path().to_str().unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(dir)).count()
}

async fn removal_leaves_nothing() {
    let host = Host::new().await;
    for id in ["a", "b"] {
        host.start(&shell(id, "echo x; sleep 1000 & sleep 1000")).await.unwrap();
    }
    assert_eq!(mounts(&host), 0, "containers' mounts stay in their shims' namespaces");
    host.stop("a", 0).await;
    let shims = [shim_pid(&host, "a").await, shim_pid(&host, "b").await];
    for id in ["a", "b"] {
        host.runtime.remove(id).await.unwrap();
        assert!(Cgroups::detect().unwrap().dirs(&host.group().join(id)).is_empty());
        for dir in [host.data_dir(), host.run_dir()] {
            assert!(!dir.join("containers").join(id).exists());
        }
    }
    eventually("the trash is empty", async || {
        std::fs::read_dir(host.data_dir().join("trash")).unwrap().count() == 0
    })
    .await;
    eventually("the shims are gone", async || {
        shims.iter().all(|pid| !Path::new(&format!("/proc/{pid}")).exists())
    })
    .await;
}

async fn groups_go_with_the_last_container() {
    let host = Host::new().await;
    let cgroups = Cgroups::detect().unwrap();
    for id in ["a", "b"] {
        host.start(&shell(id, "sleep 1000")).await.unwrap();
    }
    assert!(!host.runtime.release_groups().await.unwrap(), "two containers run");
    let shims = host.group().join(shim::SHIMS_GROUP);
    eventually("shims are in their group", async || cgroups.processes(&shims).len() == 2).await;
    host.runtime.remove("a").await.unwrap();
    assert!(!host.runtime.release_groups().await.unwrap(), "one container runs");
    host.runtime.remove("b").await.unwrap();
    assert!(host.runtime.release_groups().await.unwrap());
    assert!(cgroups.dirs(&host.group()).is_empty(), "{:?}", cgroups.dirs(&host.group()));
    // And what comes afterwards runs.
    let (exit, _) = host.run(&shell("c", "exit 3")).await;
    assert_eq!(exit.code, 3);
}

async fn what_has_no_record_is_ended() {
    let mut host = Host::new().await;
    host.start(&shell("orphan", "sleep 1000")).await.unwrap();
    let pid = host.pid("orphan").await;
    std::fs::remove_dir_all(host.data_dir().join("containers/orphan")).unwrap();
    host.reopen().await;
    assert!(host.runtime.observe().await.unwrap().is_empty());
    assert!(Cgroups::detect().unwrap().dirs(&host.group().join("orphan")).is_empty());
    eventually("it is gone", async || !Path::new(&format!("/proc/{pid}")).exists()).await;
    assert!(!host.run_dir().join("containers/orphan").exists());
}

async fn two_daemons_do_not_touch_each_other() {
    let (one, mut two) = (Host::new().await, Host::new().await);
    for host in [&one, &two] {
        host.start(&shell("same", "sleep 1000")).await.unwrap();
    }
    let pid = one.pid("same").await;
    assert_ne!(pid, two.pid("same").await);
    two.runtime.remove("same").await.unwrap();
    two.reopen().await;
    assert_eq!(one.pid("same").await, pid);
    assert!(Path::new(&format!("/proc/{pid}")).exists());
}

/// Proportional share of memory.
fn pss_kb(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("Pss:")).unwrap_or("Pss: 0 kB");
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn a_burst_of_containers_starts() {
    let host = Host::new().await;
    host.start(&shell("alone", "sleep 1000")).await.unwrap();
    let alone = shim_pid(&host, "alone").await;
    // Without optimisation the program's relocated data alone is a megabyte and a half.
    let most = if cfg!(debug_assertions) { 4 * 1024 } else { 3 * 1024 };
    let mut least = u64::MAX;
    eventually("a single shim is small", async || {
        least = least.min(pss_kb(alone));
        least <= most
    })
    .await;
    println!("PSS of a single shim: {least} kB");
    let begin = Instant::now();
    let starts = (0..20).map(|n| {
        let (host, config) = (&host, shell(&format!("c{n}"), "sleep 1000"));
        async move { host.start(&config).await }
    });
    for result in futures::future::join_all(starts).await {
        result.unwrap();
    }
    println!("20 containers: {} ms", begin.elapsed().as_millis());
    let mut shims = Vec::new();
    for n in 0..20 {
        shims.push(shim_pid(&host, &format!("c{n}")).await);
    }
    // They give memory back right after they have told of the start.
    eventually("shims are small", async || shims.iter().all(|pid| pss_kb(*pid) <= 3 * 1024)).await;
    println!("PSS of one of 20 shims: {} kB", pss_kb(shims[0]));
    let removals = (0..20).map(|n| {
        let host = &host;
        async move { host.runtime.remove(&format!("c{n}")).await }
    });
    for result in futures::future::join_all(removals).await {
        result.unwrap();
    }
}
