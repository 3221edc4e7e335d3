//! A daemon's directories, an image, and waiting with a deadline.

use std::future::Future;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use base::Millis;
use bytes::Bytes;
use futures::StreamExt;
use ports::runtime::{
    ContainerConfig, ContainerState, Exit, ImageRecord, LogOptions, LogStream, PullItem, Runtime,
    RuntimeError,
};
use runtime::{ContainerRuntime, Options};
use shim::cgroup::Cgroups;

/// Name of the test image.
pub(crate) const IMAGE: &str = "test/busybox:latest";

/// One daemon's directories; everything of it is removed in the end, also after a panic.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) instance: String,
    pub(crate) runtime: ContainerRuntime,
}

impl Host {
    /// A fresh daemon with the test image.
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(&template().join("data"), dir.path());
        let instance = format!("t{}", dir.path().file_name().unwrap().to_str().unwrap())
            .replace(['.', '_'], "-");
        let runtime = ContainerRuntime::open(options(dir.path(), &instance)).await.unwrap();
        Self { dir, instance, runtime }
    }

    /// What a new daemon sees after the old one has gone.
    pub(crate) async fn reopen(&mut self) {
        // Whoever has the records open has them locked, so the old one goes first.
        let aside = self.dir.path().join("aside");
        let aside = ContainerRuntime::open(options(&aside, &format!("{}-aside", self.instance)))
            .await
            .unwrap();
        drop(std::mem::replace(&mut self.runtime, aside));
        let deadline = Instant::now() + Duration::from_secs(30);
        self.runtime = loop {
            match ContainerRuntime::open(options(self.dir.path(), &self.instance)).await {
                Ok(runtime) => break runtime,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn group(&self) -> PathBuf {
        Path::new("/shoal-test").join(&self.instance)
    }

    pub(crate) async fn load(&self, archive: Vec<u8>) -> Result<Vec<ImageRecord>, RuntimeError> {
        load(&self.runtime, archive).await
    }

    /// Creates and starts.
    pub(crate) async fn start(&self, config: &ContainerConfig) -> Result<(), RuntimeError> {
        self.runtime.create(config).await?;
        self.runtime.start(&config.id).await
    }

    /// Runs to the end: how it ended and what it printed.
    pub(crate) async fn run(&self, config: &ContainerConfig) -> (Exit, String) {
        self.start(config).await.unwrap();
        let exit = self.wait(&config.id).await;
        let output = self.output(&config.id).await;
        (exit, output)
    }

    pub(crate) async fn wait(&self, id: &str) -> Exit {
        match timeout(self.runtime.wait(id)).await.unwrap() {
            ContainerState::Exited(exit) => exit,
            other => panic!("{id}: {other:?}"),
        }
    }

    pub(crate) async fn output(&self, id: &str) -> String {
        let lines = self.lines(id, LogOptions::default()).await;
        lines.into_iter().map(|(_, text)| text).collect()
    }

    pub(crate) async fn lines(&self, id: &str, options: LogOptions) -> Vec<(LogStream, String)> {
        let stream = self.runtime.logs(id, options);
        let lines: Vec<_> = timeout(stream.collect::<Vec<_>>()).await;
        let line = |line: Result<ports::runtime::LogLine, RuntimeError>| {
            let line = line.unwrap();
            (line.stream, String::from_utf8(line.data.to_vec()).unwrap())
        };
        lines.into_iter().map(line).collect()
    }

    pub(crate) async fn state(&self, id: &str) -> Option<ContainerState> {
        let all = self.runtime.observe().await.unwrap();
        all.into_iter().find(|observed| observed.id == id).map(|observed| observed.state)
    }

    pub(crate) async fn pid(&self, id: &str) -> u32 {
        match self.state(id).await {
            Some(ContainerState::Running { pid, .. }) => pid,
            other => panic!("{id}: {other:?}"),
        }
    }

    pub(crate) async fn stop(&self, id: &str, grace_ms: u64) -> Exit {
        timeout(self.runtime.stop(id, Millis(grace_ms))).await.unwrap();
        self.wait(id).await
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let cgroups = Cgroups::detect().unwrap();
        let limit = Duration::from_secs(20);
        let cleaned =
            cgroups.kill(&self.group(), limit).and_then(|()| cgroups.remove(&self.group(), limit));
        if let Err(error) = cleaned {
            eprintln!("clean up: {error}");
        }
        // The parent goes with the last host; until then it is not empty.
        for dir in cgroups.dirs(Path::new("/shoal-test")) {
            let _ = std::fs::remove_dir(dir);
        }
    }
}

pub(crate) fn options(dir: &Path, instance: &str) -> Options {
    Options {
        data_dir: dir.join("data"),
        run_dir: dir.join("run"),
        instance_id: instance.to_owned(),
        binary: std::env::current_exe().unwrap(),
        cgroup_parent: PathBuf::from("/shoal-test"),
        insecure_registries: Vec::new(),
    }
}

async fn load(
    runtime: &ContainerRuntime,
    archive: Vec<u8>,
) -> Result<Vec<ImageRecord>, RuntimeError> {
    let chunks: Vec<std::io::Result<Bytes>> =
        archive.chunks(64 * 1024).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    collect_images(runtime.load_image(Box::pin(futures::stream::iter(chunks)))).await
}

/// A data directory with the test image, made once: copying is faster than loading.
fn template() -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = std::env::temp_dir().join(format!("shoal-template-{}", std::process::id()));
        let options = options(&dir, "template");
        std::thread::spawn(move || {
            block_on(async move {
                let runtime = ContainerRuntime::open(options).await.unwrap();
                let archive =
                    image_archive(&[&base_layer(), &probe_layer()], &[IMAGE], config_json());
                load(&runtime, archive).await.unwrap();
            });
        })
        .join()
        .unwrap();
        dir
    })
}

