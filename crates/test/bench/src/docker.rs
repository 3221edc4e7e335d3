//! A private Docker Swarm: its own network namespace, socket, data and control groups.
//!
//! Owns: starting dockerd with nothing of the machine's own Docker, and ending it.
//! Does not know: what is measured.
//! Invariant: all it makes lies in its folder, its namespace and its control group, and goes when
//! it is dropped, also after a failure.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use integration::{Host, IMAGE, Lab};

use crate::create::{Swarm, until};

/// One manager, with the image loaded.
pub(crate) struct Docker {
    daemon: Child,
    folder: PathBuf,
    /// Dropped last: it ends what is left and removes it.
    lab: Lab,
}

impl Docker {
    /// `archives` is where a lab of ours has put the image.
    pub(crate) fn start(archives: &Path) -> Result<Self> {
        for program in ["dockerd", "docker"] {
            if !is_installed(program) {
                bail!("{program} is not installed: it is in the package docker.io");
            }
        }
        let lab = Lab::new(1)?;
        let folder = lab.folder().join("docker");
        fs::create_dir_all(&folder)?;
        let daemon = spawn(lab.host(1), &folder).context("cannot start dockerd")?;
        let mut docker = Self { daemon, folder, lab };
        docker.found(&archives.join("whoami.tar")).map_err(|error| {
            let log = fs::read_to_string(docker.folder.join("log")).unwrap_or_default();
            let last = log.lines().last().unwrap_or_default().to_owned();
            error.context(format!("dockerd's last words: {last}"))
        })?;
        Ok(docker)
    }

    fn found(&mut self, archive: &Path) -> Result<()> {
        until("an answer of dockerd", || {
            if let Some(status) = self.daemon.try_wait()? {
                bail!("dockerd ended with {status}");
            }
            Ok(self.docker(&["version"]).is_ok())
        })?;
        let address = self.lab.host(1).address();
        self.docker(&["swarm", "init", "--advertise-addr", address])?;
        let archive = archive.to_str().context("the folder's name is no text")?;
        self.docker(&["load", "-q", "-i", archive]).map(drop)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Of its daemon, which answers names too.
    pub(crate) fn pid(&self) -> Result<u32> {
        let text = fs::read_to_string(self.folder.join("pid"))?;
        text.trim().parse().with_context(|| format!("`{text}` is no process"))
    }

    pub(crate) fn docker(&self, args: &[&str]) -> Result<String> {
        let url = format!("unix://{}", self.folder.join("docker.sock").display());
        let output = Command::new("docker")
            .args(["-H", &url])
            .args(args)
            .env_remove("DOCKER_CONTEXT")
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            bail!("`docker {}`: {}", args.join(" "), error.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

fn is_installed(program: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths).any(|folder| folder.join(program).exists())
}

fn spawn(host: &Host, folder: &Path) -> Result<Child> {
    let log = File::create(folder.join("log"))?;
    let config = folder.join("daemon.json");
    // The machine's own /etc/docker/daemon.json is none of ours.
    fs::write(&config, "{}")?;
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{}", host.namespace())).arg("dockerd");
    command.arg("--config-file").arg(config);
    command.arg("--data-root").arg(folder.join("data"));
    command.arg("--exec-root").arg(folder.join("exec"));
    command.arg("--pidfile").arg(folder.join("pid"));
    command.arg("--host").arg(format!("unix://{}", folder.join("docker.sock").display()));
    command.arg("--cgroup-parent").arg(format!("/shoal-bench-{}", std::process::id()));
    // No rules: the namespace is its own, and nothing is published.
    command.args(["--iptables=false", "--ip6tables=false"]);
    command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
    Ok(command.spawn()?)
}

impl Swarm for Docker {
    fn create(&self, name: &str, replicas: usize) -> Result<()> {
        let count = replicas.to_string();
        // There is no registry to ask for the image's digest.
        let options = ["service", "create", "--no-resolve-image", "-d", "-q", "--name", name];
        self.docker(&[&options[..], &["--replicas", &count, IMAGE]].concat()).map(drop)
    }

    fn running(&self, name: &str) -> Result<usize> {
        let listed = self.docker(&["service", "ps", "--format", "{{.CurrentState}}", name])?;
        Ok(listed.lines().filter(|line| line.starts_with("Running")).count())
    }

    fn remove(&self, name: &str) -> Result<()> {
        self.docker(&["service", "rm", name])?;
        until("the end of docker's containers", || Ok(self.docker(&["ps", "-q"])?.is_empty()))
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        drop(self.docker(&["swarm", "leave", "--force"]));
        // It ends its containerd itself when it is asked to end; the lab ends what does not.
        let mut pid = String::new();
        let read = File::open(self.folder.join("pid")).and_then(|mut f| f.read_to_string(&mut pid));
        if read.is_ok() {
            drop(Command::new("kill").arg(pid.trim()).status());
            drop(until("dockerd's end", || Ok(self.daemon.try_wait()?.is_some())));
        }
        drop(self.daemon.kill());
        drop(self.daemon.wait());
    }
}
