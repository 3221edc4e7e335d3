//! Hosts and the network between them.
//!
//! Owns: namespaces, a bridge in one of its own, links, addresses, the folder of a test.
//! Does not know: clusters.
//! Invariant: dropping it stops what runs on its hosts and removes everything.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::cleanup;
use crate::command::tool;
use crate::host::Host;

/// Some hosts on one network.
pub struct Lab {
    switch: String,
    hosts: Vec<Host>,
    /// A host on the same network that never has a daemon.
    client: Option<Host>,
    folder: TempDir,
}

impl Lab {
    /// Makes `count` hosts, without daemons.
    ///
    /// # Errors
    /// When this is not root or a tool is missing; the message names it.
    pub fn new(count: usize) -> Result<Self> {
        if !nix::unistd::geteuid().is_root() {
            bail!("integration tests need root: they make network namespaces");
        }
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("shoal-it-{}-{number}", std::process::id());
        let folder = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir()?;
        let switch = format!("{name}-switch");
        tool("ip", &["netns", "add", &switch])?;
        let mut lab = Self { switch, hosts: Vec::new(), client: None, folder };
        tool("ip", &["-n", &lab.switch, "link", "add", "br0", "type", "bridge"])?;
        tool("ip", &["-n", &lab.switch, "link", "set", "br0", "up"])?;
        for index in 1..=count {
            lab.add_host(&name, index)?;
        }
        Ok(lab)
    }

    /// Adds a host outside of every cluster.
    ///
    /// # Errors
    /// When a tool fails.
    pub fn add_client(&mut self) -> Result<()> {
        let name = self.switch.trim_end_matches("-switch").to_owned();
        self.add_host(&name, CLIENT)?;
        self.client = self.hosts.pop();
        Ok(())
    }

    /// The host outside of the cluster.
    ///
    /// # Panics
    /// When none was added.
    #[must_use]
    pub fn client(&self) -> &Host {
        self.client.as_ref().expect("add_client was called")
    }

    fn add_host(&mut self, name: &str, index: usize) -> Result<()> {
        let namespace = format!("{name}-{index}");
        let address = format!("10.254.0.{index}");
        let port = format!("port{index}");
        tool("ip", &["netns", "add", &namespace])?;
        // From here on the host is removed with the lab.
        let folder = self.folder.path().join(index.to_string());
        self.hosts.push(Host::new(
            format!("h{index}"),
            namespace.clone(),
            address.clone(),
            folder,
            (self.switch.clone(), port.clone()),
        )?);
        let ns = namespace.as_str();
        tool("ip", &["-n", ns, "link", "set", "lo", "up"])?;
        let add = ["-n", &self.switch, "link", "add", &port, "type", "veth"];
        tool("ip", &[&add[..], &["peer", "name", "eth0", "netns", ns]].concat())?;
        tool("ip", &["-n", &self.switch, "link", "set", &port, "master", "br0", "up"])?;
        tool("ip", &["-n", ns, "addr", "add", &format!("{address}/24"), "dev", "eth0"])?;
        let v6 = format!("{}/64", v6_address(index));
        tool("ip", &["-n", ns, "addr", "add", &v6, "dev", "eth0", "nodad"])?;
        tool("ip", &["-n", ns, "link", "set", "eth0", "up"])?;
        Ok(())
    }

    /// The namespace of what lies between the hosts.
    pub(crate) fn switch_netns(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.switch)
    }

    /// The host `number`, from one.
    #[must_use]
    pub fn host(&self, number: usize) -> &Host {
        &self.hosts[number - 1]
    }

    #[must_use]
    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// The folder of everything that the hosts keep.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() || std::env::var_os("SHOAL_TEST_LOGS").is_some() {
            for host in &self.hosts {
                eprintln!("--- log of {}\n{}", host.name(), host.log_tail(40));
            }
        }
        for host in &self.hosts {
            host.kill_quietly();
        }
        cleanup::everything_below(self.folder.path());
        for host in self.hosts.iter().chain(&self.client) {
            cleanup::namespace(host.namespace());
        }
        cleanup::namespace(&self.switch);
    }
}

/// The program `name`: named by the variable, or built into the folder of this program's build.
///
/// # Errors
/// When it is not built.
pub fn program(name: &str, variable: &str, is_static: bool) -> Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("this program has no path")?;
    let folder = own.parent().context("this program lies in no folder")?;
    // Tests lie one folder deeper than programs.
    let build = if folder.ends_with("deps") { folder.parent() } else { Some(folder) };
    let build = build.context("this test lies in no build folder")?;
    let target = build.parent().context("the build folder has no parent")?;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let profile = build.file_name().context("the build folder has no name")?;
    let path =
        if is_static { target.join(triple).join(profile).join(name) } else { build.join(name) };
    if !path.exists() {
        bail!("{} is not built: run `./test build`, or name it with {variable}", path.display());
    }
    Ok(path)
}

/// The IPv6 address of a host, beside its other one.
pub(crate) fn v6_address(index: usize) -> String {
    format!("fd54:5348::{index}")
}

/// The number of the host outside of the cluster.
const CLIENT: usize = 200;

static COUNTER: AtomicU32 = AtomicU32::new(1);
