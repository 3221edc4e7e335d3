//! Loading, listing and removing images.

use std::io::Write;

use ports::runtime::{ContainerConfig, Runtime, RuntimeError};

use crate::support::{
    Host, IMAGE, append, base_layer, block_on, config_json, digest, eventually, image_archive,
    shell,
};

pub(crate) const TESTS: &[crate::Test] = &[
    ("archives_of_every_form_are_loaded", || block_on(archives_of_every_form_are_loaded())),
    ("layers_are_shared_hidden_and_swept", || block_on(layers_are_shared_hidden_and_swept())),
    ("bad_archives_are_refused", || block_on(bad_archives_are_refused())),
];

fn layer(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut layer = tar::Builder::new(Vec::new());
    for (path, data) in entries {
        append(&mut layer, tar::EntryType::Regular, path, 0o644, data);
    }
    layer.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An OCI archive with one image; layers are compressed.
fn oci_archive(layers: &[&Vec<u8>], name: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut blob = |bytes: &[u8]| {
        let digest = digest(bytes);
        let path = format!("blobs/{}", digest.replace(':', "/"));
        append(&mut archive, tar::EntryType::Regular, &path, 0o644, bytes);
        serde_json::json!({ "digest": digest, "size": bytes.len() })
    };
    let mut config = config_json();
    let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
    config["rootfs"] = serde_json::json!({ "type": "layers", "diff_ids": diff_ids });
    let config = blob(&serde_json::to_vec(&config).unwrap());
    let layers: Vec<_> = layers.iter().map(|layer| blob(&gzip(layer))).collect();
    let manifest = serde_json::json!({ "schemaVersion": 2, "config": config, "layers": layers });
    let mut entry = blob(&serde_json::to_vec(&manifest).unwrap());
    entry["mediaType"] = "application/vnd.oci.image.manifest.v1+json".into();
    entry["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": name });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [entry] });
    let file = tar::EntryType::Regular;
    append(&mut archive, file, "index.json", 0o644, &serde_json::to_vec(&index).unwrap());
    append(&mut archive, file, "oci-layout", 0o644, b"{\"imageLayoutVersion\":\"1.0.0\"}");
    archive.into_inner().unwrap()
}

async fn archives_of_every_form_are_loaded() {
    let host = Host::new().await;
    let base = base_layer();
    let top = layer(&[("marker", b"on top\n")]);
    let docker = image_archive(&[&base, &top], &["x/docker:1", "x/docker:2"], config_json());
    for (name, archive) in [
        ("x/docker:2", docker.clone()),
        ("x/docker:1", gzip(&docker)),
        ("x/docker:1", zstd::encode_all(docker.as_slice(), 1).unwrap()),
        ("x/oci:v1", oci_archive(&[&base, &top], "docker.io/x/oci:v1")),
    ] {
        let images = host.load(archive).await.unwrap();
        assert_eq!(images.len(), 1);
        let found = host.runtime.find_image(name).await.unwrap().unwrap();
        assert_eq!(found.id, images[0].id);
        assert_eq!(found.created, Some(base::Timestamp(1_767_323_045_000)));
    }
    let images = host.runtime.list_images().await.unwrap();
    let by_name = |name: &str| images.iter().find(|i| i.references.iter().any(|r| r == name));
    let image = by_name("docker.io/x/docker:1").unwrap();
    assert!(image.references.contains(&"docker.io/x/oci:v1".to_owned()), "{image:?}");
    let short = &image.id["sha256:".len()..][..12];
    assert_eq!(host.runtime.find_image(short).await.unwrap().unwrap().id, image.id);
    let config = ContainerConfig { image: "x/oci:v1".into(), ..shell("a", "cat /marker") };
    assert_eq!(host.run(&config).await.1, "on top\n");
}

async fn layers_are_shared_hidden_and_swept() {
    let mut host = Host::new().await;
    let base = base_layer();
    let middle = layer(&[("dir/one", b"1"), ("dir/two", b"2"), ("file", b"x")]);
    let top = layer(&[("dir/.wh.one", b""), (".wh.file", b""), ("dir/three", b"3")]);
    let archive = image_archive(&[&base, &middle, &top], &["x/y:1"], config_json());
    host.load(archive).await.unwrap();
    let layers_dir = host.data_dir().join("layers");
    let layers = || {
        let entries = std::fs::read_dir(&layers_dir).unwrap();
        entries.flatten().filter(|entry| entry.file_name() != "l").count()
    };
    assert_eq!(layers(), 4, "the base layer is shared");
    let config = ContainerConfig { image: "x/y:1".into(), ..shell("a", "ls /dir; ls /file") };
    let (_, output) = host.run(&config).await;
    assert!(output.starts_with("three\ntwo\n"), "{output}");

    let error = host.runtime.remove_image("x/y:1", false).await.unwrap_err();
    assert!(error.to_string().contains("used by container a"), "{error}");
    let lines = host.runtime.remove_image("x/y:1", true).await.unwrap();
    assert_eq!(lines[0], "Untagged: x/y:1");
    assert!(lines[1].starts_with("Deleted: sha256:"), "{lines:?}");
    assert_eq!(layers(), 4, "the container still holds them");
    host.runtime.remove("a").await.unwrap();
    eventually("unused layers are swept", async || layers() == 2).await;
    let missing = host.runtime.remove_image("x/y:1", false).await.unwrap_err();
    assert!(matches!(missing, RuntimeError::ImageMissing { .. }));

    // What no record names is gone after a start.
    std::fs::create_dir_all(host.data_dir().join("layers/unknown/fs")).unwrap();
    std::fs::create_dir_all(host.data_dir().join("ingest/half")).unwrap();
    host.reopen().await;
    assert!(!host.data_dir().join("layers/unknown").exists());
    assert_eq!(std::fs::read_dir(host.data_dir().join("ingest")).unwrap().count(), 0);
    let image = host.runtime.find_image(IMAGE).await.unwrap();
    assert!(image.is_some());
    assert_eq!(host.run(&shell("b", "echo still")).await.1, "still\n");
}

async fn bad_archives_are_refused() {
    let host = Host::new().await;
    let good = layer(&[("f", b"1")]);
    let other = layer(&[("f", b"2")]);
    let mut lying = config_json();
    lying["rootfs"] = serde_json::Value::Null;
    let archive = image_archive(&[&good], &["bad/a:1"], lying);
    // The same archive with another layer in it.
    let swapped = {
        let mut bytes = archive.clone();
        let at = bytes.windows(other.len()).position(|w| w == good).unwrap();
        bytes[at..at + other.len()].copy_from_slice(&other);
        bytes
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("no archive", b"hello".repeat(1000)),
        ("no image", layer(&[("readme", b"x")])),
        (
            "no layer",
            layer(&[(
                "manifest.json",
                br#"[{"Config":"c","RepoTags":["bad/b:1"],"Layers":["gone"]}]"#,
            )]),
        ),
        ("another layer", swapped),
        ("cut", archive[..700].to_vec()),
    ];
    for (name, bytes) in cases {
        let result = host.load(bytes).await;
        assert!(result.is_err(), "{name}");
        assert_eq!(host.runtime.list_images().await.unwrap().len(), 1, "{name}");
    }
    assert!(host.load(archive).await.is_ok());
    let ingest = std::fs::read_dir(host.data_dir().join("ingest")).unwrap().count();
    assert_eq!(ingest, 0, "nothing half-done stays");
}
