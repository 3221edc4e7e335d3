//! Creation of a container: everything on disk, nothing running.
//!
//! Owns: the check of its configuration and the files of its directory.
//! Does not know: phases and shims.
//! Invariant: the directory gets its name only when it is complete, so a container is either there
//! or not. Nothing is synced: after a power cut every container is lost anyway, and a record that
//! cannot be read counts as none.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use ports::runtime::{ContainerConfig, RuntimeError};
use shim::files;
use shim::launch::Launch;

use crate::capability;
use crate::container::{Container, ContainerRecord, Phase};
use crate::fail::{failed, invalid, io_failed, refused};
use crate::image::{ImageConfig, StoredImage};
use crate::spec::{Place, Program, build_spec, resolve_program};
use crate::{Inner, RECORD, hostfiles, now_ms, seccomp};

/// Makes the container unless it is there. Blocks.
pub(crate) fn create(inner: &Inner, config: &ContainerConfig) -> Result<(), RuntimeError> {
    check_id(&config.id)?;
    if inner.container(&config.id).is_some() {
        return Ok(());
    }
    let config = with_hostname(config)?;
    let image = inner.store.find(&config.image)?.ok_or_else(|| RuntimeError::ImageMissing {
        reference: config.image.clone(),
        detail: String::new(),
    })?;
    let image_config = ImageConfig::parse(image.config_json.as_bytes())?;
    let program = resolve_program(&config, &image_config)?;
    let capabilities = capability::resolve(&config.cap_add, &config.cap_drop)
        .map_err(|name| invalid("capabilities", format!("{name:?} is not a capability")))?;
    let record = ContainerRecord {
        format: files::FORMAT,
        id: config.id.clone(),
        name: config.name.clone(),
        image_id: image.id.clone(),
        layers: image.layers.clone(),
        stop_signal: program.stop_signal,
        cgroup: inner.options.instance_group().join(&config.id),
        boot_id: inner.boot_id.clone(),
        created_at_ms: now_ms(),
    };
    let launch = build_launch(inner, &config, &image, &program, capabilities, &record)?;
    write_directories(inner, &config, &program, &record, &launch)?;
    let (dir, run_dir) = (inner.container_dir(&config.id), inner.container_run_dir(&config.id));
    let cgroups = inner.cgroups.clone();
    inner.insert(Container::new(record, dir, run_dir, cgroups, Phase::Created));
    Ok(())
}

fn check_id(id: &str) -> Result<(), RuntimeError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if id.is_empty() || id.len() > 64 || !id.bytes().all(allowed) || id == shim::SHIMS_GROUP {
        return Err(invalid("id", format!("{id:?} must be 1 to 64 letters, digits, - and _")));
    }
    Ok(())
}

