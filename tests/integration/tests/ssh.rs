//! A daemon on another host, through a real ssh: `-H ssh://…`.
//!
//! The server is a private one, in a host's network namespace, with keys and configuration of its
//! own. Where openssh-server is not installed nothing is tested, and that is said: the package
//! would start a server of the machine's own.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use integration::{Answer, Host, IMAGE, LONG, Lab, SHORT, booted, program, wait_until};

const SERVER: &str = "/usr/sbin/sshd";
const PORT: u16 = 2222;

#[test]
fn a_daemon_on_another_host_is_reached_through_ssh() {
    if !Path::new(SERVER).exists() {
        println!("not tested: {SERVER} is not there (package openssh-server)");
        return;
    }
    let lab = booted(2).unwrap();
    let (far, near) = (lab.host(1), lab.host(2));
    let ssh = Ssh::start(&lab, far);

    // Everything goes over it: writes, texts, and an image's megabytes.
    ssh.shoal(near, PORT, &["swarm", "init", "--advertise-addr", far.address()]).ok().unwrap();
    let archive = lab.folder().join("whoami.tar");
    let whoami = program("whoami", "WHOAMI_BIN", true).unwrap();
    assert!(Command::new(whoami).arg("image").arg(&archive).status().unwrap().success());
    ssh.shoal(near, PORT, &["image", "load", "-q", "-i", archive.to_str().unwrap()]).ok().unwrap();
    let create = ["service", "create", "--name", "web", "--wait-timeout", "1m", IMAGE];
    ssh.shoal(near, PORT, &create).ok().unwrap();
    far.wait_for_running("web", 1, LONG).unwrap();
    let listed = ssh.shoal(near, PORT, &["node", "ls", "--format", "{{.Hostname}}"]).ok();
    assert_eq!(listed.unwrap(), "h1\n");

    // What goes wrong on the way keeps its exit code and its words.
    let refused = ssh.shoal(near, PORT, &["service", "inspect", "nosuch"]);
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("nosuch"), "{refused:?}");
    let nobody = ssh.shoal(near, PORT + 1, &["node", "ls"]);
    assert_eq!(nobody.code, 1, "{nobody:?}");
    assert!(nobody.err.contains("ssh://root@10.254.0.1 does not answer"), "{nobody:?}");
    far.stop().unwrap();
    let away = ssh.shoal(near, PORT, &["node", "ls"]);
    assert_eq!(away.code, 1, "{away:?}");
    assert!(away.err.contains("cannot connect to unix://"), "{away:?}");

    // No command leaves a process behind on the far side.
    wait_until("the end of the far side's commands", SHORT, || Ok(!is_dialled(far)?)).unwrap();
}

/// Whether a `shoal system dial-stdio` runs for this host.
fn is_dialled(host: &Host) -> anyhow::Result<bool> {
    let socket = host.socket().display().to_string();
    for entry in fs::read_dir("/proc")?.flatten() {
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let has = |bytes: &[u8], text: &str| String::from_utf8_lossy(bytes).contains(text);
        if has(&read("cmdline"), "dial-stdio") && has(&read("environ"), &socket) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A server on a host and the way to it.
struct Ssh {
    server: Child,
    /// A folder whose `ssh` is the real one with our keys.
    path: PathBuf,
}

impl Ssh {
    fn start(lab: &Lab, far: &Host) -> Self {
        let folder = lab.folder().join("ssh");
        fs::create_dir_all(&folder).unwrap();
        // Separation of privileges wants it; the package's unit makes it at boot.
        fs::create_dir_all("/run/sshd").unwrap();
        for name in ["host", "user"] {
            let key = folder.join(name);
            let args = ["-q", "-t", "ed25519", "-N", "", "-f"];
            assert!(Command::new("ssh-keygen").args(args).arg(key).status().unwrap().success());
        }
        let shoal = program("shoal", "SHOAL_BIN", false).unwrap();
        let public = fs::read_to_string(folder.join("user.pub")).unwrap();
        // The far side's `shoal` and its socket are found as they would be by their defaults.
        let line = format!(
            "command=\"PATH={}:$PATH SHOAL_HOST=unix://{} sh -c \\\"$SSH_ORIGINAL_COMMAND\\\"\" \
             {public}",
            shoal.parent().unwrap().display(),
            far.socket().display(),
        );
        fs::write(folder.join("authorized"), line).unwrap();
        let (dir, address) = (folder.display(), far.address());
        let config = format!(
            "Port {PORT}\nListenAddress {address}\nHostKey {dir}/host\nPidFile none\n\
             AuthorizedKeysFile {dir}/authorized\nPermitRootLogin prohibit-password\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\n\
             StrictModes no\n"
        );
        fs::write(folder.join("sshd_config"), config).unwrap();
        let client = format!(
            "Host *\n  IdentityFile {dir}/user\n  IdentitiesOnly yes\n  BatchMode yes\n  \
             StrictHostKeyChecking accept-new\n  UserKnownHostsFile {dir}/known\n  LogLevel ERROR\n"
        );
        fs::write(folder.join("ssh_config"), client).unwrap();
        let path = folder.join("bin");
        fs::create_dir_all(&path).unwrap();
        let script = format!("#!/bin/sh\nexec /usr/bin/ssh -F {dir}/ssh_config \"$@\"\n");
        fs::write(path.join("ssh"), script).unwrap();
        fs::set_permissions(path.join("ssh"), fs::Permissions::from_mode(0o755)).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let server = Command::new("nsenter")
            .arg(format!("--net=/run/netns/{}", far.namespace()))
            .args([SERVER, "-D", "-e", "-f"])
            .arg(folder.join("sshd_config"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let port = format!("exec 3<>/dev/tcp/{address}/{PORT}");
        wait_until("the ssh server", SHORT, || Ok(far.inside("bash", &["-c", &port])?.code == 0))
            .unwrap();
        Self { server, path }
    }

    /// Runs `shoal` on `near` against the daemon behind the server.
    fn shoal(&self, near: &Host, port: u16, args: &[&str]) -> Answer {
        let shoal = program("shoal", "SHOAL_BIN", false).unwrap();
        let path = format!("PATH={}:/usr/bin:/bin", self.path.display());
        let url = format!("ssh://root@10.254.0.1:{port}");
        let words = [&path, shoal.to_str().unwrap(), "-H", &url];
        near.inside("env", &[&words[..], args].concat()).unwrap()
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        drop(self.server.kill());
        drop(self.server.wait());
    }
}
