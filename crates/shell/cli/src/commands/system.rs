//! `shoal info`, `version`, `completion` and `system dial-stdio`.
//!
//! Owns: their texts, docker's where it has one.
//! Does not know: how a daemon counts.
//! Invariant: `version` prints the client's part even when no daemon answers.

use std::io::{self, IsTerminal, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use clap_complete::Shell;
use serde_json::{Value as Json, json};
use types::ClusterSpec;
use wire::v1;

use super::{id_text, print, print_one};
use crate::args::system::System;
use crate::client::{self, Daemon, Host};
use crate::error::CliError;
use crate::output::human;
use crate::{Build, command};

pub(super) fn completion(build: Build, shell: Shell) -> Result<(), CliError> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(build), "shoal", &mut script);
    io::stdout().write_all(&script)?;
    Ok(())
}

/// Copies between standard input and output and the socket, for an ssh on the other side.
pub(super) fn dial(host: &Host, command: &System) -> Result<(), CliError> {
    let System::DialStdio = command;
    let path = host
        .socket()
        .ok_or_else(|| CliError::usage("--host", "dial-stdio needs a unix:// socket"))?;
    if io::stdin().is_terminal() {
        return Err(CliError::usage("dial-stdio", "is for programs, not for a terminal"));
    }
    let failed = |source: io::Error| {
        CliError::failed(format!("cannot connect to unix://{}: {source}", path.display()))
    };
    let socket = UnixStream::connect(path).map_err(failed)?;
    let to = socket.try_clone().map_err(failed)?;
    // It ends with the process: the other direction decides when the command is over.
    drop(std::thread::spawn(move || {
        drop(copy(&mut io::stdin().lock(), &mut &to));
        drop(to.shutdown(Shutdown::Write));
    }));
    copy(&mut &socket, &mut io::stdout().lock())?;
    Ok(())
}

/// Flushes after each piece: what is buffered here would be waited for over there.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => {
                to.write_all(&buffer[..length])?;
                to.flush()?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

pub(super) async fn version(
    build: Build,
    host: &Host,
    format: Option<&str>,
) -> Result<(), CliError> {
    let mut server = None;
    let mut failure = None;
    match client::connect(host).await {
        Ok(mut daemon) => match daemon.local.version(v1::VersionRequest {}).await {
            Ok(answer) => server = Some(answer.into_inner()),
            Err(status) => failure = Some(CliError::from(status)),
        },
        Err(error) => failure = Some(error),
    }
    match format {
        Some(format) => print_one(format, &version_json(build, server.as_ref()))?,
        None => print(&version_text(build, server.as_ref()))?,
    }
    failure.map_or(Ok(()), Err)
}

fn version_json(build: Build, server: Option<&v1::VersionResponse>) -> Json {
    let server = server.map(|server| {
        json!({
            "Version": server.version, "GitCommit": server.commit, "Os": server.os,
            "Arch": server.architecture, "KernelVersion": server.kernel,
            "ProtocolVersion": server.protocol,
        })
    });
    json!({
        "Client": {
            "Version": build.version, "GitCommit": build.commit,
            "Os": std::env::consts::OS, "Arch": std::env::consts::ARCH,
        },
        "Server": server,
    })
}

