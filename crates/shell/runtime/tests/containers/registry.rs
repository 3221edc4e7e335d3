//! Pulling from a registry on loopback, also when the line is bad.

use std::future::Future;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt;
use oci_client::client::{ClientConfig, ClientProtocol, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use ports::runtime::{
    ContainerConfig, ImageRecord, PullItem, RegistryAuth as Credentials, Runtime, RuntimeError,
};

use crate::support::{
    Host, append, base_layer, block_on, collect_images, config_json, digest, eventually, shell,
    timeout,
};

pub(crate) const TESTS: &[crate::Test] = &[
    ("images_are_pulled_and_run", || with_registry(images_are_pulled_and_run)),
    ("a_broken_line_is_resumed", || with_registry(a_broken_line_is_resumed)),
    ("a_changed_layer_is_refused", || with_registry(a_changed_layer_is_refused)),
    ("a_private_registry_wants_the_password", || {
        with_private_registry(a_private_registry_wants_the_password)
    }),
    ("what_no_registry_has_is_named", || with_registry(what_no_registry_has_is_named)),
];

const USER: &str = "someone";
const PASSWORD: &str = "secret-word";
/// bcrypt, with the fewest rounds.
const PASSWORD_HASH: &str = "$2b$04$abcdefghijklmnopqrstuujV0zJ3tj1V5vPQQ5i8Bd/sbbeTbZTaC";

/// A registry of the package `docker-registry` with its data in a directory of its own.
struct Registry {
    process: Child,
    dir: tempfile::TempDir,
    port: u16,
    /// What it wants to be shown.
    auth: RegistryAuth,
}

/// Where the package is not installed, as in the guest, there is nothing to pull from.
fn with_registry<F: Future<Output = ()>>(test: fn(Registry) -> F) {
    serve(RegistryAuth::Anonymous, test);
}

fn with_private_registry<F: Future<Output = ()>>(test: fn(Registry) -> F) {
    serve(RegistryAuth::Basic(USER.into(), PASSWORD.into()), test);
}

fn serve<F: Future<Output = ()>>(auth: RegistryAuth, test: fn(Registry) -> F) {
    let program = Path::new("/usr/bin/docker-registry");
    if !program.exists() {
        println!("skipped: package docker-registry is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let config = dir.path().join("config.yml");
    let passwords = dir.path().join("htpasswd");
    std::fs::write(&passwords, format!("{USER}:{PASSWORD_HASH}\n")).unwrap();
    let login = match auth {
        RegistryAuth::Anonymous => String::new(),
        _ => format!("auth: {{ htpasswd: {{ realm: test, path: {} }} }}\n", passwords.display()),
    };
    let text = format!(
        "version: 0.1\nlog: {{ level: error }}\n{login}\
         storage: {{ filesystem: {{ rootdirectory: {} }} }}\n\
         http: {{ addr: 127.0.0.1:{port} }}\n",
        dir.path().join("data").display()
    );
    std::fs::write(&config, text).unwrap();
    let process = Command::new(program)
        .arg("serve")
        .arg(&config)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let registry = Registry { process, dir, port, auth };
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the registry does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
    block_on(test(registry));
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    /// Pushes layers, compressed, and returns the manifest's digest.
    async fn push(&self, name: &str, layers: &[Vec<u8>]) -> String {
        let (client, reference) = self.client(name);
        let mut config = config_json();
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        config["rootfs"] = serde_json::json!({ "type": "layers", "diff_ids": diff_ids });
        let layers: Vec<ImageLayer> =
            layers.iter().map(|layer| ImageLayer::oci_v1_gzip(gzip(layer), None)).collect();
        let config = Config::oci_v1(serde_json::to_vec(&config).unwrap(), None);
        let auth = self.auth.clone();
        client.push(&reference, &layers, config, &auth, None).await.unwrap();
        client.fetch_manifest_digest(&reference, &auth).await.unwrap()
    }

    fn client(&self, name: &str) -> (Client, Reference) {
        let registry = format!("127.0.0.1:{}", self.port);
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::new(ClientConfig {
            protocol: ClientProtocol::HttpsExcept(vec![registry.clone()]),
            ..ClientConfig::default()
        });
        (client, format!("{registry}/{name}").parse().unwrap())
    }

    fn name(&self, name: &str) -> String {
        format!("127.0.0.1:{}/{name}", self.port)
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = self.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn small_layer(text: &str) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, tar::EntryType::Regular, "marker", 0o644, text.as_bytes());
    layer.into_inner().unwrap()
}

/// Does not compress, so that its size on the line is known.
fn noise_layer(bytes: usize) -> Vec<u8> {
    let mut state = 7u64;
    let noise: Vec<u8> = (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        })
        .collect();
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, tar::EntryType::Regular, "noise", 0o644, &noise);
    layer.into_inner().unwrap()
}

async fn pull(host: &Host, reference: &str) -> Result<ImageRecord, RuntimeError> {
    let mut images = collect_images(host.runtime.pull_image(reference, None)).await?;
    Ok(images.pop().expect("the last item is the record"))
}

async fn images_are_pulled_and_run(registry: Registry) {
    let host = Host::new().await;
    let manifest = registry.push("a/b:1", &[base_layer(), small_layer("pulled\n")]).await;
    let name = registry.name("a/b:1");
    let stream = host.runtime.pull_image(&name, None);
    let items: Vec<PullItem> =
        timeout(stream.collect::<Vec<_>>()).await.into_iter().map(|item| item.unwrap()).collect();
    let Some(PullItem::Done(image)) = items.last() else { panic!("{items:?}") };
    assert_eq!(image.references, std::slice::from_ref(&name));
    assert_eq!(image.digests, [format!("127.0.0.1:{}/a/b@{manifest}", registry.port)]);
    let statuses = |wanted: &str| {
        items
            .iter()
            .filter(|item| matches!(item, PullItem::Progress(p) if p.status == wanted))
            .count()
    };
    assert_eq!(statuses("Already exists"), 1, "the base layer came with the test image");
    assert_eq!(statuses("Pull complete"), 1, "{items:?}");
    let config = ContainerConfig { image: name.clone(), ..shell("a", "cat /marker") };
    assert_eq!(host.run(&config).await.1, "pulled\n");

    let pinned = registry.name(&format!("a/b@{manifest}"));
    assert_eq!(pull(&host, &pinned).await.unwrap().id, image.id);
    assert_eq!(host.runtime.find_image(&pinned).await.unwrap().unwrap().id, image.id);

    // An index: the platform of this machine is taken.
    let (client, list) = registry.client("a/list:1");
    let other = registry.push("a/list:other", &[small_layer("wrong\n")]).await;
    let own = registry.push("a/list:own", &[small_layer("right\n")]).await;
    let arch = config_json()["architecture"].clone();
    let entry = |digest: &str, arch: serde_json::Value| {
        serde_json::json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": digest,
            "size": std::fs::metadata(registry.blob(digest)).unwrap().len(),
            "platform": { "os": "linux", "architecture": arch },
        })
    };
    let kind = "application/vnd.oci.image.index.v1+json";
    let index = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": kind,
        "manifests": [entry(&other, "s390x".into()), entry(&own, arch)],
    });
    let auth = RegistryAuth::Anonymous;
    client.auth(&list, &auth, oci_client::RegistryOperation::Push).await.unwrap();
    let body = serde_json::to_vec(&index).unwrap();
    client.push_manifest_raw(&list, body, kind.parse().unwrap()).await.unwrap();
    let image = pull(&host, &registry.name("a/list:1")).await.unwrap();
    assert_eq!(image.id, pull(&host, &registry.name("a/list:own")).await.unwrap().id);
}