/// Docker's default is the beginning of the id.
fn with_hostname(config: &ContainerConfig) -> Result<ContainerConfig, RuntimeError> {
    let mut config = config.clone();
    if config.hostname.is_empty() {
        config.hostname = config.id.chars().take(12).collect();
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if config.hostname.len() > HOSTNAME_BYTES_MAX || !config.hostname.bytes().all(allowed) {
        return Err(invalid(
            "hostname",
            format!("{:?} must be at most 64 letters, digits, -, _ and dots", config.hostname),
        ));
    }
    Ok(config)
}

fn build_launch(
    inner: &Inner,
    config: &ContainerConfig,
    image: &StoredImage,
    program: &Program,
    capabilities: u64,
    record: &ContainerRecord,
) -> Result<Launch, RuntimeError> {
    let mut layers = inner.store.layer_links(&image.layers)?;
    if layers.is_empty() {
        // Overlayfs wants a lower directory: an image without layers gets its own empty one.
        layers.push(inner.container_dir(&config.id).join(EMPTY_LAYER).display().to_string());
    }
    Ok(Launch {
        format: files::FORMAT,
        id: config.id.clone(),
        run_dir: inner.container_run_dir(&config.id),
        cgroup: record.cgroup.clone(),
        layers_dir: inner.store.layers_dir(),
        layers,
        seccomp: filter(inner, capabilities)?,
        capabilities,
        user: program.user.clone(),
        groups: config.groups.clone(),
        log_file_bytes: config.log_file_bytes,
        log_files: config.log_files,
    })
}

/// The compiled filter for these capabilities, made once.
fn filter(inner: &Inner, capabilities: u64) -> Result<PathBuf, RuntimeError> {
    let mut filters = inner.filters.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(path) = filters.get(&capabilities) {
        return Ok(path.clone());
    }
    let machine = seccomp::Machine::current().ok_or_else(|| {
        refused("compile the system call filter", "this machine's architecture is not supported")
    })?;
    let bytes = seccomp::to_bytes(&seccomp::compile(machine, capabilities));
    // The name holds the content's digest, so that a later release does not use an old filter.
    let digest = crate::image::unpack::digest_of(&bytes);
    let name = format!("{}.bpf", &digest["sha256:".len()..][..32]);
    let path = inner.options.run_dir.join(crate::FILTERS_DIR).join(name);
    files::write_atomic(&path, &bytes).map_err(io_failed("write the system call filter", &path))?;
    filters.insert(capabilities, path.clone());
    Ok(path)
}

fn write_directories(
    inner: &Inner,
    config: &ContainerConfig,
    program: &Program,
    record: &ContainerRecord,
    launch: &Launch,
) -> Result<(), RuntimeError> {
    let run_dir = &launch.run_dir;
    make_dir(run_dir).map_err(io_failed("make the container's run directory", run_dir))?;
    let dir = inner.container_dir(&config.id);
    let place = Place { dir: &dir, cgroup: &record.cgroup, swap_limit: swap_can_be_limited(inner) };
    let spec = build_spec(config, program, &place)?;
    let staging = inner.store.ingest_path()?;
    let written = write_files(&staging, config, record, launch)
        .map_err(io_failed("write the container's files", &staging))
        .and_then(|()| {
            spec.save(staging.join(files::SPEC))
                .map_err(|error| failed("write the configuration", &error))
        });
    let renamed = written.and_then(|()| match fs::rename(&staging, &dir) {
        // Somebody else made it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {
            inner.store.discard(&staging);
            Ok(())
        }
        other => other.map_err(io_failed("name the container's directory", &dir)),
    });
    if renamed.is_err() {
        inner.store.discard(&staging);
    }
    renamed
}

fn write_files(
    dir: &Path,
    config: &ContainerConfig,
    record: &ContainerRecord,
    launch: &Launch,
) -> io::Result<()> {
    for name in [files::ROOTFS, "upper", "work", EMPTY_LAYER] {
        fs::create_dir(dir.join(name))?;
    }
    // The container's root directory takes its mode from the upper one.
    fs::set_permissions(dir.join("upper"), fs::Permissions::from_mode(0o755))?;
    if !config.netns.as_os_str().is_empty() {
        // The runtime's own words do not say which file is missing.
        fs::metadata(&config.netns).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", config.netns.display()))
        })?;
    }
    let resolv_conf = config.resolv_conf.clone().unwrap_or_else(hostfiles::resolv_conf);
    for (name, text) in [
        ("hosts", hostfiles::hosts(&config.hosts)),
        ("hostname", format!("{}\n", config.hostname)),
        ("resolv.conf", resolv_conf),
    ] {
        let path = dir.join(name);
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    }
    fs::write(dir.join(files::LAUNCH), serde_json::to_vec(launch)?)?;
    fs::write(dir.join(RECORD), serde_json::to_vec(record)?)
}

/// Some kernels count no swap, and refuse a limit that names it.
fn swap_can_be_limited(inner: &Inner) -> bool {
    let root = Path::new("/sys/fs/cgroup");
    if !inner.cgroups.is_unified() {
        return root.join("memory/memory.memsw.limit_in_bytes").exists();
    }
    // The root group has no such file, but any other with the controller has.
    fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.path().join("memory.swap.max").exists())
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

const EMPTY_LAYER: &str = "empty";

/// The kernel's limit.
const HOSTNAME_BYTES_MAX: usize = 64;