/// At the end of all tests.
pub(crate) fn remove_template() {
    let name = format!("shoal-template-{}", std::process::id());
    let _ = std::fs::remove_dir_all(std::env::temp_dir().join(name));
}

fn copy(from: &Path, into: &Path) {
    let status =
        std::process::Command::new("/bin/busybox").args(["cp", "-a"]).arg(from).arg(into).status();
    assert!(status.unwrap().success());
}

/// A container that runs a shell script.
pub(crate) fn shell(id: &str, script: &str) -> ContainerConfig {
    ContainerConfig {
        id: id.to_owned(),
        name: format!("{id}.1"),
        image: IMAGE.to_owned(),
        command: vec!["/bin/sh".into(), "-c".into()],
        args: vec![script.to_owned()],
        hostname: "probe-host".into(),
        ..ContainerConfig::default()
    }
}

/// A container that runs this binary's probe.
pub(crate) fn probe(id: &str, args: &[&str]) -> ContainerConfig {
    ContainerConfig {
        command: vec!["/probe".into(), crate::probe::SUBCOMMAND.into()],
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..shell(id, "")
    }
}

pub(crate) async fn collect_images(
    stream: ports::runtime::BoxStream<Result<PullItem, RuntimeError>>,
) -> Result<Vec<ImageRecord>, RuntimeError> {
    let items: Vec<_> = timeout(stream.collect::<Vec<_>>()).await;
    let mut images = Vec::new();
    for item in items {
        if let PullItem::Done(image) = item? {
            images.push(image);
        }
    }
    Ok(images)
}

/// Everything here ends within a minute or two, also in an emulated machine.
pub(crate) async fn timeout<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(120), future).await.expect("ends in time")
}

/// Polls until it holds.
pub(crate) async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Runs a test on a runtime of its own.
pub(crate) fn block_on(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(test);
}

/// busybox with its applets, users and directories.
pub(crate) fn base_layer() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for dir in ["bin", "etc", "tmp", "proc", "dev", "sys", "lib", "lib64", "usr", "usr/lib"] {
        append(
            &mut layer,
            tar::EntryType::Directory,
            dir,
            if dir == "tmp" { 0o1777 } else { 0o755 },
            b"",
        );
    }
    let busybox = std::fs::read("/bin/busybox").unwrap();
    append(&mut layer, tar::EntryType::Regular, "bin/busybox", 0o4755, &busybox);
    for applet in APPLETS {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        layer.append_link(&mut header, format!("bin/{applet}"), "busybox").unwrap();
    }
    append(&mut layer, tar::EntryType::Regular, "etc/passwd", 0o644, PASSWD.as_bytes());
    append(&mut layer, tar::EntryType::Regular, "etc/group", 0o644, GROUP.as_bytes());
    append(&mut layer, tar::EntryType::Regular, "bin/plain", 0o644, b"not a program");
    layer.into_inner().unwrap()
}