fn version_text(build: Build, server: Option<&v1::VersionResponse>) -> String {
    let mut lines = vec![
        "Client: Shoal".to_owned(),
        format!(" Version:           {}", build.version),
        format!(" Git commit:        {}", build.commit),
        format!(" OS/Arch:           {}/{}", std::env::consts::OS, std::env::consts::ARCH),
    ];
    if let Some(server) = server {
        lines.extend([
            String::new(),
            "Server: Shoal".to_owned(),
            format!(" Version:           {}", server.version),
            format!(" Protocol version:  {}", server.protocol),
            format!(" Git commit:        {}", server.commit),
            format!(" OS/Arch:           {}/{}", server.os, server.architecture),
            format!(" Kernel:            {}", server.kernel),
        ]);
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

pub(super) async fn info(
    daemon: &mut Daemon,
    build: Build,
    format: Option<&str>,
) -> Result<(), CliError> {
    let info = daemon.local.info(v1::InfoRequest {}).await?.into_inner();
    match format {
        Some(format) => print_one(format, &info_json(&info))?,
        None => print(&info_text(&info, build))?,
    }
    for warning in &info.warnings {
        eprintln!("WARNING: {warning}");
    }
    Ok(())
}

fn state(info: &v1::InfoResponse) -> &'static str {
    match info.state() {
        v1::LocalState::Active => "active",
        v1::LocalState::Pending => "pending",
        v1::LocalState::Error => "error",
        v1::LocalState::Locked => "locked",
        v1::LocalState::Inactive | v1::LocalState::Unspecified => "inactive",
    }
}

fn info_json(info: &v1::InfoResponse) -> Json {
    let managers: Vec<Json> =
        info.manager_addresses.iter().map(|address| json!({ "Addr": address })).collect();
    let cluster = info.spec.clone().map(|spec| {
        json!({
            "ID": id_text(&info.cluster_id), "Spec": view::cluster_spec(&spec.into()),
            "DataPathPort": info.data_path_port, "EncryptionPorts": info.encryption_ports,
            "DefaultAddrPool": info.address_pools, "SubnetSize": info.address_pool_mask,
        })
    });
    json!({
        "Name": info.hostname, "ServerVersion": info.version, "ShoalRootDir": info.data_dir,
        "NCPU": info.cpus, "MemTotal": info.memory_bytes, "KernelVersion": info.kernel,
        "OSType": info.os, "Architecture": info.architecture, "CgroupVersion": info.cgroup_version,
        "ContainersRunning": info.containers_running, "Images": info.images,
        "MetricsAddress": info.metrics_address,
        "Swarm": {
            "NodeID": id_text(&info.node_id), "NodeAddr": info.node_address,
            "LocalNodeState": state(info), "ControlAvailable": info.manager, "Error": info.error,
            "RemoteManagers": managers, "Nodes": info.nodes, "Managers": info.managers,
            "Cluster": cluster,
        },
        "Warnings": info.warnings,
    })
}

fn info_text(info: &v1::InfoResponse, build: Build) -> String {
    let mut lines = vec![
        "Client: Shoal".to_owned(),
        format!(" Version:    {}", build.version),
        String::new(),
        "Server:".to_owned(),
        format!(" Containers Running: {}", info.containers_running),
        format!(" Images: {}", info.images),
        format!(" Server Version: {}", info.version),
        format!(" Cgroup Version: {}", info.cgroup_version),
    ];
    lines.extend(swarm_lines(info));
    lines.extend([
        format!(" Kernel Version: {}", info.kernel),
        format!(" OSType: {}", info.os),
        format!(" Architecture: {}", info.architecture),
        format!(" CPUs: {}", info.cpus),
        format!(" Total Memory: {}", human::memory(info.memory_bytes)),
        format!(" Name: {}", info.hostname),
        format!(" Shoal Root Dir: {}", info.data_dir),
    ]);
    if !info.metrics_address.is_empty() {
        lines.push(format!(" Metrics Address: {}", info.metrics_address));
    }
    lines.iter().map(|line| format!("{line}\n")).collect()
}

fn swarm_lines(info: &v1::InfoResponse) -> Vec<String> {
    let mut lines = vec![format!(" Swarm: {}", state(info))];
    if state(info) == "inactive" {
        return lines;
    }
    lines.push(format!("  NodeID: {}", id_text(&info.node_id)));
    if !info.error.is_empty() {
        lines.push(format!("  Error: {}", info.error));
    }
    lines.push(format!("  Is Manager: {}", info.manager));
    if let (true, Some(spec)) = (info.manager, info.spec.clone()) {
        let spec = ClusterSpec::from(spec);
        lines.extend([
            format!("  ClusterID: {}", id_text(&info.cluster_id)),
            format!("  Managers: {}", info.managers),
            format!("  Nodes: {}", info.nodes),
            format!("  Data Path Port: {}", info.data_path_port),
            format!("  Encryption Ports: {}", joined(&info.encryption_ports)),
            "  Orchestration:".to_owned(),
            format!("   Task History Retention Limit: {}", spec.task_history_limit),
            "  Raft:".to_owned(),
            format!("   Snapshot Interval: {}", spec.snapshot_interval),
            format!("   Number of Old Snapshots to Retain: {}", spec.snapshots_kept),
            "  Dispatcher:".to_owned(),
            format!("   Heartbeat Period: {}", human::go_duration(spec.dispatcher_heartbeat)),
            "  CA Configuration:".to_owned(),
            format!("   Expiry Duration: {}", human::go_duration(spec.certificate_expiry)),
            format!("  Autolock Managers: {}", spec.autolock),
        ]);
    }
    lines.push(format!("  Node Address: {}", info.node_address));
    lines.push("  Manager Addresses:".to_owned());
    lines.extend(info.manager_addresses.iter().map(|address| format!("   {address}")));
    lines
}

fn joined(ports: &[u32]) -> String {
    ports.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: Build = Build { version: "1", commit: "c" };

    #[test]
    fn a_node_outside_a_cluster_says_so() {
        let info = v1::InfoResponse { hostname: "h".into(), ..v1::InfoResponse::default() };
        let text = info_text(&info, BUILD);
        assert!(text.contains("\n Swarm: inactive\n") && !text.contains("NodeID"), "{text}");
        assert_eq!(info_json(&info)["Swarm"]["LocalNodeState"], "inactive");
    }

    #[test]
    fn a_manager_shows_its_cluster() {
        let info = v1::InfoResponse {
            state: v1::LocalState::Active.into(),
            manager: true,
            nodes: 3,
            encryption_ports: vec![4793, 4794],
            spec: Some((&ClusterSpec::default()).into()),
            ..v1::InfoResponse::default()
        };
        let text = info_text(&info, BUILD);
        for line in [
            "  Nodes: 3",
            "  Encryption Ports: 4793, 4794",
            "   Heartbeat Period: 5s",
            "   Expiry Duration: 2160h0m0s",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