/// Passes connections on and breaks each after so many bytes of answer.
fn bad_line(to: u16, bytes: usize) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let breaks = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&breaks);
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let counter = Arc::clone(&counter);
            std::thread::spawn(move || {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { return };
                let (mut up_from, mut up_to) =
                    (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut up_from, &mut up_to);
                    let _ = up_to.shutdown(Shutdown::Write);
                });
                let mut limited = (&server).take(bytes as u64);
                let count = std::io::copy(&mut limited, &mut (&client)).unwrap_or(0);
                if count as usize == bytes {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
                let _ = client.shutdown(Shutdown::Both);
                let _ = server.shutdown(Shutdown::Both);
            });
        }
    });
    (port, breaks)
}

async fn a_broken_line_is_resumed(registry: Registry) {
    let host = Host::new().await;
    let layer = noise_layer(3_000_000);
    registry.push("big:1", std::slice::from_ref(&layer)).await;
    let (port, breaks) = bad_line(registry.port, 700_000);
    let image = pull(&host, &format!("127.0.0.1:{port}/big:1")).await.unwrap();
    assert!(breaks.load(Ordering::SeqCst) >= 4, "{breaks:?}");
    assert_eq!(image.size_bytes, 3_000_000);
}

async fn a_changed_layer_is_refused(registry: Registry) {
    let host = Host::new().await;
    let layer = small_layer("good\n");
    registry.push("c:1", std::slice::from_ref(&layer)).await;
    let blob = registry.blob(&digest(&gzip(&layer)));
    std::fs::write(&blob, gzip(&small_layer("evil\n"))).unwrap();
    let error = pull(&host, &registry.name("c:1")).await.unwrap_err();
    assert!(error.to_string().contains("sha256:"), "{error}");
    assert_eq!(host.runtime.list_images().await.unwrap().len(), 1);
    eventually("nothing half-done stays", async || {
        std::fs::read_dir(host.data_dir().join("ingest")).unwrap().count() == 0
    })
    .await;
}