/// This binary as `/probe`, with its libraries.
fn probe_layer() -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    let program = std::env::current_exe().unwrap();
    append(&mut layer, tar::EntryType::Regular, "probe", 0o755, &stripped(&program));
    for library in libraries(&program) {
        let name = library.strip_prefix("/").unwrap().to_str().unwrap().to_owned();
        let bytes = std::fs::read(&library).unwrap();
        append(&mut layer, tar::EntryType::Regular, &name, 0o755, &bytes);
    }
    layer.into_inner().unwrap()
}

pub(crate) fn append(
    layer: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    data: &[u8],
) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    header.set_mtime(1_000_000_000);
    header.set_uid(0);
    header.set_gid(0);
    layer.append_data(&mut header, path, data).unwrap();
}

/// Without debug information, which is most of the file.
fn stripped(program: &Path) -> Vec<u8> {
    let bytes = std::fs::read(program).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let half = |at: usize| usize::from(u16::from_le_bytes([bytes[at], bytes[at + 1]]));
    let (table, size, count) = (word(0x20), half(0x36), half(0x38));
    let end = (0..count)
        .map(|index| table + index * size)
        .filter(|header| bytes[*header..header + 4] == [1, 0, 0, 0])
        .map(|header| word(header + 8) + word(header + 32))
        .max()
        .unwrap();
    let mut loaded = bytes[..end].to_vec();
    loaded[0x28..0x30].fill(0);
    loaded[0x3a..0x40].fill(0);
    loaded
}

/// Shared libraries of this process, by the names under which programs ask for them.
fn libraries(_: &Path) -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut found: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.split_whitespace().nth(5))
        .filter(|path| path.contains(".so"))
        .map(PathBuf::from)
        .collect();
    // The loader's fixed name differs from the one it is mapped under.
    found.push(PathBuf::from("/lib64/ld-linux-x86-64.so.2"));
    found.sort();
    found.dedup();
    found
}

pub(crate) fn config_json() -> serde_json::Value {
    serde_json::json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "created": "2026-01-02T03:04:05Z",
        "config": {
            "Env": ["PATH=/bin", "FROM_IMAGE=yes", "GONE=yes"],
            "Cmd": ["/bin/sh"],
            "StopSignal": "SIGTERM",
        },
    })
}

/// A `docker save` archive.
pub(crate) fn image_archive(
    layers: &[&Vec<u8>],
    tags: &[&str],
    mut config: serde_json::Value,
) -> Vec<u8> {
    let digests: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    config["rootfs"] = serde_json::json!({ "type": "layers", "diff_ids": digests });
    let config = serde_json::to_vec(&config).unwrap();
    let config_name = format!("{}.json", &digest(&config)["sha256:".len()..]);
    let names: Vec<String> = (0..layers.len()).map(|n| format!("{n}/layer.tar")).collect();
    let manifest =
        serde_json::json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    let mut archive = tar::Builder::new(Vec::new());
    let file = tar::EntryType::Regular;
    for (name, layer) in names.iter().zip(layers) {
        append(&mut archive, file, name, 0o644, layer);
    }
    append(&mut archive, file, &config_name, 0o644, &config);
    append(&mut archive, file, "manifest.json", 0o644, &serde_json::to_vec(&manifest).unwrap());
    archive.into_inner().unwrap()
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, bytes);
    let mut text = Vec::from(*b"sha256:");
    for byte in digest.as_ref() {
        write!(text, "{byte:02x}").unwrap();
    }
    String::from_utf8(text).unwrap()
}

const APPLETS: &[&str] = &[
    "sh", "echo", "cat", "sleep", "ls", "id", "hostname", "pwd", "env", "kill", "true", "false",
    "head", "dd", "mknod", "mount", "seq", "grep", "wc", "touch", "trap", "test", "ps", "stat",
    "ip", "unshare", "readlink", "chroot", "date", "usleep",
];

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n";
const GROUP: &str = "root:x:0:\napp:x:1001:\nextra:x:77:app\n";