async fn a_private_registry_wants_the_password(registry: Registry) {
    let host = Host::new().await;
    registry.push("team/app:1", &[small_layer("private\n")]).await;
    let name = registry.name("team/app:1");
    let password = |password: &str| {
        let (username, password) = (USER.to_owned(), password.to_owned());
        Some(Credentials::Password { username, password })
    };
    for auth in [None, password("hush-wrong"), Some(Credentials::RegistryToken("hush".into()))] {
        let error = collect_images(host.runtime.pull_image(&name, auth)).await.unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, RuntimeError::ImageMissing { .. }), "{text}");
        assert!(text.contains("log in first") && !text.contains("hush"), "{text}");
    }
    // This registry has no token server.
    let identity = Some(Credentials::IdentityToken("hush".into()));
    let error = collect_images(host.runtime.pull_image(&name, identity)).await.unwrap_err();
    assert!(error.to_string().contains("takes no identity tokens"), "{error}");
    let images = collect_images(host.runtime.pull_image(&name, password(PASSWORD))).await.unwrap();
    assert_eq!(images[0].references, [name]);
}

async fn what_no_registry_has_is_named(registry: Registry) {
    let host = Host::new().await;
    for name in ["nothing:1", "a/b/c:latest"] {
        let name = registry.name(name);
        match pull(&host, &name).await.unwrap_err() {
            RuntimeError::ImageMissing { reference, detail } => {
                assert_eq!(reference, name);
                assert!(detail.contains(&format!("127.0.0.1:{}", registry.port)), "{detail}");
            }
            other => panic!("{other:?}"),
        }
    }
    let begin = Instant::now();
    let error = pull(&host, "127.0.0.1:1/x:1").await.unwrap_err();
    assert!(matches!(error, RuntimeError::Failed { .. }), "{error}");
    assert!(begin.elapsed() < Duration::from_secs(30));
    let error = pull(&host, "Not A Name").await.unwrap_err();
    assert!(matches!(error, RuntimeError::Invalid { field: "image", .. }), "{error}");
}
